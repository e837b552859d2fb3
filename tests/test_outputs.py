"""What commands write is what they wrote when it was last recorded, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from golden import write_outputs
from golden.write_outputs import Outputs, commands, differences, record, stored
from making import environment

import quantcli

CHANGED = (
    "Other outputs than before:\n  {}\nWhere that is not meant, mend it; where it is, list it with its reason in "
    "CHANGELOG.md and run make golden."
)


def check(found: Outputs) -> None:
    known = stored()
    assert known["version"] == quantcli.__version__, (
        f"these are the outputs of {known['version']}: run make golden in the commit that raises the version"
    )
    changed = differences(known["outputs"], found)
    assert not changed, CHANGED.format("\n  ".join(changed))


def test_outputs_are_as_recorded(tmp_path: Path) -> None:
    check(record(tmp_path, threads=2))


def test_outputs_with_numpy_kernels_and_one_thread() -> None:
    done = subprocess.run(
        [sys.executable, write_outputs.__file__, "--print", "--threads", "1"], capture_output=True, text=True,
        check=True, timeout=600, env=environment(QUANTCLI_KERNELS="numpy"),
    )  # fmt: skip
    check(json.loads(done.stdout))


def test_differences_name_the_command_and_its_outputs() -> None:
    before: Outputs = {"same": {"out": "1"}, "a": {"out": "1", "stdout": "2"}, "gone": {"out": "3"}}
    after: Outputs = {"same": {"out": "1"}, "a": {"out": "1", "stdout": "4", "exit": 1}, "new": {"out": "5"}}
    lines = ["quantcli a: stdout, exit", "quantcli gone: out", "quantcli new: out"]
    assert differences(before, after) == lines and differences(before, before) == []


def test_every_command_and_target_is_among_them() -> None:
    known = stored()["outputs"]
    assert list(known) == list(commands()) and all(known.values())
    done = [f"{line} " for line, found in known.items() if "exit" not in found]
    for name in ("quantize", "export", "dequantize", "report", "compare", "verify", "plan", "sweep", "inspect"):
        assert any(line.startswith(f"{name} ") for line in done), name
    for target in ("compressed-tensors", "awq", "gptq", "mlx", "bnb-nf4", "comfyui", "onnx", "gguf"):
        for source in ("quantize digits.safetensors", "quantize tiny-llama", "export "):
            assert any(line.startswith(source) and f"--to {target} " in line for line in done), (source, target)
