"""Tensors that lie in a file with any strides (transposed, cut out of larger ones), read in C order.

What is dense is read as it lies. Anything else is put in order slab by slab: some rows of the tensor, of up to SLAB
bytes, are gathered with few reads and kept until another is asked for, because threads read neighbouring tiles.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantcli.errors import DataError
from quantcli.stores.files import InputFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLAB = 1 << 21
"""Bytes that are put in order at a time, and the most that is read at once for them."""
_CALL = 1 << 14
"""Bytes whose reading takes as long as a call: smaller gaps are read along."""
_GROUP = 1 << 18
"""Bytes of single reads that are put in order together: they stay in a cache."""
_MOST_DIMENSIONS = 32
"""Of numpy 1's arrays."""

Dims = tuple[tuple[int, int], ...]
"""Size and stride, in elements, of each axis."""


def merged(shape: Sequence[int], strides: Sequence[int]) -> Dims:
    """The fewest axes that give the same elements in the same order.

    >>> merged((2, 3, 4), (12, 4, 1)), merged((4, 1, 3), (1, 9, 4))
    (((24, 1),), ((4, 1), (3, 4)))
    """
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return tuple(dims)


def span(dims: Dims) -> int:
    """Elements from the first to the last one of a tensor that has some."""
    return 1 + sum((size - 1) * stride for size, stride in dims)


class Strided:
    """The elements of one tensor in a file, as little-endian bytes in C order.

    base: the byte of the file at which element 0 is. swap: bytes of the numbers that are big-endian in the file; 0
    where none are. Raises DataError for more axes than can be put in order.
    """

    def __init__(self, file: InputFile, base: int, itemsize: int, dims: Dims, *, swap: int = 0) -> None:
        self.file, self.base, self.itemsize, self.dims, self.swap = file, base, itemsize, dims, swap
        self._dense = not dims or (len(dims) == 1 and dims[0][1] == 1)
        if len(dims) > _MOST_DIMENSIONS:
            raise DataError(f"it lies in the file with {len(dims)} axes in another order than that of its shape")
        self._lock = threading.Lock()
        self._slabs: dict[int, NDArray[Any]] = {}
        most = max(1, SLAB // itemsize)
        self._axis, self._inner = 0, math.prod(size for size, _ in dims[1:])
        while self._inner > most:
            self._axis += 1
            self._inner = math.prod(size for size, _ in dims[self._axis + 1 :])
        self._step = max(1, most // self._inner) if dims else 1

    def read(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start`; whole elements where bytes are swapped."""
        if not len(buffer):
            return
        if self._dense:
            self.file.read_into(self.base + start, buffer)
        else:
            self._gather(start, buffer)
        if self.swap:
            import numpy as np

            np.frombuffer(buffer, f">u{self.swap}").byteswap(inplace=True)

    def release(self) -> None:
        """Forget what was kept for the next reads."""
        with self._lock:
            self._slabs.clear()

    def _gather(self, start: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            element = (start + done) // self.itemsize
            outer, rest = divmod(element, self.dims[self._axis][0] * self._inner)
            low = rest // self._inner // self._step * self._step
            begin = (element - rest + low * self._inner) * self.itemsize
            slab = self._slab(begin, outer, low)
            skip = start + done - begin
            take = min(len(buffer) - done, len(slab) - skip)
            buffer[done : done + take] = slab.data[skip : skip + take]
            done += take

    def _slab(self, begin: int, outer: int, low: int) -> NDArray[Any]:
        """The bytes of rows `low` and on of an axis; the last two slabs are kept."""
        import numpy as np

        with self._lock:
            if begin in self._slabs:
                return self._slabs[begin]
            size, stride = self.dims[self._axis]
            at = low * stride
            for length, step in reversed(self.dims[: self._axis]):
                outer, index = divmod(outer, length)
                at += index * step
            box = ((min(self._step, size - low), stride), *self.dims[self._axis + 1 :])
            slab = np.empty([length for length, _ in box], f"u{self.itemsize}")
            while len(self._slabs) > 1:
                del self._slabs[next(iter(self._slabs))]
            self._fill(slab, at, box)
            return self._slabs.setdefault(begin, slab.reshape(-1).view(np.uint8))

    def _fill(self, out: NDArray[Any], at: int, dims: Dims) -> None:
        """Fill `out` with the elements from `at` on, in a few reads: what lies between them is read along where that
        is faster than another call."""
        whole = span(dims)
        if whole * self.itemsize <= _CALL:
            self._copy(out, at, dims)
            return
        axis = max(range(len(dims)), key=lambda i: (dims[i][0] > 1, dims[i][1]))
        size, stride = dims[axis]
        others = dims[:axis] + dims[axis + 1 :]
        one = span(others)
        along = (stride - one) * self.itemsize <= _CALL
        step = max(stride, 1) if along else one
        together = max(1, ((SLAB if along else _GROUP) // self.itemsize - one) // step + 1)
        if one * self.itemsize > (SLAB if one == math.prod(n for n, _ in others) else _CALL):
            along, together = False, 0
        for first in range(0, size, together or 1):
            count = min(together or 1, size - first)
            part = out[(slice(None),) * axis + (slice(first, first + count),)]
            box = (*dims[:axis], (count, stride), *dims[axis + 1 :])
            if together:
                self._copy(part, at + first * stride, box, None if along else axis)
            else:
                self._fill(part, at + first * stride, box)

    def _copy(self, out: NDArray[Any], at: int, dims: Dims, apart: int | None = None) -> None:
        """Fill `out` with what is read in one call, or in one for each index of the axis `apart`."""
        import numpy as np

        if apart is None:
            raw = np.empty(span(dims), out.dtype)
            self.file.read_into(self.base + at * self.itemsize, raw.view(np.uint8).data)
        else:
            count, stride = dims[apart]
            one = span(dims[:apart] + dims[apart + 1 :])
            raw = np.empty(count * one, out.dtype)
            view = raw.view(np.uint8).data
            for index in range(count):
                piece = view[index * one * self.itemsize : (index + 1) * one * self.itemsize]
                self.file.read_into(self.base + (at + index * stride) * self.itemsize, piece)
            dims = (*dims[:apart], (count, one), *dims[apart + 1 :])
        steps = [stride * self.itemsize for _, stride in dims]
        out[...] = np.lib.stride_tricks.as_strided(raw, out.shape, steps, writeable=False)
