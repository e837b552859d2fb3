"""The round trip as a target: bytes choose an array and a scheme; what `quantize` wrote is decoded by the reader that
`help file-format` prints, which shares no code with quantcli."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from making import BF16, ROOT, header_of, save

SHAPES = [
    (1, 1),
    (3, 70),
    (8, 64),
    (5, 33),
    (33, 6),
    (2, 3, 40),
    (4, 3, 3, 3),
    (1, 300),
    (300,),
    (64, 1),
    (16, 256),
    (2, 130),
]
FORMATS = ["", "", "", "--asymmetric", "--asymmetric", "--asymmetric --zero-point float", "--type midrise",
           "--type codebook", "--grid full"]  # fmt: skip
CALIBRATIONS = ["minmax", "minmax", "mse", "mse", "percentile", "entropy", "auto", "signed-extreme", "lloyd-max"]
GROUPS = [-1, 0, 1, 7, 16, 32, 48, 64, 128]
DTYPES: list[Any] = [np.float32, np.float32, np.float16, BF16, np.float64]
ROUNDINGS = ["", "--rounding nearest", "--rounding sum-preserving"]
SCALES = ["", "", "--scale-dtype float32", "--scale-dtype float16", "--scale-dtype bfloat16"]

CHOICES = 12
"""Bytes that choose; those behind them are weights."""


def reader() -> dict[str, Any]:
    """The functions of the program in the description of the format, without what it does with them."""
    text = (ROOT / "quantcli" / "docs" / "file-format.md").read_text()
    program = re.search(r"```python\n(.*?)\nfor number", text, re.S)
    assert program is not None
    found: dict[str, Any] = {}
    exec(program[1], found)
    return found


def seeds() -> list[bytes]:
    chance = np.random.default_rng(7)
    return [
        chance.integers(0, 256, CHOICES + size, np.uint8).tobytes() for size in (0, 0, 0, 8, 64, 400) for _ in range(20)
    ]


def case(data: bytes) -> tuple[np.ndarray, list[str]]:
    """An array, and the options of a scheme."""
    shape, form, calibration, group, dtype, rounding, scale, bits, spread, special, seed, less = data[:CHOICES].ljust(
        CHOICES, b"\0"
    )
    shape_ = SHAPES[shape % len(SHAPES)]
    chance = np.random.default_rng(seed)
    values = chance.standard_normal(shape_) * 2.0 ** ((spread % 80) - 50 if spread > 127 else 0)
    if less % 4 == 1:
        values = np.where(chance.random(shape_) < 0.7, 0, values)
    if less % 4 == 2:
        values = np.abs(values) + 3
    held = np.frombuffer(data[CHOICES : CHOICES + (len(data) - CHOICES) // 4 * 4], "<f4")
    flat = values.reshape(-1)
    given = held[: flat.size].astype(np.float64)
    flat[: given.size] = np.where(np.isfinite(given) & (np.abs(given) < 1e30), given, 0)
    if special % 5 == 1:
        flat[seed % flat.size] *= 1000
    with np.errstate(over="ignore"):
        array = values.astype(DTYPES[dtype % len(DTYPES)])
    if not np.isfinite(array.astype(np.float64)).all():
        array = np.zeros_like(array)
    options = f"--bits {1 + bits % 16} --group-size {GROUPS[group % len(GROUPS)]} {FORMATS[form % len(FORMATS)]}"
    options += f" {ROUNDINGS[rounding % len(ROUNDINGS)]} {SCALES[scale % len(SCALES)]}"
    if special % 3:
        options += f" --calibration {CALIBRATIONS[calibration % len(CALIBRATIONS)]}"
    return array, options.split()


def wrong(array: np.ndarray, path: Path) -> str | None:
    """What a file that holds this array says or stores otherwise than it should; None when nothing is wrong."""
    document = json.loads(header_of(path)["__metadata__"]["quantcli"])
    entry = document["tensors"]["w"]
    if "scheme" not in entry or document["version"] != 1:
        return None
    x = array.astype(np.float32).astype(np.float64)
    program, seen = reader(), list[Any]()
    decode = program["decode"]

    def decoded(*arguments: Any) -> Any:
        seen.extend(arguments)
        return decode(*arguments)

    program["decode"] = decoded
    ((_, values),) = program["read"](path)
    error = x - values.astype(np.float64)
    told, power = float((error**2).sum()), float((x**2).sum())
    for key, own in (("sse", told), ("power", power), ("max_abs_error", float(np.abs(error).max()))):
        if not np.isclose(entry[key], own, rtol=1e-5, atol=1e-37):
            return f"{key} is {entry[key]!r} in the header, and {own!r} of what was decoded"
    _, scheme, stored = seen
    if scheme["format"] != "int" or scheme["bits"] == 1 or scheme.get("axis") or "scale" not in stored:
        return None
    raw, _, packed = stored["packed"]
    rows, bits = int(np.prod(packed[:-1])), scheme["bits"]
    cols = x.size // rows
    u = program["codes"](raw.reshape(rows, -1), cols, bits)
    scale = program["floats"](*stored["scale"][:2]).astype(np.float64).reshape(rows, -1)
    step = np.repeat(np.abs(scale), min(scheme.get("group_size", cols), cols), axis=1)[:, :cols]
    inner = (u > 1) & (u < (1 << bits) - 1)
    most = step * (0.5 if scheme["rounding"] == "nearest" else 1.0)
    slack = 4e-7 * (np.abs(x).reshape(rows, cols) + step * (1 << bits)) + 1e-44
    bad = inner & (np.abs(error).reshape(rows, cols) > most + slack)
    return f"{int(bad.sum())} weights err by more than a step of their scale allows" if bad.any() else None


def save_case(data: bytes) -> tuple[np.ndarray, list[str]]:
    """The array in w.safetensors, and the command that quantizes it to out.safetensors."""
    array, options = case(data)
    save(Path("w.safetensors"), {"w": array})
    words = [
        "quantize",
        "w.safetensors",
        "-o",
        "out.safetensors",
        "-q",
        "--no-default-keep",
        "--threads",
        "1",
        "--force",
    ]
    return array, [*words, *options]
