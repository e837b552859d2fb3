"""ComfyUI's small floats whose scales lie in tiles, in the order in which matrix units read them.

    nvfp4   X.weight          U8             [out, in/2]     E2M1, the first of two in the high half
            X.weight_scale    F8_E4M3        tiles of the matrix [out, in/16]
            X.weight_scale_2  F32            a number
    mxfp8   X.weight          F8_E4M3        [out, in]
            X.weight_scale    U8, F8_E8M0    tiles of the matrix [out, in/32]   exponents of 2 with a bias of 127

A tile holds 128 rows and 4 columns of scales, row r and column c at byte (r % 32) * 16 + r // 32 * 4 + c; tiles follow
each other along the rows, and the matrix is filled up to whole tiles. out and in are filled up to multiples of 16, or
32: `orig_shape` in the description is without that. The weight is float * (scale * scale_2), here in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import to_float32
from quantcli.kernels import row_bytes
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.small import E8M0, powers, small_floats
from quantcli.layouts.stored import finite, floats, matrix, part, wrong
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

TILE_ROWS, TILE_COLS = 128, 4
"""Rows and columns of a tile of scales."""

FORMATS = {"nvfp4": ("U8", ("F8_E4M3",), 16, 2), "mxfp8": ("F8_E4M3", E8M0, 32, 1)}
"""Dtypes of codes and scales, columns of a group, and floats in a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    kind: str
    rows: int
    cols: int
    codes: TensorInfo
    scale: TensorInfo
    overall: TensorInfo | None

    @property
    def held(self) -> int:
        """Columns with those they are filled up with."""
        return self.codes.shape[1] * FORMATS[self.kind][3]

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.held // FORMATS[self.kind][2]


def _shape(name: str, description: Mapping[str, Any], rows: int, cols: int, unit: int) -> tuple[int, int]:
    """The shape before it was filled up, as far as the description has it."""
    shape = description.get("orig_shape")
    if shape is None:
        return rows, cols
    if not isinstance(shape, list) or [type(n) for n in shape] != [int, int]:
        raise wrong(name, "the orig_shape in its description is not a shape of a matrix")
    if min(shape) < 1 or ([-(-n // unit) * unit for n in shape] != [rows, cols] and shape != [rows, cols]):
        raise wrong(name, f"its shape {shape} does not match {rows} x {cols} codes")
    return shape[0], shape[1]


def find(infos: Mapping[str, TensorInfo], name: str, kind: str, description: Mapping[str, Any]) -> Found:
    """A weight of one of FORMATS. Raises DataError."""
    dtype, of_scales, group, per_byte = FORMATS[kind]
    codes, scale = part(infos, name, name, (dtype,)), part(infos, f"{name}_scale", name, of_scales)
    overall = part(infos, f"{name}_scale_2", name, ("F32",)) if kind == "nvfp4" else None
    rows, held = matrix(codes, name)
    cols = held * per_byte
    tiles = -(-rows // TILE_ROWS), -(-(cols // group) // TILE_COLS)
    if cols % group or scale.numel != tiles[0] * tiles[1] * TILE_ROWS * TILE_COLS:
        raise wrong(name, f"scales {list(scale.shape)} do not fill {tiles[0]} x {tiles[1]} tiles of {rows} x {cols}")
    if overall is not None and overall.numel != 1:
        raise wrong(name, f"scale_2 {list(overall.shape)} is not a single number")
    shape = _shape(name, description, rows, cols, 16 if kind == "nvfp4" else 32)
    stored = _Stored(name=name, kind=kind, rows=rows, cols=shape[1], codes=codes, scale=scale, overall=overall)
    return Found(
        name=name,
        shape=shape,
        scheme=kind,
        bits=8 // per_byte,
        parts=tuple(p for p in (codes, scale, overall) if p is not None),
        decode=partial(_decode, stored),
        held=partial(_held, stored),
        dtype="BF16" if overall is None else "F32",
    )


def _scales(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """Scales (last - first, groups)."""
    across, size = -(-stored.groups // TILE_COLS), TILE_ROWS * TILE_COLS
    start, end = first // TILE_ROWS, -(-last // TILE_ROWS)
    raw = read(stored.scale.name, start * across * size, (end - start) * across * size)
    rows = raw.reshape(end - start, across, 32, 4, TILE_COLS).transpose(0, 3, 2, 1, 4)
    own = rows.reshape((end - start) * TILE_ROWS, across * TILE_COLS)
    own = np.ascontiguousarray(own[first - start * TILE_ROWS : last - start * TILE_ROWS, : stored.groups])
    values = to_float32(own.ravel(), "F8_E4M3") if stored.overall is not None else powers(own.ravel())
    return finite(values, stored.scale, stored.name).reshape(own.shape)


def _swapped(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes with their halves exchanged."""
    found: NDArray[np.uint8] = raw << np.uint8(4) | raw >> np.uint8(4)
    return found


def _held(stored: _Stored, read: Read) -> Held:
    """The codes without those that rows are filled up with, the first of two in the low half, and their scales."""
    four, size = stored.overall is not None, stored.codes.shape[1]
    overall = float(floats(read, stored.overall, stored.name, 0, 1)[0]) if stored.overall is not None else 1.0
    groups = -(-stored.cols // FORMATS[stored.kind][2])

    def packed(first: int, last: int) -> Bytes:
        raw = read(stored.codes.name, first * size, (last - first) * size)
        kept = -(-stored.cols // 2) if four else stored.cols
        rows = (_swapped(raw) if four else raw).reshape(last - first, size)[:, :kept]
        found = np.zeros((last - first, row_bytes(stored.cols, 4 if four else 8)), np.uint8)
        found[:, : rows.shape[1]] = rows
        return found

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        with np.errstate(over="ignore"):
            scale = _scales(stored, read, first, last)[:, :groups] * np.float32(overall)
        return finite(scale, stored.scale, stored.name), None

    return Held(
        format="fp4" if four else "fp8-e4m3",
        bits=4 if four else 8,
        group=FORMATS[stored.kind][2],
        offsets="",
        scale_dtype="F8_E4M3" if four else "F8_E8M0",
        packed=packed,
        params=params,
        overall=overall,
    )


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    size, group = stored.codes.shape[1], FORMATS[stored.kind][2]
    scale = _scales(stored, read, first, last)
    raw, dtype = read(stored.codes.name, first * size, (last - first) * size), "F8_E4M3"
    if stored.overall is not None:
        with np.errstate(over="ignore"):
            scale *= floats(read, stored.overall, stored.name, 0, 1)
        if not np.isfinite(scale).all():
            raise wrong(stored.name, "a scale times its scale_2 is not finite")
        raw, dtype = _swapped(raw), "F4"
    return small_floats(raw, (last - first, stored.held), scale, group, dtype)[:, : stored.cols]
