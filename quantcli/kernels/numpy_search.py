"""The scale search in numpy: the whole numbers of search.h, held in floats that are wide enough to be exact as well.

Sums of whole numbers are the same in any order, so groups are cut into pieces that lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_tiles import floats_of
from quantcli.kernels.table import Grids, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles, Floats

CHUNK = 1 << 16
"""Weights at a time: the intermediate results of one candidate stay in the cache for the next."""

PIECE = 128
"""Weights of a group that lie below one another."""

FEW_BITS, FEW_CODES = 11, 15
"""Bits of importances, and the largest code with which one still fits 16 bits."""


def search(
    tile: Tile,
    reciprocal: Floats,
    centre: Floats | None,
    multipliers: Floats,
    top: float,
    grids: Grids,
    importance: NDArray[np.int32] | None = None,
) -> tuple[Doubles, NDArray[np.int32]]:
    """Scale and grid of every group (rows, groups); see search.h."""
    scale = np.zeros(reciprocal.shape)
    grid = np.zeros(reciprocal.shape, np.int32)
    for rows, groups, weights, counts in parts(tile, importance):
        shape = scale[rows, groups].shape
        unit = reciprocal[rows, groups].reshape(-1)
        c = None if centre is None else centre[rows, groups].reshape(-1)
        found = _best(weights, unit, *_limits(c, len(unit), top, grids), multipliers, int(top), counts)
        scale[rows, groups], grid[rows, groups] = (f.reshape(shape) for f in found)
    return scale, grid


def parts(
    tile: Tile, importance: NDArray[np.int32] | None
) -> Iterator[tuple[slice, slice, NDArray[Any], NDArray[np.int32] | None]]:
    """Rows and groups of a tile a few at a time, with their weights (count, n), valid until the next ones, and how much
    each of them counts: the whole groups and the short last ones apart."""
    step = max(1, CHUNK // max(tile.cols, 1))
    for first in range(0, tile.rows, step):
        rows = slice(first, min(first + step, tile.rows))
        x = floats_of(tile, rows.start, rows.stop)
        whole = tile.cols // tile.group
        cut = whole * tile.group
        spans = [(slice(0, whole), x[:, :cut].reshape(-1, tile.group), slice(0, cut))] if whole else []
        if cut < tile.cols:
            spans.append((slice(whole, whole + 1), x[:, cut:], slice(cut, tile.cols)))
        for groups, weights, columns in spans:
            counts = None
            if importance is not None:
                counts = np.tile(importance[columns].reshape(-1, weights.shape[1]), (len(x), 1))
            yield rows, groups, weights, counts


def fraction_bits(largest: float, *, wide: bool, weighted: bool) -> int:
    """Bits of the weights as whole numbers, for codes of up to `largest`."""
    if weighted and wide:
        return 16
    return 24 if wide else 10 if largest <= 32 else 11 if largest <= 64 else 12 if largest <= 160 else 13


def _limits(centre: Floats | None, count: int, top: float, grids: Grids) -> tuple[Floats, Floats]:
    """Lowest and highest signed code of every grid (grids, count)."""
    t = np.float32(top)
    if centre is not None:
        low = np.arange(grids // 2, grids // 2 - grids, -1, dtype=np.float32)[:, None] - centre
        return low, t + low
    ends = {Grids.TURNED: [(-t, t + 1)], Grids.RESTRICTED: [(-t, t)], Grids.BOTH_SIGNS: [(-t - 1, t), (-t, t + 1)]}
    low, high = np.array(ends[grids], np.float32).T[:, :, None]
    return np.repeat(low, count, axis=1), np.repeat(high, count, axis=1)


def _best(
    weights: NDArray[Any],
    unit: Floats,
    low: NDArray[Any],
    high: NDArray[Any],
    multipliers: Floats,
    top: int,
    counts: NDArray[np.int32] | None,
) -> tuple[Doubles, NDArray[np.int32]]:
    """The refit scale of the best candidate, and its grid, for weights (count, n) of a given importance each."""
    largest = multipliers.max(initial=0)
    wide = top > (255 if counts is None else FEW_CODES) or largest > 512
    fraction = fraction_bits(largest, wide=wide, weighted=counts is not None)
    shift = 15 if not wide else 32 if counts is None else 28
    drop = 0 if counts is None or wide else fraction + FEW_BITS - 15
    candidates = np.rint(multipliers * np.float32(2.0 ** (shift - fraction)))
    u: NDArray[Any] = pieces_of(weights, unit, np.float32(2.0**fraction))
    times: NDArray[Any] | None = None
    if counts is not None:
        times = pieces_of(counts, np.ones(len(counts), np.float32), np.float32(1)).astype(np.float64)
    if counts is not None or fraction + (top + 1).bit_length() + PIECE.bit_length() > 25:  # sums float32 cannot hold
        u, low, high = u.astype(np.float64), low.astype(np.float64), high.astype(np.float64)
    pieces = u.shape[1] // len(unit)
    steps = candidates.astype(u.dtype) * u.dtype.type(2.0**-shift)
    much = u if times is None else np.rint(u * times * 2.0**-drop) if drop else u * times
    sums = _sums(u, much, np.repeat(low, pieces, axis=1), np.repeat(high, pieces, axis=1), steps, times)
    totals = sums.reshape(*sums.shape[:3], len(unit), pieces).astype(np.int64).sum(axis=4)
    scale, grid = _judge(totals.astype(np.float64), (low <= 0) & (high >= 0))
    return np.where(unit != 0, scale / 2.0 ** (fraction - drop), 0.0), np.where(unit != 0, grid, np.int32(0))


def pieces_of(weights: NDArray[Any], unit: Floats, factor: np.float32) -> NDArray[Any]:
    """Weights (count, n) as whole numbers (PIECE or n, count * pieces), filled up with zeros."""
    count, n = weights.shape
    length = min(PIECE, n)
    whole, pieces = n // length, -(-n // length)
    u = np.zeros((length, count, pieces), np.float32)
    laid = weights[:, : whole * length].reshape(count, whole, length).transpose(2, 0, 1)
    np.multiply(laid, unit[:, None], out=u[:, :, :whole])
    if whole < pieces:
        np.multiply(weights[:, whole * length :].T, unit, out=u[: n - whole * length, :, whole])
    u *= factor
    return np.rint(u, out=u).reshape(length, -1)


def _sums(
    u: NDArray[Any],
    much: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    steps: NDArray[Any],
    times: NDArray[Any] | None,
) -> NDArray[Any]:
    """sum(u c) and sum(c c) of every candidate, grid and piece (candidates, grids, 2, pieces), times counts. much: u
    times counts."""
    sums = np.empty((len(steps), len(low), 2, u.shape[1]), u.dtype)
    q, c = np.empty_like(u), np.empty_like(u)
    for k, step in enumerate(steps):
        np.multiply(u, step, out=q)
        np.add(q, u.dtype.type(0.5), out=q)
        np.floor(q, out=q)
        for g in range(len(low)):
            np.maximum(q, low[g], out=c)
            np.minimum(c, high[g], out=c)
            np.einsum("ij,ij->j", much, c, out=sums[k, g, 0])
            np.einsum("ij,ij->j", c, c if times is None else c * times, out=sums[k, g, 1])
    return sums


def _judge(sums: Doubles, valid: NDArray[Any]) -> tuple[Doubles, NDArray[np.int32]]:
    """Refit scale and grid with the largest cross^2 / square, compared without dividing as in search.h."""
    count = sums.shape[-1]
    most, per, best = np.full(count, -1.0), np.ones(count), np.zeros(count)
    grid = np.zeros(count, np.int32)
    for candidate in sums:
        for g, (cross, square) in enumerate(candidate):
            gain = cross * cross
            better = valid[g] & (gain * per > most * square)
            most, per, best = (np.where(better, a, b) for a, b in ((gain, most), (square, per), (cross, best)))
            grid[better] = g
    return best / per, grid
