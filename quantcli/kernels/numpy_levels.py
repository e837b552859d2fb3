"""Scales for codebooks in numpy: the whole numbers of few_trials.h, and the sums of level_trials.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_search import parts
from quantcli.kernels.numpy_tiles import CHUNK, floats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook
    from quantcli.kernels.table import Choices, Doubles, Floats, Tile

BLOCK, WIDTH = 1024, 8
FEW, LEVEL_BITS, MOST_QUOTIENT, MOST_ERROR = 16, 11, 16383, 8191


def trial_levels(
    tile: Tile, book: Codebook, choices: Choices, cross: Doubles | None, square: Doubles | None
) -> NDArray[np.int32]:
    """The best choice of every group (rows, groups); see few_trials.h and level_trials.h."""
    best = np.zeros((tile.rows, tile.groups), np.int32)
    ordered, thresholds = book.sorted[0], book.thresholds[0, : book.sorted.shape[1] - 1]
    for rows, groups, weights, _ in parts(tile, None):
        own = tried(choices, rows, groups)
        sums = _few(weights, own, ordered) if len(ordered) <= FEW else _many(weights, own, ordered, thresholds)
        best[rows, groups] = sums.argmin(axis=1).reshape(best[rows, groups].shape)
    if cross is not None and square is not None:
        if choices.first is None:
            found = np.take_along_axis(choices.values, best[..., None].astype(np.intp), 2)[..., 0]
        else:
            found = choices.values[choices.first + best]
        step = max(1, CHUNK // max(tile.cols, 1))
        for first in range(0, tile.rows, step):
            last = min(first + step, tile.rows)
            x = floats_of(tile, first, last)
            _add_up(x, np.repeat(found[first:last], tile.group, axis=1)[:, : tile.cols], thresholds, cross, square)
    return best


def tried(choices: Choices, rows: slice, groups: slice) -> Floats:
    """The scales to try of some groups (count, trials)."""
    if choices.first is None:
        return choices.values[rows, groups].reshape(-1, choices.count)
    own: Floats = choices.values[choices.first[rows, groups].reshape(-1, 1) + np.arange(choices.count)]
    return own


def _few(weights: NDArray[Any], trial: Floats, ordered: Floats) -> Doubles:
    """Squared errors (groups, trials) of weights (groups, n), in whole numbers."""
    exponent = int(np.frexp(max(abs(ordered[0]), abs(ordered[-1])))[1])
    unit = np.ldexp(np.float32(1), min(LEVEL_BITS - exponent, 126))
    levels = np.rint(ordered * unit).astype(np.int32)
    thresholds = (levels[:-1] + levels[1:]) >> 1
    smallest = np.abs(trial).min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        quotients = weights * (np.float32(1) / smallest) * unit
    u = np.rint(np.clip(quotients, -MOST_QUOTIENT, MOST_QUOTIENT)).astype(np.int32)
    fractions = np.minimum(np.rint(smallest / trial * np.float32(32768)), 32767).astype(np.int32)
    sums = np.empty(trial.shape)
    for k in range(trial.shape[1]):
        t = (u * fractions[:, k : k + 1] + 0x4000) >> 15
        away = np.minimum(np.abs(t - levels[np.searchsorted(thresholds, t)]), MOST_ERROR)
        sums[:, k] = np.einsum("ij,ij->i", away, away, dtype=np.int64)
    found: Doubles = np.square(trial.astype(np.float64)) * sums
    return found


def _many(weights: NDArray[Any], trial: Floats, ordered: Floats, thresholds: Floats) -> Doubles:
    """The squared errors without what all trials share, in float32 by blocks."""
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
    return errors


def fold(products: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over the weights, lane by lane and then by halves."""
    lanes = np.add.reduce(products.reshape(-1, WIDTH, products.shape[1]), axis=0)
    half = lanes[:4] + lanes[4:]
    folded: NDArray[np.float64] = ((half[0] + half[2]) + (half[1] + half[3])).astype(np.float64)
    return folded


def _add_up(x: NDArray[Any], spread: Floats, thresholds: Floats, cross: Doubles, square: Doubles) -> None:
    """Sums of scale * x and scale^2 per level, weight after weight."""
    places = np.searchsorted(thresholds, x * (np.float32(1) / spread), side="left").ravel()
    wide = spread.astype(np.float64)
    for total, products in ((cross, wide * x), (square, wide * wide)):
        # The running sums go first, so that they are carried on weight by weight.
        order = np.concatenate([np.arange(len(total)), places])
        total[...] = np.bincount(order, np.concatenate([total, products.ravel()]), len(total))
