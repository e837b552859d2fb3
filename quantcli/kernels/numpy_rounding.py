"""Sum-preserving rounding in numpy: the flips of rounding.h, all rows side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantcli.kernels.numpy_sums import folded, run_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook
    from quantcli.kernels.table import Floats

FEW = 192
"""Flips a row seldom needs more of: only so many are sorted at first."""


def flips(error: NDArray[Any], codes: NDArray[Any], scale: Floats, umin: float, umax: float) -> NDArray[Any]:
    """How much codes (rows, cols) of integers are moved, by -1, 0 or 1; scale: float32, of every weight."""
    sums = _sums(error)
    move = np.where((scale < 0) == (sums.sign < 0), np.float32(1), np.float32(-1))
    limit = np.where(move > 0, np.float32(umax), np.float32(umin))
    moves: NDArray[Any] = np.where(_chosen(error, np.abs(scale), codes != limit, sums), move, np.float32(0))
    return moves


def flip_levels(error: NDArray[Any], codes: NDArray[Any], scale: Floats, book: Codebook) -> None:
    """Move codes (rows, cols) of levels in place; scale: float32, of every weight. See level_rounding.h."""
    sums = _sums(error)
    up = (scale < 0) == (sums.sign < 0)
    places = codes.astype(np.intp)
    if book.tables > 1:
        places += np.arange(len(codes))[:, None] * book.levels.shape[1]
    tables = [_neighbours(book.levels.shape[1], ordered, order) for ordered, order in zip(book.sorted, book.order)]
    above, below, upper, lower = (np.concatenate(column) for column in zip(*tables))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite steps of groups whose scale is 0
        step = np.where(up, above[places], below[places]) * np.abs(scale)
    chosen = _chosen(error, step, np.isfinite(step), sums)
    np.copyto(codes, np.where(up, upper[places], lower[places]), where=chosen)


def _neighbours(size: int, ordered: Floats, order: NDArray[np.uint16]) -> list[NDArray[Any]]:
    """From every code of a table to the levels next above and below: how far they are (float32), and their codes."""
    above, below = np.full((2, size), np.inf, np.float32)
    upper, lower = np.zeros((2, size), np.uint16)
    with np.errstate(over="ignore"):
        gap = ordered[1:] - ordered[:-1]
    apart = gap > 0
    low, high = order[:-1][apart], order[1:][apart]
    above[low] = below[high] = gap[apart]
    upper[low], lower[high] = high, low
    return [above, below, upper, lower]


class _Sums(NamedTuple):
    """What is to be made good in every row, and the sign of its sum (rows, 1)."""

    rest: NDArray[np.float64]
    sign: Floats


def _sums(error: NDArray[Any]) -> _Sums:
    sums = folded(np.add.accumulate(run_sums(error).astype(np.float64), axis=1)[:, -1])
    return _Sums(np.abs(sums), np.where(sums < 0, np.float32(-1), np.float32(1))[:, None])


def _chosen(error: NDArray[Any], step: Floats, can: NDArray[np.bool_], sums: _Sums) -> NDArray[np.bool_]:
    """Which codes move by their step (rows, cols), of those that can."""
    rest = sums.rest
    with np.errstate(over="ignore", invalid="ignore"):  # only errors of the wrong sign are left, which need no flip
        cost = step - (2 * sums.sign) * error
    able = can & (sums.sign * error > 0) & ((rest > 0) & (rest < 1e300))[:, None]
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
    return chosen


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
