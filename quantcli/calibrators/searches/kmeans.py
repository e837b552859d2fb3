"""Levels of least squared error for values with counts: optimal ones, or by plain Lloyd iterations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST = 1 << 14
"""Values the dynamic programming takes; of more, neighbours are merged first, and the levels refined afterwards."""


def optimal(values: Array, counts: Array, k: int) -> Array:
    """The k levels (ascending) with the least possible squared error, for ascending distinct values.

    Fewer values than levels are their own levels, and the largest is repeated. Of equal splits the one with the
    smallest index counts. More than 16,384 values: optimal for means of neighbours, then refined on all values.

    References: Fisher, On Grouping for Maximum Homogeneity, 1958; Wang and Song, Ckmeans.1d.dp, 2011; Gronlund et al.,
    Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D, 2017.
    """
    if len(values) <= k:
        return np.append(values, np.repeat(values[-1:], k - len(values)))
    few, often = _fewer(values, counts)
    middle = few[len(few) // 2]
    centred = few - middle
    weight, total, square = (np.append(0.0, np.cumsum(v)) for v in (often, often * centred, often * centred * centred))
    start = kernels.load().kmeans(weight, total, square, k)
    levels, end = np.empty(k), len(few)
    for c in range(k - 1, -1, -1):
        first = int(start[c, end]) if c else 0
        share = weight[end] - weight[first]
        # A cell may weigh so little beside the ones before it that it is lost in the sums.
        levels[c] = (total[end] - total[first]) / share + middle if share > 0 else few[first:end].mean()
        end = first
    return levels if len(few) == len(values) else lloyd(values, counts, levels, 20)


def _fewer(values: Array, counts: Array) -> tuple[Array, Array]:
    """At most MOST values: means of runs of neighbours that are equally near, for their size and the range's."""
    if len(values) <= MOST:
        return values, counts
    place = values / np.abs(values).max()
    bins = np.floor((np.sign(place) * np.sqrt(np.abs(place)) + 1) * (MOST / 2 - 1)).astype(np.int64)
    first = np.flatnonzero(np.append(True, bins[1:] != bins[:-1]))
    often = np.add.reduceat(counts, first)
    return np.add.reduceat(values * counts, first) / often, often


def quantiles(values: Array, counts: Array, k: int) -> Array:
    """Starting levels of Lloyd iterations: quantiles (type 7) at (i + 1/2) / k."""
    upto = np.cumsum(counts)
    at = (upto[-1] - 1) * ((np.arange(k) + 0.5) / k)
    lower = np.floor(at)
    low = values[np.searchsorted(upto, lower, side="right")]
    high = values[np.searchsorted(upto, np.minimum(lower + 1, upto[-1] - 1), side="right")]
    found: Array = low + (at - lower) * (high - low)
    return found


def lloyd(values: Array, counts: Array, levels: Array, iterations: int) -> Array:
    """Levels after alternating nearest levels (the lower of two as near) and means, until nothing changes.

    A cell that is empty keeps its level. Lloyd's conditions are necessary, not sufficient: a poor start may end far
    from the optimum.

    Reference: Lloyd, Least Squares Quantization in PCM, 1982.
    """
    weight, total = np.append(0.0, np.cumsum(counts)), np.append(0.0, np.cumsum(counts * values))
    last = np.full(len(levels) - 1, -1)
    for _ in range(iterations):
        ends = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2, side="right")
        if np.array_equal(ends, last):
            break
        last = ends
        cuts = np.concatenate([[0], ends, [len(values)]])
        often = np.diff(weight[cuts])
        levels = np.where(often > 0, np.diff(total[cuts]) / np.where(often > 0, often, 1.0), levels)
    return levels
