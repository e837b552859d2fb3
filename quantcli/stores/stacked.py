"""Tensors put together of matrices that are parts of stored ones, transposed where they are stored so.

The experts of a layer are stored one by one or all in one tensor, each as [out, in] or as [in, out], gate and up
together or apart; loaders want them in another arrangement. A `Matrix` says where one of them is, and `stacked` makes a
tensor of some.

A transposed matrix is read in bands of its columns, which are runs of bytes in each of its rows; the band read last is
kept, because the tiles of a tensor are much smaller. What a band takes depends on the length of the rows of the
result, never on the size of the stored tensor.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.metrics import NOTHING
from quantcli.stores.derived import Computed
from quantcli.stores.pages import paged
from quantcli.stores.source import Earlier, Source, Turned
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Band = NDArray[Any]

BAND = 10 << 20
"""Bytes of a band: runs of 2 KB of the rows of an expert of 5120 inputs. With half as many, reading takes a third
longer."""

DECODED_AT_ONCE = 1 << 16
"""Weights that are decoded at a time where a source reads transposed matrices by rows: they stay in the cache."""

ROWS = 64
"""Rows that are read and transposed at a time: they stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix (rows, cols) in a stored tensor.

    first: the element of the tensor it begins with. width: 0 where its rows follow each other; else it is stored
    transposed, its columns are `width` elements apart, and its rows `step`.
    """

    name: str
    rows: int
    cols: int
    first: int = 0
    width: int = 0
    step: int = 1

    @property
    def transposed(self) -> bool:
        """Whether it is stored transposed."""
        return self.width > 0


Key = tuple[str, int, int]
"""A band by its tensor, the element its matrix begins with, and its first column."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A tensor that takes the place of a stored one: its name, its shape, and the matrices it is made of. own: its
    shape in the model where that is another one; empty where it is not."""

    name: str
    shape: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    own: tuple[int, ...] = ()


class Bands:
    """The band of transposed matrices of a source that was read last.

    All threads share it, for they work on neighbouring tiles. It is replaced when nobody waits for it any more, and
    then by the first of those that somebody waits for: so each is read once, by any number of threads.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ready = threading.Condition()
        self._waiting: Counter[Key] = Counter()
        self._busy, self._key, self._memory = False, ("", 0, 0), paged(0)

    @contextmanager
    def band(self, key: Key, shape: tuple[int, int], size: int, read: Callable[[Band], None]) -> Iterator[Band]:
        """A band of elements of `size` bytes, for one thread at a time. read: fills it."""
        nbytes = shape[0] * shape[1] * size
        with self._ready:
            self._waiting[key] += 1
            self._ready.wait_for(lambda: not self._busy and (key == self._key or self._is_next(key)))
            self._busy = True
        try:
            if self._memory.size < nbytes:
                self._memory = paged(0)
                self._memory = paged(nbytes)
            found = self._memory[:nbytes].view(f"u{size}").reshape(shape)
            if key != self._key:
                self._key = ("", 0, 0)
                read(found)
                self._key = key
            yield found
        finally:
            with self._ready:
                self._busy = False
                self._waiting[key] -= 1
                self._waiting += Counter()
                self._ready.notify_all()

    def _is_next(self, key: Key) -> bool:
        return self._key not in self._waiting and key == min(self._waiting)


def stacked(bands: Bands, info: TensorInfo, matrices: Sequence[Matrix]) -> Computed:
    """A tensor made of matrices of one shape, one after another."""
    size = DTYPES[info.dtype].bits // 8
    length = matrices[0].rows * matrices[0].cols * size
    assert length * len(matrices) == info.nbytes

    def fill(start: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            number, at = divmod(start + done, length)
            count = min(length - at, len(buffer) - done)
            part, matrix = buffer[done : done + count], matrices[number]
            turned = bands.source.turned(matrix.name) if matrix.transposed else None
            if turned is not None:
                _put(turned, matrix, size, at, part)
            elif matrix.transposed:
                _fill(bands, matrix, size, at, part)
            else:
                bands.source.read(matrix.name, matrix.first * size + at, part)
            done += count

    parts = tuple(dict.fromkeys(matrix.name for matrix in matrices))
    plain = not any(matrix.transposed for matrix in matrices)
    turned = all(matrix.transposed for matrix in matrices)
    return Computed(
        info=info,
        home=parts[0],
        fill=fill,
        parts=parts,
        earlier=_earlier(bands.source, parts, info),
        runs=tuple((m.name, m.first, m.rows * m.cols) for m in matrices) if plain else (),
        columns=tuple((m.name, _home(m), m.rows, m.step) for m in matrices) if turned else (),
    )


def _home(matrix: Matrix) -> int:
    """The place of the first row of a transposed matrix, where its tensor is read by rows."""
    base, left = divmod(matrix.first, matrix.width)
    return base // matrix.cols * matrix.width + left


def _earlier(source: Source, parts: Sequence[str], info: TensorInfo) -> Earlier | None:
    """The codes that all parts are decoded from, where they are of one scheme; what they had cost is known of the whole
    parts only."""
    found = [source.earlier.get(part) for part in parts]
    schemes = {earlier.scheme if earlier is not None else None for earlier in found}
    if len(schemes) > 1 or found[0] is None:
        return None
    costs = [earlier.metrics for earlier in found if earlier is not None and earlier.metrics is not None]
    whole = len(costs) == len(parts) and sum(cost.numel for cost in costs) == info.numel
    return Earlier(found[0].scheme, sum(costs, NOTHING) if whole else None)


def _put(turned: Turned, matrix: Matrix, size: int, start: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of a transposed matrix from byte `start`, where the source reads it by rows."""
    out, row_size = np.frombuffer(buffer, np.uint8), matrix.cols * size
    home = _home(matrix)
    row, last = start // row_size, -(-(start + len(buffer)) // row_size)
    while row < last:
        count = min(max(DECODED_AT_ONCE // matrix.cols, 1), last - row)
        first = home + row * matrix.step
        values = turned(first, first + (count - 1) * matrix.step + 1, matrix.step)
        _copy(values.view(np.uint8).reshape(-1), row * row_size, start, out)
        row += count


def _copy(raw: NDArray[np.uint8], begin: int, start: int, out: NDArray[np.uint8]) -> None:
    """Copy what bytes from `begin` on have in common with a buffer from byte `start` on."""
    first, stop = max(begin, start), min(begin + len(raw), start + len(out))
    out[first - start : stop - start] = raw[first - begin : stop - begin]


def _fill(bands: Bands, matrix: Matrix, size: int, start: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of a transposed matrix from byte `start`."""
    out = np.frombuffer(buffer, np.uint8)
    base, left = matrix.first // matrix.width * matrix.width, matrix.first % matrix.width
    row_size = matrix.cols * size
    height = max(32, BAND // row_size)
    row, last = start // row_size, -(-(start + len(buffer)) // row_size)
    while row < last:
        column = left + row * matrix.step
        low = column // height * height
        high = min(low + height, matrix.width)
        rows = min(last, row + -(-(high - column) // matrix.step)) - row
        key, read = (matrix.name, base, low), partial(_read, bands.source, matrix, base, low)
        with bands.band(key, (high - low, matrix.cols), size, read) as band:
            found = band[column - low : column - low + (rows - 1) * matrix.step + 1 : matrix.step]
            _copy(np.ascontiguousarray(found).view(np.uint8).reshape(-1), row * row_size, start, out)
        row += rows


def _read(source: Source, matrix: Matrix, base: int, low: int, out: Band) -> None:
    """Put columns of what is stored, from `low` on, into an array as rows (columns, cols)."""
    size, count = out.dtype.itemsize, len(out)
    block = np.empty((min(ROWS, matrix.cols), count), out.dtype)
    for row in range(0, matrix.cols, ROWS):
        part = block[: min(ROWS, matrix.cols - row)]
        start = (base + row * matrix.width + low) * size
        source.read_runs(matrix.name, start, matrix.width * size, part.view(np.uint8))
        for strip in range(0, len(part), 16):
            out[:, row + strip : row + min(strip + 16, len(part))] = part[strip : strip + 16].T
