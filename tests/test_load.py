"""Many files, many tensors, large headers, holes: time and memory grow with what is there, and no faster.

A small part runs each time, all of it by `make load` (some minutes, 3 GB).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from checkpoints import contents, made
from hypothesis import given, settings
from hypothesis import strategies as st
from making import command, environment, measured, one_line, raw_file, run, save
from strategies import gaussian

from quantcli import memory
from quantcli.folders import planned
from quantcli.passes import audit
from quantcli.planning import plan
from quantcli.stores import safetensors
from quantcli.tensors.info import TensorInfo

ALL = os.environ.get("LOAD") == "all"

OTHERS = [
    ("--to", "compressed-tensors", "--scheme", "FP8_DYNAMIC"),
    ("--to", "mlx", "--bits", "4", "--group-size", "64"),
]
"""Layouts that codes of other tools are in, and what they are asked for."""


def many(path: Path, count: int, *, first: int = 0, pad: int = 0, blank: bytes = b" ", last: str = "w") -> Path:
    """A file of so many tensors of 64 weights. first: the number of the first one; pad: blanks at the end of its
    header; last: the last part of all names."""
    header = {
        f"layers.{first + i}.{last}": {"dtype": "BF16", "shape": [1, 64], "data_offsets": [i * 128, (i + 1) * 128]}
        for i in range(count)
    }
    weights = (np.random.default_rng(0).standard_normal(64 * 512) * 16).astype(np.float32).view(np.uint32) >> 16
    data = np.resize(weights.astype(np.uint16), 64 * count).tobytes()
    path.write_bytes(raw_file(json.dumps(header, separators=(",", ":")).encode() + blank * pad, data))
    return path


def test_tensors(tmp_path: Path) -> None:
    """Time and memory for each tensor stay the same: of four times as many not twice as much for each."""
    counts, found = ((25_000, 100_000) if ALL else (4_000, 16_000)), []
    small = measured("quantize", many(tmp_path / "one", 1), "-o", tmp_path / "o0", "-q", "--group-size", "64")
    for count in counts:
        source = many(tmp_path / f"{count}.safetensors", count)
        found.append(
            measured("quantize", source, "--include", "*", "--group-size", "64", "-q", "-o", tmp_path / f"o{count}")
        )
    (few, less), (more, most) = ((time - small[0], mib - small[1]) for time, mib in found)
    assert more < 4 * few * 1.6 + 0.5 and most < 4 * max(less, 4) * 1.3, found
    assert found[1][1] < 140, found


def test_tensors_in_shards(tmp_path: Path) -> None:
    """Of a folder, 0.2 KiB for each tensor and 3 for those of a shard, and not much more time than in one file."""
    counts, found = ((25_000, 100_000) if ALL else (4_000, 16_000)), []
    for count in counts:
        (folder := tmp_path / f"m{count}").mkdir()
        for at in range(10):
            many(folder / f"model-{at + 1:05d}-of-00010.safetensors", count // 10, first=at * count // 10)
        words = ("--include", "*", "--group-size", "64", "-q", "-o", tmp_path / f"o{count}")
        found.append(measured("quantize", folder, *words))
        assert contents_of(tmp_path / f"o{count}") == {f"layers.{i}.w" for i in range(count)}
    (few, less), (more, most) = found
    assert more < 4 * few * 1.3 + 0.5 and most - less < (counts[1] - counts[0]) * (0.2 + 3 / 10) / 1024 + 8, found


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_tensors_of_other_layouts(tmp_path: Path, words: tuple[str, ...]) -> None:
    """In the layouts of other tools as well, 0.2 KiB for each tensor and 3 for those of a shard: 2 for each before."""
    counts, found = ((25_000, 100_000) if ALL else (4_000, 16_000)), []
    for count in counts:
        source = sharded(tmp_path / f"m{count}", count, 10)
        found.append(measured("quantize", source, *words, "--include", "*", "-q", "-o", tmp_path / f"o{count}"))
        index = json.loads((tmp_path / f"o{count}" / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert {f"layers.{i}.weight" for i in range(count)} <= {*index["weight_map"]}
    (few, less), (more, most) = found
    assert more < 4 * few * 1.3 + 0.5 and most - less < (counts[1] - counts[0]) * (0.2 + 3 / 10) / 1024 + 8, found


def sharded(folder: Path, count: int, shards: int) -> Path:
    """A folder of so many matrices of 64 weights in so many files."""
    folder.mkdir()
    for at in range(shards):
        name = f"model-{at + 1:05d}-of-{shards:05d}.safetensors"
        many(folder / name, count // shards, first=at * count // shards, last="weight")
    return folder


def contents_of(folder: Path) -> set[str]:
    """The names of the tensors of a quantized folder, by its index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert list(index) == sorted(index)
    return {name.removesuffix("_packed") for name in index if name.endswith("_packed")}


def test_tensors_that_are_shown(tmp_path: Path) -> None:
    """Of each tensor less than 200 bytes are kept, as a table and as JSON."""
    few, more = (25_000, 100_000) if ALL else (4_000, 40_000)
    sources = [many(tmp_path / f"{count}.safetensors", count) for count in (few, more)]
    for option in ([], ["--json"]):
        (_, less), (_, most) = (measured("inspect", source, *option) for source in sources)
        assert (most - less) * (1 << 20) < (more - few) * 200 + (2 << 20), (option, less, most)


@pytest.mark.parametrize("command", [("compare", "m", "q"), ("report", "q", "--against", "m"), ("verify", "q")])
def test_tensors_that_are_measured(command: tuple[str, ...], tmp_path: Path) -> None:
    """Of four times as many not twice as much time for each, and 1 KiB of memory; of few 3, whose rows are held."""
    counts, each, found = ((25_000, 100_000), 1, []) if ALL else ((3_000, 12_000), 3, [])
    for count in counts:
        files = {"m": many(tmp_path / f"m{count}", count), "q": tmp_path / f"q{count}"}
        made = run("quantize", files["m"], "--include", "*", "--group-size", "64", "-q", "-o", files["q"])
        assert made.code == 0
        found.append(measured(*(files.get(word, word) for word in command)))
    (few, less), (more, most) = found
    assert more < 4 * few * 1.3 + 0.5 and (most - less) * 1024 < (counts[1] - counts[0]) * each, found
    assert most < 150, found


def test_tensors_that_are_moved(tmp_path: Path) -> None:
    """Of codes that stay as they are, 2 KiB for each tensor: 5 before."""
    counts, found = ((25_000, 100_000) if ALL else (4_000, 16_000)), []
    for count in counts:
        source, codes = (
            many(tmp_path / f"m{count}.safetensors", count, last="weight"),
            tmp_path / f"q{count}.safetensors",
        )
        assert run("quantize", source, "--include", "*", "--group-size", "64", "-q", "-o", codes).code == 0
        found.append(measured("export", codes, "--to", "compressed-tensors", "-q", "-o", tmp_path / f"o{count}"))
    (few, less), (more, most) = found
    assert more < 4 * few * 1.3 + 0.5 and (most - less) * 1024 < (counts[1] - counts[0]) * 2.2, found
    assert most < 256, found


def test_audits_of_many_tensors_take_as_long_for_each() -> None:
    """The usual error of a scheme is found once, not once for each tensor: of 20,000 that was half a minute."""
    usual = audit.Audited(name="w", became=audit.QUANTIZED, scheme="w4g64", shape=(1, 64), shortfall=0.0)
    tensors = [replace(usual, name=f"{n}", shortfall=0.01 * (n % 7)) for n in range(20_000)]
    began = time.process_time()
    found = audit._scored([*tensors, replace(usual, name="far", shortfall=30.0)])
    assert time.process_time() - began < 5 and [t.name for t in found if t.problems] == ["far"]


def test_more_tensors_than_a_header_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused in a line before they are planned where the least that they take is too much, after it
    elsewhere; and what the line says makes files of them."""
    (tmp_path / "m").mkdir()
    source, words = many(tmp_path / "m" / "m.safetensors", 100), ("--include", "*", "--group-size", "64", "-q", "-o")
    said = "a header of 100 tensors would have more than the"
    for limit, planned_first in ((15_000, True), (12_000, False)):
        with monkeypatch.context() as patch:
            patch.setattr(safetensors, "HEADER_LIMIT", limit)
            patch.setattr(planned, "HEADER_LIMIT", limit)
            if not planned_first:
                patch.setattr(plan, "make", None)
            line = one_line(run("quantize", source, *words, tmp_path / "o.safetensors"), 1)
            assert said in line and "put it into a folder of its own, and quantize that with --max-shard-size" in line
            assert not (tmp_path / "o.safetensors").exists()
    monkeypatch.setattr(safetensors, "HEADER_LIMIT", 12_000)
    monkeypatch.setattr(planned, "HEADER_LIMIT", 12_000)
    assert run("quantize", source.parent, *words, tmp_path / "o", "--max-shard-size", "100kB").code == 0
    assert len(list((tmp_path / "o").glob("*.safetensors"))) > 4
    assert contents_of(tmp_path / "o") == {f"layers.{i}.w" for i in range(100)}
    assert run("verify", tmp_path / "o", "--source", source).code == 0


@settings(max_examples=15)
@given(st.lists(st.text(max_size=5), min_size=1, unique=True), st.sampled_from(["xxh3", "none"]))
def test_the_least_that_a_header_takes(tmp_path_factory: pytest.TempPathFactory, names: list[str], digest: str) -> None:
    """A file that fits is not refused for its number of tensors: with all but one kept, a header has more than that."""
    folder = tmp_path_factory.mktemp("least")
    tensors = {name: np.array(1, np.uint8) for name in names if name != "__metadata__"} | {"w.weight": gaussian(8, 64)}
    source, out = save(folder / "m.safetensors", tensors), folder / "o.safetensors"
    assert run("quantize", source, "-q", "--digest", digest, "-o", out).code == 0
    length = int.from_bytes(out.read_bytes()[:8], "little")
    infos = [TensorInfo(name, "U8", ()) for name in tensors]
    with mock.patch.object(planned, "HEADER_LIMIT", length):
        planned._check_header(infos, digest)


def test_a_header_that_is_too_large_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in another form than libraries give it is refused before memory runs out, and read where there is enough. One
    in their form takes no more memory than its tensors, whatever spaces are in it."""
    usual = many(tmp_path / "m.safetensors", 10, pad=17 << 20)
    other = many(tmp_path / "n.safetensors", 10, pad=17 << 20, blank=b"\n")
    assert run("inspect", usual).code == run("inspect", other).code == 0
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    assert run("inspect", usual).code == 0
    line = one_line(run("inspect", other), 1)
    assert "bytes takes 204 MiB to read, 100 MiB are available; read it where there is more memory" in line


if ALL:

    def test_a_million_tensors(tmp_path: Path) -> None:
        """A header of 85 MB is shown within 128 MiB, and quantizing it into one file is refused in a line."""
        source = many(tmp_path / "m.safetensors", 1_000_000)
        assert int.from_bytes(source.read_bytes()[:8], "little") > 80_000_000
        for option in ([], ["--json"]):
            assert measured("inspect", source, *option)[1] < 128
        done = subprocess.run(command("quantize", source, "-o", tmp_path / "o"), capture_output=True, text=True,
                              env=environment(), check=False)  # fmt: skip
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "1,000,000 tensors" in done.stderr

    def test_a_million_tensors_in_shards(tmp_path: Path) -> None:
        """256 MiB, and 0.1 ms a tensor of an idle machine."""
        (folder := tmp_path / "m").mkdir()
        for at in range(100):
            many(folder / f"model-{at + 1:05d}-of-00100.safetensors", 10_000, first=at * 10_000)
        assert measured("inspect", folder)[1] < 192
        _, most = measured("quantize", folder, "--include", "*", "--group-size", "64", "-q", "-o", tmp_path / "o")
        assert most < 256

    def test_a_million_tensors_of_another_layout(tmp_path: Path) -> None:
        """No more than in quantcli's own: 255 MiB were measured."""
        source, out = sharded(tmp_path / "m", 1_000_000, 100), tmp_path / "o"
        assert measured("quantize", source, *OTHERS[0], "--include", "*", "-q", "-o", out)[1] < 260


def test_a_tensor_of_holes(tmp_path: Path) -> None:
    """One tensor of 16 GiB (256 MiB each time): memory is that of a tile."""
    size = (16 << 30) if ALL else (256 << 20)
    source = tmp_path / "m.safetensors"
    source.write_bytes(
        raw := raw_file({"w": {"dtype": "BF16", "shape": [size >> 13, 4096], "data_offsets": [0, size]}})
    )
    os.truncate(source, len(raw) + size)
    _, most = measured("quantize", source, "-q", "-o", tmp_path / "o.safetensors")
    assert most < 100


def test_shards(tmp_path: Path) -> None:
    """Of four times as many shards not more time for each."""
    counts, found = ((75, 300) if ALL else (10, 40)), []
    for count in counts:
        source = made(tmp_path / f"m{count}", count=count, rows=8)
        found.append(measured("quantize", source, "-q", "--group-size", "64", "-o", tmp_path / f"o{count}"))
    assert found[1][0] < 4 * found[0][0] + 0.5 and found[1][1] < 100, found


def test_files(tmp_path: Path) -> None:
    """A thousand files in one call of report."""
    count = 1000 if ALL else 60
    source = save(tmp_path / "m.safetensors", {"w.weight": gaussian(32, 64)})
    assert run("quantize", source, "-o", tmp_path / "q0.safetensors", "-q").code == 0
    files = [tmp_path / f"q{i}.safetensors" for i in range(count)]
    for file in files[1:]:
        os.link(files[0], file)
    few, _ = measured("report", *files[: count // 4], "-q")
    more, most = measured("report", *files, "-q")
    assert more < 4 * few * 1.3 + 0.5 and most < 128


def test_runs_at_once(tmp_path: Path) -> None:
    """Each with its own output, and all with the same one: one makes it, the others say so in a line."""
    count = 64 if ALL else 8
    source = made(tmp_path / "m", count=2, rows=8)
    assert run("quantize", source, "-o", tmp_path / "whole", "-q").code == 0
    whole = contents(tmp_path / "whole")

    def at_once(targets: list[Path]) -> list[tuple[int, str]]:
        words = ("quantize", source, "-q", "--threads", "1", "-o")
        running = [
            subprocess.Popen(command(*words, target), stderr=subprocess.PIPE, text=True, env=environment())
            for target in targets
        ]
        return [(p.wait(600), e) for p in running for e in [p.communicate()[1]]]

    targets = [tmp_path / f"o{i}" for i in range(count)]
    assert at_once(targets) == [(0, "")] * count
    assert all(contents(target) == whole for target in targets)
    found = at_once([tmp_path / "same"] * count)
    assert contents(tmp_path / "same") == whole and [code for code, _ in found].count(0) == 1
    for code, said in found:
        words = ("another run is writing it", "another process created the output", "the output exists")
        assert code == 0 or (said.count("\n") == 1 and any(w in said for w in words)), said
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
