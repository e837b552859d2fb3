"""The action for pull requests: its steps, run as a runner runs them, with quantcli as it is here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from making import ROOT, environment, run

ACTION = ROOT / ".ci" / "action" / "action.yml"
DIGITS = ROOT / "sample_models" / "digits.safetensors"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, and quantcli on the path."""
    monkeypatch.chdir(tmp_path)
    for bits in (3, 4):
        assert run("quantize", DIGITS, "--bits", bits, "-o", f"d{bits}.safetensors", "-q").code == 0
    tool = tmp_path / "bin" / "quantcli"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m quantcli "$@"\n')
    tool.chmod(0o755)
    return tmp_path


def steps(place: Path, **inputs: str) -> tuple[int, str, str, dict[str, str]]:
    """Exit code, output and summary of the step that reports, and its outputs, with these inputs."""
    action = yaml.safe_load(ACTION.read_text())
    given = {name: str(one["default"]) for name, one in action["inputs"].items()}
    unknown = {name.replace("_", "-") for name in inputs} - set(given)
    assert not unknown
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    install, report = action["runs"]["steps"]
    assert install["run"].startswith("python -m pip install") and action["runs"]["using"] == "composite"
    assert (ACTION.parent / ".." / ".." / "pyproject.toml").exists()
    filled = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], v) for k, v in report["env"].items()}
    for name in ("summary", "output"):
        (place / name).write_text("")
    found = environment(
        **filled, GITHUB_STEP_SUMMARY=str(place / "summary"), GITHUB_OUTPUT=str(place / "output"),
        PATH=f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert report["shell"] == "bash" and "${{" not in report["run"]
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", report["run"]],
        cwd=place, env=found, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    outputs = dict(line.split("=", 1) for line in (place / "output").read_text().splitlines())
    return done.returncode, done.stdout + done.stderr, (place / "summary").read_text(), outputs


def step_ids() -> set[Any]:
    return {step.get("id") for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"]}


def test_a_model_that_is_as_good_passes(place: Path) -> None:
    code, said, summary, outputs = steps(
        place, file="d4.safetensors", against=str(DIGITS), like="d4.safetensors", max_drop="0.1",
        options="--min-sqnr=20\n--max-bpw=6", report="page.html",
    )  # fmt: skip
    assert code == 0 and outputs == {"passed": "true"}, said
    assert "3 of 3 gates passed" in summary and "::notice" in said
    assert (place / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert "report" in step_ids()


def test_without_a_page(place: Path) -> None:
    code, said, summary, _ = steps(place, file="d4.safetensors", report="")
    assert code == 0 and "d4.safetensors" in summary, said
    assert not list(place.glob("*.html"))


def test_a_model_that_lost_fails_and_names_the_tensor(place: Path) -> None:
    code, said, summary, outputs = steps(place, file="d3.safetensors", like="d4.safetensors", max_drop="0.5")
    assert code == 1 and outputs == {"passed": "false"}
    assert "::error" in said and "conv2.weight" in said and "conv2.weight" in summary


def test_the_evaluation_is_a_gate(place: Path) -> None:
    (place / "evaluate.py").write_text("import sys\nprint('model', sys.argv[1])\nprint('accuracy', 0.5)\n")
    command = f"{sys.executable} evaluate.py {{}}"
    code, said, _, _ = steps(place, file="d4.safetensors", eval_command=command, min_eval="0.4")
    assert code == 0, said
    code, said, _, _ = steps(
        place, file="d4.safetensors", eval_command=command, min_eval="0.6", eval_pattern="acc.* (.*)"
    )
    assert code == 1 and "min-eval" in said


def test_a_loss_has_a_largest_figure(place: Path) -> None:
    (place / "evaluate.py").write_text("import sys\nprint('model', sys.argv[1])\nprint('loss', 0.5)\n")
    command = f"{sys.executable} evaluate.py {{}}"
    for limit, passed in (("0.6", 0), ("0.4", 1)):
        code, said, summary, _ = steps(place, file="d4.safetensors", eval_command=command, max_eval=limit)
        assert code == passed and "max-eval" in summary, said


def test_what_kept_it_from_measuring_stands_on_the_page_of_the_run(place: Path) -> None:
    for inputs, why in (({"file": "none%0A.safetensors"}, "no such file"), ({}, "no file to report on")):
        code, said, summary, outputs = steps(place, **inputs)
        assert code == 2 and outputs == {"passed": "false"}
        [line] = [line for line in said.splitlines() if line.startswith("::error")]
        assert why in line and "%0A" not in line and why in summary


def test_inputs_are_no_commands(place: Path) -> None:
    """What a pull request may choose is passed on as a word, whatever it holds."""
    for name in ("a; touch hacked $(touch hacked) `touch hacked`", "-o hacked"):
        code, _, _, outputs = steps(place, file=name, options="$(touch hacked)")
        assert code == 2 and outputs == {"passed": "false"}
    assert not (place / "hacked").exists()
