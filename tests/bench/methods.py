"""The table of methods: SQNR on normal, Laplace, Student-t (4 degrees) and real weights, bits per weight, and speed.

Every figure comes from the command line on files: SQNR and bits per weight (the whole output over the number of
weights) from its report, speed from whole processes on 8 tensors of 4096 x 4096 normal weights, medians.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

METHODS: list[tuple[str, str]] = [
    ("int8 per channel, min-max", "--bits 8 --group-size -1 --calibration minmax"),
    ("int8 per channel, default", "--bits 8 --group-size -1"),
    ("int8 g128, min-max", "--bits 8 --calibration minmax"),
    ("int8 g128, default", "--bits 8"),
    ("int6 g128, min-max", "--bits 6 --calibration minmax"),
    ("int6 g128, default", "--bits 6"),
    ("int4 g128, min-max", "--bits 4 --calibration minmax"),
    ("int4 g128, signed extreme", "--bits 4 --calibration signed-extreme"),
    ("int4 g128, mse, nearest", "--bits 4 --calibration mse"),
    ("int4 g128, default", "--bits 4"),
    ("int4 g128, mse best", "--bits 4 --calibration mse --effort best"),
    ("int4 g128 zero point, min-max", "--bits 4 --asymmetric --calibration minmax"),
    ("int4 g128 zero point, mse", "--bits 4 --asymmetric --calibration mse"),
    ("int3 g128, min-max", "--bits 3 --calibration minmax"),
    ("int3 g128, default", "--bits 3"),
    ("int2 g128, min-max", "--bits 2 --calibration minmax"),
    ("int2 g128, default", "--bits 2"),
    ("int8 per tensor, percentile 99.99", "--bits 8 --group-size 0 --percentile 99.99"),
    ("int8 per tensor, entropy", "--bits 8 --group-size 0 --calibration entropy"),
    ("int8 per tensor, mse", "--bits 8 --group-size 0 --calibration mse"),
    ("int4 per tensor, percentile 99.9", "--bits 4 --group-size 0 --percentile 99.9"),
    ("int4 per tensor, entropy", "--bits 4 --group-size 0 --calibration entropy"),
    ("int4 per tensor, mse", "--bits 4 --group-size 0 --calibration mse"),
    ("midrise 4 per tensor, mse", "--type midrise --bits 4 --group-size 0 --calibration mse"),
    ("nf4 g64", "--type nf4 --group-size 64"),
    ("nf4 g64, mse", "--type nf4 --group-size 64 --calibration mse"),
    ("fp4 g32", "--type fp4 --group-size 32"),
    ("fp8 E4M3 per channel", "--type fp8_e4m3 --group-size -1"),
    ("fp8 E5M2 per channel", "--type fp8_e5m2 --group-size -1"),
    ("codebook, 16 levels per tensor", "--type codebook --group-size 0"),
    ("codebook, 4 bits g64", "--type codebook --group-size 64"),
    ("codebook, 4 bits g32", "--type codebook --group-size 32"),
    ("codebook, 4 bits g16", "--type codebook --group-size 16"),
    ("codebook, 3 bits g16", "--type codebook --bits 3 --group-size 16"),
]
"""Title and options of every row."""


def make(path: Path, source: str, count: int) -> None:
    """Write `count` tensors of 4096 x 4096 weights of a source, bfloat16 rounded to nearest."""
    import numpy as np

    rng = np.random.default_rng(1)
    shape = (4096, 4096)
    nbytes = 2 * shape[0] * shape[1]
    header = {
        f"layers.{i}.weight": {"dtype": "BF16", "shape": list(shape), "data_offsets": [i * nbytes, (i + 1) * nbytes]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(count):
            for _ in range(8):
                part = (shape[0] // 8, shape[1])
                if source == "normal":
                    weights = rng.standard_normal(part, dtype=np.float32)
                elif source == "laplace":
                    weights = rng.laplace(size=part).astype(np.float32)
                else:
                    weights = rng.standard_t(4, part).astype(np.float32)
                bits = (weights * np.float32(0.02)).view(np.uint32)
                rounded = bits + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))
                file.write((rounded >> np.uint32(16)).astype("<u2").tobytes())


def table(folder: Path, minilm: str, timed: Callable[[list[str]], float]) -> None:
    """Print the rows. timed: median seconds of a command (OUT in it is a fresh output)."""
    sources = {"normal": 8, "laplace": 1, "student": 1}
    files = {}
    for source, count in sources.items():
        files[source] = folder / f"{source}.safetensors"
        order = json.dumps({"path": str(files[source]), "source": source, "count": count})
        subprocess.run([sys.executable, __file__, order], check=True)
    if minilm:
        files["MiniLM"] = Path(minilm)
    cli = [sys.executable, "-m", "quantcli", "quantize"]
    print("\n| method | bits/w | " + " | ".join(f"{name} dB" for name in files) + " | M weights/s |")
    print("| --- |" + " --- |" * (len(files) + 2))
    for title, flags in METHODS:
        cells, rate = [], ""
        for name, path in files.items():
            out = folder / "method.safetensors"
            command = [*cli, str(path), *flags.split(), "-o", str(out), "--force", "--json", "-q"]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["summary"]
            out.unlink()
            cells.append(f"{found['sqnr_db']:.2f}")
            if name == "normal":
                rate = f"{found['bits_per_weight']:.3f}"
        weights = sources["normal"] * 4096 * 4096
        seconds = timed([*cli, str(files["normal"]), *flags.split(), "-o", "OUT", "--json", "-q"])
        print(f"| {title} | {rate} | {' | '.join(cells)} | {weights / seconds / 1e6:.0f} |", flush=True)
    for path in files.values():
        if path.parent == folder:
            os.unlink(path)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    make(Path(asked["path"]), asked["source"], asked["count"])
