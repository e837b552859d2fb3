"""Checkpoint folders: their files and what lies beside them, cut anew, interrupted and gone on with."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoints import CARD, contents, made, shard
from making import BF16, ROOT, command, environment, header_of, load, one_line, run, save
from strategies import gaussian

import quantcli
from quantcli import QuantcliError
from quantcli import open as open_model
from quantcli.folders import resume
from quantcli.folders import write as folders
from quantcli.passes import quantize
from quantcli.stores import destinations, workspace
from quantcli.stores.folder import OutputFolder


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "source")


# ---- what is in the folder --------------------------------------------------------------------------------------


def test_a_folder_shard_by_shard(source: Path) -> None:
    """names kept, index rewritten, side files copied"""
    ran = run("quantize", source, "-o", "out", "--group-size", "64", "--json")
    assert ran.code == 0 and ran.err == ""
    found = contents(Path("out"))
    assert set(found) == set(contents(source))
    index = json.loads(found["model.safetensors.index.json"])
    stored = {n: f for f in found if f.endswith(".safetensors") for n in load(Path("out", f))}
    assert index["weight_map"] == stored
    files = [load(Path("out", f)) for f in found if f.endswith(".safetensors")]
    assert index["metadata"] == {
        "kind": "test",
        "total_parameters": 4 * (64 * 256 + 256 + 64 * 128),
        "total_size": sum(len(t.data) for file in files for t in file.values()),
    }
    assert found["tokenizer.json"] == b"{}" and found["pooling/README.md"] == b"another card"
    config = json.loads(found["config.json"])
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == {"model_type": "llama", "hidden_size": 256}
    assert sorted(os.listdir()) == ["out", "source"]


def test_the_same_bytes_from_anywhere(source: Path) -> None:
    """No clock, no path and no number of threads in any file"""
    shutil.copytree(source, "elsewhere")
    run("quantize", source, "-o", "out")
    run("quantize", "elsewhere/model.safetensors.index.json", "-o", "again", "--threads", "1")
    assert contents(Path("out")) == contents(Path("again"))


def test_the_card(source: Path) -> None:
    run("quantize", source, "-o", "out", "--override", "*.2.mlp:bits=8", "--exclude", "*.3.attention",
        "--digest", "sha256")  # fmt: skip
    card = Path("out/README.md").read_text(encoding="utf-8")
    front, text = CARD.split("---\n\n")
    assert card.startswith(front + "---\n\n# Checkpoint, quantized\n")
    assert card.endswith(f"# Original model card\n\n{text}")
    document = run("report", "out", "--json").json
    worst = sorted((t for t in document["tensors"] if t["scheme"]), key=lambda t: t["sqnr_db"])
    rows = [line for line in card.splitlines() if line.startswith("| `model") and "%" in line]
    assert [r.split("`")[1] for r in rows] == [t["name"] for t in worst]
    assert f"{worst[0]['sqnr_db']:.2f}" in rows[0]
    assert f"| SQNR of the quantized weights | {document['summary']['sqnr_db']:.2f} dB |" in card
    assert f"| bits per weight | {document['summary']['bits_per_weight']:.3f}, everything counted |" in card
    assert "- 4-bit integers, symmetric, in groups of 128, by mse with sum-preserving rounding: 6 tensors\n" in card
    assert "- 8-bit integers, symmetric, in groups of 128, by mse with sum-preserving rounding: 1 tensor\n" in card
    assert "| excluded | 1 | 16.4 kB | matched --exclude or a keep rule | `model.layers.3.attention.weight` |" in card
    Path("recipe.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    assert run("quantize", source, "--recipe", "recipe.yaml", "-o", "again", "-q").code == 0
    assert contents(Path("again")) == contents(Path("out"))


@pytest.mark.parametrize("original", [
    b"", b"# No front matter\n", b"---\nlicense: mit\n# never closed\n",
    b"---\r\nlicense: mit\r\n---\r\n\r\n# CRLF\r\n", b"---\nlicense: mit\n---\n", b"\xff\xfe not UTF-8 `` | ```\n",
    b"\xef\xbb\xbf---\nlicense: mit\n---\ntext", b"---\n---\nx", b"# A\n\n---\n\nrule, not front matter\n",
])  # fmt: skip
def test_nothing_of_the_original_card_is_lost(original: bytes, source: Path) -> None:
    (source / "README.md").write_bytes(original)
    assert run("quantize", source, "-o", "out", "-q").code == 0
    card = Path("out/README.md").read_bytes()
    lines = original.removeprefix(b"\xef\xbb\xbf").splitlines()
    if original.startswith((b"---\r", b"---\nlicense: mit\n---", b"\xef")):
        head = card.split(b"---\n\n# Checkpoint")[0]
        assert yaml.safe_load(head.decode()) == {"license": "mit"} and head.startswith(b"---")
        assert card.endswith(b"".join(original.splitlines(True)[3:]).lstrip(b"\r\n"))
    else:
        assert card.startswith(b"# Checkpoint, quantized\n") and all(line in card for line in lines[2:])
        assert card.endswith(original) or original == b"---\n---\nx"


def test_the_name_on_the_hub_is_known_from_its_cache(source: Path) -> None:
    cache = Path("models--org--Tiny-1.5--x/snapshots/0123")
    cache.parent.mkdir(parents=True)
    source.rename(cache)
    run("quantize", cache, "-o", "out", "-q")
    card = Path("out/README.md").read_text(encoding="utf-8")
    front = CARD.split("---\n\n")[0]
    assert card.startswith(f"{front}base_model: org/Tiny-1.5--x\n---\n\n# Tiny-1.5--x, quantized\n")
    (cache / "README.md").write_text("---\nbase_model: other/base\n---\n")
    run("quantize", cache, "-o", "out", "-q", "--force")
    assert Path("out/README.md").read_text(encoding="utf-8").startswith("---\nbase_model: other/base\n---\n\n# Tiny")


def test_links_out_of_the_folder_are_left_behind_and_told(source: Path) -> None:
    Path("secret").write_text("key")
    (source / "notes.txt").symlink_to("../secret")
    (source / "inside.txt").symlink_to("tokenizer.json")
    (source / "README.md").unlink()
    (source / "README.md").symlink_to("../secret")
    ran = run("quantize", source, "-o", "out")
    said = "links to files outside the folder: README.md (3 B), notes.txt (3 B)"
    assert ran.err == f"quantcli: warning: left out, {said}\n"
    found = contents(Path("out"))
    assert "notes.txt" not in found and found["inside.txt"] == b"{}"
    assert b"Original" not in found["README.md"] and not any(text.endswith(b"key") for text in found.values())
    (source / "config.json").unlink()
    Path("secret.json").write_text('{"a": "key"}')
    (source / "config.json").symlink_to("../secret.json")
    assert "config.json: this is a link" in one_line(run("quantize", source, "-o", "more"), 1)
    assert sorted(os.listdir()) == ["out", "secret", "secret.json", "source"]


# ---- cut anew ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["20kB", "40kB", "37000", "1GB", "1"])
def test_a_folder_cut_anew(limit: str, source: Path) -> None:
    """deterministic; a tensor's parts stay in one shard; a larger tensor has one of its own and that is said"""
    run("quantize", source, "-o", "plain", "-q")
    ran = run("quantize", source, "-o", "out", "--max-shard-size", limit)
    assert ran.code == 0
    most = {"20kB": 20_000, "40kB": 40_000, "1GB": 10**9}.get(limit) or int(limit)
    files = sorted(Path("out").glob("*.safetensors"))
    for file in files:
        document = json.loads(header_of(file)["__metadata__"]["quantcli"])
        outside = file.stat().st_size > most
        assert not outside or len(document["tensors"]) == 1
        assert (f"{file.name} has {file.stat().st_size} bytes, more than --max-shard-size" in ran.err) == outside
    if len(files) == 1:
        assert files[0].name == "model.safetensors" and not Path("out/model.safetensors.index.json").exists()
    else:
        count = len(files)
        assert [f.name for f in files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        index = json.loads(Path("out/model.safetensors.index.json").read_text())
        assert index["weight_map"] == {n: f.name for f in files for n in load(f)}
    with open_model(str(source)) as model:
        order, weights = list(model), {name: tensor.numpy() for name, tensor in model.items()}
    held = [list(json.loads(header_of(f)["__metadata__"]["quantcli"])["tensors"]) for f in files]
    assert [sorted(names) for names in held] == held and sorted(order) == sorted(n for names in held for n in names)
    for names, after in itertools.pairwise(held):  # no file had room for the next tensor
        some = [*names, min(after, key=order.index)]
        more = save(Path("more.safetensors"), {name: weights[name].astype(BF16) for name in some})
        dry = run("quantize", more, "--dry-run", "--include", "*", "--json").json
        assert dry["summary"]["bytes_out"] > most - 64
    with open_model("out") as model, open_model("plain") as plain:
        assert set(model) == set(plain)
        for name, tensor in model.items():
            np.testing.assert_array_equal(tensor.numpy(), plain[name].numpy())
    dry = run("quantize", source, "--max-shard-size", limit, "--dry-run", "--json").json
    assert dry["summary"]["bytes_out"] == sum(f.stat().st_size for f in files)
    found = run("report", "out", "--json").json["summary"]
    assert found["bytes_in"] == sum(f.stat().st_size for f in source.glob("*.safetensors"))
    run("quantize", source, "-o", "again", "--max-shard-size", limit, "--threads", "1", "-q")
    assert contents(Path("again")) == contents(Path("out"))


def test_a_cut_holds_for_tensors_that_turn_out_larger(source: Path) -> None:
    """float32 scales, and tensors kept for NaN, are known only when the weights have been read"""
    shutil.rmtree(source)
    wide, odd = gaussian(64, 96, seed=7), gaussian(64, 96, seed=8)
    wide[5] *= 1e7
    odd[3, 3] = np.nan
    made(source, shard1={"w.weight": wide}, shard2={"odd.weight": odd})
    ran = run(
        "quantize", source, "-o", "out", "--max-shard-size", "20000", "--on-nonfinite", "keep", "--group-size", "16"
    )
    files = sorted(Path("out").glob("*.safetensors"))
    for file in files:
        document = json.loads(header_of(file)["__metadata__"]["quantcli"])
        assert file.stat().st_size <= 20_000 or len(document["tensors"]) == 1
    document = run("report", "out", "--json").json
    assert {t["name"]: t["reason"] for t in document["tensors"]}["odd.weight"] == "nonfinite"
    assert ran.code == 0 and "odd.weight" in ran.err


def test_a_shard_that_turns_out_to_have_nothing_to_quantize(source: Path) -> None:
    tensors = {n: np.full_like(w, np.inf) for n, w in shard(1).items()}
    save(source / "model-00002-of-00004.safetensors", tensors, {"format": "pt"})
    assert run("quantize", source, "-o", "out", "--on-nonfinite", "keep").code == 0
    assert load("out/model-00002-of-00004.safetensors").keys() == tensors.keys()


def test_a_target_holds_for_folders_cut_anew(source: Path) -> None:
    ran = run("quantize", source, "-o", "out", "--target-size", "66kB", "--max-shard-size", "20kB", "--json")
    assert ran.code == 0
    size = sum(p.stat().st_size for p in Path("out").glob("*.safetensors"))
    assert size == ran.json["summary"]["bytes_out"] <= 66_000


@pytest.mark.parametrize(("options", "words"), [
    (["--max-shard-size", "1GB", "-o", "out.safetensors"], "--max-shard-size: this is for checkpoint folders"),
    (["--resume", "-o", "out.safetensors"], "--resume: this is for checkpoint folders"),
    (["--max-shard-size", "0"], "0 bytes are not a shard size"), (["--max-shard-size", "much"], "is not a number"),
    (["--max-shard-size", "2 parsecs"], "unit"), (["--resume", "--digest", "none"], "resuming needs digests"),
])  # fmt: skip
def test_refused_options(options: list[str], words: str, source: Path) -> None:
    assert words in one_line(run("quantize", source, *options), 2)
    assert os.listdir() == ["source"]


# ---- interrupted ------------------------------------------------------------------------------------------------

PARTIAL = Path(".out.quantcli-partial")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Let the file of this number fail."""

    def fail(number: int, error: BaseException) -> None:
        files = iter(range(1, 100))
        real = quantize.write_part

        def write(*arguments: Any, **options: Any) -> Any:
            if next(files) == number:
                raise error
            return real(*arguments, **options)

        monkeypatch.setattr(folders, "write_part", write)

    return fail


def interrupted(source: Path, failing: Callable[[int, BaseException], None], number: int, *options: Any) -> None:
    """Leave the partial output of a run that could not write file `number`."""
    failing(number, QuantcliError("no space left on device", place=["out"]))
    ran = run("quantize", source, "-o", "out", *options)
    assert ran.code == 1 and not Path("out").exists()
    hidden = str(PARTIAL.resolve())
    said = ran.err[ran.err.index("quantcli: finished files") :]  # what loaders do comes first
    assert (
        said == f"quantcli: finished files are in {hidden}: run the same command with --resume to continue\n"
        "quantcli: out: no space left on device\n"
    )


@pytest.mark.parametrize("options", [[], ["--max-shard-size", "20kB"], ["--digest", "sha256"],
                                     ["--calibration", "auto"], ["--to", "mlx", "--group-size", "32"],
                                     ["--to", "awq", "--group-size", "32"], ["--to", "bnb-nf4"]])  # fmt: skip
def test_a_full_disk_and_then_resume(options: list[str], source: Path, failing: Any) -> None:
    """The final bytes of interrupted and resumed runs are those of an uninterrupted one, and so is the report"""
    whole = run("quantize", source, "-o", "whole", *options, "--json").json
    interrupted(source, failing, 3, *options)
    before = {
        n: p.stat().st_mtime_ns
        for n, p in ((p.name, p) for p in (PARTIAL / "folder").iterdir())
        if n.endswith(".safetensors")
    }
    assert len(before) == 2
    ran = run("quantize", source, "-o", "out", *options, "--resume", "--json")
    said = ran.err.splitlines()[-1]  # what loaders do comes first
    assert ran.code == 0 and said == "quantcli: resumed after 2 finished files of an interrupted run"
    assert contents(Path("out")) == contents(Path("whole"))
    times = {p.stat().st_mtime_ns for p in Path("out").iterdir()}
    assert set(before.values()) <= times  # not written again
    assert sorted(os.listdir()) == ["out", "source", "whole"]
    found = {**ran.json, "summary": {**ran.json["summary"], "seconds": 0}, "output": ""}
    assert found == {**whole, "summary": {**whole["summary"], "seconds": 0}, "output": ""}


def test_resume_without_anything_to_resume(source: Path) -> None:
    assert run("quantize", source, "-o", "out", "--resume").err == ""
    assert "the output exists" in one_line(run("quantize", source, "-o", "out", "--resume"), 2)


def test_without_resume_it_starts_over_and_says_so(source: Path, failing: Any) -> None:
    run("quantize", source, "-o", "whole", "-q")
    interrupted(source, failing, 4, "--bits", "3")
    ran = run("quantize", source, "-o", "out")
    assert (
        ran.err == "quantcli: an interrupted run had left 3 finished files, written again now; "
        "--resume would have kept them\n"
    )
    assert contents(Path("out")) == contents(Path("whole")) and sorted(os.listdir()) == ["out", "source", "whole"]


@pytest.mark.parametrize(("options", "words"), [
    (["--bits", "8"], "bits of scheme 1 was 4 and is 8"), (["--digest", "sha256"], "digest was xxh3 and is sha256"),
    (["--exclude", "*.0.mlp"], "exclude 1 was not given and is *.0.mlp"),
    (["--on-nonfinite", "keep"], "on_nonfinite was refuse and is keep"),
    (["--max-shard-size", "1GB"], "max_shard_size was not given and is 1000000000"),
    (["--override", "*.0.mlp:keep"], "rule 1 1 was not given and is *.0.mlp"),
    (["--calibration", "minmax"], "grid of scheme 1 was full and is restricted"),
])  # fmt: skip
def test_another_request_is_refused(options: list[str], words: str, source: Path, failing: Any) -> None:
    """naming what differs; and what was finished stays"""
    interrupted(source, failing, 3)
    kept = contents(PARTIAL)
    line = one_line(run("quantize", source, "-o", "out", "--resume", *options), 2)
    assert f"the interrupted run had another request: {words}; repeat that request, or leave out --resume" in line
    assert contents(PARTIAL) == kept
    assert run("quantize", source, "-o", "out", "--resume").code == 0


def test_another_version_is_refused(source: Path, failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(source, failing, 3)
    monkeypatch.setattr(resume, "__version__", "9.9")
    line = one_line(run("quantize", source, "-o", "out", "--resume"), 2)
    assert f"tool was quantcli {quantcli.__version__} and is quantcli 9.9" in line


@pytest.mark.parametrize("change", ["weight", "metadata", "more", "gone"])
@pytest.mark.parametrize("options", [[], ["--digest", "sha256"], ["--max-shard-size", "20kB"]])
def test_a_changed_source_is_refused(change: str, options: list[str], source: Path, failing: Any) -> None:
    interrupted(source, failing, 3, *options)
    kept = contents(PARTIAL)
    file = source / "model-00001-of-00004.safetensors"
    tensors, metadata = shard(0), {"format": "pt"}
    if change == "weight":
        tensors["model.layers.0.attention.weight"][63, 127] = 9
    elif change == "metadata":
        metadata["more"] = "x"
    elif change == "more":
        tensors["x.weight"] = gaussian(4, 4)
    else:
        del tensors["model.layers.0.norm.weight"]
    save(file, tensors, metadata)
    (source / "model.safetensors.index.json").unlink()
    ran = run("quantize", source, "-o", "out", "--resume", *options)
    line = ran.err.splitlines()[-1]
    assert ran.code == 1 and "the file was changed since the run that was interrupted; leave out --resume" in line
    assert ("source" in line) and (change != "weight" or "model.layers.0.attention.weight" in line)
    assert contents(PARTIAL) == kept


@pytest.mark.parametrize("damage", ["a byte", "cut", "gone", "another", "journal"])
def test_a_damaged_file_is_made_again(damage: str, source: Path, failing: Any) -> None:
    """the shard's own validity is checked, not only its name"""
    run("quantize", source, "-o", "whole", "-q")
    interrupted(source, failing, 4)
    file = PARTIAL / "folder" / "model-00002-of-00004.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    if damage == "journal":
        (PARTIAL / "journal").write_text("{")
    elif damage == "gone":
        file.unlink()
    elif damage == "another":
        shutil.copy(PARTIAL / "folder" / "model-00001-of-00004.safetensors", file)
    else:
        file.write_bytes(raw if damage == "a byte" else raw[:-1])
    ran = run("quantize", source, "-o", "out", "--resume")
    said = "model-00002-of-00004.safetensors of the interrupted run is damaged and was written again" in ran.err
    assert ran.code == 0 and said == (damage != "journal")
    told = "the journal of the interrupted run is damaged, so all is written again" in ran.err
    assert told == (damage == "journal")
    assert contents(Path("out")) == contents(Path("whole"))


def test_a_journal_cut_short_counts_as_far_as_it_is_whole(source: Path, failing: Any) -> None:
    """What an append that a power failure cut short, or filled with zeros, had written before it still counts."""
    run("quantize", source, "-o", "whole", "-q")
    interrupted(source, failing, 4)
    kept = shutil.copytree(PARTIAL, "kept")
    lines = (PARTIAL / "journal").read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    for cut, tail, count in (
        (len(lines[0]) + len(lines[1]) + 9, b"", 2), (len(lines[0]) + len(lines[1]), b"", 2), (len(lines[0]), b"{", 1),
        (len(lines[0]) + 1, bytes(500), 1), (len(b"".join(lines)), bytes(500), 3),
    ):  # fmt: skip
        shutil.rmtree(PARTIAL, ignore_errors=True)
        shutil.copytree(kept, PARTIAL)
        (PARTIAL / "journal").write_bytes(b"".join(lines)[:cut] + tail)
        ran = run("quantize", source, "-o", "out", "--resume")
        assert ran.code == 0
        assert f"resumed after {count} finished file{'s' if count > 1 else ''} of an interrupted run" in ran.err
        assert contents(Path("out")) == contents(Path("whole"))
        shutil.rmtree("out")


def test_a_journal_that_cannot_be_read_throws_nothing_away(
    source: Path, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk is no reason to make everything again, and to say nothing."""
    interrupted(source, failing, 3)
    kept = contents(PARTIAL)

    def broken(path: str, *_: Any, **__: Any) -> bytes:
        raise QuantcliError("input/output error", place=[path])

    with monkeypatch.context() as patched:
        patched.setattr(workspace, "read_small", broken)
        ran = run("quantize", source, "-o", "out", "--resume")
    assert ran.code == 1 and ran.err.endswith(f"{PARTIAL.resolve()}/journal: input/output error\n")
    assert contents(PARTIAL) == kept
    assert "resumed after 2 finished files" in run("quantize", source, "-o", "out", "--resume").err


def test_the_journal_grows_by_what_is_finished(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n files it is written n times as much as of one, not n squared: 34,000 tensors in 200 files took 25 s."""
    shutil.rmtree(source)
    made(source, count=24, rows=8)
    sizes = list[int]()
    monkeypatch.setattr(OutputFolder, "record", lambda self, journal, more=False: sizes.append(len(journal)))
    assert run("quantize", source, "-o", "out", "-q").code == 0
    assert len(sizes) == 24 and max(sizes) < 3 * min(sizes)


def test_a_fault_of_the_request_leaves_nothing(source: Path) -> None:
    tensors = shard(3)
    tensors["model.layers.3.mlp.weight"][0, 0] = np.nan
    save(source / "model-00004-of-00004.safetensors", tensors)
    one_line(run("quantize", source, "-o", "out"), 1)
    assert os.listdir() == ["source"]


def test_a_fault_before_anything_is_finished_leaves_nothing(source: Path, failing: Any) -> None:
    failing(1, QuantcliError("no space left on device", place=["out"]))
    one_line(run("quantize", source, "-o", "out"), 1)
    assert os.listdir() == ["source"]


def test_two_runs_on_one_destination(source: Path) -> None:
    PARTIAL.mkdir()
    with (PARTIAL / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for options in ([], ["--resume"]):
            line = one_line(run("quantize", source, "-o", "out", *options), 1)
            assert line == f"{Path('out').resolve()}: another run is writing it; wait until it has ended"
    assert run("quantize", source, "-o", "out").code == 0
    assert not PARTIAL.exists()


def test_what_is_in_the_way_is_refused(source: Path) -> None:
    PARTIAL.symlink_to("source")
    before = contents(source)
    assert "not a folder of this user" in one_line(run("quantize", source, "-o", "out"), 1)
    assert contents(source) == before


def test_a_journal_that_is_a_link_is_refused(source: Path, failing: Any) -> None:
    """What somebody else put there decides nothing, and nothing is written through it."""
    interrupted(source, failing, 3)
    (PARTIAL / "journal").rename("elsewhere")
    (PARTIAL / "journal").symlink_to(Path("elsewhere").resolve())
    before = contents(PARTIAL), Path("elsewhere").read_bytes()
    for options in ([], ["--resume"]):
        line = one_line(run("quantize", source, "-o", "out", *options), 1)
        assert line.endswith("journal: not a file of this user; remove it")
        assert (contents(PARTIAL), Path("elsewhere").read_bytes()) == before
    (PARTIAL / "journal").unlink()
    Path("elsewhere").rename(PARTIAL / "journal")
    assert run("quantize", source, "-o", "out", "--resume").code == 0


def test_links_in_the_hidden_folder_are_not_followed(source: Path, failing: Any) -> None:
    run("quantize", source, "-o", "whole", "-q")
    interrupted(source, failing, 4)
    file = PARTIAL / "folder" / "model-00002-of-00004.safetensors"
    file.rename("elsewhere")
    file.symlink_to(Path("elsewhere").resolve())
    Path("precious").write_text("precious")
    (PARTIAL / "journal.new").symlink_to(Path("precious").resolve())
    assert run("quantize", source, "-o", "out", "--resume").code == 0
    assert contents(Path("out")) == contents(Path("whole")) and Path("precious").read_text() == "precious"
    assert not any(path.is_symlink() for path in Path("out").iterdir())


@pytest.mark.parametrize("options", [[], ["--to", "mlx"]])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_loser_of_two_runs_leaves_nothing(
    when: str, options: list[str], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run ends between our look at the destination and our turn, or while we write: it made the output."""
    real_lock, real_write = workspace._locked, quantize.write_part
    written: list[tuple[Any, ...]] = []

    def lock(folder: str, path: str) -> int:
        found = real_lock(folder, path)
        if when == "before" and path == str(Path("out").resolve()):
            os.mkdir("out")
        return found

    def write(*arguments: Any, **more: Any) -> Any:
        written.append(arguments)
        if when == "after" and not Path("out").exists():
            os.mkdir("out")
        return real_write(*arguments, **more)

    monkeypatch.setattr(workspace, "_locked", lock)
    monkeypatch.setattr(folders, "write_part", write)
    line = run("quantize", source, "-o", "out", *options).err.splitlines()[-1]
    assert line.endswith("out: another process created the output; use --force to replace it")
    assert sorted(os.listdir()) == ["out", "source"] and os.listdir("out") == []
    assert len(written) == (0 if when == "before" else 4)


def test_file_systems_that_lock_only_what_is_open_for_writing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS does."""
    real, access = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        access.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
        if access[-1] == os.O_RDONLY:
            raise OSError(errno.EBADF, "bad file descriptor")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run("quantize", source, "-o", "out", "-q").code == 0
    files = [os.O_RDWR] * 4  # the hidden file of each shard, which is open for writing
    assert access == [os.O_RDONLY, os.O_RDWR, *files] and sorted(os.listdir()) == ["out", "source"]


def test_a_replaced_folder_that_cannot_be_removed_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("quantize", source, "-o", "out", "-q").code == 0
    for words in (("quantize", source, "--bits", 8, "-o", "out"), ("dequantize", "out", "-o", "floats")):
        assert run(*words, "--force").code == 0
        with monkeypatch.context() as held:
            held.setattr(shutil, "rmtree", lambda *_, **__: None)
            ran = run(*words, "--force")
        left = Path(words[-1]).resolve().parent / f".{words[-1]}.quantcli-partial"
        said = f"the folder that was replaced could not be removed: the rest of it is in {left}; remove it"
        assert ran.code == 0 and said in ran.err and left.is_dir()
        ran = run(*words, "--force")
        assert ran.code == 0 and "could not be removed" not in ran.err and not left.exists()


def test_a_run_with_another_target_says_what_it_removed(source: Path, failing: Any) -> None:
    interrupted(source, failing, 3)
    ran = run("quantize", source, "--to", "mlx", "-o", "out")
    assert ran.code == 0 and sorted(os.listdir()) == ["out", "source"]
    assert "an interrupted run had left 2 finished files, written again now" in ran.err


def test_long_names(source: Path) -> None:
    name = "\u00e9" * 120
    assert run("quantize", source, "-o", name).code == 0
    assert destinations.left_over(str(Path(name).resolve())) is None


# ---- killed -----------------------------------------------------------------------------------------------------


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished() -> int:
    """Files that the journal lists."""
    try:
        lines = (PARTIAL / "journal").read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    return sum(len(json.loads(line)["finished"]) for line in lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_many_points(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a run at any point and running again with --resume gives the bytes of an uninterrupted run"""
    monkeypatch.chdir(tmp_path)
    source = made(tmp_path / "source", count=6, rows=400)
    options = ["--group-size", "64", "--effort", "exact", "--threads", "2", "-q"]
    began = time.monotonic()
    start("quantize", source, "-o", "whole", *options).communicate()
    whole, took = contents(Path("whole")), time.monotonic() - began
    rounds, killed, seen = (10 if number == signal.SIGKILL else 3), 0, set()
    for i in range(rounds):
        process = start("quantize", source, "-o", "out", *options, "--resume")
        while not PARTIAL.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.6 * took * i / rounds)
        process.send_signal(number)
        process.communicate()
        killed += process.returncode == -number
        if Path("out").exists():  # it was faster
            assert contents(Path("out")) == whole
            shutil.rmtree("out")
            continue
        seen.add(finished())
        assert set(os.listdir()) <= {PARTIAL.name, "source", "whole"}
        if i % 3:  # else the next one is killed on top of this
            assert run("quantize", source, "-o", "out", *options, "--resume").code == 0
            assert contents(Path("out")) == whole and set(os.listdir()) == {"out", "source", "whole"}
            shutil.rmtree("out")
    assert killed >= rounds // 2 and len(seen) > 1, (killed, seen)


# ---- equal tensors ----------------------------------------------------------------------------------------------


def test_equal_tensors_are_told(source: Path) -> None:
    """found by digest, same dtype and shape, across shards; nothing is dropped"""
    shutil.rmtree(source)
    table = gaussian(32, 128, seed=5).astype(BF16)
    twin = gaussian(64, 64, seed=6)
    other = twin.reshape(32, 128)
    made(
        source,
        shard0={"model.embed_tokens.weight": table, "a.weight": twin, "reshaped.weight": other},
        shard3={"lm_head.weight": table, "b.weight": twin, "bits.table": twin.view(np.int32)},
    )
    ran = run("quantize", source, "-o", "out")
    line = "equal weights: a.weight = b.weight; model.embed_tokens.weight = lm_head.weight"
    sets = [["a.weight", "b.weight"], ["model.embed_tokens.weight", "lm_head.weight"]]
    assert line in ran.out.splitlines()
    stored = {name for file in Path("out").glob("*.safetensors") for name in load(file)}
    assert {"lm_head.weight", "b.weight_packed"} <= stored
    for found in (run("report", "out", "--json"), run("quantize", source, "-o", "one.safetensors", "--json")):
        assert found.json["equal"] == sets
    assert line in run("report", "out").out.splitlines()
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "Equal weights: a.weight = b.weight; model.embed\\_tokens.weight = lm\\_head.weight." in card
    assert "equal weights" not in run("quantize", source, "-o", "none", "--digest", "none").out


def test_no_loader_takes_a_native_folder_for_floats(tmp_path: Path) -> None:
    """transformers 4.57 and 5.23 raise ValueError for a configuration without quant_method, and vLLM 0.32 fails; with
    an unknown method, or without any configuration, transformers goes on with weights at random."""
    source, out = ROOT / "sample_models" / "tiny-llama", tmp_path / "out"
    assert run("quantize", source, "--type", "nf4", "--group-size", 64, "--to", "native", "-o", out).code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": None, "written_by": "quantcli"}
    assert "transformers and vLLM do not" in (out / "README.md").read_text()
    assert run("verify", out, "--source", source).code == 0
    assert run("dequantize", out, "-o", tmp_path / "floats").code == 0
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())


@pytest.mark.parametrize("options", [[], ["--recipe", "embedding"], ["--target-bpw", "5"]], ids=" ".join)
def test_a_static_embedding(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model2vec's folder: its one table is quantized, and its config.json promises nothing that a loader would do."""
    monkeypatch.chdir(tmp_path)
    Path("m2v").mkdir()
    save(Path("m2v/model.safetensors"), {"embeddings": gaussian(500, 128), "weights": gaussian(500),
                                         "mapping": np.arange(500)})  # fmt: skip
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    Path("m2v/config.json").write_text(json.dumps(config))
    ran = run("quantize", "m2v", "-o", "out", *options)
    assert ran.code == 0 and "which only quantcli reads: loaders of compressed-tensors take no quantized" in ran.err, (
        ran
    )
    assert json.loads(Path("out/config.json").read_text()) == config
    assert {"embeddings_packed", "weights", "mapping"} <= set(load("out/model.safetensors"))
    assert run("verify", "out", "--source", "m2v").code == 0
    assert run("compare", "m2v", "out", "--min-sqnr", "15").code == 0


def test_the_preset_of_embeddings_takes_their_tables_alone(tmp_path: Path) -> None:
    tables = ["embedding.weight", "embeddings.weight", "a.embeddings", "bert.embeddings.word_embeddings.weight"]
    others = ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "a.token_type_embeddings.weight"]
    path = save(tmp_path / "m.safetensors", {n: gaussian(1, 40, 64, seed=i) for i, n in enumerate([*tables, *others])})
    ran = run("quantize", path, "--recipe", "embedding", "-o", tmp_path / "out.safetensors", "--json")
    assert ran.code == 0, ran
    assert {t["name"]: t["scheme"] for t in ran.json["tensors"]} == {
        **dict.fromkeys(tables, "w8g64"), **dict.fromkeys(others, None)}  # fmt: skip


def test_an_error_while_leftovers_are_removed_does_not_fail_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finished output; shutil.rmtree closes a descriptor once more where closing fails, and reports that."""
    folder, close = tmp_path / "parts", os.close
    folder.mkdir()

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing)
        workspace.remove(str(folder), strict=False)
    workspace.remove(str(folder))
    assert not folder.exists()
