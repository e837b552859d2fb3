"""Shell completion, asked for by the real shells: keys are typed, and what appears is looked at."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest
from making import environment, run, save
from strategies import gaussian

import quantcli

START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
LOAD = {
    "bash": 'PS1="ready> "; eval "$(quantcli completion bash)"\n',
    "zsh": 'PS1="ready> "; autoload -Uz compinit; compinit -u -d zdump; eval "$(quantcli completion zsh)"\n',
    "fish": "quantcli completion fish | source\n",
}


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, shell: str, folder: Path) -> None:
        found = environment(PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", TERM="dumb", HOME=str(folder))
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execvpe(START[shell][0], START[shell], found)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Read until a text appears."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if not select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 1 << 16).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fd)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


SHARE = Path(quantcli.__file__).parent / "share"
INSTALLED = {
    "bash": f'PS1="ready> "; source {SHARE}/bash-completion/completions/quantcli\n',
    "zsh": f'PS1="ready> "; fpath=({SHARE}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -d zdump\n',
    "fish": f"set -p fish_complete_path {SHARE}/fish/vendor_completions.d\n",
}
"""How shells find the completions that a wheel installs."""


def begun(shell: str, load: dict[str, str], folder: Path) -> Terminal:
    """A shell that has the completions, in a folder with a model."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    save(folder / "model.safetensors", {"unusual.weight": gaussian(32, 64), "other.weight": gaussian(32, 64)})
    (folder / "bin").mkdir()
    program = folder / "bin" / "quantcli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantcli "$@"\n')
    program.chmod(0o755)
    terminal = Terminal(shell, folder)
    terminal.type(load[shell] + "echo loa''ded\n")
    terminal.wait_for("\nloaded" if shell != "fish" else "loaded")
    return terminal


@pytest.mark.parametrize("load", [LOAD, INSTALLED], ids=["printed", "installed"])
@pytest.mark.parametrize("shell", START)
def test_a_shell_completes(shell: str, load: dict[str, str], tmp_path: Path) -> None:
    """Shell completion for bash, zsh and fish completes tensor names too"""
    terminal = begun(shell, load, tmp_path)
    try:
        # What appears behind the keys; the module `unusual` and its weight share a beginning.
        for keys, appears in (("quantcli quan\t", "tize"), ("mod\t", "el.safetensors"), (" --calibr\t", "ation"),
                              (" perc\t", "entile"), (" --include unu\t", "sual")):  # fmt: skip
            terminal.seen = ""
            terminal.type(keys)
            terminal.wait_for(appears)
    finally:
        terminal.close()


VALUES = {
    "--to=compr": "--to=compressed-tensors",
    "--to compr": "--to compressed-tensors",
    "--calibration=perc": "--calibration=percentile",
    "--output=mod": "--output=model.safetensors",
    "--include=unu": "--include=unusual",
    "--to=mlx --calibr": "--to=mlx --calibration",
    "--recipe s3://a/b=c --calibr": "--recipe s3://a/b=c --calibration",
}
"""What is typed behind `quantcli quantize model.safetensors`, and what stands there after Tab."""


@pytest.mark.parametrize("load", [LOAD, INSTALLED], ids=["printed", "installed"])
@pytest.mark.parametrize("shell", START)
def test_values_behind_an_equals_sign(shell: str, load: dict[str, str], tmp_path: Path) -> None:
    """The line is made one that prints itself, so that the shell says what it holds."""
    terminal = begun(shell, load, tmp_path)
    try:
        for typed, expected in VALUES.items():
            terminal.seen = ""
            terminal.type(f"quantcli quantize model.safetensors {typed}\t")
            terminal.type("\x01printf '<%s>' \x05 end\n")
            terminal.wait_for("<end>")
            found = "".join(f"<{word}>" for word in expected.split())
            assert f"<model.safetensors>{found}" in terminal.seen.replace("\r", ""), (typed, terminal.seen)
        line, terminal.seen = "quantcli quantize model.safetensors --calibration=", ""
        terminal.type(f"complete -C '{line}'\n" if shell == "fish" else f"{line}\t\t")
        terminal.wait_for("percentile")
    finally:
        terminal.close()


def test_names_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and modules; nothing, and no message, where there is no model."""
    from click.shell_completion import shell_complete

    from quantcli.cli import _shells, cli

    _shells.register()
    model = save(tmp_path / "m.safetensors", {f"layers.{i}.up.weight": gaussian(4, 4) for i in range(2)})
    for source, incomplete, expected in (
        (model, "layers.0", ["layers.0.up.weight", "layers.0.up"]),
        (model, "x", []),
        (tmp_path / "none", "l", []),
        (__file__, "l", []),
    ):
        monkeypatch.setenv("COMP_WORDS", f"quantcli quantize {source} --exclude {incomplete}")
        monkeypatch.setenv("COMP_CWORD", incomplete)
        assert shell_complete(cli, {}, "quantcli", "_QUANTCLI_COMPLETE", "bash_complete") == 0
        found = capsys.readouterr()
        assert found.err == "" and [line for line in found.out.split("\n") if line] == [f"plain,{n}" for n in expected]


def test_scripts() -> None:
    for shell in START:
        ran = run("completion", shell)
        assert ran.code == 0 and "_QUANTCLI_COMPLETE" in ran.out
    assert run("completion", "tcsh").code == 2
