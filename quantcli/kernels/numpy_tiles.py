"""Tiles as float32 arrays, and the scratch they go through.

Work goes through scratch arrays of about 256 K weights: smaller ones spend their time in the interpreter, larger
ones fall out of the cache.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from quantcli.kernels.table import BF16, F16, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Floats

T = TypeVar("T")

CHUNK = 1 << 18
"""Weights that go through the scratch arrays at a time."""


class _Scratch(threading.local):
    """Arrays that are used again by the next call of the same thread: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        size = int(np.prod(shape))
        held = self.arrays.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self.arrays[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


scratch = _Scratch()


def floats_of(tile: Tile, first: int, last: int) -> Floats:
    """Rows [first, last) of a tile as float32 (rows, cols): a view for F32, else scratch, valid until the next call."""
    part = tile.weights[first * tile.cols : last * tile.cols]
    if tile.kind == BF16:
        bits = scratch.take("x", part.shape, np.uint32)
        np.left_shift(part, 16, out=bits, dtype=np.uint32)
        floats: NDArray[Any] = bits.view(np.float32)
    elif tile.kind == F16:
        floats = scratch.take("h", part.shape, np.float32)
        np.copyto(floats, part.view(np.float16))
    else:
        floats = part
    rows: Floats = floats.reshape(last - first, tile.cols)
    return rows


def floats(tile: Tile) -> Floats:
    """All weights of a tile as float32 (rows, cols)."""
    return floats_of(tile, 0, tile.rows)


def steps(rows: int, cols: int) -> list[tuple[int, int]]:
    """Runs of rows that go through the scratch arrays at a time."""
    step = max(1, CHUNK // max(cols, 1))
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def grouped(array: NDArray[Any], group: int) -> list[NDArray[Any]]:
    """Views (rows, groups, group) of the whole groups and (rows, 1, rest) of the short last one."""
    rows, cols = array.shape
    whole = cols // group * group
    views = []
    if whole:
        views.append(array[:, :whole].reshape(rows, whole // group, group))
    if whole < cols:
        views.append(array[:, whole:].reshape(rows, 1, cols - whole))
    return views


def extremes(x: NDArray[Any], lo: Floats, hi: Floats) -> Floats:
    """Signed value of largest magnitude along the last axis; the first one wins a tie."""
    found = np.where(hi > -lo, hi, lo)
    tied = (hi == -lo) & (hi > 0)
    if tied.any():
        part = x[tied]
        found[tied] = part[np.arange(len(part)), np.abs(part).argmax(axis=1)]
    signed: Floats = found + np.float32(0)
    return signed


def silent(kernels: type[T]) -> type[T]:
    """A table whose methods, like the native ones, do not warn of infinities and NaN: callers check results."""

    def quiet(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            with np.errstate(all="ignore"):
                return method(*arguments, **named)

        return call

    for name, method in list(vars(kernels).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kernels, name, quiet(method))
    return kernels
