"""A system without what only Linux has: the same files come out, and nothing fails at import."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = {
    "windows": {
        "os": """
            pread preadv pwrite pwritev posix_fallocate copy_file_range fchmod sched_getaffinity geteuid getuid
            O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_NOCTTY O_SYNC setsid killpg fork mkfifo getpgid
        """,
        "signal": "SIGHUP SIGPIPE SIGXFSZ SIGUSR1 SIGUSR2 SIGALRM SIGKILL pthread_sigmask setitimer sigwait",
        "modules": "fcntl resource pwd grp termios tty pty",
    },
    "linux": {"os": "", "signal": "", "modules": ""},
    "macos": {"os": "preadv posix_fallocate copy_file_range sched_getaffinity", "signal": "", "modules": ""},
}
"""Names that Python's documentation says a system does not have, or not in every version."""

START = """
import os, shutil, signal, sys
for name in {os!r}.split():
    os.__dict__.pop(name, None)
for name in {signal!r}.split():
    signal.__dict__.pop(name, None)
for name in {modules!r}.split():
    sys.modules[name] = None
from quantcli.__main__ import main
main()
"""


def run(system: str, *words: object) -> str:
    """The command line as on another system; its output."""
    done = subprocess.run(
        [sys.executable, "-c", START.format(**WITHOUT[system]), *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("system", ["macos", "windows"])
@pytest.mark.parametrize("model", ["digits.safetensors", "tiny-llama"])
def test_files_are_the_same_without_what_linux_alone_has(
    system: str, model: str, samples: Path, tmp_path: Path, quantized: dict[str, Path]
) -> None:
    output = tmp_path / model
    run(system, "quantize", samples / model, "--bits", 4, "--group-size", 64, "--threads", 2, "-o", output, "-q")
    assert contents(output) == contents(quantized[model])
    assert "SQNR" in run(system, "report", output, "--against", samples / model)
    assert run(system, "inspect", output) == run("linux", "inspect", output)
    run(system, "dequantize", output, "-o", tmp_path / f"again-{model}")
    run(system, "quantize", samples / model, "--bits", 3, "--group-size", 64, "-o", output, "-q", "--force")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def samples() -> Path:
    """The folder of sample models."""
    return Path(__file__).resolve().parents[2] / "sample_models"


@pytest.fixture(scope="module")
def quantized(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What this system makes of the sample models."""
    room = tmp_path_factory.mktemp("here")
    for model in ("digits.safetensors", "tiny-llama"):
        run("linux", "quantize", samples / model, "--bits", 4, "--group-size", 64, "-o", room / model, "-q")
    return {path.name: path for path in room.iterdir()}


def contents(path: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.name != "README.md"}
