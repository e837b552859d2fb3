"""The hot loops in numpy: the reference for the native kernels, and the fallback where those could not be built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import numpy_sums
from quantcli.kernels.block_types import BlockField, BlockScales, BlockType
from quantcli.kernels.numpy_packing import fill_blocks, pack, unpack
from quantcli.kernels.numpy_tiles import CHUNK, extremes, floats_of, grouped, scratch, silent, steps
from quantcli.kernels.table import (
    BF16,
    BINARY,
    F32,
    LEVELS,
    OFFSET,
    Choices,
    CodeGrid,
    Grids,
    Made,
    QuantParams,
    Ranges,
    Rule,
    Sums,
    Tile,
    row_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook, Small
    from quantcli.kernels.feedback import Costs, Feedback
    from quantcli.kernels.table import Bytes, Coded, Codes, Counts, Doubles, Floats


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
    for parts in zip(*(grouped(array, group) for array in arrays)):
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
    divisor = np.where(params.scale == 0, np.float32(np.inf), params.scale)  # sub-blocks of super-blocks may have none
    if grid.mode == OFFSET:
        np.subtract(x, zero, out=out)
        np.divide(out, divisor, out=out)
        turn(out, out=out)
    else:
        np.divide(x, divisor, out=out)
        turn(out, out=out)
        np.add(out, zero, out=out)
    low, high = np.float32(grid.umin), np.float32(grid.umax)
    clipped = _beyond(out, low, high)
    if clipped:
        np.clip(out, low, high, out=out)
    return clipped


def _beyond(values: NDArray[Any], low: Any, high: Any) -> int:
    """The number of values outside [low, high]."""
    beyond = scratch.take("beyond", values.shape, np.bool_)
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


@silent
class NumpyKernels:
    """The kernels in numpy."""

    name = "numpy"

    def ranges(self, tile: Tile) -> Ranges:
        lo, hi, extreme = (np.empty((tile.rows, tile.groups), np.float32) for _ in range(3))
        for first, last in steps(tile.rows, tile.cols):
            at = 0
            for view in grouped(floats_of(tile, first, last), tile.group):
                part = np.s_[first:last, at : at + view.shape[1]]
                np.minimum.reduce(view, axis=2, out=lo[part])
                np.maximum.reduce(view, axis=2, out=hi[part])
                extreme[part] = extremes(view, lo[part], hi[part])
                at += view.shape[1]
        return Ranges(lo, hi, extreme, bool(np.isfinite(lo).all() and np.isfinite(hi).all()))

    def column_ranges(self, tile: Tile) -> Ranges:
        lo = np.full(tile.cols, np.inf, np.float32)
        hi = np.full(tile.cols, -np.inf, np.float32)
        extreme = np.zeros(tile.cols, np.float32)
        for first, last in steps(tile.rows, tile.cols):
            x = floats_of(tile, first, last)
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
        grids: Grids,
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

    def search_blocks(
        self, tile: Tile, kind: BlockType, importance: tuple[NDArray[np.int16], Doubles] | None = None
    ) -> BlockScales:
        from quantcli.kernels.numpy_blocks import search_blocks

        return search_blocks(tile, kind, importance)

    def kmeans(self, weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
        from quantcli.kernels.numpy_kmeans import kmeans

        return kmeans(weight, total, square, k)

    def trial_levels(
        self, tile: Tile, book: Codebook, choices: Choices, cross: Doubles | None, square: Doubles | None
    ) -> NDArray[np.int32]:
        from quantcli.kernels.numpy_levels import trial_levels

        return trial_levels(tile, book, choices, cross, square)

    def trial_floats(
        self, tile: Tile, small: Small, choices: Choices, importance: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        from quantcli.kernels.numpy_floats import trial_floats

        return trial_floats(tile, small, choices, importance)

    def encode(
        self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes | None, *, preserve: bool = False
    ) -> Sums:
        if packed is not None:
            packed = packed.reshape(tile.rows, row_bytes(tile.cols, grid.bits))

        def attempt(wide: bool) -> Sums:
            return self._run(tile, params, grid, packed, store=True, preserve=preserve, wide=wide)

        return numpy_sums.found(attempt, measured=packed is not None)

    def pack(self, codes: Codes, bits: int, packed: Bytes) -> None:
        pack(codes, bits, packed)

    def unpack(self, packed: Bytes, cols: int, bits: int) -> Codes:
        found: Codes = unpack(packed, cols, bits)
        return found

    def fill_blocks(self, packed: Bytes, cols: int, bits: int, fields: Sequence[BlockField], blocks: Bytes) -> None:
        fill_blocks(packed, cols, bits, fields, blocks)

    def quantize(self, tile: Tile, rule: Rule, rival: Rule | None, packed: Bytes | None) -> Made | None:
        return None  # there is nothing to gain

    def quantize_each(
        self, tile: Tile, count: int, rule: Rule, rival: Rule | None, packed: Bytes | None
    ) -> tuple[QuantParams, NDArray[np.float64]] | None:
        return None

    def measure(self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes) -> Sums:
        packed = packed.reshape(tile.rows, row_bytes(tile.cols, grid.bits))

        def attempt(wide: bool) -> Sums:
            return self._run(tile, params, grid, packed, store=False, wide=wide)

        return numpy_sums.found(attempt, measured=True)

    def _run(
        self,
        tile: Tile,
        params: QuantParams,
        grid: CodeGrid,
        packed: Bytes | None,
        *,
        store: bool,
        preserve: bool = False,
        wide: bool,
    ) -> Sums:
        lanes = numpy_sums.Lanes(wide=wide)
        worst, clipped = np.float32(0), 0
        for first, last in steps(tile.rows, tile.cols):
            x = floats_of(tile, first, last)
            codes = scratch.take("codes", x.shape, np.float32)
            error = scratch.take("error", x.shape, np.float32)
            views = _views([x, codes, error], params, grid, tile.group, (first, last))
            for (xv, cv, _), own in views:
                clipped += _codes(xv, own, grid, cv)
            if preserve:
                self._preserve(views, codes, error, params, grid, tile.group, (first, last))
            if store and packed is not None:
                stored = scratch.take("stored", x.shape, np.uint8 if grid.bits <= 8 else np.uint16)
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
        codes: NDArray[Any],
        error: NDArray[Any],
        params: QuantParams,
        grid: CodeGrid,
        group: int,
        rows: tuple[int, int],
    ) -> None:
        """Move codes so that the errors of every row add up to about 0."""
        from quantcli.kernels.numpy_rounding import flip_levels, flips

        for (xv, cv, ev), own in views:
            _values(cv, own, grid, ev)
            np.subtract(xv, ev, out=ev)
        scale = params.scale if params.scale.shape[0] == 1 else params.scale[slice(*rows)]
        wide = np.broadcast_to(np.repeat(scale, group, axis=1)[:, : codes.shape[1]], codes.shape)
        if grid.mode == LEVELS and params.codebook is not None:
            flip_levels(error, codes, wide, params.codebook.rows(*rows))
        else:
            np.add(codes, flips(error, codes, wide, grid.umin, grid.umax), out=codes)

    def decode(self, packed: Bytes, shape: tuple[int, int], group: int, params: QuantParams, grid: CodeGrid) -> Floats:
        rows, cols = shape
        packed = packed.reshape(rows, row_bytes(cols, grid.bits))
        out = np.empty(shape, np.float32)
        for first, last in steps(rows, cols):
            codes = scratch.take("codes", (last - first, cols), np.float32)
            np.copyto(codes, unpack(packed[first:last], cols, grid.bits))
            for (cv, ov), own in _views([codes, out[first:last]], params, grid, group, (first, last)):
                _values(cv, own, grid, ov)
        return out

    def factor(
        self, triangle: Doubles, own: int, step: int, rows: range, least: float, spare: Doubles, pivots: Doubles
    ) -> bool:
        from quantcli.kernels.numpy_feedback import factor

        return factor(triangle, own, step, rows, least, spare, pivots)

    def feedback(self, tile: Tile, grid: CodeGrid, how: Feedback, chosen: Coded, given: Coded) -> Costs:
        from quantcli.kernels.numpy_feedback import feedback

        return feedback(tile, grid, how, chosen, given, (_codes, _values))

    def rotate(self, values: Floats, size: int) -> None:
        flat, length = values.reshape(-1), max(CHUNK // size, 1) * size
        for first in range(0, flat.size, length):
            step = 1
            while step < size:
                part = flat[first : first + length].reshape(-1, 4, step)
                p, q, r, s = (part[:, number].copy() for number in range(4))
                half = ((p + q) + (r + s)) * np.float32(0.5)
                for number, other in enumerate((s, r, q, p)):
                    np.subtract(half, other, out=part[:, number])
                step *= 4

    def difference(self, before: Floats, after: Floats) -> tuple[float, float, float]:
        from quantcli.kernels.numpy_decoded import difference

        return difference(before, after)

    def bfloat16(self, values: Floats) -> NDArray[np.uint16]:
        from quantcli.kernels.numpy_decoded import bfloat16

        return bfloat16(values)
