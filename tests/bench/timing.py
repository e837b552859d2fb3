"""Whole processes and how long they take, beside the machine's own floor; and the models they are given."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FLOOR = """
import os, sys, threading
src, out, share, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
size, block = os.path.getsize(src), 1 << 20
i = os.open(src, os.O_RDONLY)
if share:
    o = os.open(out, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(o, 0, int(size * share))
def work(k):
    part = memoryview(bytearray(block))
    for at in range(k * block, size, threads * block):
        count = os.preadv(i, [part], at)
        if share:
            os.pwrite(o, part[:int(count * share)], int(at * share))
crew = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
[t.start() for t in crew], [t.join() for t in crew]
if share:
    os.fsync(o)
"""

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "QUANTCLI_KERNELS")}
"""Without what would make Python compile quantcli at every start."""

Command = Sequence[str]
"""A command line; OUT at the start of a word is a fresh name every time."""


@dataclass(frozen=True)
class Timed:
    """Medians of wall and processor seconds of whole processes, and their peak MiB."""

    seconds: float
    cpu: float
    peak: float


def alternately(
    commands: Sequence[Command],
    folder: Path,
    runs: int,
    env: Mapping[str, str] | None = None,
    *,
    warm: bool = True,
    clocked: Collection[int] = (),
) -> list[Timed]:
    """Commands in turn, some times, so that what disturbs the machine disturbs all of them. warm: after a warm-up.
    clocked: numbers of those whose seconds are what they print themselves, without their imports."""
    found: list[list[tuple[float, float, float]]] = [[] for _ in commands]
    for number in range(runs + warm):
        for place, (command, times) in enumerate(zip(commands, found)):
            once = _run(command, folder, {**ENVIRONMENT, **(env or {})}, place in clocked)
            if number >= warm:
                times.append(once)
    return [
        Timed(*(statistics.median(t[part] for t in times) for part in (0, 1)), max(t[2] for t in times))
        for times in found
    ]


def timed(command: Command, folder: Path, runs: int, *, warm: bool = True) -> Timed:
    """A command, some times. warm: after a warm-up."""
    return alternately([command], folder, runs, warm=warm)[0]


def _run(command: Command, folder: Path, env: Mapping[str, str], clocked: bool) -> tuple[float, float, float]:
    room = folder / "out"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    os.sync()  # what an earlier run left to be written must not slow this one
    began = time.perf_counter()
    words = [str(room / f"out{word[3:]}") if word.startswith("OUT") else word for word in command]
    stdout = subprocess.PIPE if clocked else subprocess.DEVNULL
    process = subprocess.Popen(words, stdout=stdout, stderr=subprocess.PIPE, env=dict(env))
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"failed: {' '.join(command)}\n{said.decode(errors='replace')}")
    shutil.rmtree(room)
    if process.stdout is not None:
        wall = float(process.stdout.read().split()[-1])
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def floor(model: Path, share: float, threads: int) -> Command:
    """What reads a model and writes this share of its bytes."""
    return [sys.executable, "-c", FLOOR, str(model), "OUT", str(share), str(threads)]


# ---- models -----------------------------------------------------------------------------------------------------


def write_model(path: Path, dtype: str, count: int, shape: tuple[int, ...], *, sparse: bool = False) -> int:
    """Make a file of `count` tensors of normal weights (or holes); the number of weights.

    A process of its own does it: a child's peak memory counts what its parent held when it was forked.
    """
    order = {"path": str(path), "dtype": dtype, "count": count, "shape": shape, "sparse": sparse}
    subprocess.run([sys.executable, __file__, json.dumps(order)], check=True)
    return count * math.prod(shape)


def write_folder(folder: Path, dtype: str, layers: int, per_shard: int, shape: tuple[int, ...]) -> int:
    """Make a checkpoint folder of many layers in shards; the number of weights."""
    folder.mkdir()
    home = {}
    shards = -(-layers // per_shard)
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        first, last = shard * per_shard, min((shard + 1) * per_shard, layers)
        order = {"path": str(folder / name), "dtype": dtype, "count": last - first, "shape": shape, "first": first}
        subprocess.run([sys.executable, __file__, json.dumps(order)], check=True)
        home |= {f"layers.{i}.weight": name for i in range(first, last)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    return layers * math.prod(shape)


def make_model(path: str, dtype: str, count: int, shape: Sequence[int], sparse: bool = False, first: int = 0) -> None:
    """Write a file of tensors named layers.N.weight, N from `first` on."""
    import numpy as np

    nbytes = math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    header = {
        f"layers.{first + i}.weight": {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [i * nbytes, (i + 1) * nbytes],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if sparse:
            file.truncate(8 + len(text) + count * nbytes)
            return
        weights = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        if dtype == "F16":
            raw = weights.astype(np.float16).tobytes()
        else:
            raw = weights.tobytes() if dtype == "F32" else (weights.view(np.uint32) >> 16).astype("<u2").tobytes()
        for _ in range(count):
            file.write(raw)


if __name__ == "__main__":
    make_model(**json.loads(sys.argv[1]))
