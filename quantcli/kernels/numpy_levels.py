"""Scales for codebooks in numpy: the sums of level_trials.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_tiles import CHUNK, floats_of
from quantcli.kernels.table import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook
    from quantcli.kernels.table import Doubles, Floats

BLOCK, WIDTH = 1024, 8


def trial_levels(
    tile: Tile, book: Codebook, trial: Floats, cross: Doubles | None, square: Doubles | None
) -> NDArray[np.int32]:
    """The best trial of every group (rows, groups), of scales (rows, groups, trials); see level_trials.h."""
    best = np.zeros(trial.shape[:2], np.int32)
    ordered, thresholds = book.sorted[0], book.thresholds[0, : book.sorted.shape[1] - 1]
    step = max(1, CHUNK // max(tile.cols, 1))
    for first in range(0, tile.rows, step):
        rows = slice(first, min(first + step, tile.rows))
        x = floats_of(tile, rows.start, rows.stop)
        whole = tile.cols // tile.group
        for groups in (slice(0, whole), slice(whole, tile.groups)):
            count = groups.stop - groups.start
            if count:
                weights = x[:, groups.start * tile.group : groups.stop * tile.group].reshape(count * len(x), -1)
                own = trial[rows, groups].reshape(count * len(x), -1)
                best[rows, groups] = _best(weights, own, ordered, thresholds).reshape(len(x), count)
        if cross is not None and square is not None:
            _add_up(x, tile.group, trial[rows], best[rows], thresholds, cross, square)
    return best


def _best(weights: NDArray[Any], trial: Floats, ordered: Floats, thresholds: Floats) -> NDArray[np.intp]:
    """Index of the scale of least error (groups,), for weights (groups, n)."""
    errors = np.empty(trial.shape)
    columns = np.ascontiguousarray(weights.T)
    for k in range(trial.shape[1]):
        reciprocal = np.float32(1) / trial[:, k]
        cross, square = np.zeros(len(trial)), np.zeros(len(trial))
        for first in range(0, len(columns), BLOCK):
            part = columns[first : first + BLOCK]
            levels = ordered[np.searchsorted(thresholds, part * reciprocal, side="left")]
            whole = len(part) // WIDTH * WIDTH
            for total, products in ((cross, part * levels), (square, levels * levels)):
                total += fold(products[:whole])
                for row in products[whole:]:
                    total += row
        scale = trial[:, k].astype(np.float64)
        errors[:, k] = scale * (scale * square - 2 * cross)
    least: NDArray[np.intp] = errors.argmin(axis=1)
    return least


def fold(products: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over the weights, lane by lane and then by halves."""
    lanes = np.add.reduce(products.reshape(-1, WIDTH, products.shape[1]), axis=0)
    half = lanes[:4] + lanes[4:]
    folded: NDArray[np.float64] = ((half[0] + half[2]) + (half[1] + half[3])).astype(np.float64)
    return folded


def _add_up(
    x: NDArray[Any],
    group: int,
    trial: Floats,
    best: NDArray[np.int32],
    thresholds: Floats,
    cross: Doubles,
    square: Doubles,
) -> None:
    """Sums of scale * x and scale^2 per level, weight after weight."""
    scale = np.take_along_axis(trial, best[..., None].astype(np.intp), 2)[..., 0]
    spread = np.repeat(scale, group, axis=1)[:, : x.shape[1]]
    places = np.searchsorted(thresholds, x * (np.float32(1) / spread), side="left").ravel()
    wide = spread.astype(np.float64)
    for total, products in ((cross, wide * x), (square, wide * wide)):
        # The running sums go first, so that they are carried on weight by weight.
        order = np.concatenate([np.arange(len(total)), places])
        total[...] = np.bincount(order, np.concatenate([total, products.ravel()]), len(total))
