"""Faults at calls of the C library, one at a time: errors, calls that come short, signals and kills.

Some of them are tried each time, all of them by `make faults` (half an hour).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import made
from making import ROOT, environment, run, run_process, save
from strategies import gaussian

ALL = os.environ.get("FAULTS") == "all"

READING = ["read", "pread", "preadv"]
FILLING = ["write", "pwrite", "copy_file_range", "fallocate", "ftruncate", "mkdir", "link"]
WRITING = [*FILLING, "fsync", "rename", "fchmod", "open", "close"]
"""Calls by what they do; those of FILLING fail where a disk is full."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """faulty.c, compiled."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and the C library of Linux")
    out = tmp_path_factory.mktemp("library") / "faulty.so"
    source = ROOT / "tests" / "faulty.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", out, source, "-ldl"], check=True)
    return str(out)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, library: str) -> Path:
    """A folder with a file, a folder of shards, a pipeline of diffusers, and what was made of them; merged: the parts
    of a run, killed: what a run left that was killed when two of three shards were finished."""
    place = tmp_path_factory.mktemp("models")
    save(place / "model.safetensors", {"a.weight": gaussian(32, 64), "b.weight": gaussian(32, 64, seed=1)})
    made(place / "folder", count=3, rows=16)
    components = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (place / "pipeline").mkdir()
    (place / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "P", **components}))
    for name, (_, kind) in components.items():
        (place / "pipeline" / name).mkdir()
        weights = {f"{name}.to_q.weight": gaussian(32, 64), f"{name}.to_k.weight": gaussian(32, 64, seed=1)}
        save(place / "pipeline" / name / "diffusion_pytorch_model.safetensors", weights)
        (place / "pipeline" / name / "config.json").write_text(json.dumps({"_class_name": kind}))
    quantize = ["quantize", place / "folder", "--group-size", "32", "-q", "-o"]
    assert run(*quantize, place / "w4").code == 0 and run(*quantize, place / "q.safetensors").code == 0
    os.mkdir(place / "merged")
    for number in (1, 2):
        assert run(*quantize, place / "merged" / "out", "--part", f"{number}/2").code == 0
    os.mkdir(place / "killed")
    killed = run_process(*quantize, place / "killed" / "out", LD_PRELOAD=library, FAULT="b 9 3 ,fallocate,")
    assert killed.code == -signal.SIGKILL
    return place


COMMANDS = {
    "file": "quantize {0}/model.safetensors -q -o {1}/out.safetensors",
    "file --force": "quantize {0}/model.safetensors -q -o {1}/out.safetensors --force",
    "folder": "quantize {0}/folder --group-size 32 -q -o {1}/out",
    "folder --resume": "quantize {0}/folder --group-size 32 -q -o {1}/out --resume",
    "folder --force": "quantize {0}/folder --group-size 32 -q -o {1}/out --force",
    "pipeline": "quantize {0}/pipeline --to bnb-nf4 -q -o {1}/out",
    "to gguf": "quantize {0}/model.safetensors --to gguf --container -q -o {1}/out.gguf",
    "to mlx": "quantize {0}/folder --to mlx --group-size 32 -q -o {1}/out",
    "export gguf": "export {0}/q.safetensors --to gguf --container -q -o {1}/out.gguf",
    "export vllm": "export {0}/w4 --to awq -q -o {1}/out",
    "dequantize": "dequantize {0}/q.safetensors -q -o {1}/out.safetensors",
    "dequantize folder": "dequantize {0}/w4 -q -o {1}/out",
    "part": "quantize {0}/folder --group-size 32 -q -o {1}/out --part 1/2",
    "merge": "merge {1}/out -q",
}
"""Command lines by a name; {0} is the folder of models, {1} that of the output."""

OLD = {"file --force": "file", "folder --force": "folder"}
FILES = {"folder --resume": "killed", "merge": "merged"}
"""What is there before each run, beside the output or in its place."""

LEFT = {
    **dict.fromkeys(("folder", "folder --resume", "folder --force", "to mlx", "pipeline"), ".out.quantcli-partial"),
    **dict.fromkeys(("part", "merge"), ".out.quantcli-parts"),
}
"""The documented folder that stays beside the output: finished files, or the parts of a run."""

NAMES = list(COMMANDS)
SOME = {"error": ["file", "folder --resume", "dequantize", "merge"], "short": ["export gguf", "merge"],
        "signal": ["part", "dequantize"], "kill": ["file --force", "merge"]}  # fmt: skip
"""The commands that are tried each time."""


def faults(name: str, fault: str, library: str, models: Path, place: Path, **more: Any) -> dict[str, Any]:
    """What runs of a command left that had one fault each, at one call after another. more: see faulty.py."""
    box = place / "box"
    words = COMMANDS[name].format(models, box).split()
    output = words[words.index("-o") + 1] if "-o" in words else words[1]
    spec = {"arguments": [*words, "--threads", "1"], "box": str(box), "fault": fault, "library": library,
            "output": str(box / ".out.quantcli-parts" / "1-of-2") if name == "part" else output,
            "below": [str(box), str(models)], "first": 1 if ALL else 2, "step": 1 if ALL else 23, **more}  # fmt: skip
    if name == "part":
        spec["also"] = [".out.quantcli-parts"]
    if name in FILES:
        spec["files"] = str(models / FILES[name])
    if name in OLD:
        spec["old"] = OLD[name]
    spec["then"] = [*spec["arguments"], *["--resume"] * (name in ("folder", "to mlx"))]
    program = [sys.executable, str(ROOT / "tests" / "faulty.py"), json.dumps(spec)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=place, check=False, timeout=1800,
                          env=environment(OPENBLAS_NUM_THREADS="1", TMPDIR=str(box), LD_PRELOAD=library))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["whole"]["code"] == 0 and found["whole"]["left"] == [] and found["runs"], found["whole"]
    return found


def check(name: str, found: dict[str, Any], one: dict[str, Any], *, killed: bool = False) -> bool:
    """What holds after any fault; whether the output is complete. The same command, with --resume where it is one, then
    gives the bytes of a run without fault."""
    whole, second = found["whole"]["output"], one["second"]
    assert one["output"] in (found["old"], whole), one
    assert "Traceback" not in one["errors"] and "internal error" not in one["errors"], one
    assert killed or set(one["left"]) <= {LEFT.get(name)}, one
    assert second is None or (second["code"], second["output"], second["left"]) == (0, whole, []), one
    return bool(one["output"] == whole)


@pytest.mark.parametrize("name", NAMES if ALL else SOME["error"])
def test_an_error_of_the_disk(name: str, library: str, models: Path, tmp_path: Path) -> None:
    """One line, and exit code 1 exactly where the output is not there: also when it comes in close or fsync."""
    for number, lasts, calls in ((errno.EIO, False, WRITING + READING), (errno.ENOSPC, True, FILLING)):
        for one in (found := faults(name, "error", library, models, tmp_path, number=number, lasts=lasts,
                                    calls=calls))["runs"]:  # fmt: skip
            done = check(name, found, one)
            lines = one["errors"].splitlines()
            assert one["code"] == (0 if done else 1), one
            assert done or os.strerror(number).lower() in lines[-1] or "damaged" in lines[-1], one
            told = [
                line for line in lines[: None if done else -1] if "interrupted" not in line and "--resume" not in line
            ]
            assert len(told) == 0, one


@pytest.mark.parametrize("name", NAMES if ALL else SOME["short"])
def test_calls_that_come_short(name: str, library: str, models: Path, tmp_path: Path) -> None:
    """A call that reads or writes half of what was asked changes nothing; a file that ends early is an error."""
    calls = [*READING, "write", "pwrite", "copy_file_range"]
    for one in (found := faults(name, "short", library, models, tmp_path, calls=calls))["runs"]:
        assert one == {**found["whole"], "where": one["where"], "second": None}, one
    for one in (found := faults(name, "cut", library, models, tmp_path, calls=READING))["runs"]:
        assert one["code"] == (0 if check(name, found, one) else 1), one


@pytest.mark.parametrize("name", NAMES if ALL else SOME["signal"])
def test_signals(name: str, library: str, models: Path, tmp_path: Path) -> None:
    """Before and after any call; what a shell sees as 130 and 143."""
    for fault, number in (("before", signal.SIGTERM), ("after", signal.SIGINT)):
        for one in (found := faults(name, fault, library, models, tmp_path, number=number))["runs"]:
            check(name, found, one)
            assert one["code"] == -number and one["errors"].count("\n") <= len(one["left"]), one


@pytest.mark.parametrize("name", NAMES if ALL else SOME["kill"])
def test_kills(name: str, library: str, models: Path, tmp_path: Path) -> None:
    """What is left is hidden, and the next run of the same command takes it over or removes it."""
    for one in (found := faults(name, "kill", library, models, tmp_path))["runs"]:
        check(name, found, one, killed=True)
        assert one["code"] == -signal.SIGKILL, one
        assert all(entry.startswith(".out.") and ".quantcli-" in entry for entry in one["left"]), one
