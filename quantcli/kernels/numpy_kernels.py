"""The hot loops in numpy: the reference the native kernels are held to, and what runs where none could be built.

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

from quantcli.kernels import (
    BF16,
    BINARY,
    F16,
    F32,
    LEVELS,
    OFFSET,
    CodeGrid,
    QuantParams,
    Ranges,
    Sums,
    Tile,
    row_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Counts, Doubles, Floats
    from quantcli.kernels.codebook import Codebook

T = TypeVar("T")

LANES = 256
"""Columns j and j + LANES of a row are summed in the same lane; kernels.cpp states the order."""

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


_scratch = _Scratch()


def _floats(tile: Tile, first: int, last: int) -> Floats:
    """Rows [first, last) as float32 (rows, cols): a view for F32, scratch for the others."""
    part = tile.weights[first * tile.cols : last * tile.cols]
    if tile.kind == BF16:
        bits = _scratch.take("x", part.shape, np.uint32)
        np.left_shift(part, 16, out=bits, dtype=np.uint32)
        floats: NDArray[Any] = bits.view(np.float32)
    elif tile.kind == F16:
        floats = _scratch.take("h", part.shape, np.float32)
        np.copyto(floats, part.view(np.float16))
    else:
        floats = part
    rows: Floats = floats.reshape(last - first, tile.cols)
    return rows


def floats_of(tile: Tile, first: int, last: int) -> Floats:
    """Rows [first, last) of a tile as float32 (rows, cols): valid until the next call."""
    return _floats(tile, first, last)


def floats(tile: Tile) -> Floats:
    """All weights of a tile as float32 (rows, cols)."""
    return _floats(tile, 0, tile.rows)


def _steps(rows: int, cols: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK // max(cols, 1))
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _grouped(array: NDArray[Any], group: int) -> list[NDArray[Any]]:
    """Views (rows, groups, group) of the whole groups and (rows, 1, rest) of the short last one."""
    rows, cols = array.shape
    whole = cols // group * group
    views = []
    if whole:
        views.append(array[:, :whole].reshape(rows, whole // group, group))
    if whole < cols:
        views.append(array[:, whole:].reshape(rows, 1, cols - whole))
    return views


def _extremes(x: NDArray[Any], lo: Floats, hi: Floats) -> Floats:
    """Signed value of largest magnitude along the last axis; the first one wins a tie."""
    found = np.where(hi > -lo, hi, lo)
    tied = (hi == -lo) & (hi > 0)
    if tied.any():
        part = x[tied]
        found[tied] = part[np.arange(len(part)), np.abs(part).argmax(axis=1)]
    extremes: Floats = found + np.float32(0)
    return extremes


class _Lanes:
    """Sums over the columns of many rows, in the order kernels.cpp states."""

    def __init__(self, cols: int) -> None:
        self.width = max(8, min(LANES, cols))  # numpy would add up a single column pairwise
        self.blocks = -(-cols // LANES)
        self.sums = {"sse": np.zeros(self.width), "power": np.zeros(self.width)}

    def add(self, name: str, values: NDArray[Any]) -> None:
        rows, cols = values.shape
        width, blocks = self.width, self.blocks
        # The running sums go on top of the squares, so that one reduction along axis 0 carries them on.
        stacked = _scratch.take("stack", (1 + rows * blocks, width), np.float64)
        stacked[0] = self.sums[name]
        squares = stacked[1:].reshape(rows, blocks, width)
        whole = cols // width
        wide = values[:, : whole * width].reshape(rows, whole, width)
        np.copyto(squares[:, :whole], wide)  # widened first: half as slow as multiplying with a wider result
        np.multiply(squares[:, :whole], squares[:, :whole], out=squares[:, :whole])
        if whole < blocks:
            rest = values[:, whole * width :]
            np.multiply(rest, rest, out=squares[:, whole, : rest.shape[1]], dtype=np.float64)
            squares[:, whole, rest.shape[1] :] = 0
        self.sums[name] = np.add.reduce(stacked, axis=0)

    def total(self, name: str) -> float:
        lanes = np.zeros(LANES)
        lanes[: self.width] = self.sums[name]
        half = LANES // 2
        while half:
            lanes[:half] += lanes[half : 2 * half]
            half //= 2
        return float(lanes[0])


def pack(codes: NDArray[Any], bits: int, packed: Bytes) -> None:
    """Write codes (rows, cols) of `bits` bits to rows of whole 32-bit words (rows, row_bytes).

    Eight codes are squeezed into one 64-bit word in three steps, as in kernels.cpp.
    """
    rows, cols = codes.shape
    if bits == 8 and cols % 4 == 0:
        packed[...] = codes
        return
    if bits == 4 and cols % 8 == 0 and codes.flags.c_contiguous:
        pairs = codes.view("<u2")
        high = _scratch.take("pairs", pairs.shape, np.uint16)
        np.right_shift(pairs, 4, out=high)
        np.bitwise_or(pairs, high, out=high)
        np.copyto(packed, high, casting="unsafe")  # keeps the low byte
        return
    if bits > 8:
        stream = np.unpackbits(codes.astype("<u2").view(np.uint8).reshape(rows, cols, 2), axis=2, bitorder="little")
        dense = np.packbits(stream[:, :, :bits].reshape(rows, cols * bits), axis=1, bitorder="little")
        packed[...] = 0
        packed[:, : dense.shape[1]] = dense
        return
    blocks = -(-cols // 8)
    if cols % 8:
        padded = _scratch.take("pad", (rows, blocks * 8), np.uint8)
        padded[:, :cols] = codes
        padded[:, cols:] = 0
        codes = padded
    v: NDArray[Any] = codes.reshape(rows, blocks * 8).view("<u8")
    pair, quad = (1 << 2 * bits) - 1, (1 << 4 * bits) - 1
    mask = pair | pair << 32
    v = (v & 0x00FF00FF00FF00FF) | (v & 0xFF00FF00FF00FF00) >> (8 - bits)
    v = (v & mask) | (v >> 16 & mask) << 2 * bits
    v = (v & quad) | (v >> 32 & quad) << 4 * bits
    dense = v.view(np.uint8).reshape(rows, blocks, 8)[:, :, :bits].reshape(rows, blocks * bits)
    width = min(packed.shape[1], dense.shape[1])
    packed[:, :width] = dense[:, :width]
    packed[:, width:] = 0


def _unpack_eights(packed: Bytes, bits: int) -> NDArray[np.uint8]:
    """Codes (n, 8) of the bytes (n, bits) that hold eight: several times as fast as bit by bit."""
    words = packed[:, 0].astype(np.uint64)
    for byte in range(1, bits):
        words |= packed[:, byte].astype(np.uint64) << np.uint64(8 * byte)
    codes = np.empty((len(packed), 8), np.uint8)
    for i in range(8):
        codes[:, i] = words >> np.uint64(bits * i)
    codes &= np.uint8((1 << bits) - 1)
    return codes


def unpack(packed: Bytes, cols: int, bits: int) -> NDArray[Any]:
    """Codes (rows, cols), uint8 up to 8 bits and uint16 above, from rows of 32-bit words."""
    rows = packed.shape[0]
    if bits == 8:
        return packed[:, :cols]
    if bits == 4:
        pairs = np.empty((rows, packed.shape[1], 2), np.uint8)
        np.bitwise_and(packed, 15, out=pairs[:, :, 0])
        np.right_shift(packed, 4, out=pairs[:, :, 1])
        return pairs.reshape(rows, -1)[:, :cols]
    if bits < 8 and cols % 8 == 0:
        return _unpack_eights(packed[:, : cols // 8 * bits].reshape(-1, bits), bits).reshape(rows, cols)
    stream = np.unpackbits(packed, axis=1, count=cols * bits, bitorder="little").reshape(rows, cols, bits)
    if bits > 8:
        dense = np.packbits(stream, axis=2, bitorder="little")
        return np.ascontiguousarray(dense).view("<u2").reshape(rows, cols)
    return np.packbits(stream, axis=2, bitorder="little").reshape(rows, cols)


def _views(
    arrays: list[NDArray[Any]], params: QuantParams, grid: CodeGrid, group: int, rows: tuple[int, int]
) -> list[tuple[list[NDArray[Any]], QuantParams]]:
    """Views of (rows, cols) arrays with the parameters they broadcast with: whole groups, then the short last one."""
    shared = np.full((1, 1), grid.zero, np.float32)
    scale, zero = (
        p if p.shape[0] == 1 else p[slice(*rows)]
        for p in (params.scale, shared if params.zero is None else params.zero)
    )
    book = params.codebook.rows(*rows) if params.codebook is not None else None
    if group == 1:  # per column; groups of one weight would mean inner loops of one weight
        return [(arrays, QuantParams(scale, zero, book))]
    views = []
    for parts in zip(*(_grouped(array, group) for array in arrays)):
        whole = parts[0].shape[2] == group
        groups = slice(parts[0].shape[1]) if whole else slice(-1, None)
        s, z = (p[:, groups, None] for p in (scale, zero))
        views.append((list(parts), QuantParams(s, z, book)))
    return views


def _codes(x: NDArray[Any], params: QuantParams, grid: CodeGrid, out: NDArray[Any]) -> int:
    """Codes of grouped weights as float32 in `out`; the number of clipped ones is returned."""
    if grid.mode == BINARY:
        np.copyto(out, x >= 0)
        return 0
    if grid.mode == LEVELS:
        assert params.codebook is not None
        # Only groups of zeros have no scale.
        np.divide(x, np.where(params.scale == 0, np.float32(1), params.scale), out=out)
        return _level_codes(out, params.codebook)
    zero = params.zero
    assert zero is not None
    turn = np.floor if grid.midrise else np.rint
    if grid.mode == OFFSET:
        np.subtract(x, zero, out=out)
        np.divide(out, params.scale, out=out)
        turn(out, out=out)
    else:
        np.divide(x, params.scale, out=out)
        turn(out, out=out)
        np.add(out, zero, out=out)
    low, high = np.float32(grid.umin), np.float32(grid.umax)
    clipped = _beyond(out, low, high)
    if clipped:
        np.clip(out, low, high, out=out)
    return clipped


def _beyond(values: NDArray[Any], low: Any, high: Any) -> int:
    """How many values lie outside [low, high]."""
    beyond = _scratch.take("beyond", values.shape, np.bool_)
    return int(np.count_nonzero(np.less(values, low, out=beyond))) + int(
        np.count_nonzero(np.greater(values, high, out=beyond))
    )


def _level_codes(quotients: NDArray[Any], book: Codebook) -> int:
    """Quotients replaced by codes; the number of clipped ones is returned."""
    clipped = 0
    for table in range(book.tables):
        part = quotients if book.tables == 1 else quotients[table]
        clipped += _beyond(part, *book.limits[table])
        places = np.searchsorted(book.thresholds[table, : book.sorted.shape[1] - 1], part, side="left")
        np.copyto(part, book.order[table][places], casting="unsafe")
    return clipped


def _values(codes: NDArray[Any], params: QuantParams, grid: CodeGrid, out: NDArray[Any]) -> None:
    scale, zero = params.scale, params.zero
    half = np.float32(0.5 if grid.midrise else 0)
    if grid.mode == BINARY:
        np.copyto(out, np.where(codes == 0, -scale, scale))
    elif grid.mode == LEVELS:
        book = params.codebook
        assert book is not None
        for table in range(book.tables):
            part = np.s_[:] if book.tables == 1 else np.s_[table]
            np.take(book.levels[table], codes[part].astype(np.intp), out=out[part])
        np.multiply(out, scale, out=out)
    elif grid.mode == OFFSET:
        np.add(codes, half, out=out)
        np.multiply(out, scale, out=out)
        assert zero is not None
        np.add(out, zero, out=out)
    else:
        assert zero is not None
        np.subtract(codes, zero - half, out=out)
        np.multiply(out, scale, out=out)


def _silent(kernels: type[T]) -> type[T]:
    """A table whose methods say as little of infinities and NaN as the native ones: whoever calls looks at results."""

    def silent(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            with np.errstate(all="ignore"):
                return method(*arguments, **named)

        return call

    for name, method in list(vars(kernels).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kernels, name, silent(method))
    return kernels


@_silent
class NumpyKernels:
    """The table of kernels, in numpy."""

    name = "numpy"

    def ranges(self, tile: Tile) -> Ranges:
        groups = -(-tile.cols // tile.group)
        lo, hi, extreme = (np.empty((tile.rows, groups), np.float32) for _ in range(3))
        for first, last in _steps(tile.rows, tile.cols):
            at = 0
            for view in _grouped(_floats(tile, first, last), tile.group):
                part = np.s_[first:last, at : at + view.shape[1]]
                np.minimum.reduce(view, axis=2, out=lo[part])
                np.maximum.reduce(view, axis=2, out=hi[part])
                extreme[part] = _extremes(view, lo[part], hi[part])
                at += view.shape[1]
        return Ranges(lo, hi, extreme, bool(np.isfinite(lo).all() and np.isfinite(hi).all()))

    def column_ranges(self, tile: Tile) -> Ranges:
        lo = np.full(tile.cols, np.inf, np.float32)
        hi = np.full(tile.cols, -np.inf, np.float32)
        extreme = np.zeros(tile.cols, np.float32)
        for first, last in _steps(tile.rows, tile.cols):
            x = _floats(tile, first, last)
            np.minimum(lo, x.min(axis=0), out=lo)
            np.maximum(hi, x.max(axis=0), out=hi)
            magnitude = np.abs(x)
            found = x[magnitude.argmax(axis=0), np.arange(tile.cols)]
            extreme = np.where(np.abs(found) > np.abs(extreme), found, extreme)
        return Ranges(lo, hi, extreme, bool(np.isfinite(lo).all() and np.isfinite(hi).all()))

    def histogram(self, tile: Tile, counts: Counts, lows: Counts | None) -> bool:
        if tile.kind != F32:
            counts += np.bincount(tile.weights, minlength=1 << 16)
            special = 0x7F80 if tile.kind == BF16 else 0x7C00
            return not counts[(np.arange(1 << 16) & special) == special].any()
        bits = tile.weights.view(np.uint32)
        bins = bits >> np.uint32(12)
        counts += np.bincount(bins, minlength=1 << 20)
        assert lows is not None
        # Sums of whole numbers below 2^53 are exact in float64, in any order.
        lows += np.bincount(bins, bits & np.uint32(0xFFF), minlength=1 << 20).astype(np.int64)
        return bool(np.isfinite(tile.weights).all())

    def search(
        self,
        tile: Tile,
        reciprocal: Floats,
        centre: Floats | None,
        multipliers: Floats,
        top: float,
        grids: int,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        from quantcli.kernels.numpy_search import search

        return search(tile, reciprocal, centre, multipliers, top, grids, importance)

    def search_offsets(
        self,
        tile: Tile,
        middle: Floats,
        reciprocal: Floats,
        start: tuple[Doubles, Doubles],
        ratios: Doubles,
        top: int,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[Doubles, Doubles]:
        from quantcli.kernels.numpy_offsets import search_offsets

        return search_offsets(tile, middle, reciprocal, start, ratios, top, importance)

    def kmeans(self, weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
        from quantcli.kernels.numpy_kmeans import kmeans

        return kmeans(weight, total, square, k)

    def trial_levels(
        self, tile: Tile, book: Codebook, trial: Floats, cross: Doubles | None, square: Doubles | None
    ) -> NDArray[np.int32]:
        from quantcli.kernels.numpy_levels import trial_levels

        return trial_levels(tile, book, trial, cross, square)

    def encode(
        self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes | None, *, preserve: bool = False
    ) -> Sums:
        if packed is not None:
            packed = packed.reshape(tile.rows, row_bytes(tile.cols, grid.bits))
        return self._run(tile, params, grid, packed, store=True, preserve=preserve)

    def measure(self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes) -> Sums:
        packed = packed.reshape(tile.rows, row_bytes(tile.cols, grid.bits))
        return self._run(tile, params, grid, packed, store=False)

    def _run(
        self,
        tile: Tile,
        params: QuantParams,
        grid: CodeGrid,
        packed: Bytes | None,
        *,
        store: bool,
        preserve: bool = False,
    ) -> Sums:
        lanes = _Lanes(tile.cols)
        worst, clipped = np.float32(0), 0
        for first, last in _steps(tile.rows, tile.cols):
            x = _floats(tile, first, last)
            codes = _scratch.take("codes", x.shape, np.float32)
            error = _scratch.take("error", x.shape, np.float32)
            views = _views([x, codes, error], params, grid, tile.group, (first, last))
            for (xv, cv, _), own in views:
                clipped += _codes(xv, own, grid, cv)
            if preserve:
                self._preserve(views, x, codes, error, params.scale, grid, tile.group, (first, last))
            if store and packed is not None:
                stored = _scratch.take("stored", x.shape, np.uint8 if grid.bits <= 8 else np.uint16)
                np.copyto(stored, codes, casting="unsafe")
                pack(stored, grid.bits, packed[first:last])
            elif packed is not None:
                np.copyto(codes, unpack(packed[first:last], tile.cols, grid.bits))
            for (xv, cv, ev), own in views:
                _values(cv, own, grid, ev)
                np.subtract(xv, ev, out=ev)
            lanes.add("sse", error)
            if packed is None:
                continue
            lanes.add("power", x)
            worst = max(worst, np.abs(error, out=error).max(initial=np.float32(0)))
        if packed is None:
            return Sums(lanes.total("sse"), 0.0, 0.0, 0)
        return Sums(lanes.total("sse"), lanes.total("power"), float(worst), clipped)

    @staticmethod
    def _preserve(
        views: list[tuple[list[NDArray[Any]], QuantParams]],
        x: NDArray[Any],
        codes: NDArray[Any],
        error: NDArray[Any],
        scale: Floats,
        grid: CodeGrid,
        group: int,
        rows: tuple[int, int],
    ) -> None:
        """Move codes so that the errors of every row add up to about 0."""
        from quantcli.kernels.numpy_rounding import flips

        for (xv, cv, ev), own in views:
            _values(cv, own, grid, ev)
            np.subtract(xv, ev, out=ev)
        own_scale = scale if scale.shape[0] == 1 else scale[slice(*rows)]
        wide = np.broadcast_to(np.repeat(own_scale, group, axis=1)[:, : x.shape[1]], x.shape)
        np.add(codes, flips(error, codes, wide, grid.umin, grid.umax), out=codes)

    def decode(self, packed: Bytes, shape: tuple[int, int], group: int, params: QuantParams, grid: CodeGrid) -> Floats:
        rows, cols = shape
        packed = packed.reshape(rows, row_bytes(cols, grid.bits))
        out = np.empty(shape, np.float32)
        for first, last in _steps(rows, cols):
            codes = _scratch.take("codes", (last - first, cols), np.float32)
            np.copyto(codes, unpack(packed[first:last], cols, grid.bits))
            for (cv, ov), own in _views([codes, out[first:last]], params, grid, group, (first, last)):
                _values(cv, own, grid, ov)
        return out
