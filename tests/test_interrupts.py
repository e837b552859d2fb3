"""What is on the disk after a run that a signal, an error or a kill has ended, wherever that came."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from making import BF16, ROOT, environment, run, save
from strategies import gaussian

from quantcli import interrupts
from quantcli.stores.files import OutputFile


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file and a folder of two shards."""
    monkeypatch.chdir(tmp_path)
    save(Path("model.safetensors"), {"a.weight": gaussian(32, 64), "b.weight": gaussian(32, 64, seed=1)})
    os.mkdir("folder")
    names = {}
    for number in (1, 2):
        file = f"model-{number:05d}-of-00002.safetensors"
        save(Path("folder") / file, {f"layers.{number}.up.weight": gaussian(32, 64, seed=number).astype(BF16)})
        names[f"layers.{number}.up.weight"] = file
    Path("folder/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return tmp_path


def faulty(place: Path, arguments: str, fault: str, **more: Any) -> dict[str, Any]:
    """What runs left that had one fault each, at one point after another; {} is the folder of the output."""
    box = place / "box"
    words = arguments.format(f"{box}{os.sep}").split()
    also = ["out.onnx.data"] if "onnx" in words else []
    spec = {"arguments": [*words, "--threads", "1"], "box": str(box), "fault": fault,
            "output": words[words.index("-o") + 1].split("=")[-1], "also": also, **more}  # fmt: skip
    program = [sys.executable, str(ROOT / "tests" / "faulty.py"), json.dumps(spec)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=place, check=False, timeout=300,
                          env=environment(OPENBLAS_NUM_THREADS="1", TMPDIR=str(box)))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["whole"]["code"] == 0 and found["whole"]["left"] == [] and len(found["runs"]) > 5, found["whole"]
    return found


FILE = "quantize model.safetensors -q -o {0}out"
FOLDER = "quantize folder -q -o {0}out"
EXPORT = "quantize folder --to mlx -q -o {0}out"
ONE_FILE = "quantize folder --to mlx -q -o {0}out.safetensors"
TWO_FILES = "quantize model.safetensors --to onnx --container -q -o {0}out.onnx"


def hidden(arguments: str) -> str:
    """The hidden folder beside the output of such a command."""
    return f".{arguments.split('{0}')[-1]}.quantcli-partial"


def check(arguments: str, found: dict[str, Any], one: dict[str, Any]) -> None:
    """What holds after any fault: the output is absent, the old one or complete, and left is nothing or, with finished
    files in it, the folder with which --resume goes on."""
    assert one["output"] in (found["old"], found["whole"]["output"]), one
    assert "Traceback" not in one["errors"] and "internal error" not in one["errors"], one
    assert one["left"] in ([], one["journal"]), one
    if one["left"]:
        assert one["left"] == [hidden(arguments)] and one["output"] == found["old"], one
        assert "run the same command with --resume to continue" in one["errors"], one


@pytest.mark.parametrize(("arguments", "fault", "more"), [
    (FILE, "after", {}), (FILE, "before", {"old": "file"}), ("quantize model.safetensors -q -o -", "after", {}),
    (FOLDER, "after", {"step": 2}), (FOLDER, "before", {"step": 2, "again": True, "number": signal.SIGTERM}),
    (FOLDER, "after", {"step": 2, "old": "folder", "again": True}),
    (EXPORT, "after", {"step": 4, "number": signal.SIGHUP}), (EXPORT, "before", {"step": 4, "again": True}),
    (EXPORT, "after", {"step": 4, "old": "folder"}), (EXPORT, "line", {"step": 75}),
    (ONE_FILE, "after", {"step": 2, "again": True}),
    (TWO_FILES, "after", {"step": 3}), (TWO_FILES, "line", {"step": 50}),
])  # fmt: skip
def test_a_signal_at_any_point(arguments: str, fault: str, more: dict[str, Any], place: Path) -> None:
    """Also a second one in the clean-up after the first, and one that comes when the output has got its name."""
    found = faulty(place, arguments + " --force" * ("old" in more), fault, **more)
    for one in found["runs"]:
        if one["code"] == 0 and one["where"].startswith("unlink"):
            continue  # there was nothing to remove, so that call failed and the signal did not come
        assert one["code"] == -more.get("number", signal.SIGINT), one
        check(arguments, found, one)
        assert one["errors"].count("\n") == len(one["left"]), one
        assert not one["left"] or arguments in (FOLDER, EXPORT), one


@pytest.mark.parametrize(("arguments", "more"), [
    (FILE, {}), (FOLDER, {"step": 2}), (FOLDER, {"step": 3, "old": "folder"}), (EXPORT, {"step": 4}),
    (TWO_FILES, {"step": 2}),
])  # fmt: skip
def test_an_error_at_any_point(arguments: str, more: dict[str, Any], place: Path) -> None:
    """The exit code is 0 exactly when the output is there."""
    found = faulty(place, arguments + " --force" * ("old" in more), "error", **more)
    for one in found["runs"]:
        done = one["output"] == found["whole"]["output"]
        assert one["code"] == (0 if done else 1), one
        if done and one["where"].split()[0] in ("unlink", "rmdir", "open", "close"):
            assert one["left"] in ([], [hidden(arguments)]) and not one["errors"]  # what cannot be removed stays
            continue
        check(arguments, found, one)
        assert done or "input/output error" in one["errors"].splitlines()[-1], one


@pytest.mark.parametrize(("arguments", "more"), [
    (FOLDER, {"step": 6}), (EXPORT, {"step": 7}), (ONE_FILE, {"step": 2}), (TWO_FILES, {"step": 3}),
])  # fmt: skip
def test_killed_at_any_point(arguments: str, more: dict[str, Any], place: Path) -> None:
    """It leaves one hidden folder at most, which the next run of the same command takes over."""
    found = faulty(place, arguments, "kill", **more)
    for one in found["runs"]:
        assert one["code"] == -signal.SIGKILL and one["left"] in ([], [hidden(arguments)]), one
        assert one["output"] in (None, found["whole"]["output"]), one
        if one["second"] is not None:
            assert one["second"]["code"] == 0 and one["second"]["left"] == [], one
            assert one["second"]["output"] == found["whole"]["output"], one
    assert any(one["left"] for one in found["runs"])


@pytest.mark.parametrize("fault", ["after", "error", "kill"])
def test_the_old_folder_is_never_lost(fault: str, place: Path) -> None:
    """Also where two folders cannot be swapped in one step: after a kill between two the next run finds it."""
    found = faulty(place, f"{FOLDER} --force", fault, old="folder", no_exchange=True, first=30, step=1)
    moved = [one for one in found["runs"] if one["where"].split()[0] in ("rename", "replace")]
    assert len(moved) >= 2
    for one in found["runs"]:
        assert one["output"] is not None or (fault == "kill" and one["second"]["code"] == 0), one
        assert one["output"] in (None, found["old"], found["whole"]["output"]), one


@pytest.mark.parametrize("command", ["quantize model.safetensors --bits 4", "dequantize q.safetensors"])
def test_the_hidden_file_of_a_killed_run_is_removed(command: str, place: Path) -> None:
    """After SIGKILL the next run of the same command removes what is left; that of a run which lives stays."""
    assert run("quantize", "model.safetensors", "-o", "q.safetensors", "-q").code == 0
    left, others = (
        Path(".out.quantcli-1-0123abcd.tmp"),
        [".out.quantcli-1-0123abcd.tmp.x", ".out2.quantcli-1-00000000.tmp"],
    )
    for name in (str(left), *others):
        Path(name).write_text("a part of an output")
    with OutputFile(str(place / "out"), 100, force=True) as living:
        assert run(*command.split(), "-o", "out", "-q").code == 0
        assert not left.exists() and Path(living.temp).exists() and all(Path(name).exists() for name in others)
        living.write(0, bytes(100))
        living.sync()
        assert run(*command.split(), "-o", "out", "-q", "--force").code == 0
        living.publish()
    assert Path("out").read_bytes() == bytes(100) and not Path(living.temp).exists()


def test_requantizing_leaves_nothing(place: Path) -> None:
    """What export --requantize makes lies in the hidden folder until it is complete."""
    assert run("quantize", "model.safetensors", "--bits", 3, "-o", "q.safetensors", "-q").code == 0
    words = "export q.safetensors --to awq --requantize -q -o {0}out.safetensors"
    for fault in ("after", "kill"):
        found = faulty(place, words, fault, step=3)
        for one in found["runs"]:
            assert one["left"] in ([], [hidden(words)][: fault == "kill"]), one
            assert one["where"].startswith("unlink") or one["code"] in (-signal.SIGINT, -signal.SIGKILL), one
            assert fault == "after" or one["second"] is None or one["second"]["left"] == [], one


AT_START = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["quantcli", "--version"]
runpy.run_module("quantcli", run_name="__main__")
"""
AT_EXIT = """
import atexit, os, runpy, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["quantcli", "--version"]
runpy.run_module("quantcli", run_name="__main__")
"""


@pytest.mark.parametrize("program", [
    *(AT_START.format(module=name) for name in ("quantcli.cli", "click", "quantcli.kernels")), AT_EXIT,
])  # fmt: skip
def test_ctrl_c_outside_of_a_command(program: str) -> None:
    """While the program is imported and at the interpreter's exit: no traceback there either."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment(),
                          check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    assert done.returncode == -signal.SIGINT and done.stderr == ""


def test_little_is_imported_before_ctrl_c_is_quiet() -> None:
    """Until `main` runs, Python's own handler prints a traceback: what comes before it must take no time. typing was
    9 of the 11 ms."""
    program = f"import sys; sys.path[:0] = {sys.path!r}; before = set(sys.modules); import quantcli.__main__; " \
              "print(*sorted(set(sys.modules) - before))"  # fmt: skip
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert found >= {"quantcli", "quantcli.__main__", "signal"} and not found & {"typing", "click", "numpy", "re"}


def test_signals_that_were_ignored_stay_so(place: Path) -> None:
    """As under nohup, or for what a script starts in the background."""
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, env=environment(),
                          check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""


def test_handlers_are_given_back() -> None:
    """The command line can be run within another program."""
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    assert run("--version").code == 0 and run("nonsense").code == 2
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
