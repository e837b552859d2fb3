"""Layouts in memory: tensors as they are stored, and what is found and decoded of them."""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from making import GOLDEN_FILES, raw_tensors

from quantcli.layouts import reader as layouts
from quantcli.layouts.reader import Found, Read
from quantcli.models import open_model
from quantcli.tensors.info import TensorInfo

GOLDEN = GOLDEN_FILES / "layouts"
"""Written by peers/write_layouts*.py."""
FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
Parts = dict[str, tuple[str, tuple[int, ...], bytes]]


# ---- tensors in memory ------------------------------------------------------------------------------------------


def parts_and_config(path: Path) -> tuple[Parts, dict[str, Any]]:
    """The parts in a file, and config.json."""
    raw = path.read_bytes()
    parts: Parts = {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in safetensors.deserialize(raw)
    }
    config = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["config"])
    return parts, config


def written(path: Path) -> tuple[Parts, dict[str, Any], np.ndarray]:
    """What a file of GOLDEN holds: the parts, config.json, and what the library makes of them."""
    parts, config = parts_and_config(path)
    _, shape, values = parts.pop("expected")
    return parts, config, np.frombuffer(values, np.float32).reshape(shape)


def folder(path: Path, parts: Parts, config: Mapping[str, Any] | None = None) -> Path:
    """A new folder of these tensors and this configuration, as models have it."""
    path.mkdir()
    (path / "model.safetensors").write_bytes(raw_tensors(parts))
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def values(path: object, config: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The numbers of all tensors of a model."""
    with open_model(str(path), config) as model:
        return {name: view.read(0, view.info.numel).reshape(view.info.shape) for name, view in model.items()}


def infos_of(parts: Parts) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape) for name, (dtype, shape, _) in parts.items()}


def reader(parts: Parts) -> Read:
    """Reads as a file does: only what is there."""

    def read(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        raw, end = parts[name][2], start + (count - 1) * step + size
        assert start >= 0 and size >= 0 and count > 0 and end <= len(raw), (name, start, size, count, step, len(raw))
        runs = (raw[start + run * step :][:size] for run in range(count))
        found: np.ndarray = np.frombuffer(b"".join(runs), np.uint8).copy()
        return found

    return read


def found_in(parts: Parts, config: Mapping[str, Any] | None = None, *, reading: bool = True) -> list[Found]:
    for dtype, shape, raw in parts.values():
        size = 8 if dtype == "BOOL" else int(dtype.lstrip("BFIU").split("_")[0])
        assert len(raw) == np.prod(shape, dtype=int) * size // 8
    return layouts.find(infos_of(parts), config or {}, reader(parts) if reading else None)


def only(found: list[Found]) -> Found:
    assert len(found) == 1
    return found[0]


def decoded(found: Found, parts: Parts, first: int = 0, last: int | None = None) -> np.ndarray:
    rows = int(np.prod(found.shape[:-1]))
    result = found.decode(reader(parts), first, rows if last is None else last)
    assert result.dtype == np.float32
    return result


def check_every_piece(found: Found, parts: Parts, expected: np.ndarray) -> None:
    """Whole, and in pieces of many sizes, bit for bit."""
    rows = len(expected)
    np.testing.assert_array_equal(decoded(found, parts), expected)
    for first, last in [
        (0, 1),
        (rows - 1, rows),
        *itertools.pairwise(range(0, rows, 7)),
        *itertools.pairwise(sorted({0, 5, 31, 32, 33, rows} & set(range(rows + 1)))),
    ]:
        np.testing.assert_array_equal(decoded(found, parts, first, last), expected[first:last])


def floats(values: np.ndarray, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, values.shape, values.astype(FLOATS[dtype]).tobytes()


def kept(values: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of float values in a dtype."""
    return values.astype(FLOATS[dtype]).astype(np.float32)


def words(dtype: str, rows: list[list[int]]) -> tuple[str, tuple[int, ...], bytes]:
    """Rows of unsigned 32-bit words."""
    return dtype, (len(rows), len(rows[0])), b"".join(struct.pack(f"<{len(row)}I", *row) for row in rows)


def dense(values: list[int], bits: int) -> list[int]:
    """32-bit words of a stream: bit k of it is bit k % 32 of word k // 32."""
    found = [0] * ((len(values) * bits + 31) // 32)
    for i, value in enumerate(values):
        for b in range(bits):
            k = i * bits + b
            found[k // 32] |= (value >> b & 1) << (k % 32)
    return found


def padded(values: list[int], bits: int) -> list[int]:
    """32-bit words of whole codes, as compressed-tensors wrote them before 0.18."""
    held = 32 // bits
    found = [0] * (-(-len(values) // held))
    for i, value in enumerate(values):
        found[i // held] |= value << (i % held * bits)
    return found


def down(values: list[list[int]], pack: Callable[[list[int], int], list[int]], bits: int) -> list[list[int]]:
    """Rows of words whose streams run down the columns."""
    return [list(row) for row in zip(*(pack(list(column), bits) for column in zip(*values)))]


def codes(rng: random.Random, rows: int, cols: int, bits: int) -> list[list[int]]:
    return [[rng.randrange(1 << bits) for _ in range(cols)] for _ in range(rows)]


def scales(rng: random.Random, rows: int, cols: int) -> np.ndarray:
    return np.array([[rng.choice((-1, 1)) * rng.uniform(1e-3, 0.1) for _ in range(cols)] for _ in range(rows)])


def plain(u: list[list[int]], z: list[list[int]] | None, s: np.ndarray, group: int, zero: int = 0) -> np.ndarray:
    """(u - z) * s, one weight at a time in float32."""
    out = np.empty((len(u), len(u[0])), np.float32)
    for o, row in enumerate(u):
        for i, code in enumerate(row):
            offset = zero if z is None else z[o][i // group]
            out[o, i] = np.float32(code - offset) * np.float32(s[o, i // group])
    return out


# ---- malformed --------------------------------------------------------------------------------------------------


def changed(parts: Parts, name: str, *, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> Parts:
    """The same parts, one of them of another dtype or shape; its bytes are of that size."""
    own, before, _ = parts[name]
    dtype, shape = dtype or own, before if shape is None else shape
    size = int(np.prod(shape, dtype=int)) * int(dtype.lstrip("BFIU").split("_")[0]) // 8
    return {**parts, name: (dtype, shape, bytes(size))}


def without(parts: Parts, name: str) -> Parts:
    return {k: v for k, v in parts.items() if k != name}


WORDS = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}
"""How the bits of numbers are read, by dtype."""


def made_by_a_tool(path: Path) -> tuple[Parts, dict[str, Any], tuple[str, np.ndarray]]:
    """The parts in a file, config.json, and the dtype and bits of what the tool makes of them, in C order."""
    parts, config = parts_and_config(path)
    dtype, shape, values = parts.pop("expected")
    return parts, config, (dtype, np.frombuffer(values, WORDS[dtype]).reshape(shape))


def hadamard(size: int) -> np.ndarray:
    """The regular Hadamard matrix of a power of 4, whose rows have the length 1."""
    four = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    found: np.ndarray = np.ones((1, 1))
    while len(found) < size:
        found = np.kron(found, four)
    return found
