"""Systems without what only Linux has: the same files come out, nothing is left, and nothing fails at import."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from making import Ran, environment, one_line, save
from strategies import gaussian

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
if {windows}:
    sys.path.insert(0, {tests!r})
    import windows
    windows.install()
for name in {os!r}.split():
    os.__dict__.pop(name, None)
for name in {signal!r}.split():
    signal.__dict__.pop(name, None)
for name in {modules!r}.split():
    sys.modules[name] = None
import json
from quantcli.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise
"""


TESTS = str(Path(__file__).resolve().parents[1])


def tried(system: str, *commands: Sequence[object], before: Callable[[], object] | None = None, **changes: str) -> Ran:
    """How command lines end on another system, up to the first that fails; on Windows with the file layer that refuses
    what is open. before: called in their process at first; changes: of its environment."""
    start = START.format(**WITHOUT[system], windows=system == "windows", tests=TESTS)
    words = json.dumps([list(map(str, one)) for one in commands])
    line = [sys.executable, "-c", start, words]
    done = subprocess.run(
        line, capture_output=True, text=True, env=environment(**changes), preexec_fn=before, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def run(system: str, *commands: Sequence[object]) -> str:
    """The output of command lines on another system, where they must succeed."""
    done = tried(system, *commands)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("system", ["macos", "windows"])
@pytest.mark.parametrize("model", ["digits.safetensors", "tiny-llama"])
def test_files_are_the_same_without_what_linux_alone_has(
    system: str, model: str, samples: Path, tmp_path: Path, quantized: dict[str, Path]
) -> None:
    output = tmp_path / model
    quantize = ("quantize", samples / model, "--group-size", 64, "-o", output, "-q", "--bits")
    said = run(system, (*quantize, 4, "--threads", 2), ("report", output, "--against", samples / model))
    assert "SQNR" in said and contents(output) == contents(quantized[model])
    assert run(system, ("inspect", output)) == run("linux", ("inspect", output))
    run(system, ("dequantize", output, "-o", tmp_path / f"again-{model}"), (*quantize, 3, "--force"))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def samples() -> Path:
    """The folder of sample models."""
    return Path(__file__).resolve().parents[2] / "sample_models"


@pytest.fixture(scope="module")
def quantized(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What this system makes of the sample models."""
    room = tmp_path_factory.mktemp("here")
    options = ("--bits", 4, "--group-size", 64, "-q", "-o")
    run(
        "linux", *(("quantize", samples / name, *options, room / name) for name in ("digits.safetensors", "tiny-llama"))
    )
    return {path.name: path for path in room.iterdir()}


def contents(path: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.name != "README.md"}


# ---- Windows: what is open is neither removed nor renamed -----------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of three shards, the last of which is large."""
    folder = tmp_path / "model"
    folder.mkdir()
    where = {}
    for number, rows in enumerate((64, 64, 4096)):
        name = f"model-0000{number + 1}-of-00003.safetensors"
        where[f"layers.{number}.weight"] = name
        save(folder / name, {f"layers.{number}.weight": gaussian(rows, 128, seed=number)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A model in one file."""
    return save(tmp_path / "one.safetensors", {"a.weight": gaussian(4096, 128)})


def left(folder: Path) -> set[str]:
    """What is in a folder beside the models of this module, hidden or not."""
    return set(os.listdir(folder)) - {"model", "one.safetensors"}


def small_files() -> None:
    """Let this process write no file of more than 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("which", ["single", "model"])
def test_windows_replaces_an_output(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """--force on a file and on a folder: the new bytes, and nothing hidden left."""
    source, name = request.getfixturevalue(which), "out.safetensors" if which == "single" else "out"
    out, here = tmp_path / name, tmp_path / "here" / name
    (tmp_path / "here").mkdir()
    words = ("quantize", source, "-q", "--bits")
    run("linux", (*words, 4, "-o", here))
    run("windows", *((*words, bits, "-o", out, "--force", "--log-file", tmp_path / "log") for bits in (8, 4)))
    assert contents(out) == contents(here)
    assert "the output exists; use --force to replace it" in one_line(tried("windows", (*words, 4, "-o", out)), 2)
    assert left(tmp_path) == {"here", "log", name}


def test_windows_leaves_nothing_of_a_run_that_failed(single: Path, model: Path, tmp_path: Path) -> None:
    """A file is removed; of a folder what is finished stays, and --resume goes on after it."""
    words = ("quantize", single, "--bits", 4, "-o", tmp_path / "out.safetensors")
    assert "file too large" in one_line(tried("windows", words, before=small_files), 1)
    assert left(tmp_path) == set()
    words = ("quantize", model, "--bits", 4, "-o", tmp_path / "out")
    failed = tried("windows", words, before=small_files)
    assert failed.code == 1 and "run the same command with --resume" in failed.err
    assert left(tmp_path) == {".out.quantcli-partial"}
    run("windows", (*words, "--resume"))
    run("linux", ("quantize", model, "--bits", 4, "-o", tmp_path / "here"))
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    assert left(tmp_path) == {"here", "out"}


def test_windows_knows_runs_that_live_by_their_open_files(single: Path, model: Path, tmp_path: Path) -> None:
    """There are no locks: a hidden file, or the lock of a hidden folder, that cannot be removed is another run's."""
    hidden, folder = tmp_path / ".out.safetensors.quantcli-1-0123abcd.tmp", tmp_path / ".out.quantcli-partial"
    of_file = ("quantize", single, "--bits", 4, "-o", tmp_path / "out.safetensors", "--force")
    of_folder = ("quantize", model, "--bits", 4, "-o", tmp_path / "out")
    folder.mkdir()
    with hidden.open("wb"), (folder / "lock").open("wb"):
        run("windows", of_file)
        assert left(tmp_path) == {hidden.name, folder.name, "out.safetensors"}
        assert "out: another run is writing it; wait until it has ended" in one_line(tried("windows", of_folder), 1)
    run("windows", of_file, of_folder)
    assert left(tmp_path) == {"out", "out.safetensors"}


def test_windows_joins_parts(model: Path, tmp_path: Path) -> None:
    words, out = ("quantize", model, "--bits", 4, "-q", "-o"), tmp_path / "out"
    run("linux", (*words, tmp_path / "here"))
    run("windows", *((*words, out, "--part", f"{number}/2") for number in (1, 2)), ("merge", out, "-q"))
    assert contents(out) == contents(tmp_path / "here")
    assert left(tmp_path) == {"here", "out"}


def test_other_commands_on_windows(model: Path, samples: Path, tmp_path: Path) -> None:
    """What they write is what they write here, and no temporary file is left."""
    llama = samples / "tiny-llama"
    for system in ("linux", "windows"):
        (tmp_path / system).mkdir()
        os.chdir(tmp_path / system)
        np.savez_compressed("packed.npz", a=gaussian(64, 128))
        run(
            system,
            ("quantize", llama, "--bits", 4, "--to", "gguf", "-o", "tiny.gguf", "-q"),
            ("quantize", llama, "--bits", 4, "--group-size", 64, "-o", "w4", "-q"),
            ("export", "w4", "--to", "mlx", "-o", "mlx", "-q"),
            ("dequantize", "w4", "-o", "floats", "-q"),
            ("dequantize", "tiny.gguf", "-o", "floats.safetensors", "-q"),
            ("attest", "w4", "--source", llama, "-o", "w4.intoto.json", "-q"),
            ("verify", "w4", "--statement", "w4.intoto.json", "--source", llama, "-q"),
            ("report", "w4", "-o", "report.html", "-q"),
            ("compare", "w4", "mlx", "-q"),
            ("quantize", "packed.npz", "--bits", 4, "-o", "packed.safetensors", "-q"),
        )
    here, there = tmp_path / "linux", tmp_path / "windows"
    assert sorted(os.listdir(here)) == sorted(os.listdir(there)) and len(os.listdir(here)) == 9
    for name in set(os.listdir(here)) - {"report.html", "packed.npz"}:
        assert contents(here / name) == contents(there / name), name
    wrong = tried("windows", ("quantize", model, "--recipe", tmp_path, "-o", "out", "-q"))
    assert "this is a folder, not a regular file" in one_line(wrong, 1)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_evaluations_logs_and_pipes_elsewhere(system: str, samples: Path, tmp_path: Path) -> None:
    """What is temporary goes again, and the commands run without the flags and locks of Linux."""
    digits, out, log = samples / "digits.safetensors", tmp_path / "q.safetensors", tmp_path / "log"
    (tmp_path / "temporary").mkdir()
    (tmp_path / "evaluate.py").write_text("import sys\nprint(len(open(sys.argv[1], 'rb').read()))\n")
    said = tried(
        system,
        ("quantize", digits, "-o", out, "-q", "--log-file", log),
        ("report", out, "--eval-command", f"{sys.executable} {tmp_path / 'evaluate.py'}", "--min-eval", "100000"),
        ("attest", out, "--source", digits, "-o", tmp_path / "statement.json", "-q"),
        ("verify", out, "--source", digits, "--statement", tmp_path / "statement.json"),
        ("doctor",),
        TMPDIR=str(tmp_path / "temporary"),
    )
    assert said.code == 0 and "passed  min-eval" in said.out, said
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()][-1] == "end"
