"""Load quantcli's files with real clients, and compare the weights they decode with what quantcli reports.

    python tests/peers/run.py [--fast] [--write] [--environments .venv-peers] [--only TARGET]

For every case of cells.py a model is quantized with the quantcli of this Python, and every client that reads its
target loads it in a process and an environment of its own. A cell is the SQNR of the client's weights against the
original, or why it did not load; the run fails where a client sees another SQNR than the report, decodes other weights
than quantcli, refuses a file or loads one it should refuse. --write puts the tables into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cells import CASES, CLIENTS, READERS, Case
from environments import ENVIRONMENTS, FOLDER, make, versions
from sample import with_words

from quantcli import comparing, naming, reading
from quantcli.dtypes import from_float32, to_float32

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
Weights = dict[str, np.ndarray]

TOLERANCE = 0.001
"""dB: how far the SQNR of a client's weights may be from the reported one. Where the client rounds its weights to the
dtype of the scales, that of ours rounded in the same way stands for the reported."""


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized model: where it is, what quantcli reports by tensor and for all, in dB, the dtypes of its scales,
    and what quantcli decodes."""

    case: Case
    path: Path
    reported: Mapping[str, float]
    summary: float
    scales: Mapping[str, str]
    own: Weights


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of it: the SQNR in dB, or why there is none; and what is wrong with that."""

    seen: float | None
    why: str
    wrong: str


def quantcli(*words: object) -> str:
    """What a command prints on standard output."""
    done = subprocess.run([sys.executable, "-m", "quantcli", *map(str, words)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def weights(path: Path, names: Sequence[str], original: Path) -> Weights:
    """What quantcli decodes, under the names of the original."""
    with reading.open(str(path)) as a, reading.open(str(original)) as b:
        before, after = comparing.views(a, str(path)), comparing.views(b, str(original))
        found, _, _ = naming.under_one_name(a, before, b, after)
        return {n: found[n].read(0, found[n].info.numel).reshape(found[n].info.shape).copy() for n in names}


def prepare(case: Case, model: Path, place: Path) -> Made:
    """Quantize a model; targets that quantcli does not read back are decoded from the native file of the same codes."""
    path = place / ("model.onnx" if case.target == "onnx" else "model.gguf" if case.target == "gguf" else "model")
    flags = case.flags.split()
    place.mkdir()
    report = json.loads(quantcli("quantize", model, *flags, "--to", case.target, "-o", path, "--json", "-q"))
    tensors = [t for t in report["tensors"] if t["disposition"] == "quantized"]
    reported, scales = ({t["name"]: t[key] for t in tensors} for key in ("sqnr_db", "scale_dtype"))
    readable = path
    if case.target in ("onnx", "bnb-nf4"):
        readable = place / "native"
        quantcli("quantize", model, *flags, "-o", readable, "-q")
    return Made(case, path, reported, report["summary"]["sqnr_db"], scales, weights(readable, list(reported), model))


def ask(client: str, python: Path, made: Sequence[Made], original: Path, place: Path) -> list[str | Path]:
    """Where the weights are that a client decoded of each model, or why it did not."""
    outs = [place / f"{client}-{i}.npz" for i in range(len(made))]
    jobs = [{"model": str(m.path), "original": str(original), "names": list(m.reported), "out": str(out)}
            for m, out in zip(made, outs)]  # fmt: skip
    (place / "jobs.json").write_text(json.dumps(jobs))
    command = [python, HERE / "clients.py", client.removeprefix("older-"), place / "jobs.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    said = [out if "loaded" in answer else answer["refused"] for out, answer in zip(outs, answers)]
    died = (done.stderr.strip().splitlines() or [""])[-1]
    return [*said, *[f"it ended with {done.returncode}: {died}"] * (len(made) - len(said))]


def sqnr(original: Weights, decoded: Weights) -> float:
    """dB over all tensors together."""
    power = sum(float(np.square(original[n], dtype=np.float64).sum()) for n in decoded)
    noise = sum(float(np.square(original[n].astype(np.float64) - decoded[n]).sum()) for n in decoded)
    return 10 * math.log10(power / noise) if noise else math.inf


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Weights in the dtype of their scales."""
    return to_float32(from_float32(values, dtype).view(np.uint8).reshape(-1), dtype).reshape(values.shape)


def judge(made: Made, client: str, answer: str | Path, original: Weights) -> Cell:
    """The cell of a client's answer."""
    expected = made.case.refused.get(client)
    if isinstance(answer, str):
        why = shortened(answer, made.path)
        return Cell(None, why, "" if expected and re.search(expected, answer) else f"refused: {why}")
    found, own, reported = dict(np.load(answer)), made.own, dict(made.reported)
    wrong = [f"{n}: we decode something else than we report" for n, value in reported.items()
             if abs(sqnr(original, {n: own[n]}) - value) > TOLERANCE]  # fmt: skip
    if CLIENTS[client].rounds:
        own = {n: rounded(values, made.scales[n]) for n, values in own.items()}
        reported = {n: sqnr(original, {n: values}) for n, values in own.items()}
    apart = max(float(np.abs(found[n] - values).max() / np.abs(values).max()) for n, values in own.items())
    gap = max(abs(sqnr(original, {n: found[n]}) - value) for n, value in reported.items())
    wrong += [f"{gap:.4f} dB from the report"] if gap > TOLERANCE else []
    wrong += [f"weights {apart:.1e} apart from ours"] if apart > CLIENTS[client].apart else []
    wrong += [f"it was expected to refuse with {expected!r}"] if expected else []
    return Cell(sqnr(original, found), f"apart {apart:.1e}, {gap:.4f} dB", "; ".join(wrong))


def shortened(words: str, path: Path) -> str:
    """An error in one line that is the same in every run."""
    words = words.replace(str(path), "MODEL").replace("|", "/")
    return words if len(words) <= 200 else words[:197] + "..."


def table(target: str, cases: Sequence[Made], cells: Mapping[tuple[int, str], Cell], notes: list[str]) -> list[str]:
    """A target's rows in markdown; why a client refused is a note below the tables."""
    asked = [c for c in READERS[target] if any((id(m), c) in cells for m in cases)]
    heads = [CLIENTS[c].title.format(**pinned(CLIENTS[c].environment)) for c in asked]
    lines = [f"| {target} | reported | {' | '.join(heads)} |", f"| --- | ---: |{' ---: |' * len(heads)}"]
    for made in cases:
        row = []
        for client in asked:
            cell = cells[id(made), client]
            if cell.seen is None and cell.why not in notes:
                notes.append(cell.why)
            row.append(f"no ({notes.index(cell.why) + 1})" if cell.seen is None else f"{cell.seen:.2f}")
        lines.append(f"| {made.case.scheme} | {made.summary:.2f} | {' | '.join(row)} |")
    return lines


def pinned(environment: str) -> dict[str, str]:
    """Packages and their versions."""
    return dict(re.split(r"(?:\[.*\])?==", pin) for pin in ENVIRONMENTS[environment].pins)


def run(cases: Sequence[Case], clients: Sequence[str], folder: Path, work: Path) -> tuple[list[str], int]:
    """The tables, and how many cells are not as they should be."""
    model = with_words(work / "tiny-llama")
    with reading.open(str(model)) as source:
        original = {n: np.asarray(t.numpy(), np.float32) for n, t in source.items()}
    made = [prepare(case, model, work / str(i)) for i, case in enumerate(cases)]
    print(f"{len(made)} models", file=sys.stderr, flush=True)
    needed = sorted({CLIENTS[c].environment for c in clients})
    pythons = {name: make(name, folder) for name in needed}
    cells: dict[tuple[int, str], Cell] = {}
    for client in clients:
        own, python = [m for m in made if client in READERS[m.case.target]], pythons[CLIENTS[client].environment]
        if isinstance(python, str):
            cells |= {(id(m), client): Cell(None, f"not installed: {python}", "") for m in own}
            continue
        answers = ask(client, python, own, model, work) if own else []
        for m, answer in zip(own, answers):
            cell = cells[id(m), client] = judge(m, client, answer, original)
            verdict = "FAILED" if cell.wrong else "ok"
            shown = "-" if cell.seen is None else f"{cell.seen:.2f} dB"
            print(f"{verdict:6s} {m.case.target}, {m.case.scheme}, {client}: {shown} {cell.wrong or cell.why}",
                  file=sys.stderr, flush=True)  # fmt: skip
    lines, notes = [], list[str]()
    for target in READERS:
        rows = [m for m in made if m.case.target == target]
        if rows:
            lines += [*table(target, rows, cells, notes), ""]
    lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return lines, sum(bool(cell.wrong) for cell in cells.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=FOLDER)
    parser.add_argument("--fast", action="store_true", help="only the clients that start in no time")
    parser.add_argument("--only", choices=list(READERS), help="one target")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    clients = [name for name, client in CLIENTS.items() if client.fast or not asked.fast]
    cases = [c for c in CASES if asked.only in (None, c.target) and set(READERS[c.target]) & set(clients)]
    with tempfile.TemporaryDirectory() as place:
        lines, failed = run(cases, clients, asked.environments, Path(place))
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if asked.write and not failed:
        RESULTS.write_text(text)
    print(f"{failed} cells are not as they should be" if failed else "all cells are as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
