"""How fast second-order rounding is: random weights, with matrices and with vectors of statistics.

    python tests/bench/second_order.py [--columns 4096] [--layers 4]

Prints millions of weights in the time that two processors take, from seconds of user and system: less what the shortest
run takes, that of one layer, and peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write(folder: Path, columns: int, layers: int) -> None:
    """Weights of so many layers, and statistics of inputs that go together."""
    chance = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    known: dict[str, dict[str, np.ndarray]] = {"matrices": {}, "vectors": {}}
    few = chance.standard_normal((columns // 4, columns), np.float32) / np.sqrt(columns // 4, dtype=np.float32)
    size = np.exp(chance.standard_normal(columns) * 0.7).astype(np.float32)
    mean = (chance.standard_normal(columns) * 0.3).astype(np.float32)
    second = (few.T @ few + 0.3 * np.eye(columns, dtype=np.float32)) * size * size[:, None] + np.outer(mean, mean)
    second = (second + second.T) / 2
    for layer in range(layers):
        weights[f"{layer}.weight"] = chance.standard_normal((columns, columns), np.float32).astype(np.float16)
        for kind, moments in (("matrices", second), ("vectors", second.diagonal().copy())):
            known[kind] |= {f"{layer}.second": moments, f"{layer}.mean": mean, f"{layer}.count": np.array(50_000)}
    save_file(weights, folder / f"{layers}.safetensors")
    for kind, entries in known.items():
        save_file(entries, folder / f"{layers}.{kind}.safetensors", {"quantcli_statistics": "1"})


def seconds(folder: Path, layers: int, kind: str) -> float:
    """Processor time of a run."""
    command = [sys.executable, "-m", "quantcli", "quantize", folder / f"{layers}.safetensors", "--bits", "4"]
    command += ["--statistics", folder / f"{layers}.{kind}.safetensors", "-o", folder / "out", "--force", "-q"]
    before = os.times()
    subprocess.run([str(word) for word in command], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layers in (1, asked.layers):
            write(folder, asked.columns, layers)
        for kind in ("vectors", "matrices"):
            found = [min(seconds(folder, layers, kind) for _ in range(3)) for layers in (1, asked.layers)]
            rate = 2 * (asked.layers - 1) * asked.columns**2 / (found[1] - found[0]) / 1e6
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"| {kind} | C = {asked.columns} | {rate:.1f} M weights/s | at most {peak:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
