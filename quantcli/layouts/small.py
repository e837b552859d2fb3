"""Small floats as float32: codes of 4 and 8 bits by table, times the scales of their groups, which may be bytes too."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES, to_float32
from quantcli.kernels import LEVELS, CodeGrid, QuantParams
from quantcli.kernels.codebook import Codebook
from quantcli.layouts.reader import Held, Read
from quantcli.layouts.stored import filled_up, finite, floats
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The values of the codes of 4-bit floats."""

E8M0 = ("U8", "F8_E8M0")
"""What bytes that are exponents of 2, with a bias of 127, are called."""


MX, NV = 32, 16
"""Columns of a group whose scale is a power of 2, and of one whose scale is E4M3."""

FORMATS = {4: "fp4", 8: "fp8-e4m3"}
"""Formats of small floats by their bits."""


def table(levels: NDArray[Any]) -> Codebook:
    """A table of the levels of all codes, to decode with."""
    shared = np.ascontiguousarray(levels, np.float32)[None]
    return Codebook(shared, shared, np.zeros((1, 1), np.uint16), shared, shared[:, :2])


@lru_cache(maxsize=4)
def _table(dtype: str) -> Codebook:
    return table(E2M1 if dtype == "F4" else to_float32(np.arange(256, dtype=np.uint8), dtype))


def small_floats(raw: Bytes, shape: tuple[int, int], scale: Floats, group: int, dtype: str = "F8_E4M3") -> Floats:
    """Values (rows, cols) of codes of an 8-bit float, or of F4, two to a byte and the first in the low half; each
    times the scale of its group of columns: (rows, groups), or (1, groups) for all rows."""
    return looked_up(raw, shape, scale, group, _table(dtype), DTYPES[dtype].bits)


def looked_up(raw: Bytes, shape: tuple[int, int], scale: Floats, group: int, levels: Codebook, bits: int = 4) -> Floats:
    """The same by any table of 2^bits levels."""
    grid = CodeGrid(mode=LEVELS, bits=bits, umin=0, umax=(1 << bits) - 1)
    params = QuantParams(np.ascontiguousarray(scale), None, levels)
    with np.errstate(over="ignore", invalid="ignore"):
        return kernels.load().decode(filled_up(raw, shape, bits), shape, group, params, grid)


def scales(read: Read, info: TensorInfo, whose: str, first: int, count: int) -> Floats:
    """Scales as float32, from the first-th on: floats, E4M3, or bytes that are exponents of 2 from -127 to 127. Raises
    DataError when one is not a number."""
    if info.dtype not in ("F8_E4M3", *E8M0):
        return floats(read, info, whose, first, count)
    raw = read(info.name, first, count)
    if info.dtype == "F8_E4M3":
        return finite(to_float32(raw, "F8_E4M3"), info, whose)
    return finite(powers(raw), info, whose)


def held(
    read: Read,
    codes: TensorInfo,
    scale: TensorInfo,
    whose: str,
    cols: int,
    *,
    bits: int = 4,
    group: int | None = None,
    overall: float = 1,
    turned: bool = False,
) -> Held:
    """The codes of rows of small floats, of 4 bits two to a byte, and their scales: bytes that are exponents of 2 for
    every 32 columns, or E4M3 for every 16 or `group`, times the scale of the tensor. turned: as in `Held`."""
    usual, dtype = (NV, "F8_E4M3") if scale.dtype == "F8_E4M3" else (MX, "F8_E8M0")
    group = usual if group is None else group
    size, groups = cols * bits // 8, cols // group

    def packed(first: int, last: int) -> Bytes:
        raw = read(codes.name, first * size, (last - first) * size)
        return filled_up(raw, (last - first, cols), bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        found = scales(read, scale, whose, first * groups, (last - first) * groups)
        with np.errstate(over="ignore"):
            found *= np.float32(overall)
        return finite(found, scale, whose).reshape(-1, groups), None

    return Held(
        format=FORMATS[bits],
        bits=bits,
        group=group,
        offsets="",
        scale_dtype=dtype,
        packed=packed,
        params=params,
        overall=overall,
        turned=turned,
    )


def powers(raw: Bytes) -> Floats:
    """Powers of 2 of bytes of E8M0; 255 is NaN."""
    exponents = raw.astype(np.uint32) << np.uint32(23)  # of float32, except the smallest power
    exponents[raw == 0] = 1 << 22
    exponents[raw == 255] = 0x7FC00000
    found: Floats = exponents.view(np.float32)
    return found
