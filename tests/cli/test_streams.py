"""Standard input and output: the same bytes as with files, bounded memory, quiet ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, command, environment, one_line, run, run_process, save, sparse_model
from strategies import gaussian

from quantcli.cli._utf8 import Utf8
from quantcli.errors import DataError
from quantcli.stores.standard import Stream


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save(tmp_path / "model.safetensors", {
        "a.weight": gaussian(300, 500, seed=1), "b.weight": gaussian(700, 900, seed=2).astype(BF16),
        "norm": gaussian(64), "empty": np.zeros((0, 4), np.float32), "ids": np.arange(7)})  # fmt: skip


def piped(data: bytes, *arguments: Any, **changes: str) -> subprocess.CompletedProcess[bytes]:
    """A run with these bytes on a pipe."""
    return subprocess.run(
        command(*arguments), input=data, capture_output=True, env=environment(**changes), timeout=120, check=False
    )


METHODS = [
    [], ["--calibration", "minmax"], ["--granularity", "tensor", "--calibration", "percentile"],
    ["--granularity", "channel", "--axis", "1"], ["--type", "codebook", "--group-size", "32"], ["--asymmetric"],
    ["--type", "codebook", "--granularity", "tensor"], ["--calibration", "auto"],
]  # fmt: skip


@pytest.mark.parametrize("method", [*METHODS, ["--digest", "sha256"], ["--digest", "none"]], ids=" ".join)
def test_a_pipe_gives_the_bytes_a_file_gives(method: list[str], model: Path) -> None:
    """The same input and options give the same bytes."""
    arguments = [*method, "-q"]
    assert run("quantize", model, "-o", "file.safetensors", *arguments).code == 0
    expected = Path("file.safetensors").read_bytes()
    data = model.read_bytes()
    for threads in ("1", "2", "7"):
        done = piped(data, "quantize", "-", "-o", "-", *arguments, "--threads", threads)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout == expected
    assert piped(data, "quantize", "-", "-o", "piped.safetensors", *arguments).returncode == 0
    assert Path("piped.safetensors").read_bytes() == expected
    with open(model, "rb") as redirected:
        done = subprocess.run(command("quantize", "-", "-o", "-", *arguments), stdin=redirected, capture_output=True,
                              env=environment(), timeout=120, check=False)  # fmt: skip
    assert done.stdout == expected


def test_the_pipeline_of_the_readme(model: Path) -> None:
    """cat model | quantcli quantize - -o - --bits 4 | quantcli report - --json | jq .summary"""
    ours = " ".join(command())
    line = f"set -o pipefail; cat model.safetensors | {ours} quantize - -o - --bits 4 | {ours} report - --json"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0
    found = json.loads(done.stdout)["summary"]
    assert run("quantize", model, "-o", "q.safetensors", "--bits", "4", "-q").code == 0
    expected = json.loads(run("report", "q.safetensors", "--json").out)["summary"]
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert done.stderr.startswith(b"quantcli: ") and done.stderr.count(b"\n") == 1


def test_a_stream_of_a_gigabyte_takes_little_memory(tmp_path: Path) -> None:
    """on a 1 GB stream within 200 MiB"""
    source = sparse_model(tmp_path / "m.safetensors", 1.0)
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ours = [sys.executable, "-c", program, *command("quantize", "-", "-o", "-", "-q")]
    with subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            ours, stdin=cat.stdout, capture_output=True, text=True, env=environment(), check=True, timeout=300
        )
    code, peak = map(int, done.stdout.split())
    assert code == 0 and peak < 200 * 1024


def test_streams_that_are_damaged(model: Path) -> None:
    data = model.read_bytes()
    for damaged, words in (
        (b"", "ends after 0 bytes"), (data[:5], "cut short"), (data[:100], "cut short"), (data[:-1], "cut short"),
        (data + b"x", "followed by bytes that belong to no tensor"),
        (b"hello, this is no model", "not a safetensors file"),
        (b"\x93NUMPY\x01\x00v\x00", "NumPy"), (b"GGUF\x03\x00\x00\x00", "GGUF"),
    ):  # fmt: skip
        for arguments in (["quantize", "-", "-o", "out.safetensors"], ["quantize", "-", "-o", "-"], ["inspect", "-"]):
            done = piped(damaged, *arguments)
            assert done.returncode == 1 and done.stdout == b"", (words, arguments)
            assert done.stderr.startswith(b"quantcli: stdin") and done.stderr.count(b"\n") == 1
            assert words.encode() in done.stderr
    assert sorted(os.listdir()) == ["model.safetensors"]


def test_a_stream_that_ends_early_fails_a_report(model: Path) -> None:
    """could not measure: 2"""
    assert run("quantize", model, "-o", "q.safetensors", "-q").code == 0
    data = Path("q.safetensors").read_bytes()
    assert piped(data, "report", "-", "-q").returncode == 0
    assert piped(data[:-1], "report", "-", "-q").returncode == 2


def test_what_needs_a_file_says_so(model: Path) -> None:
    assert run("quantize", model, "-o", "q.safetensors", "-q").code == 0
    data = Path("q.safetensors").read_bytes()
    for arguments, code in (
        (["dequantize", "-", "-o", "-"], 2),
        (["report", "-", "--against", "model.safetensors"], 2),
        (["inspect", "-", "--stats"], 2),
    ):
        done = piped(data, *arguments)
        assert done.returncode == code and b"standard input is a pipe; name a file" in done.stderr and not done.stdout
    with open("q.safetensors", "rb") as file:
        done = subprocess.run(
            command("dequantize", "-", "-o", "-"), stdin=file, capture_output=True, env=environment(), check=True
        )
    assert run("dequantize", "q.safetensors", "-o", "d.safetensors", "-q").code == 0
    assert done.stdout == Path("d.safetensors").read_bytes()


def test_what_only_a_second_run_can_mend_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wide = gaussian(64, 64)
    wide[3] *= 1e8
    bad = gaussian(64, 64)
    bad[2, 3] = np.nan
    for weights, words in ((wide, b"--scale-dtype float32"), (bad, b"NaN")):
        data = save(Path("w.safetensors"), {"w": weights}).read_bytes()
        done = piped(data, "quantize", "-", "-o", "out.safetensors")
        assert done.returncode == 1 and words in done.stderr and done.stderr.count(b"\n") == 1
    assert sorted(os.listdir()) == ["w.safetensors"]


def test_a_closed_pipe_ends_quietly(model: Path) -> None:
    """a closed pipe ends quietly with the conventional status"""
    for arguments in (["quantize", str(model), "-o", "-"], ["inspect", str(model), "--json"]):
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            errors = process.stderr.read()
        assert process.returncode in (-signal.SIGPIPE, 0) and b"Traceback" not in errors and b"rror" not in errors


def test_a_terminal_is_refused(model: Path) -> None:
    """Binary output to a terminal is refused."""
    main, side = pty.openpty()
    try:
        done = subprocess.run(command("quantize", model, "-o", "-"), stdout=side, stderr=subprocess.PIPE,
                              env=environment(), timeout=60, check=False)  # fmt: skip
        assert done.returncode == 2 and b"this is a terminal" in done.stderr
        done = subprocess.run(command("quantize", "-", "-o", "x.safetensors"), stdin=side, capture_output=True,
                              env=environment(), timeout=60, check=False)  # fmt: skip
        assert done.returncode == 2 and b"this is a terminal" in done.stderr
    finally:
        os.close(main)
        os.close(side)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_stream_waits(number: signal.Signals, model: Path) -> None:
    """SIGINT 130: nobody waits for a sender that is silent"""
    process = subprocess.Popen(command("quantize", "-", "-o", "out.safetensors", "--force"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())  # fmt: skip
    assert process.stdin is not None
    with process:
        process.stdin.write(model.read_bytes()[:-1000])
        process.stdin.flush()
        time.sleep(1.0)
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(20) == -number and time.monotonic() - began < 10
    assert sorted(os.listdir()) == ["model.safetensors"]


def test_nothing_is_kept_of_what_was_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    saved = os.dup(0)
    os.dup2(read, 0)
    try:
        stream = Stream()
        os.write(write, bytes(range(200)) * 300)
        os.close(write)
        stream.expect(60_000)
        buffer = memoryview(bytearray(10_000))
        stream.read_into(20_000, buffer)
        assert bytes(buffer) == (bytes(range(200)) * 300)[20_000:30_000]
        stream.passed(20_000, 10_000)
        stream.read_into(0, buffer)  # kept: not passed yet
        stream.passed(0, 20_000)
        stream.check_unchanged()
        with pytest.raises(AssertionError):
            stream.read_into(0, buffer)
        stream.expect(59_999)
        with pytest.raises(DataError, match="followed by bytes"):
            stream.check_unchanged()
        stream.close()
    finally:
        os.dup2(saved, 0)
        for fd in (read, saved):
            os.close(fd)


def test_names_for_xargs(model: Path) -> None:
    """inspect --names prints bare names for xargs"""
    bare = run("inspect", model, "--names").out
    assert sorted(bare.split("\n")) == ["", "a.weight", "b.weight", "empty", "ids", "norm"]
    done = run_process("inspect", model, "--names", "--null")
    assert sorted(done.out.split("\0")) == ["", "a.weight", "b.weight", "empty", "ids", "norm"]
    one_line(run("inspect", model, "--names", "--json"), 2)
    one_line(run("inspect", model, "--null"), 2)


def test_a_stream_that_takes_a_part_of_what_is_written() -> None:
    """As pipes without buffering do: nothing is lost, and what UTF-8 does not hold is escaped."""
    taken = bytearray()

    class Few:
        def write(self, data: memoryview) -> int:
            taken.extend(data[:1000])
            return min(len(data), 1000)

    stream, texts = Utf8(Few()), ["a" * 70_000, "ü\n", "\udcff", ""]
    for text in texts:
        assert stream.write(text) == len(text)
    stream.flush()
    assert bytes(taken) == b"a" * 70_000 + "ü\n".encode() + b"\\udcff"
