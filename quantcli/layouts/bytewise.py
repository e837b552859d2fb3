"""Weights stored one to a byte, whole numbers or 8-bit floats, with a matrix of scales over them: shared by layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.reader import Held, Read
from quantcli.layouts.small import small_floats
from quantcli.layouts.stored import filled_up, floats, scaled, scheme_name
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

CODES = {"I8": "w8", "F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}
"""Dtypes of codes, and how the names of their schemes begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytewise:
    """A weight of `cols` columns whose scales cover `height` rows and `width` columns each; one scale covers all.
    zero: I8, signed zero points in the arrangement of the scales."""

    name: str
    cols: int
    height: int
    width: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None = None

    @property
    def across(self) -> int:
        """Scales of a row."""
        return -(-self.cols // self.width)

    @property
    def scheme(self) -> str:
        """The name of its scheme."""
        kind, zero = CODES[self.codes.dtype], "" if self.zero is None else "int"
        if self.scale.numel > 1 and self.height > 1:
            return f"{kind}b{self.height}x{self.width}"
        where = "tensor" if self.scale.numel == 1 else "channel" if self.across == 1 else self.width
        return scheme_name(8, where, zero).replace("w8", kind, 1)

    def rows_of(self, first: int, last: int) -> tuple[int, int]:
        """The rows of scales that rows first to last of weights have."""
        return (0, 1) if self.scale.numel == 1 else (first // self.height, -(-last // self.height))


def _spread(stored: Bytewise, values: Floats, first: int, last: int) -> Floats:
    """Parameters of rows of scales (rows, across), of every row of weights, or (1, 1)."""
    start, _ = stored.rows_of(first, last)
    values = values.reshape(-1, stored.across)
    return (
        values
        if stored.scale.numel == 1 or stored.height == 1
        else values[np.arange(first, last) // stored.height - start]
    )


def held(stored: Bytewise, read: Read) -> Held | str:
    """Signed bytes as unsigned codes, or 8-bit floats as they are, with a scale for every row or group."""
    is_float = stored.codes.dtype != "I8"
    if is_float and stored.height > 1 and stored.scale.numel > 1:
        return "its scales are those of blocks"
    if stored.cols % stored.width:
        return "its last group is short"

    def packed(first: int, last: int) -> Bytes:
        raw = read(stored.codes.name, first * stored.cols, (last - first) * stored.cols)
        if is_float:
            return filled_up(raw, (last - first, stored.cols), 8)
        return packing.pack(raw.reshape(-1, stored.cols) ^ np.uint8(128), 8)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        start, end = stored.rows_of(first, last)
        at, count = start * stored.across, (end - start) * stored.across

        def of_rows(values: Floats) -> Floats:
            return np.broadcast_to(_spread(stored, values, first, last), (last - first, stored.across))

        scale = of_rows(floats(read, stored.scale, stored.name, at, count))
        if stored.zero is None:
            return scale, None
        return scale, of_rows(read(stored.zero.name, at, count).view(np.int8).astype(np.float32) + np.float32(128))

    whole = "tensor" if is_float and stored.scale.numel == 1 else "channel"
    return Held(
        format=CODES[stored.codes.dtype] if is_float else "int",
        bits=8,
        group=whole if stored.across == 1 else stored.width,
        offsets="" if stored.zero is None else "int",
        scale_dtype=stored.scale.dtype,
        packed=packed,
        params=params,
    )


def decode(stored: Bytewise, read: Read, first: int, last: int) -> Floats:
    """(code - zero) * scale (last - first, cols)."""
    rows, cols, across = last - first, stored.cols, stored.across
    raw = read(stored.codes.name, first * cols, rows * cols)
    start, end = stored.rows_of(first, last)
    count = (end - start) * across
    scale = _spread(stored, floats(read, stored.scale, stored.name, start * across, count), first, last)
    if stored.codes.dtype != "I8":
        return small_floats(raw, (rows, cols), scale, stored.width, stored.codes.dtype)
    out, zero = raw.view(np.int8).astype(np.float32).reshape(rows, cols), None
    if stored.zero is not None:
        signed = read(stored.zero.name, start * across, count).view(np.int8).astype(np.float32)
        zero = _spread(stored, signed, first, last)
    if cols % stored.width == 0:
        return scaled(out, scale, zero, stored.width)
    with np.errstate(over="ignore"):
        for group in range(across):
            part = out[:, group * stored.width : (group + 1) * stored.width]
            if zero is not None:
                part -= zero[:, group : group + 1]
            part *= scale[:, group : group + 1]
    return out
