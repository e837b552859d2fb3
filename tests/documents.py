"""Run the commands of a Markdown document as a reader would.

The rule, for README.md and the topics of `quantcli help`:

- All blocks of a document run in order in one temporary folder that holds `sample_models`.
- ```console: every line that begins with `$ ` is run by the shell; it must succeed, say nothing on standard error, and
  print what stands below it, times aside. A line `...` there stands for lines left out. Where the command is to fail,
  the next one is `$ echo $?`, and what stands below the two is the message and the exit code.
- ```sh: every line that is not a comment is run by the shell (a backslash goes on in the next line), and must succeed.
- ```python: the block is run, with warnings as errors.
- ```yaml whose first line is a comment with the name of a file (`# recipe.yaml`) is written to that file.
- What cannot be run here, because it needs another program, a network or a large model, is fenced as ```text.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from making import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT = 120
"""Seconds that a command may take on a busy machine."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks of a document in these languages, in order."""
    return [Block(language, body) for language, body in FENCE.findall(text) if language in languages]


def workplace(folder: Path) -> dict[str, str]:
    """Copy the sample models into a folder; an environment in which `quantcli` and `python` are those of the tests."""
    shutil.copytree(ROOT / "sample_models", folder / "sample_models", ignore=shutil.ignore_patterns("__pycache__"))
    commands = folder / ".bin"
    commands.mkdir()
    for name, words in (("quantcli", f'"{sys.executable}" -m quantcli'), ("python", f'"{sys.executable}"')):
        (commands / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def run(text: str, folder: Path) -> None:
    """Run the blocks of a document in a folder. Raises AssertionError with the command that went wrong."""
    environment = workplace(folder)
    for block in blocks(text, "console", "sh", "python", "yaml"):
        RUNNERS[block.language](block.text, folder, environment)


def _shell(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=LIMIT, cwd=folder, env=environment
    )


def _run_console(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Run commands and compare what they print."""
    failed = ""
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        if command == "echo $?":
            assert failed, f"the command before {command!r} did not fail"
            assert_shown(failed, shown, command)
            failed = ""
            continue
        assert not failed, f"it failed: {failed}"
        ran = _shell(command, folder, environment)
        failed = f"{ran.returncode}\n" if ran.returncode else ""
        assert_shown(ran.stderr + ran.stdout, shown, command)
    assert not failed, f"it failed: {text}"


def assert_shown(printed: str, shown: str, command: str) -> None:
    """What is printed is what a document shows, but for times and for lines left out at `...`."""
    pattern = re.escape(_without_times(shown)).replace(re.escape("...\n"), r"(?:.*\n)*?")
    assert re.fullmatch(pattern, _without_times(printed)), f"{command}\nprints\n{printed}instead of\n{shown}"


def _without_times(text: str) -> str:
    return re.sub(r"\d+\.\d\d s\b", "T s", text)


def _run_sh(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Run commands."""
    for command in re.findall(r"^(?!#).+(?:(?<=\\)\n.*)*", text, re.MULTILINE):
        ran = _shell(command, folder, environment)
        assert ran.returncode == 0, f"{command}\n{ran.stderr}"


def _run_python(text: str, folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-W", "error", "-c", text]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=folder, env=environment)
    assert ran.returncode == 0, f"{text}\n{ran.stderr}"


def _write_yaml(text: str, folder: Path, environment: dict[str, str]) -> None:
    name = re.match(r"# ([\w.-]+\.ya?ml)\n", text)
    if name is not None:
        (folder / name[1]).write_text(text)


RUNNERS = {"console": _run_console, "sh": _run_sh, "python": _run_python, "yaml": _write_yaml}
