"""The scale search in numpy: the sums of search.h, group by group side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import Tile
from quantcli.kernels.numpy_kernels import CHUNK, floats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

BLOCK, WIDTH = 1024, 8


def search(
    tile: Tile,
    reciprocal: Floats,
    centre: Floats | None,
    multipliers: Floats,
    top: float,
    grids: int,
    *,
    residual: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Scale and grid of every group (rows, groups); see search.h."""
    scale = np.zeros(reciprocal.shape)
    grid = np.zeros(reciprocal.shape, np.int32)
    step = max(1, CHUNK // max(tile.cols, 1))
    for first in range(0, tile.rows, step):
        rows = slice(first, min(first + step, tile.rows))
        x = floats_of(tile, rows.start, rows.stop)
        whole = tile.cols // tile.group
        spans = [(slice(0, whole), x[:, : whole * tile.group].reshape(-1, tile.group))] if whole else []
        if whole * tile.group < tile.cols:
            spans.append((slice(whole, whole + 1), x[:, whole * tile.group :]))
        for groups, weights in spans:
            shape = scale[rows, groups].shape
            r = reciprocal[rows, groups].reshape(-1)
            c = None if centre is None else centre[rows, groups].reshape(-1)
            found = _best(weights, r, *_limits(c, len(r), top, grids), multipliers, residual)
            scale[rows, groups], grid[rows, groups] = (f.reshape(shape) for f in found)
    return scale, grid


def _limits(centre: Floats | None, count: int, top: float, grids: int) -> tuple[Floats, Floats]:
    """Lowest and highest signed code of every grid (grids, count)."""
    t = np.float32(top)
    if centre is not None:
        offsets = np.arange(grids, dtype=np.float32)[:, None] - np.float32(grids // 2)
        low = -(centre[None] + offsets)
        return low, t + low
    low = np.array([-t - 1, -t] if grids == 2 else [-t], np.float32)[:, None]
    high = np.array([t, t + 1][:grids] if grids else [t + 1], np.float32)[:, None]
    return np.repeat(low, count, axis=1), np.repeat(high, count, axis=1)


def _best(
    weights: NDArray[Any], reciprocal: Floats, low: Floats, high: Floats, multipliers: Floats, residual: bool
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The refit scale of the best candidate, and its grid, for weights (count, n)."""
    count, n = weights.shape
    sums = np.zeros((len(multipliers), len(low), 3, count))
    for first in range(0, n, BLOCK):
        part = weights[:, first : first + BLOCK]
        vectors = -(-part.shape[1] // WIDTH)
        u = np.zeros((vectors * WIDTH, count), np.float32)
        np.multiply(part.T, reciprocal, out=u[: part.shape[1]])
        for k, multiplier in enumerate(multipliers):
            t = u * multiplier
            q = np.rint(t)
            for g in range(len(low)):
                c = np.minimum(np.maximum(q, low[g]), high[g])
                if residual:
                    e = t - c
                    sums[k, g, 2] += _fold(e * e, vectors)
                    sums[k, g, 0] += _fold(e * c, vectors)
                else:
                    sums[k, g, 0] += _fold(u * c, vectors)
                sums[k, g, 1] += _fold(c * c, vectors)
    return _judge(sums, multipliers, (low <= 0) & (high >= 0), reciprocal != 0, residual)


def _fold(products: NDArray[Any], vectors: int) -> NDArray[np.float64]:
    """Sums over the weights of a block, lane by lane and then by halves."""
    lanes = np.add.reduce(products.reshape(vectors, WIDTH, -1), axis=0)
    half = lanes[:4] + lanes[4:]
    folded: NDArray[np.float64] = ((half[0] + half[2]) + (half[1] + half[3])).astype(np.float64)
    return folded


def _judge(
    sums: NDArray[np.float64], multipliers: Floats, valid: NDArray[Any], some: NDArray[Any], residual: bool
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    most = np.full(sums.shape[-1], -1e308)
    scale, grid = np.zeros(sums.shape[-1]), np.zeros(sums.shape[-1], np.int32)
    for k, multiplier in enumerate(multipliers.astype(np.float64)):
        for g in range(sums.shape[1]):
            cross, square, rest = sums[k, g]
            known = square > 0
            ratio = cross / np.where(known, square, 1.0)
            if residual:
                step = 1 / multiplier
                gain, size = -(rest - cross * ratio) * step * step, step * (1 + ratio)
            else:
                gain, size = cross * ratio, ratio
            gain = np.where(known, gain, -1e300)
            better = valid[g] & some & (gain > most)
            most = np.where(better, gain, most)
            scale = np.where(better, np.where(known, size, 0.0), scale)
            grid = np.where(better, np.int32(g), grid)
    return scale, grid
