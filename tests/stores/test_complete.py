"""Finished files of a folder that somebody removes, shortens or replaces while the run goes on: no output, one line,
and --resume makes them again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import contents, made
from making import Ran, run
from remote_parts import s3_server

from quantcli.stores.complete import CompleteFile
from quantcli.stores.folder import OutputFolder
from quantcli.stores.remote import bucket, s3
from quantcli.stores.remote.spool import SpooledFolder

SHARD = "model-00002-of-00004.safetensors"


def _replaced(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"x" * size)


def _linked(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "cut short": lambda path: os.truncate(path, 100),
    "replaced": _replaced,
    "overwritten": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "a link": _linked,
}


def refused(ran: Ran) -> str:
    """The last line of a run that failed, before which stands at most where its finished files are."""
    assert ran.code == 1 and ran.out == "", ran
    *before, last = ran.err.splitlines()
    assert [line.split(": ")[1][:14] for line in before] in ([], ["finished files"]), ran.err
    return last


def before_publishing(monkeypatch: pytest.MonkeyPatch, kind: Any, act: Callable[[Any], object]) -> None:
    """Have something happen to a folder once, when all files are made and it is about to get its name."""
    publish = kind.publish

    def changed(self: Any) -> None:
        monkeypatch.setattr(kind, "publish", publish)
        act(self)
        publish(self)

    monkeypatch.setattr(kind, "publish", changed)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "model")


@pytest.mark.parametrize("name", [SHARD, "config.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_changed_while_the_run_went_on(name: str, damage: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("quantize", model, "-o", "whole", "-q").code == 0
    before_publishing(monkeypatch, OutputFolder, lambda out: DAMAGE[damage](Path(out.temp, name)))
    said = refused(run("quantize", model, "-o", "out", "-q"))
    assert f"out/{name}: the finished file was removed or changed by another process" in said, said
    assert not Path("out").exists()
    ran = run("quantize", model, "-o", "out", "--resume")
    assert ran.code == 0, ran.err
    assert (f"{SHARD} of the interrupted run is damaged and was written again" in ran.err) == (name == SHARD)
    assert contents(Path("out")) == contents(Path("whole"))


def test_changed_in_a_resumed_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the earlier run that was found intact is watched like one of this run."""
    before_publishing(monkeypatch, OutputFolder, lambda out: os.unlink(Path(out.temp, "config.json")))
    assert run("quantize", model, "-o", "out").code == 1
    before_publishing(monkeypatch, OutputFolder, lambda out: os.unlink(Path(out.temp, SHARD)))
    assert SHARD in refused(run("quantize", model, "-o", "out", "--resume", "-q"))
    assert not Path("out").exists()


def test_renamed_shards(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are cut anew are numbered at the end."""

    def removed(out: Any) -> None:
        os.unlink(sorted(Path(out.temp).glob("*.safetensors"))[-1])

    before_publishing(monkeypatch, OutputFolder, removed)
    said = refused(run("quantize", model, "-o", "out", "--max-shard-size", "30kB", "-q"))
    assert "-of-" in said and not Path("out").exists()


@pytest.mark.parametrize("words", [("export", "--to", "compressed-tensors"), ("dequantize",)])
def test_other_commands(words: tuple[str, ...], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("quantize", model, "-o", "native", "-q").code == 0

    def removed(out: Any) -> None:
        os.unlink(next(Path(out.temp).glob("*.safetensors")))

    before_publishing(monkeypatch, OutputFolder, removed)
    said = refused(run(words[0], "native", *words[1:], "-o", "out", "-q"))
    assert "removed or changed" in said and not Path("out").exists()


def test_parts_and_merge(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(out: Any) -> None:
        os.unlink(next(Path(out.temp).glob("*.safetensors")))

    before_publishing(monkeypatch, OutputFolder, removed)
    assert "removed or changed" in refused(run("quantize", model, "-o", "out", "--part", "1/2", "-q"))
    for part in ("1/2", "2/2"):
        assert run("quantize", model, "-o", "out", "--part", part, "-q").code == 0
    before_publishing(monkeypatch, OutputFolder, removed)
    assert "removed or changed" in refused(run("merge", "out", "-q"))
    assert not Path("out").exists()
    assert run("merge", "out", "-q").code == 0
    assert run("quantize", model, "-o", "whole", "-q").code == 0
    assert contents(Path("out")) == contents(Path("whole"))


def test_numbered_and_dated_anew(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems of networks give files other inodes and times: the same bytes are the same file."""

    def anew(out: Any) -> None:
        for path in list(Path(out.temp).glob("*.safetensors")):
            shutil.copyfile(path, path.with_suffix(".copy"))
            os.replace(path.with_suffix(".copy"), path)

    before_publishing(monkeypatch, OutputFolder, anew)
    ran = run("quantize", model, "-o", "out", "-q")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, 3_000_000])
def test_bytes_that_are_compared(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytearray(b"a" * size)
    path.write_bytes(data)
    found = CompleteFile.of(str(path))
    os.utime(path, (1, 1))
    assert found.is_at(str(path))
    for at in {0, size // 15 * 7, size - 1} if size else ():
        data[at] ^= 1
        path.write_bytes(data)
        assert not found.is_at(str(path)), at
        data[at] ^= 1


# ---- behind URLs --------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_server() as (client, url):
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        client.create_bucket(Bucket="models")
        yield client


def _put_anew(url: str) -> None:
    s3.put(url, b"x" * s3.listed(url)[""])


@pytest.mark.parametrize("damage", [lambda url: s3.delete([url]), lambda url: s3.put(url, b"x"), _put_anew])
def test_objects(damage: Callable[[str], object], objects: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_publishing(monkeypatch, bucket._Folder, lambda out: damage(f"{out.temp}/{SHARD}"))
    said = refused(run("quantize", model, "-o", "s3://models/out", "-q"))
    assert f"s3://models/out/{SHARD}: the finished file was removed or changed" in said, said
    assert not s3.listed("s3://models/out")
    ran = run("quantize", model, "-o", "s3://models/out", "--resume")
    assert ran.code == 0 and f"{SHARD} of the interrupted run is damaged" in ran.err, ran.err
    assert run("quantize", model, "-o", "whole", "-q").code == 0
    assert set(s3.listed("s3://models/out/")) == set(contents(Path("whole")))


def test_objects_of_parts(objects: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(out: Any) -> None:
        s3.delete([next(f"{out.temp}/{n}" for n in s3.listed(f"{out.temp}/") if n.endswith(".safetensors"))])

    before_publishing(monkeypatch, bucket._Folder, removed)
    assert "removed or changed" in refused(run("quantize", model, "-o", "s3://models/out", "--part", "1/2", "-q"))
    for part in ("1/2", "2/2"):
        assert run("quantize", model, "-o", "s3://models/out", "--part", part, "-q").code == 0

    def taken(out: Any) -> None:
        s3.delete([next(iter(out._from.values()))])

    before_publishing(monkeypatch, bucket._Folder, taken)
    assert "removed or changed" in refused(run("merge", "s3://models/out", "-q"))
    assert not s3.listed("s3://models/out/")


def test_removed_before_it_was_sent(tmp_path: Path) -> None:
    class Nowhere:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    with (
        pytest.raises(Exception, match="removed or changed") as found,
        SpooledFolder("gs://bucket/out", Nowhere(), force=False) as out,
    ):
        out.finished("model.safetensors")
    assert found.value.place == ["gs://bucket/out/model.safetensors"]  # type: ignore[attr-defined]
