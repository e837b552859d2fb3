"""A run that several processes do, each its own part: the output of one, whatever is killed, or one line."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made, shard
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, ROOT, command, environment, one_line, run, save
from pipelines import pipeline
from strategies import gaussian

from quantcli import QuantcliError, UsageError
from quantcli.folders import parts
from quantcli.folders.shares import Share, _places, share

TINY = ROOT / "sample_models" / "tiny-llama"
DIGITS = ROOT / "sample_models" / "digits.safetensors"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "source")


def files(path: Path) -> dict[str, bytes]:
    """Everything in an output, a folder or a file and what lies beside it under such a name."""
    if path.is_dir():
        return contents(path)
    stem = path.name.partition("-0")[0].removesuffix(path.suffix)
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file() and p.name.startswith(stem)}


def in_parts(count: int, *asked: object, out: str) -> None:
    """Do all parts, in no order, then merge them."""
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for number in order:
        ran = run("quantize", *asked, "-o", out, "--part", f"{number}/{count}", "-q")
        assert ran.code == 0 and ran.err == "", ran
    ran = run("merge", out, "-q")
    assert ran.code == 0 and ran.out == "", ran


# ---- the bytes of one run ---------------------------------------------------------------------------------------

CASES = {
    "native": ("tiny.safetensors", TINY, "--to", "native"),
    "folder": ("folder", TINY, "--group-size", "64"),
    "shards": ("shards", TINY, "--group-size", "64", "--max-shard-size", "40kB"),
    "asymmetric": ("asymmetric", TINY, "--group-size", "32", "--asymmetric", "--bits", "3", "--scale-dtype", "float16"),
    "learned": ("learned", TINY, "--levels", "16", "--to", "native"),
    "gguf": ("tiny.gguf", TINY, "--to", "gguf"),
    "gguf:Q4_K_M": ("kinds.gguf", TINY, "--to", "gguf:Q4_K_M"),
    "gguf in shards": ("many.gguf", TINY, "--to", "gguf", "--max-shard-size", "40kB"),
    "mlx": ("mlx", TINY, "--to", "mlx", "--group-size", "64"),
    "awq": ("awq", TINY, "--to", "awq", "--group-size", "64"),
    "fp8": ("fp8", TINY, "--scheme", "FP8_DYNAMIC"),
    "one file": ("one.safetensors", DIGITS, "--bits", "4"),
    "bnb": ("bnb.safetensors", DIGITS, "--to", "bnb-nf4"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_of_one_run(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "The same bytes from one machine, parts and Dask, at any number of workers": folders, files and targets."""
    monkeypatch.chdir(tmp_path)
    out, *asked = CASES[case]
    Path("a").mkdir()
    ran = run("quantize", *asked, "-o", f"a/{out}", "-q")
    assert ran.code == 0, ran
    expected = files(Path("a", out if not case.endswith("in shards") else "many.gguf"))
    assert expected
    for count in (1, 2, 3, 7, 16) if case in ("folder", "gguf", "one file") else (3,):
        folder = Path(f"b{count}")
        folder.mkdir()
        in_parts(count, *asked, out=f"{folder}/{out}")
        assert files(folder / out) == expected, count
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_part_that_fails_leaves_no_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise QuantcliError("no space left on device", place=["out"])

    monkeypatch.setattr(parts, "make", full)
    one_line(run("quantize", source, "--bits", 4, "-o", "out", "--part", "1/2", "-q"), 1)
    assert os.listdir() == ["source"]


def test_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline(Path("flux"))
    assert run("quantize", "flux", "-o", "one", "--group-size", "32", "-q").code == 0
    for count in (1, 3, 7):
        in_parts(count, "flux", "--group-size", "32", out=f"in{count}")
        assert contents(Path(f"in{count}")) == contents(Path("one"))


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that is written around the weights holds some of them itself."""
    monkeypatch.chdir(tmp_path)
    ran = run("quantize", DIGITS, "--to", "onnx", "--container", "-o", "one.onnx", "-q")
    assert ran.code == 0, ran
    in_parts(3, DIGITS, "--to", "onnx", "--container", out="in3.onnx")
    assert Path("in3.onnx").read_bytes() == Path("one.onnx").read_bytes()


@pytest.mark.parametrize("more", [[], ["--to", "native", "--scheme", "NVFP4A16"], ["--max-shard-size", "20kB"]])
def test_tensors_that_turn_out_otherwise_than_planned(more: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    """Scales that need float32, tensors that are kept because of a NaN, and statistics that say nothing change sizes
    and headers as in one run."""
    monkeypatch.chdir(tmp_path)
    odd = shard(1)
    odd["model.layers.1.mlp.weight"] = np.where(np.arange(256) % 3, 1e30, 1e-30) * gaussian(64, 256).astype(np.float32)
    odd["model.layers.1.attention.weight"][3, 7] = np.nan
    odd["model.layers.1.mlp.weight"] = odd["model.layers.1.mlp.weight"].astype(np.float32)
    made(Path("source"), shard1=odd)
    asked: list[object] = ["source", *([] if "--scheme" in more else ["--group-size", "64"]), *more]
    asked += ["--on-nonfinite", "keep"]
    ran = run("quantize", *asked, "-o", "one", "--json")
    assert ran.code == 0, ran
    notes = {t["name"]: (t["reason"], t["note"]) for t in json.loads(ran.out)["tensors"]}
    assert notes["model.layers.1.attention.weight"][0] == "nonfinite"
    assert ("float32 scales" in notes["model.layers.1.mlp.weight"][1]) == ("--scheme" not in more)
    for count in (1, 3, 5):
        in_parts(count, *asked, out=f"in{count}")
        assert contents(Path(f"in{count}")) == contents(Path("one"))


def test_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What errors cost in the output of a layer is in every header; a layer whose inputs were all 0 is quantized as
    without."""
    monkeypatch.chdir(tmp_path)
    made(Path("source"))
    chance = np.random.default_rng(5)
    entries = {}
    for n in range(4):
        for name, cols in (("mlp", 256), ("attention", 128)):
            x = chance.standard_normal((500, 9)) @ chance.standard_normal((9, cols)) * (n != 2)
            entries[f"model.layers.{n}.{name}.weight.second"] = (x.T @ x / 500).astype(np.float32)
            entries[f"model.layers.{n}.{name}.weight.count"] = np.array(500)
    save(Path("s.safetensors"), entries, {"quantcli_statistics": "1"})
    asked = ["source", "--statistics", "s.safetensors", "--group-size", "64"]
    one = json.loads(run("quantize", *asked, "-o", "one", "--json").out)
    told = {t["name"]: (t["output"] is not None, t["note"]) for t in one["tensors"] if t["scheme"]}
    assert told["model.layers.1.mlp.weight"][0]
    assert "inputs that are all 0" in told["model.layers.2.mlp.weight"][1]
    in_parts(3, *asked, out="in3")
    assert contents(Path("in3")) == contents(Path("one"))


# ---- reports ----------------------------------------------------------------------------------------------------


def test_reports(source: Path) -> None:
    """A part reports on its own tensors, merge what one run reports; what is read adds up to the source."""
    one = json.loads(run("quantize", source, "-o", "one", "--json").out)
    found = [json.loads(run("quantize", source, "-o", "w4", "--part", f"{n}/3", "--json").out) for n in (1, 2, 3)]
    merged = run("merge", "w4", "-o", "report.html", "--json")
    assert merged.code == 0 and Path("report.html").read_text().startswith("<!DOCTYPE html>")
    names = [t["name"] for part in found for t in part["tensors"]]
    assert sorted(names) == sorted(t["name"] for t in one["tensors"]) and len(set(names)) == len(names)
    assert sum(part["summary"]["bytes_in"] for part in found) == 2 * 4 * (64 * 256 + 256 + 64 * 128)
    again = json.loads(merged.out)
    for document in (one, again):
        for key in ("seconds", "output"):
            document.pop(key, None)
            document["summary"].pop(key, None)
        document["warnings"] = [w for w in document["warnings"] if "parts merged" not in w]
    assert again["tensors"] == one["tensors"] and again["summary"] == one["summary"]


# ---- killed, damaged, repeated ----------------------------------------------------------------------------------


def test_killed_parts_are_run_again(source: Path) -> None:
    """Processes of all parts at once, killed at random points and run again, until all are done."""
    shutil.rmtree(source)
    made(source, count=6, rows=512)
    assert run("quantize", source, "-o", "one", "-q").code == 0
    chance, killed, left = random.Random(7), 0, {1, 2, 3, 4}
    for attempt in range(12):
        runs = {
            n: subprocess.Popen(
                command("quantize", source, "-o", "w4", "--part", f"{n}/4", "-q", "--threads", "1"), env=environment()
            )
            for n in sorted(left)
        }
        if attempt < 4:
            time.sleep(chance.uniform(0.1, 0.9))
            for process in runs.values():
                process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        for n, process in runs.items():
            code = process.wait(60)
            killed += code < 0
            left -= {n} if code == 0 else set()
            assert code <= 0
        if not left:
            break
        line = one_line(run("merge", "w4"), 1)
        assert "missing" in line or "no part of it is complete" in line
    assert killed and not left
    assert run("merge", "w4", "-q").code == 0
    assert contents(Path("w4")) == contents(Path("one"))
    assert sorted(os.listdir()) == ["one", "source", "w4"]


def test_a_part_goes_on_after_its_finished_files(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantcli.folders import parts

    written = list[tuple[Any, ...]]()
    make = parts.make

    def counted(*arguments: Any) -> Any:
        if len(written) == limit:
            raise MemoryError
        written.append(arguments)
        return make(*arguments)

    limit = 2
    monkeypatch.setattr(parts, "make", counted)
    assert run("quantize", source, "-o", "w4", "--part", "1/1").code == 1
    limit = 100
    ran = run("quantize", source, "-o", "w4", "--part", "1/1")
    assert "resumed after 2 finished files of an interrupted run" in ran.err and len(written) == 4
    ran = run("quantize", source, "-o", "w4", "--part", "1/1")
    assert "part 1/1 is finished already" in ran.err and len(written) == 4
    file = next(Path(".w4.quantcli-parts/1-of-1").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    ran = run("quantize", source, "-o", "w4", "--part", "1/1")
    assert "part 1/1 was damaged and is made again" in ran.err and len(written) == 8


def test_parts_that_are_left_beside_a_whole_run(source: Path) -> None:
    """What made all of the output says that they are there, and 'merge' does not call the output unfinished."""
    words = ("quantize", source, "--bits", 4, "-o", "w4")
    assert run(*words, "--part", "1/2").code == 0
    ran = run(*words)
    assert ran.code == 0 and "parts that a run with --part left are not in this output" in ran.err
    line = one_line(run("merge", "w4"), 1)
    assert "the output is there, and of the parts beside it part 2 of 2 is missing; remove " in line
    assert run(*words, "--part", "2/2", "--force").code == 0
    ran = run("merge", "w4", "--force")
    assert ran.code == 0 and "with --part" not in ran.err and not Path(".w4.quantcli-parts").exists()


def test_two_processes_of_one_part(source: Path) -> None:
    """The second is refused in a line, for the first holds the lock."""
    from quantcli.stores.workspace import Workspace

    os.mkdir(".w4.quantcli-parts")
    with Workspace(os.path.realpath(".w4.quantcli-parts/1-of-2"), force=True):
        line = one_line(run("quantize", source, "-o", "w4", "--part", "1/2"), 1)
    assert "another run is writing it" in line


def test_merging_again_after_it_failed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging changes nothing in the parts that they would not have at the end."""
    from quantcli.stores import assembled

    assert run("quantize", source, "-o", "one", "-q").code == 0
    for number in range(1, 8):
        assert run("quantize", source, "-o", "w4", "--part", f"{number}/7", "-q").code == 0
    copied, copy = list[Path](), assembled.copy

    def fails(*arguments: Any) -> None:
        copied.append(arguments[1])
        if len(copied) == 3:
            raise MemoryError
        copy(*arguments)

    monkeypatch.setattr(assembled, "copy", fails)
    assert run("merge", "w4").code == 1
    assert not Path("w4").exists() and len(copied) == 3
    for number in range(1, 8):
        ran = run("quantize", source, "-o", "w4", "--part", f"{number}/7")
        assert f"part {number}/7 is finished already" in ran.err
    assert run("merge", "w4", "-q").code == 0
    assert contents(Path("w4")) == contents(Path("one"))


@pytest.mark.parametrize("lacks", [["link"], ["copy_file_range"], ["link", "copy_file_range"]])
def test_file_systems_that_neither_link_nor_copy(
    lacks: list[str], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **named: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    for name in lacks:
        monkeypatch.setattr(os, name, refused)
    in_parts(7, source, out="w4")
    monkeypatch.undo()
    monkeypatch.chdir(source.parent)
    assert run("quantize", source, "-o", "one", "-q").code == 0
    assert contents(Path("w4")) == contents(Path("one"))


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_merging_refuses(source: Path) -> None:
    """ "merge DST checks that all parts agree (request, version, source)": one line, and nothing is published."""

    def part(number: int, *more: object) -> None:
        ran = run("quantize", source, "-o", "w4", "--part", f"{number}/3", "-q", *more)
        assert ran.code == 0, ran

    def broken(path: str, *_: Any, **__: Any) -> bytes:
        raise QuantcliError("input/output error", place=[path])

    def refused(code: int = 1) -> str:
        line = one_line(run("merge", "w4"), code)
        assert not Path("w4").exists()
        return line

    assert "no part of it is complete" in refused()
    part(2)
    assert "parts 1 and 3 of 3 are missing; run them again" in refused()
    part(1)
    part(3)
    record = Path(".w4.quantcli-parts/3-of-3/request.json")
    kept = record.read_text()
    asked = json.loads(kept)
    tool = asked["asked"]["tool"]
    record.write_text(kept.replace(tool, "quantcli 0.1.0"))
    assert f"part 3/3 was made by quantcli 0.1.0, this is {tool}; run that part again" in refused(2)
    asked["asked"]["schemes"][0]["bits"] = 8
    record.write_text(json.dumps(asked))
    assert "part 3/3 had another request: bits of scheme 1 was 8 and is 4" in refused(2)
    record.write_text("{")
    assert "part 3/3 is damaged: request.json; run that part again" in refused()
    record.write_text(kept)
    file = sorted(source.glob("*.safetensors"))[0]
    stamp = file.stat()
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert f"{file.name}: the file is not the one that part 1/3 was made from" in refused()
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    finished = Path(".w4.quantcli-parts/2-of-3/finished.json")
    made, told = finished.read_text(), json.loads(finished.read_text())
    name = next(iter(told["finished"]))
    os.rename(finished.parent / name, "aside")
    assert f"part 2/3 is damaged: {name}; run that part again" in refused()
    os.rename("aside", finished.parent / name)
    for change in ({"outputs": [["a"]]}, {"kind": None}, {"metrics": [1]}, {"scheme": {"bits": 99}}):
        wrong = json.loads(made)
        values = next(iter(wrong["finished"][name][2].values()))
        values.update(change)
        finished.write_text(json.dumps(wrong))
        assert "part 2/3 is damaged: finished.json; run that part again" in refused()
    finished.write_text(made)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts, "read_small", broken)
        assert refused().endswith("request.json: input/output error")  # what the disk does not give is not damaged
    told["finished"].clear()
    finished.write_text(json.dumps(told))
    assert "no part has written it" in refused()
    finished.write_text(made)
    assert run("merge", "w4", "-q").code == 0
    assert "there are no parts of it, and the output is there; nothing is left to be merged" in one_line(
        run("merge", "w4"), 1
    )
    assert "the output exists" in one_line(run("quantize", source, "-o", "w4", "--part", "1/3"), 2)


def test_parts_of_different_runs(source: Path) -> None:
    assert run("quantize", source, "-o", "w4", "--part", "1/3", "-q").code == 0
    line = one_line(run("quantize", source, "-o", "w4", "--part", "2/3", "--bits", "8"), 2)
    assert "part 1/3 had another request: bits of scheme 1 was 4 and is 8; repeat that request" in line
    line = one_line(run("quantize", source, "-o", "w4", "--part", "2/4"), 2)
    assert "part 1/3 is there already, and this is 2/4; repeat the number of parts" in line
    file = sorted(source.glob("*.safetensors"))[0]
    os.utime(file)
    line = one_line(run("quantize", source, "-o", "w4", "--part", "2/3"), 1)
    assert f"{file.name}: the file is not the one that part 1/3 was made from" in line
    ran = run("quantize", source, "-o", "w4", "--part", "1/3")
    assert "part 1/3 was made from a source that has changed since, and is made again" in ran.err, ran


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--part", "3"], "--part: '3' is not a part; write 3/16"),
        (["--part", "0/4"], "--part: there is no part 0 of 4; parts are 1 to 4"),
        (["--part", "5/4"], "--part: there is no part 5 of 4"),
        (["--part", "1/0"], "--part: 0 parts"),
        (["--part", "auto"], "--part: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        (["--part", "1/2", "--resume"], "--resume: a part always goes on where it was interrupted; leave it out"),
        (["--part", "1/2", "--target-size", "1MB"], "--target-size: choosing schemes for a size reads all weights"),
        (["--part", "1/2", "--save-recipe", "r.yaml"], "--save-recipe: every part would write it"),
    ],
)
def test_wrong_requests(options: list[str], words: str, source: Path) -> None:
    assert words in one_line(run("quantize", source, "-o", "w4", *options), 2)
    assert sorted(os.listdir()) == ["source"]


# ---- what schedulers tell ---------------------------------------------------------------------------------------


def slurm(task: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    """What Slurm sets for a task of `--array=first-last:step`."""
    tasks = range(first, last + 1, step)
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(tasks[0]),
        "SLURM_ARRAY_TASK_MAX": str(tasks[-1]),
        "SLURM_ARRAY_TASK_STEP": str(step),
        "SLURM_ARRAY_TASK_COUNT": str(len(tasks)),
    }


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 9))
def test_a_slurm_array(first: int, count: int, step: int) -> None:
    """Every array, whatever its first index and its step, has each part once."""
    last = first + (count - 1) * step
    found = [share("auto", slurm(task, first, last, step)) for task in range(first, last + 1, step)]
    assert found == [Share(number, count) for number in range(1, count + 1)]


def test_an_indexed_job_of_kubernetes() -> None:
    assert share("auto/16", {"JOB_COMPLETION_INDEX": "15"}) == Share(16, 16)
    assert share("auto", {"JOB_COMPLETION_INDEX": "0", "QUANTCLI_PARTS": "16"}) == Share(1, 16)


@pytest.mark.parametrize(
    ("text", "variables", "words"),
    [
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "Kubernetes does not tell how many parts there are"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "3"}, "there is no part 4 of 2"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "1", "QUANTCLI_PARTS": "4"}, "4 parts by QUANTCLI_PARTS, 3 by the option"),
        ("auto", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX is 'x', not a whole number"),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_MIN, the first of"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "1"},
            "Slurm does not tell how many parts there are; write auto/16",
        ),
        ("auto", {"JOB_COMPLETION_INDEX": "1", **slurm(1, 1, 4)}, "both SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX"),
        ("auto/3", slurm(1, 1, 4), "3 parts are asked for, and Slurm's array has 4"),
        ("auto", {**slurm(3, 3, 7), "SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM_ARRAY_TASK_COUNT is 2, but 3 to 7"),
        ("auto", {**slurm(1, 1, 9, 2), "SLURM_ARRAY_TASK_ID": "2"}, "SLURM_ARRAY_TASK_ID is 2, not in steps of 2"),
    ],
)
def test_schedulers_that_contradict_themselves(text: str, variables: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        share(text, variables)
    assert words in str(caught.value)


# ---- shares -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(1, 20),
)
def test_shares_are_complete_and_balanced(sizes: list[list[int]], count: int) -> None:
    """ "balanced by bytes": every tensor is in one share, and none has more than its part, a tensor, and what was given
    to end with a file."""
    line = [("", number, size) for number, file in enumerate(sizes) for size in file]
    total, largest = sum(map(sum, sizes)), max(map(max, sizes))
    places = list(_places(line, total, count))
    assert places[0] == 0 and places[-1] == len(line) and places == sorted(places) and len(places) == count + 1
    for first, last in itertools.pairwise(places):
        assert sum(size for *_, size in line[first:last]) <= total / count * 1.1 + largest


def test_one_huge_file_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parts of a file of 32 equal tensors read and write a quarter each; merging copies none of the largest."""
    monkeypatch.chdir(tmp_path)
    tensors = {f"layers.{n}.weight": gaussian(1 << 16, seed=n).reshape(256, 256).astype(BF16) for n in range(32)}
    save(Path("model.safetensors"), tensors)
    for number in range(1, 5):
        ran = run("quantize", "model.safetensors", "-o", "w4.safetensors", "--part", f"{number}/4", "--json")
        assert json.loads(ran.out)["summary"]["bytes_in"] == (1 << 22) // 4
        (part,) = Path(f".w4.safetensors.quantcli-parts/{number}-of-4").glob("*.safetensors")
        assert part.stat().st_blocks * 512 < part.stat().st_size / 2
    inode = Path(".w4.safetensors.quantcli-parts/1-of-4/w4.safetensors").stat().st_ino
    assert run("merge", "w4.safetensors", "-q").code == 0
    assert Path("w4.safetensors").stat().st_ino == inode
    assert run("quantize", "model.safetensors", "-o", "one.safetensors", "-q").code == 0
    assert Path("one.safetensors").read_bytes() == Path("w4.safetensors").read_bytes()
