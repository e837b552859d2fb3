"""Tensors put together of matrices that are parts of stored ones, transposed where they are stored so.

The experts of a layer are stored one by one or all in one tensor, each as [out, in] or as [in, out], gate and up
together or apart; loaders want them in another arrangement. A `Matrix` says where one of them is, and `stacked` makes a
tensor of some.

A transposed matrix is read in bands of its columns, which are runs of bytes in each of its rows; the bands read last
are kept, because the tiles of a tensor are much smaller. What a band takes depends on the length of the rows of the
result, never on the size of the stored tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.metrics import NOTHING
from quantcli.stores.derived import Computed
from quantcli.stores.source import Earlier, Source
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

BAND = 1 << 23
"""Bytes of a band: runs of 1.6 KB of the rows of an expert of 5120 inputs. With half as many, reading takes a third
longer."""

DECODED = 1 << 25
"""The same where whole rows are decoded for any part of them: an expert of gpt-oss is one band."""

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


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A tensor that takes the place of a stored one: its name, its shape, and the matrices it is made of."""

    name: str
    shape: tuple[int, ...]
    matrices: tuple[Matrix, ...]


class _Band:
    """Columns of a stored matrix as rows, once they are read."""

    __slots__ = ("__weakref__", "lock", "values")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: NDArray[Any] | None = None


class Bands:
    """The bands of transposed matrices of a source that are in use: each thread holds the one it read from last. Each
    is read once, by the thread that needs it first; others wait for it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._size = DECODED if source.decoded_from else BAND
        self._known: WeakValueDictionary[tuple[str, int, int], _Band] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._own = threading.local()

    def height(self, cols: int, size: int) -> int:
        """Rows of a band of so many elements of `size` bytes."""
        return max(32, self._size // (cols * size))

    def band(self, key: tuple[str, int, int], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """A band by tensor, element and column."""
        with self._lock:
            found = self._known.get(key)
            if found is None:
                self._own.band = None  # before another one is read, not after
                found = self._known[key] = _Band()
            self._own.band = found
        with found.lock:
            if found.values is None:
                found.values = make()
            return found.values


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
            if matrix.transposed:
                _fill(bands, matrix, size, at, part)
            else:
                bands.source.read(matrix.name, matrix.first * size + at, part)
            done += count

    parts = tuple(dict.fromkeys(matrix.name for matrix in matrices))
    return Computed(info=info, home=parts[0], fill=fill, parts=parts, earlier=_earlier(bands.source, parts, info))


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


def _fill(bands: Bands, matrix: Matrix, size: int, start: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of a transposed matrix from byte `start`."""
    out = np.frombuffer(buffer, np.uint8)
    base, left = matrix.first // matrix.width * matrix.width, matrix.first % matrix.width
    row_size, height = matrix.cols * size, bands.height(matrix.cols, size)
    row, last = start // row_size, -(-(start + len(buffer)) // row_size)
    while row < last:
        column = left + row * matrix.step
        low = column // height * height
        high = min(low + height, matrix.width)
        rows = min(last, row + -(-(high - column) // matrix.step)) - row
        make = partial(_read, bands.source, matrix, base, size, low, high)
        band = bands.band((matrix.name, base, low), make)
        found = band[column - low : column - low + (rows - 1) * matrix.step + 1 : matrix.step]
        raw = np.ascontiguousarray(found).view(np.uint8).reshape(-1)
        begin, end = row * row_size, (row + rows) * row_size
        first, stop = max(begin, start), min(end, start + len(buffer))
        out[first - start : stop - start] = raw[first - begin : stop - begin]
        row += rows


def _read(source: Source, matrix: Matrix, base: int, size: int, low: int, high: int) -> NDArray[Any]:
    """Columns low to high of what is stored, as rows (columns, cols)."""
    kind = np.dtype(f"u{size}")
    found = np.empty((high - low, matrix.cols), kind)
    block = np.empty((min(ROWS, matrix.cols), high - low), kind)
    for row in range(0, matrix.cols, ROWS):
        part = block[: min(ROWS, matrix.cols - row)]
        start = (base + row * matrix.width + low) * size
        source.read_runs(matrix.name, start, matrix.width * size, part.view(np.uint8))
        for strip in range(0, len(part), 16):
            found[:, row + strip : row + min(strip + 16, len(part))] = part[strip : strip + 16].T
    return found
