"""Weights stored one to a byte, whole numbers or 8-bit floats, with a matrix of scales over them: shared by layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.reader import Held, Read
from quantcli.layouts.small import small_floats
from quantcli.layouts.stored import floats, scaled, scheme_name, wrong
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

CODES = {"I8": "w8", "F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}
"""Dtypes of codes, and how the names of their schemes begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytewise:
    """A weight of `cols` columns whose scales cover `height` rows and `width` columns each; one scale covers all.
    zero: I8, signed zero points in the arrangement of the scales. bits: of whole numbers, which may be fewer than those
    of the byte that holds one."""

    name: str
    cols: int
    height: int
    width: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None = None
    bits: int = 8

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
        name = scheme_name(self.bits, where, zero)
        return name if self.codes.dtype == "I8" else name.replace("w8", kind, 1)

    def rows_of(self, first: int, last: int) -> tuple[int, int]:
        """The rows of scales that rows first to last of weights have."""
        return (0, 1) if self.scale.numel == 1 else (first // self.height, -(-last // self.height))

    def unsigned(self, values: Bytes) -> Bytes:
        """Signed whole numbers as codes from 0 on. Raises DataError for one that needs more bits."""
        found: Bytes = values ^ np.uint8(128)
        if self.bits < 8:
            found -= np.uint8(128 - (1 << (self.bits - 1)))
            if found.size and found.max() >= 1 << self.bits:
                raise wrong(self.name, f"a code or zero point is not a whole number of {self.bits} bits")
        return found


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
    """Signed bytes as unsigned codes, with a scale for every row or group; floats as they are, with the scales they
    have."""
    floating, blocks = stored.codes.dtype != "I8", stored.height > 1 and stored.scale.numel > 1
    if stored.cols % stored.width and not blocks:
        return "its last group is short"
    if blocks and not floating:
        return "its scales are those of blocks"

    def packed(first: int, last: int) -> Bytes:
        raw = read(stored.codes.name, first * stored.cols, (last - first) * stored.cols).reshape(-1, stored.cols)
        return packing.pack(raw if floating else stored.unsigned(raw), stored.bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        start, end = stored.rows_of(first, last)
        at, count = start * stored.across, (end - start) * stored.across

        def of_rows(values: Floats) -> Floats:
            return np.broadcast_to(_spread(stored, values, first, last), (last - first, stored.across))

        scale = of_rows(floats(read, stored.scale, stored.name, at, count))
        if stored.zero is None:
            return scale, None
        return scale, of_rows(stored.unsigned(read(stored.zero.name, at, count)).astype(np.float32))

    where: int | str = "channel" if stored.across == 1 and not blocks else stored.width
    return Held(
        format=CODES[stored.codes.dtype] if floating else "int",
        bits=stored.bits,
        group="tensor" if floating and stored.scale.numel == 1 else where,
        height=stored.height if blocks else 1,
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
    if stored.codes.dtype == "I8" and stored.bits < 8:
        stored.unsigned(raw)
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
