"""Sum-preserving rounding in numpy: the flips of rounding.h, all rows side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_sums import folded, run_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Floats

FEW = 192
"""Flips a row seldom needs more of: only so many are sorted at first."""


def flips(error: NDArray[Any], codes: NDArray[Any], scale: Floats, umin: float, umax: float) -> NDArray[Any]:
    """Which codes (rows, cols) are moved, by -1, 0 or 1; scale: float32, of every weight."""
    sums = folded(np.add.accumulate(run_sums(error).astype(np.float64), axis=1)[:, -1])
    sign = np.where(sums < 0, np.float32(-1), np.float32(1))[:, None]
    rest = np.abs(sums)
    step = np.abs(scale)
    move = np.where((scale < 0) == (sign < 0), np.float32(1), np.float32(-1))
    limit = np.where(move > 0, np.float32(umax), np.float32(umin))
    with np.errstate(over="ignore"):  # only errors of the wrong sign are left, which need no flip
        cost = step - (2 * sign) * error
    able = (sign * error > 0) & (codes != limit) & ((rest > 0) & (rest < 1e300))[:, None]
    cost = np.where(able, cost, np.float32(np.inf))
    chosen = np.zeros(error.shape, bool)
    rows = np.arange(len(error))
    if cost.shape[1] > 4 * FEW:
        near = np.sort(np.argpartition(cost, FEW, axis=1)[:, :FEW], axis=1)
        part = np.take_along_axis(cost, near, 1)
        taken = _taken(part, np.take_along_axis(step, near, 1), rest)
        # Enough if the flips stop before the costliest of those at hand.
        last = np.where(taken, part, -np.inf).max(axis=1)
        enough = last < part.max(axis=1)
        np.put_along_axis(chosen, near, taken, axis=1)
        rows = rows[~enough]
    if len(rows):
        chosen[rows] = _taken(cost[rows], step[rows], rest[rows])
    moves: NDArray[Any] = np.where(chosen, move, np.float32(0))
    return moves


def _taken(cost: NDArray[Any], step: NDArray[Any], rest: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The flips that are made, cheapest first, while each brings the rest of the sum nearer to 0."""
    order = np.argsort(cost, axis=1, kind="stable")
    steps = np.take_along_axis(step, order, 1).astype(np.float64)
    left = np.subtract.accumulate(np.concatenate([rest[:, None], steps], axis=1), axis=1)[:, :-1]
    good = np.isfinite(np.take_along_axis(cost, order, 1)) & (left > steps / 2)
    good = np.logical_and.accumulate(good, axis=1)
    taken = np.zeros(cost.shape, bool)
    np.put_along_axis(taken, order, good, axis=1)
    return taken
