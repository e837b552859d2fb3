"""Audits: models, what is done to them, and documents of audits, for the tests of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from making import BF16, ROOT, run, save
from strategies import gaussian

LLAMA = ROOT / "sample_models" / "tiny-llama"
Arrays = dict[str, np.ndarray]


def base(seed: int = 0) -> Arrays:
    """A model in bfloat16: eight matrices and two vectors."""
    found = {f"layers.{i}.up.weight": gaussian(128, 256, seed=seed + i).astype(BF16) for i in range(8)}
    return {**found, "norm.weight": gaussian(256, seed=seed + 50).astype(BF16), "bias": gaussian(9, seed=3)}


def noisy(array: np.ndarray, part: float, rng: np.random.Generator) -> np.ndarray:
    """Weights with noise of a part of their standard deviation."""
    wide = array.astype(np.float64)
    found: np.ndarray = (wide + part * wide.std() * rng.normal(size=wide.shape)).astype(array.dtype)
    return found


def audited(path: Path, source: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of an audit."""
    ran = run("audit", path, "--source", source, "--json", *options)
    assert ran.code in (0, 1), ran
    assert ran.json["consistent"] == (ran.code == 0) == (not any(t["problems"] for t in ran.json["tensors"]))
    return ran.code, {**ran.json, "by_name": {t["name"]: t for t in ran.json["tensors"]}}


def problems(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: "; ".join(t["problems"]) for name, t in document["by_name"].items() if t["problems"]}


def quantized(folder: Path, arrays: Arrays, name: str = "q", *options: str) -> Path:
    """A file that quantcli makes of some arrays."""
    source, out = save(folder / f"{name}-of.safetensors", arrays), folder / f"{name}.safetensors"
    assert run("quantize", source, "--group-size", 64, *options, "-o", out, "-q").code == 0
    return out


def gptq(weights: np.ndarray, rng: np.random.Generator, group: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of 4 bits with error feedback, by its definition: each column is rounded, and the columns behind
    it take its error as the inverse of the inputs' second moments says. Frantar et al., GPTQ, 2022."""
    w = weights.astype(np.float64).copy()
    rows, cols = w.shape
    inputs = rng.normal(size=(4 * cols, cols // 2)) @ rng.normal(size=(cols // 2, cols))
    moments = inputs.T @ inputs / len(inputs)
    moments += np.eye(cols) * 0.01 * np.mean(np.diag(moments))
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    codes, scales = np.zeros((rows, cols), np.int64), np.zeros((rows, cols // group))
    for j in range(cols):
        if j % group == 0:
            scales[:, j // group] = (np.abs(w[:, j : j + group]).max(1) / 7.5).astype(np.float16)
        scale = scales[:, j // group]
        codes[:, j] = np.clip(np.rint(w[:, j] / scale) + 8, 0, 15)
        error = (w[:, j] - (codes[:, j] - 8) * scale) / factor[j, j]
        w[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    return codes, scales


def as_gptq(folder: Path, tensors: Mapping[str, tuple[np.ndarray, np.ndarray]], kept: Arrays) -> Path:
    """A folder in GPTQ's layout, written here: eight codes down a column in a word, zero points less one."""
    found = dict(kept)
    for name, (codes, scales) in tensors.items():
        stem, group = name.removesuffix("weight"), codes.shape[1] // scales.shape[1]
        shifts = (np.arange(8, dtype=np.uint32) * 4)[:, None]
        down = codes.T.astype(np.uint32).reshape(codes.shape[1] // 8, 8, codes.shape[0])
        found[f"{stem}qweight"] = np.bitwise_or.reduce(down << shifts, axis=1).view(np.int32)
        found[f"{stem}scales"] = scales.T.astype(np.float16)
        found[f"{stem}qzeros"] = np.full((scales.shape[1], codes.shape[0] // 8), 0x77777777, np.int32)
        found[f"{stem}g_idx"] = np.arange(codes.shape[1], dtype=np.int32) // group
    folder.mkdir()
    save(folder / "model.safetensors", found)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder
