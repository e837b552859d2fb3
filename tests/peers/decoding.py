"""The weights that real clients decode, beside what quantcli reports and decodes: a table for every target.

For every case of cells.py a model is quantized, and every client of its target loads it in a process and an environment
of its own. A cell is the SQNR of the client's weights against the original, or why it did not load; wrong is one where
the client sees another SQNR than the report, decodes other weights than quantcli, refuses a file or loads one that it
should refuse.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cells import CASES, CLIENTS, Case, Client, named
from models import MODELS, Weights, quantcli, script, weights
from safetensors.numpy import save_file

from quantcli.dtypes import from_float32, to_float32
from quantcli.layouts.native import model as reading

TOLERANCE = 0.001
"""dB: how far what we decode may be from what we report."""
FLOATS = ("F16", "BF16", "F32")
"""Dtypes of scales to which products of them are rounded; others are scales of a byte."""
HALF_SCALES = ("awq", "gguf", "gptq")
"""Targets that store scales in float16, so that codes are made for those."""
OFFSETS = {"mlx": 2.0**-8, "gguf": 2.0**-11}
"""Targets that store -zero * scale instead of zero points, and how far that may move weights, as a share of the
largest: it is rounded to the dtype of the scales, bfloat16 and float16."""


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized model: where it is, what quantcli reports by tensor and for all, in dB, the dtypes of the scales in
    the file, what quantcli decodes, and how far that is from the native file, as a share of the largest weight."""

    case: Case
    path: Path
    reported: Mapping[str, float]
    summary: float
    scales: Mapping[str, str]
    own: Weights
    moved: float


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of it: the SQNR in dB, or why there is none; and what is wrong with that."""

    seen: float | None
    why: str
    wrong: str


# ---- models -----------------------------------------------------------------------------------------------------


def scale_dtypes(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The dtypes of the scales of a folder; those of other files are of no interest."""
    if not path.is_dir():
        return {}
    with reading.open(str(path)) as model:
        held = {info.name: info.dtype for info in model.source.infos()}
    found = {name: [held.get(f"{name}_scale"), held.get(f"{name.removesuffix('.weight')}.scales")] for name in names}
    return {name: dtype for name, dtypes in found.items() for dtype in dtypes if dtype}


def furthest(found: Weights, own: Weights) -> float:
    """The largest difference of any weight, as a share of the largest of its tensor."""
    return float(np.max([np.abs(found[n] - values).max() / np.abs(values).max() for n, values in own.items()]))


def input_scales(model: Path, path: Path) -> Path:
    """A scale of the inputs of every module, for schemes that take measured ones; FP8 and FP4 hold 1 with it."""
    with reading.open(str(model)) as source:
        modules = [name.removesuffix(".weight") for name in source]
    save_file({f"{module}.input_scale": np.array([1 / 12], np.float32) for module in modules}, path)
    return path


def prepare(case: Case, model: Path, place: Path) -> Made:
    """Quantize a model, and natively with the same codes. What quantcli does not read back is decoded from that."""
    place.mkdir()
    ending = {"onnx": ".onnx", "gguf": ".gguf"}.get(case.target, ".safetensors" if model.is_file() else "")
    path = place / f"model{ending}"
    flags = case.flags.replace(f"--to {case.to}", "").split()
    target = ["--to", case.to, *(["--container"] if case.target == "onnx" else [])]
    if case.measured:
        flags += ["--activation-scales", str(input_scales(model, place / "scales.safetensors"))]
    report = json.loads(quantcli("quantize", model, *flags, *target, "-o", path, "--json", "-q"))
    quantized = [t for t in report["tensors"] if t["disposition"] == "quantized"]
    reported = {t["name"]: math.inf if t["max_abs_error"] == 0 else t["sqnr_db"] for t in quantized}
    names = list(reported)
    scales, summary = scale_dtypes(path, names), report["summary"]["sqnr_db"]
    if named(case):
        return Made(case, path, reported, summary, scales, weights(path, model, names), 0.0)
    native = place / "native"
    half = ["--scale-dtype", "float16"] if case.target in HALF_SCALES else []
    tables = ["--no-keep-embeddings"] if case.target in ("gguf", "mlx") else []
    if case.target == "gguf" and case.option("bits") != "8":
        tables += ["--override", "lm_head.weight:bits=8,group-size=32,symmetric=true"]
    quantcli("quantize", model, *flags, *half, *tables, "--to", "native", "-o", native, "-q")
    exact = weights(native, model, names)
    own = exact if case.target in ("onnx", "bnb-nf4") else weights(path, model, names)
    return Made(case, path, reported, summary, scales, own, furthest(own, exact))


# ---- clients ----------------------------------------------------------------------------------------------------


def ask(function: str, python: Path, made: Sequence[Made], models: Mapping[str, Path],
        place: Path) -> list[str | Path]:  # fmt: skip
    """Where the weights are that a client decoded of each model, or why it did not."""
    outs = [place / f"{i}.npz" for i in range(len(made))]
    jobs = [{"model": str(m.path), "original": str(models[m.case.model]), "names": list(m.reported), "out": str(out)}
            for m, out in zip(made, outs)]  # fmt: skip
    place.mkdir()
    (place / "jobs.json").write_text(json.dumps(jobs))
    done = script(python, "clients.py", function, place / "jobs.json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    said = [out if "loaded" in answer else answer["refused"] for out, answer in zip(outs, answers)]
    died = (done.stderr.strip().splitlines() or [""])[-1]
    return [*said, *[f"it ended with {done.returncode}: {died}"] * (len(made) - len(said))]


def sqnr(original: Weights, decoded: Weights) -> float:
    """dB over all tensors together."""
    power = sum(float(np.square(original[n], dtype=np.float64).sum()) for n in decoded)
    noise = sum(float(np.square(original[n].astype(np.float64) - decoded[n]).sum()) for n in decoded)
    return 10 * math.log10(power / noise) if noise else math.inf


def apart_by(found: float, reported: float) -> float:
    """dB; none between two that are without an error."""
    return 0.0 if found == reported else abs(found - reported)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Weights in another dtype."""
    return to_float32(from_float32(values, dtype).view(np.uint8).reshape(-1), dtype).reshape(values.shape)


def judge(made: Made, client: Client, answer: str | Path, original: Weights) -> Cell:
    """The cell of a client's answer."""
    expected = client.refusal(made.case)
    if isinstance(answer, str):
        why = shortened(answer, made.path)
        return Cell(None, why, "" if expected and re.search(expected, answer) else f"refused: {why}")
    found, own, reported = dict(np.load(answer)), made.own, dict(made.reported)
    odd = [n for n, values in own.items() if n not in found or found[n].shape != values.shape]
    if odd:
        return Cell(None, "", f"{odd[0]} is missing or of another shape")
    wrong = [f"{n}: we decode something else than we report" for n, value in reported.items()
             if not apart_by(sqnr(original, {n: own[n]}), value) <= TOLERANCE]  # fmt: skip
    if not made.moved <= (OFFSETS.get(made.case.target, 0.0) if "--asymmetric" in made.case.flags else 0.0):
        wrong.append(f"ours are {made.moved:.1e} apart from the native ones")
    if client.rounds:
        own = {n: rounded(values, made.scales[n]) if made.scales[n] in FLOATS else values for n, values in own.items()}
        reported = {n: sqnr(original, {n: values}) for n, values in own.items()}
    apart = furthest(found, own)
    gap = float(np.max([apart_by(sqnr(original, {n: found[n]}), value) for n, value in reported.items()]))
    limits = (math.inf, 2.0**-7) if client.bytewise(made.case) else (client.decibels, client.apart)
    wrong += [] if gap <= limits[0] else [f"{gap:.4f} dB from the report"]  # also where it is NaN
    wrong += [] if apart <= limits[1] else [f"weights {apart:.1e} apart from ours"]
    wrong += [f"it was expected to refuse with {expected!r}"] if expected else []
    return Cell(sqnr(original, found), f"apart {apart:.1e}, {gap:.4f} dB", "; ".join(wrong))


def shortened(words: str, path: Path) -> str:
    """An error in one line, without what differs from tensor to tensor."""
    words = words.replace(str(path), "MODEL").replace("|", "/")
    words = re.sub(r"torch\.Size\(\[[^]]*\]\)", "[...]", words)
    words = re.sub(r"(?<=[(=])\d+\b", "N", words) if re.search("size of tensor|Only bits", words) else words
    return words if len(words) <= 160 else words[:157] + "..."


# ---- tables -----------------------------------------------------------------------------------------------------


def table(target: str, made: Sequence[Made], cells: Mapping[tuple[Case, str], Cell], notes: list[str]) -> list[str]:
    """A target's rows in markdown; why a client refused is a note below the tables."""
    heads = [c.head for c in CLIENTS[target] if any((m.case, c.head) in cells for m in made)]
    lines = [f"| {target} | reported | {' | '.join(heads)} |", f"| --- | ---: |{' ---: |' * len(heads)}"]
    for m in made:
        row = []
        for head in heads:
            cell = cells.get((m.case, head))
            if cell is None:
                row.append("-")
                continue
            if cell.seen is None and cell.why not in notes:
                notes.append(cell.why)
            row.append(f"no ({notes.index(cell.why) + 1})" if cell.seen is None else f"{cell.seen:.2f}")
        lines.append(f"| {m.case.scheme} | {m.summary:.2f} | {' | '.join(row)} |")
    return lines


def answers(made: Sequence[Made], clients: Sequence[Client], pythons: Mapping[str, Path | str],
            models: Mapping[str, Path], work: Path) -> dict[tuple[Case, str], str | Path]:  # fmt: skip
    """What every client answers for every model that it is asked for, each client in one process."""
    found: dict[tuple[Case, str], str | Path] = {}
    for i, client in enumerate(clients):
        asked, python = [m for m in made if client.asked(m.case)], pythons[client.environment]
        print(f"{client.function} ({client.environment}): {len(asked)} models", file=sys.stderr, flush=True)
        if isinstance(python, str):
            said: list[str | Path] = [f"not installed: {python}"] * len(asked)
        else:
            said = ask(client.function, python, asked, models, work / f"answers-{i}")
        found |= {(m.case, client.head): answer for m, answer in zip(asked, said)}
    return found


def values(model: Path) -> Weights:
    """The weights of a float model."""
    with reading.open(str(model)) as source:
        return {n: np.asarray(t.numpy(), np.float32) for n, t in source.items()}


def run(target: str, fast: bool, pythons: Mapping[str, Path | str], work: Path) -> tuple[list[str], int]:
    """The table of a target, and how many cells are not as they should be."""
    clients = [c for c in CLIENTS[target] if c.fast or not fast]
    cases = [case for case in CASES if case.target == target and any(c.asked(case) for c in clients)]
    work.mkdir()
    models = {name: MODELS[name](pythons, work / name) for name in dict.fromkeys(case.model for case in cases)}
    original = {name: values(model) for name, model in models.items()}
    made = [prepare(case, models[case.model], work / str(i)) for i, case in enumerate(cases)]
    found = answers(made, clients, pythons, models, work)
    cells: dict[tuple[Case, str], Cell] = {}
    for client in clients:
        for m in [m for m in made if client.asked(m.case)]:
            cell = judge(m, client, found[m.case, client.head], original[m.case.model])
            cells[m.case, client.head] = cell
            shown = cell.why if cell.seen is None else f"{cell.seen:.2f} dB, {cell.why}"
            print(f"{'FAILED' if cell.wrong else 'ok':6s} {target}, {m.case.scheme}, {client.head}: "
                  f"{cell.wrong or shown}", file=sys.stderr, flush=True)  # fmt: skip
    notes = list[str]()
    lines = table(target, made, cells, notes)
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))] if notes else []
    return lines, sum(bool(c.wrong) for c in cells.values())
