"""Small tensors that are quantized together are what each is by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, load, run, save
from strategies import gaussian

from quantcli.passes import stacking

SCHEMES = (
    "--bits 4", "--bits 4 --calibration minmax", "--bits 8 --group-size -1", "--bits 4 --asymmetric",
    "--bits 3 --group-size 32 --calibration mse --asymmetric", "--bits 4 --group-size 0", "--type nf4 --group-size 64",
    "--bits 4 --scale-dtype float32 --digest sha256", "--bits 4 --calibration auto", "--to mlx --bits 4",
    "--to awq --bits 4", "--bits 1 --group-size 16",
)  # fmt: skip


def model(folder: Path, *, huge: bool = True) -> Path:
    """Runs of tensors of one shape, between others; groups of zeros, short groups and huge weights among them."""
    tensors = {}
    for i in range(40):
        shape = (8, 128) if i < 25 else (16, 192) if i < 35 else (4, 3, 32)
        tensors[f"layers.{i}.up_proj.weight"] = gaussian(*shape, seed=i).astype(BF16 if i % 11 else np.float32)
    tensors["layers.3.up_proj.weight"][2] = 0
    if huge:
        tensors["layers.5.up_proj.weight"] *= 1e30
    tensors["norm.weight"] = gaussian(64)
    return save(folder / "m.safetensors", tensors)


@pytest.mark.parametrize("flags", SCHEMES)
def test_together_or_one_by_one(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path, huge="--to" not in flags)
    words = ["quantize", path, *flags.split(), "--no-default-keep", "-q", "--force"]
    together, alone = tmp_path / "together.safetensors", tmp_path / "alone.safetensors"
    first = run(*words, "-o", together, "--threads", 3)
    monkeypatch.setattr(stacking, "runs", lambda tensors: iter([(None, list(tensors))]))
    second = run(*words, "-o", alone)
    assert first.code == second.code == 0, (first.err, second.err)
    assert together.read_bytes() == alone.read_bytes()


def test_many_are_done_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one by one behind its back."""
    calls: list[int] = []
    found = stacking.stacked

    def counted(source: Any, tensors: Any, *more: Any) -> Any:
        calls.append(len(tensors))
        return found(source, tensors, *more)

    monkeypatch.setattr(stacking, "stacked", counted)
    assert run("quantize", model(tmp_path), "-o", tmp_path / "o", "--no-default-keep", "-q", "--bits", 4).code == 0
    assert sum(calls) >= 30 and len(load(tmp_path / "o")) > 100


def test_one_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.up_proj.weight": gaussian(8, 128, seed=i) for i in range(20)}
    tensors["layers.7.up_proj.weight"][1, 2] = np.nan
    path = save(tmp_path / "m.safetensors", tensors)
    ran = run("quantize", path, "-o", tmp_path / "o", "--no-default-keep")
    assert ran.code == 1 and "layers.7.up_proj.weight" in ran.err
    ran = run("quantize", path, "-o", tmp_path / "o", "--no-default-keep", "--on-nonfinite", "keep", "--json")
    kept = [t["name"] for t in ran.json["tensors"] if t["reason"] == "nonfinite"]
    assert kept == ["layers.7.up_proj.weight"]
