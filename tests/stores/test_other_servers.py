"""Servers of S3 by other makers: what they do otherwise than Amazon's, as it was found on the servers themselves.

Ceph 16 (radosgw), rclone 1.75 (`rclone serve s3`), s3rver 3.7 and local-s3-server 0.2 are played here by our own
server with the habits of each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import made
from disk_s3 import Handler, Server
from making import one_line, run, save

from quantcli.stores.remote import lock, s3

pytest.importorskip("obstore")
pytest.importorskip("botocore")


class _Ceph(Handler):
    """Compares ETags of conditions to write without their quotation marks."""

    def do_PUT(self) -> None:  # noqa: N802
        wanted = self.headers.get("If-Match")
        if wanted is not None:
            del self.headers["If-Match"]
            self.headers["If-Match"] = "none" if wanted.startswith('"') else f'"{wanted}"'
        super().do_PUT()


class _Rclone(Handler):
    """Sends ranges with the status of a whole file, takes a copy of a part for an empty part, lists no uploads."""

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(200 if code == 206 else code, message)

    def do_PUT(self) -> None:  # noqa: N802
        if "partNumber" in self.path:
            del self.headers["x-amz-copy-source"]
        super().do_PUT()

    def do_GET(self) -> None:  # noqa: N802
        if self.path.endswith("?uploads") or "?uploads&" in self.path or "&uploads" in self.path:
            self._refuse(404, "NoSuchUpload")
        else:
            super().do_GET()


class _WholeFiles(Handler):
    """Ignores ranges."""

    def do_GET(self) -> None:  # noqa: N802
        del self.headers["Range"]
        super().do_GET()


Serving = Callable[[type[Handler]], Path]


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """Serves a bucket `models`; the folder of its objects."""
    opened = list[Server]()

    def begin(handler: type[Handler]) -> Path:
        folder = tmp_path / "s3" / "models"
        folder.mkdir(parents=True)
        server = Server(folder.parent, "127.0.0.1", 0, handler)
        opened.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", "key")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        return folder

    yield begin
    for server in opened:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=[_Ceph, _Rclone])
def bucket(request: pytest.FixtureRequest, serving: Serving) -> Path:
    """A bucket of each maker."""
    return serving(request.param)


def put(path: Path, url: str) -> None:
    s3.put(url, path.read_bytes())


def test_folders_and_files_have_the_bytes_of_a_local_run(bucket: Path, tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    for path in (path for path in model.rglob("*") if path.is_file()):
        put(path, f"s3://models/model/{path.relative_to(model)}")
    assert run("quantize", model, "--bits", 4, "-q", "-o", tmp_path / "w4").code == 0
    for more in ((), ("--force",)):
        ran = run("quantize", "s3://models/model", "--bits", 4, "-q", "-o", "s3://models/w4", *more)
        assert ran.code == 0, ran.err
    for path in (tmp_path / "w4").glob("*.safetensors"):
        assert (bucket / f"w4%2F{path.name}").read_bytes() == path.read_bytes()
    assert run("verify", "s3://models/w4").code == 0
    assert not [path for path in bucket.iterdir() if "partial" in path.name]


def test_parts_of_a_file_are_merged(bucket: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((2048, 1024)).astype("<f2")
    one = save(tmp_path / "one.safetensors", {f"layers.{n}.weight": weights for n in range(10)})
    assert run("quantize", one, "--bits", 8, "-q", "-o", tmp_path / "w8.safetensors").code == 0
    for number in (1, 2):
        words = ("--part", f"{number}/2", "-o", "s3://models/w8.safetensors")
        assert run("quantize", one, "--bits", 8, "-q", *words).code == 0
    ran = run("merge", "s3://models/w8.safetensors")
    assert ran.code == 0, ran.err
    assert (bucket / "w8.safetensors").read_bytes() == (tmp_path / "w8.safetensors").read_bytes()


def test_large_objects_are_copied(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "COPIED", 5 << 20)
    content = np.random.default_rng(3).bytes(11_000_000)
    s3.put("s3://models/a", content)
    s3.copy("s3://models/a", "s3://models/b", len(content))
    assert (bucket / "b").read_bytes() == content


def test_a_lock_is_renewed_and_taken_over(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ceph a run of more than 20 seconds believed that another one had taken over, and no killed run was resumed."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    first = lock.Lock("s3://models/.w4/lock", "s3://models/w4", s3)
    tag = first._tag
    until = time.monotonic() + 20
    while first._tag == tag and not first.lost and time.monotonic() < until:
        time.sleep(0.01)
    first.check()
    assert first._tag != tag
    first.end()
    s3.put("s3://models/.w8/lock", b"of a run that was killed")
    monkeypatch.setattr(lock, "DEAD", -1.0)
    lock.Lock("s3://models/.w8/lock", "s3://models/w8", s3).end()


def test_of_a_condition_that_does_not_hold_nothing_is_written(serving: Serving) -> None:
    folder = serving(_Ceph)
    tag = s3.put("s3://models/a", b"1", create=True)
    for condition in ({"create": True}, {"match": '"another"'}):
        with pytest.raises(lock.ExistsError):
            s3.put("s3://models/a", b"2", **condition)
    assert s3.put("s3://models/a", b"3", match=tag) != tag
    assert (folder / "a").read_bytes() == b"3"


def test_a_server_without_ranges_is_one_line(serving: Serving, tmp_path: Path) -> None:
    serving(_WholeFiles)
    put(save(tmp_path / "one.safetensors", {"w": np.zeros((64, 4096), "<f2")}), "s3://models/one.safetensors")
    began = time.monotonic()
    said = one_line(run("inspect", "s3://models/one.safetensors"), 1)
    assert "does not honour ranges" in said and "download the file" in said
    assert time.monotonic() - began < 5, "nothing was tried again"
