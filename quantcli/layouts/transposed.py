"""Weights that are stored transposed, decoded row by row: their rows are columns of what is stored, and read in bands.

A tile is a few rows, of which each row of the stored matrix holds a few bytes, so that reading a tile costs as much as
reading all of it. A band is read once, and put in order; threads that work on its tiles share it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.kernels import QuantParams, row_bytes
from quantcli.layouts.pieces import turned
from quantcli.layouts.reader import Held, Read
from quantcli.layouts.stored import by_group, columns, float_columns
from quantcli.stores.latest import Latest
from quantcli.stores.pages import paged
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats
    from quantcli.layouts.stored import Indices

T = TypeVar("T")

BAND = 3 << 19
"""Bytes of the codes of a band."""

WIDE = 1 << 14
"""Columns above which a band is twice as large: it has few rows, for which much of the rest is read and dropped."""

MOVED = 1 << 22
"""The same where codes are moved, and nothing is decoded: half as many reads, each twice as long."""

STRIP = 512
"""Rows of what is stored that are put in order at a time: they stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows of a weight: packed codes (rows, bytes), scales and zero points (rows, groups), and the size of the
    groups or the group of every column."""

    codes: Bytes
    scale: Floats
    zero: Floats
    group_of: int | Indices


Bands = Latest[Rows]
"""The bands in use, of all weights of a file."""

ParamBands = Latest[tuple["Floats", "Floats"]]
"""The same of parameters alone."""


def strips(read: Read, info: TensorInfo, first: int, last: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Columns first to last of a matrix, as unsigned integers of the elements' size, in strips of its rows: the first
    row of each, and the strip."""
    height = info.shape[0]
    for row in range(0, height, STRIP):
        yield row, columns(read, info, first, last, (row, min(row + STRIP, height)))


def as_rows(read: Read, info: TensorInfo, first: int, last: int) -> NDArray[Any]:
    """Columns first to last of a matrix as rows (last - first, rows of the matrix)."""
    size = DTYPES[info.dtype].bits // 8
    found = paged((last - first) * info.shape[0] * size).view(f"<u{size}").reshape(last - first, -1)
    for row, strip in strips(read, info, first, last):
        turned(strip, found[:, row : row + len(strip)])
    return found


def params_of(
    bands: ParamBands, read: Read, parts: tuple[TensorInfo, TensorInfo], whose: str, first: int, last: int
) -> tuple[Floats, Floats]:
    """Scales and zeros (rows, groups) of some rows, which are columns of what is stored."""
    groups, rows = parts[0].shape
    height = max((BAND >> 3) // groups, 1)

    def band(start: int, end: int) -> tuple[Floats, Floats]:
        scale, zeros = (float_columns(read, info, whose, start, end) for info in parts)
        return scale, zeros

    taken = among(bands, whose, (first, last), rows, height, band)
    found = [(scale[own], zeros[own]) for (scale, zeros), own in taken]
    return (
        found[0] if len(found) == 1 else (np.concatenate([s for s, _ in found]), np.concatenate([z for _, z in found]))
    )


def decode(
    bands: Bands, name: str, span: tuple[int, int], shape: tuple[int, int], bits: int, make: Callable[[int, int], Rows]
) -> Floats:
    """Some rows of a weight of this shape, by the bands they lie in. make(first, last): a band, which begins with a
    multiple of 32 rows and ends with one or the last row."""
    size = BAND * 2 if shape[1] > WIDE else BAND
    taken = among(bands, name, span, shape[0], _height(shape[1], bits, size), make)
    found = [_decoded(band, own, shape[1], bits) for band, own in taken]
    return found[0] if len(found) == 1 else np.concatenate(found)


def among(
    bands: Latest[T], key: Hashable, span: tuple[int, int], rows: int, height: int, make: Callable[[int, int], T]
) -> Iterator[tuple[T, slice]]:
    """The bands of `height` rows, of all the rows of a matrix, that some of them lie in: one after another, each with
    the rows in it. key: of the matrix; make(first, last): a band."""
    first, last = span
    for start in range(first // height * height, last, height):
        end = min(start + height, rows)
        own = slice(max(first - start, 0), min(last, end) - start)
        yield bands.take((key, start, height), partial(make, start, end)), own


def _height(cols: int, bits: int, size: int) -> int:
    """Rows of a band of this many bytes of codes, a multiple of 32."""
    return max(size // row_bytes(cols, bits) // 32, 1) * 32


def held(
    bands: Bands,
    name: str,
    shape: tuple[int, int],
    bits: int,
    make: Callable[[int, int], Rows],
    params: Callable[[int, int], tuple[Floats, Floats]],
    *,
    group: int | str,
    scale_dtype: str,
) -> Held:
    """The codes of a weight of this shape with zero points, as `decode` gets them; params: scales and zero points of
    any rows."""

    def packed(first: int, last: int) -> Bytes:
        taken = among(bands, name, (first, last), shape[0], _height(shape[1], bits, MOVED), make)
        return np.concatenate([band.codes[own] for band, own in taken])

    return Held(bits=bits, group=group, offsets="int", scale_dtype=scale_dtype, packed=packed, params=params)


def _decoded(band: Rows, own: slice, cols: int, bits: int) -> Floats:
    codes = band.codes[own]
    return by_group(codes, (len(codes), cols), bits, QuantParams(band.scale[own], band.zero[own]), band.group_of)
