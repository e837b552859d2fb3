"""--log-file: what was asked, decided and found, line by line, and not a byte of any output changed by it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from making import ROOT, command, environment, one_line, run, run_process, save, strict_json
from strategies import gaussian

from quantcli import registry
from quantcli.cli import cli

LLAMA = ROOT / "sample_models" / "tiny-llama"


def lines(path: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in path.read_text().splitlines()]


def test_decisions_and_their_reasons_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["quantize", LLAMA, "--bits", "4", "--group-size", "64", "--to", "mlx"]
    ran = run(*words, "-o", "a", "-q", "--log-file", "a.log")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    report = run(*words, "--dry-run", "--json").json
    start, *found, end = lines(Path("a.log"))
    assert start["event"] == "start" and start["command"] == "quantize" and start["asked"]["group_size"] == 64
    assert end == {"event": "end", "at": end["at"], "exit_code": 0}
    tensors = {line["name"]: line for line in found if line["event"] == "tensor"}
    assert list(tensors) == [t["name"] for t in report["tensors"]]
    for tensor in report["tensors"]:
        own = tensors[tensor["name"]]
        assert {k: own[k] for k in ("disposition", "reason", "scheme")}.items() <= tensor.items()
    assert [line["event"] for line in found].count("result") == 1
    assert all(a["at"] <= b["at"] for a, b in itertools.pairwise(found))


def test_the_log_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, more in (("a", []), ("b", ["--log-file", "b.log"])):
        Path(name).mkdir()
        ran = run("quantize", LLAMA, "--bits", "4", "-o", f"{name}/w4", *more)
        assert ran.code == 0
    own = {p.relative_to("a"): p.read_bytes() for p in Path("a").rglob("*") if p.is_file()}
    assert own == {p.relative_to("b"): p.read_bytes() for p in Path("b").rglob("*") if p.is_file()}
    plain = [run("inspect", LLAMA, "--json", *more).out for more in ([], ["--log-file", "i.log"])]
    assert plain[0] == plain[1]


def test_failures_are_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    assert run("quantize", source, "--bits", "4", "-o", "q.safetensors", "-q").code == 0
    ran = run("quantize", source, "--bits", "4", "-o", "q.safetensors", "--log-file", "a.log")
    end = lines(Path("a.log"))[-1]
    assert (end["event"], end["exit_code"]) == ("end", ran.code) and end["error"] in ran.err
    ran = run("report", "q.safetensors", "--min-sqnr", "90", "--log-file", "b.log")
    found = lines(Path("b.log"))
    assert ran.code == found[-1]["exit_code"] == 1
    [gate] = [line for line in found if line["event"] == "gate"]
    assert gate["gate"] == "min_sqnr" and gate["passed"] is False
    assert any(line["event"] == "message" and "failed" in line["text"] for line in found)


def test_notes_are_there_when_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["quantize", LLAMA, "--bits", "4", "--to", "gguf", "-o"]
    loud, quiet = run(*words, "a.gguf", "--log-file", "a.log"), run(*words, "b.gguf", "-q", "--log-file", "b.log")
    assert loud.err and not quiet.err
    said = [[x["text"] for x in lines(Path(n)) if x["event"] == "message"] for n in ("a.log", "b.log")]
    assert said[0] == said[1] and said[0]


def test_what_may_not_be_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    before = source.read_bytes()
    assert "--log-file" in one_line(run("inspect", source, "--log-file", source), 2)
    assert "--log-file" in one_line(run("inspect", tmp_path, "--log-file", "x.log"), 2)
    assert "--log-file" in one_line(run("quantize", source, "-o", "q.safetensors", "--log-file", "q.safetensors"), 2)
    assert source.read_bytes() == before
    assert "--log-file: none/x.log: no such file" in one_line(run("inspect", source, "--log-file", "none/x.log"), 1)
    assert "results" in one_line(run("inspect", source, "--log-file", "-"), 2)
    assert "empty" in one_line(run("inspect", source, "--log-file", ""), 2)
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe that nothing reads" in one_line(run_process("inspect", source, "--log-file", tmp_path / "pipe"), 1)
    assert not Path("-").exists()


def test_a_pipe_that_is_read_takes_the_log(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        until = time.monotonic() + 60
        while (ran := run_process("inspect", source, "--log-file", tmp_path / "pipe")).code:
            assert time.monotonic() < until, ran
        assert reader.stdout is not None
        found = [json.loads(line) for line in reader.stdout.read().splitlines()]
    assert [found[0]["event"], found[-1]["event"]] == ["start", "end"]


def test_two_runs_to_one_log_leave_whole_lines(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", {f"x{i}": gaussian(64, 128, seed=1) for i in range(200)})
    words = command("inspect", source, "-q", "--log-file", tmp_path / "log")
    both = [subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert all(line["event"] for line in lines(tmp_path / "log"))


def test_a_log_that_takes_no_more_ends_no_run(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    ran = run_process("quantize", source, "-o", tmp_path / "q.safetensors", "--log-file", "/dev/full")
    assert ran.code == 0 and (tmp_path / "q.safetensors").exists(), ran
    assert "--log-file: /dev/full: no space left on device; the log is incomplete" in ran.err


def test_every_command_that_does_something_has_it() -> None:
    import click

    for name in registry.commands():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        has = any("--log-file" in p.opts for p in command.params)
        assert has == (name not in ("help", "completion")), name
