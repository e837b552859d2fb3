"""The round trip as a target: bytes choose an array and a scheme; what `quantize` wrote is decoded by the reader that
`help file-format` prints, which shares no code with quantcli. Fixed levels, blocks and scales of one byte, which it
leaves to other readers, are turned into codebooks and groups for it, with ml_dtypes and the published levels."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from making import BF16, NUMPY_OF, ROOT, header_of, save

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
           "--type codebook", "--grid full", "--type nf4", "--type iq4", "--type fp4", "--type fp8-e4m3",
           "--type fp8-e5m2", "--type mu-law", "--type a-law"]  # fmt: skip
CALIBRATIONS = ["minmax", "minmax", "mse", "mse", "percentile", "entropy", "auto", "signed-extreme", "lloyd-max"]
GROUPS = ["-1", "0", "1", "7", "16", "32", "48", "64", "128", "16 --granularity block", "3 --granularity block"]
FLOATS: list[Any] = [np.float32, np.float32, np.float16, BF16, np.float64]
ROUNDINGS = ["", "--rounding nearest", "--rounding sum-preserving"]
SCALES = ["", "", *(f"--scale-dtype {name}" for name in ("float32", "float16", "bfloat16", "float8_e8m0",
          "float8_e4m3", "float8_e4m3_alone"))]  # fmt: skip

ONE_WIDTH: dict[str, Any] = {
    "nf4": [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
    "iq4": [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    "fp4": np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn),
    "fp8-e4m3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    "fp8-e5m2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2),
}  # fmt: skip
"""Formats whose bits are fixed, and what their codes stand for: NF4 as in bitsandbytes, IQ4 as in ggml."""

CHOICES = 12
"""Bytes that choose; those behind them are weights."""


def reader() -> dict[str, Any]:
    """The functions of the program in the description of the format, without what it does with them."""
    text = (ROOT / "quantcli" / "docs" / "file-format.md").read_text()
    program = re.search(r"```python\n((?:(?!```).)*?)\nfor number", text, re.S)
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
        array = values.astype(FLOATS[dtype % len(FLOATS)])
    if not np.isfinite(array.astype(np.float64)).all():
        array = np.zeros_like(array)
    kind = FORMATS[form % len(FORMATS)]
    width = f"--bits {1 + bits % 16}" if kind.removeprefix("--type ") not in ONE_WIDTH else ""
    options = f"{width} --group-size {GROUPS[group % len(GROUPS)]} {kind}"
    options += f" {ROUNDINGS[rounding % len(ROUNDINGS)]} {SCALES[scale % len(SCALES)]}"
    if special % 3:
        options += f" --calibration {CALIBRATIONS[calibration % len(CALIBRATIONS)]}"
    return array, options.split()


def levels_of(scheme: dict[str, Any]) -> np.ndarray | None:
    """What each code of a format with fixed levels stands for, float32; None for other formats."""
    form = scheme["format"]
    if form in ONE_WIDTH:
        return np.asarray(ONE_WIDTH[form]).astype(np.float32)
    if not form.endswith("-law"):
        return None
    y = np.linspace(-1, 1, 1 << scheme["bits"])
    size, c = np.abs(y), 1 + math.log(87.6)
    found = (256**size - 1) / 255 if form == "mu-law" else np.where(size < 1 / c, size * c, np.exp(size * c - 1)) / 87.6
    return np.asarray(np.copysign(found, y), np.float32)


def stored_in(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The parts of the tensor w, as bytes, dtype and shape."""
    data = np.fromfile(path, np.uint8)
    start = 8 + int(data[:8].view("<u8")[0])
    found = {}
    for key, told in header.items():
        if key.startswith("w_"):
            begin, end = told["data_offsets"]
            found[key[2:]] = data[start + begin : start + end], told["dtype"], told["shape"]
    return found


def plain(scheme: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The parts with float32 scales, one for each group of each row, and fixed levels as a codebook."""
    found = dict(stored)
    levels = levels_of(scheme)
    if levels is not None:
        found["codebook"] = levels.view(np.uint8), "F32", list(levels.shape)
    if "scale" in stored:
        raw, dtype, shape = stored["scale"]
        scale = raw.view(NUMPY_OF[dtype]).astype(np.float32).reshape(shape)
        if "global_scale" in stored:
            scale = scale / stored["global_scale"][0].view("<f4")
        if scheme["granularity"] == "block":
            scale = np.repeat(scale, scheme["group_size"], axis=-2)[..., : stored["packed"][2][-2], :]
        found["scale"] = np.ascontiguousarray(scale).view(np.uint8).reshape(-1), "F32", list(scale.shape)
    return found


def not_nearest(x: np.ndarray, error: np.ndarray, scheme: dict[str, Any], stored: dict[str, Any]) -> str | None:
    """What is wrong where a weight has another level than the nearest; None when nothing is."""
    levels = np.sort(stored["codebook"][0].view("<f4").astype(np.float64))
    if scheme["axis"] or len(levels) != 1 << scheme["bits"]:  # of each row other ones
        return None
    levels = levels[np.isfinite(levels)]
    rows = math.prod(stored["packed"][2][:-1])
    weights = x.reshape(rows, -1)
    cols = weights.shape[1]
    scale = stored["scale"][0].view("<f4").astype(np.float64).reshape(rows, -1)
    scale = np.repeat(scale, min(scheme.get("group_size", cols), cols), axis=1)[:, :cols]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.searchsorted(levels, np.where(scale == 0, 0, weights / scale)).clip(1, len(levels) - 1)
    least = np.minimum(np.abs(weights - levels[at - 1] * scale), np.abs(weights - levels[at] * scale))
    found = error.reshape(rows, cols)
    slack = 2.0**-21 * (np.abs(weights) + np.abs(weights - found)) + 1e-44  # of divisions and products in float32
    bad = np.abs(found) > least + slack
    return f"{int(bad.sum())} weights have another level than the nearest" if bad.any() else None


def wrong(array: np.ndarray, path: Path) -> str | None:
    """What a file that holds this array says or stores otherwise than it should; None when nothing is wrong."""
    header = header_of(path)
    document = json.loads(header["__metadata__"]["quantcli"])
    entry = document["tensors"]["w"]
    if "scheme" not in entry or document["version"] > 2:
        return None
    x = array.astype(np.float32).astype(np.float64)
    program, scheme = reader(), document["schemes"][entry["scheme"]]
    stored = plain(scheme, stored_in(path, header))
    values = program["decode"](entry, scheme, stored)
    error = x - values.astype(np.float64)
    told, power = float((error**2).sum()), float((x**2).sum())
    # What one rounding of the levels makes of the sums, where a power or a logarithm gave them.
    last = (2.0**-22 if scheme["format"].endswith("-law") else 0.0) * float(np.abs(x).max())
    inexact = {"sse": 2 * last * float(np.abs(error).sum()) + last**2 * x.size, "power": 0.0, "max_abs_error": last}
    for key, own in (("sse", told), ("power", power), ("max_abs_error", float(np.abs(error).max()))):
        if not np.isclose(entry[key], own, rtol=1e-5, atol=1e-37 + inexact[key]):
            return f"{key} is {entry[key]!r} in the header, and {own!r} of what was decoded"
    if scheme["rounding"] == "nearest" and "codebook" in stored and "scale" in stored:
        return not_nearest(x, error, scheme, stored)
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
