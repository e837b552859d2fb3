"""Optimal one-dimensional k-means in numpy: the layers of kmeans.h, all ranges of a depth side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles


def kmeans(weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
    """Starts (k, n + 1) of the last of c + 1 cells of the first j values; see kmeans.h."""
    n = len(weight) - 1
    start = np.zeros((k, n + 1), np.int32)
    j = np.arange(1, n + 1)
    before = np.full(n + 1, np.inf)
    before[1:] = _cost(weight, total, square, np.zeros_like(j), j)
    for c in range(1, k):
        before = _layer(weight, total, square, before, start[c], c)
    return start


def _cost(weight: Doubles, total: Doubles, square: Doubles, i: NDArray[np.int64], j: NDArray[np.int64]) -> Doubles:
    """Squared error of the cells [i, j); NaN or infinite where they weigh nothing beside the sums before them."""
    w, s = weight[j] - weight[i], total[j] - total[i]
    with np.errstate(all="ignore"):
        found: Doubles = (square[j] - square[i]) - s * s / w
    return found


def _layer(
    weight: Doubles, total: Doubles, square: Doubles, before: Doubles, start: NDArray[np.int32], c: int
) -> Doubles:
    n = len(weight) - 1
    after = np.full(n + 1, np.inf)
    first, last, low, high = (np.array([v]) for v in (c + 1, n, c, n - 1))
    while len(first):
        middle = (first + last) // 2
        count = np.minimum(high, middle - 1) - low + 1
        ends = np.cumsum(count)
        i = np.arange(ends[-1]) - np.repeat(ends - count - low, count)
        j = np.repeat(middle, count)
        with np.errstate(invalid="ignore"):
            costs = before[i] + _cost(weight, total, square, i, j)
        costs[np.isnan(costs)] = np.inf  # NaN compares false with everything: never the best in kmeans.h
        least = np.minimum.reduceat(costs, ends - count)
        hits = np.flatnonzero(costs == np.repeat(least, count))
        best = i[hits[np.searchsorted(hits, ends - count)]]
        after[middle], start[middle] = least, best
        first, last, low, high = (
            np.concatenate(pair) for pair in ((first, middle + 1), (middle - 1, last), (low, best), (best, high))
        )
        some = first <= last
        first, last, low, high = first[some], last[some], low[some], high[some]
    return after
