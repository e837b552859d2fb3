"""A small checkpoint folder, and what is in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from making import BF16, save
from strategies import gaussian

CARD = "---\nlicense: mit\ntags:\n- tiny  # two\n---\n\n# Tiny\n\nWhat it was trained on. \u00e9\n"


def shard(number: int, rows: int = 64) -> dict[str, np.ndarray]:
    name = f"model.layers.{number}."
    return {
        f"{name}mlp.weight": gaussian(rows, 256, seed=number).astype(BF16),
        f"{name}norm.weight": gaussian(256, seed=100 + number).astype(BF16),
        f"{name}attention.weight": gaussian(rows, 128, seed=200 + number).astype(BF16),
    }


def made(folder: Path, count: int = 4, rows: int = 64, **more: dict[str, np.ndarray]) -> Path:
    """A checkpoint of so many shards, with an index, a configuration and side files."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        tensors = {**shard(number, rows), **more.get(f"shard{number}", {})}
        save(folder / file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 1, "kind": "test"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 256}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pooling").mkdir()
    (folder / "pooling" / "README.md").write_text("another card")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
