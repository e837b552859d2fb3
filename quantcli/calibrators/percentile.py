"""Percentile: the range of most weights; the rest is clipped.

Symmetric: the quantile of |w| at `percentile` / 100. Affine: `percentile` is the central mass, each tail loses half of
the rest. Exact order statistics, interpolated linearly between neighbours (type 7 of Hyndman and Fan, Sample Quantiles
in Statistical Packages, 1996); for float32 weights that lie in several tiles, within 2^-12 of them. A range that comes
out empty although some weight is not 0 falls back to the whole one. In groups of fewer than 1 / (1 - p) weights it is
effectively min-max, and a warning says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, Observed, Option
from quantcli.calibrators.searches import histogram, ranges, trials
from quantcli.scales import EXACT, Store
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Kernels, Tile

    Array = NDArray[np.float64]


def _quantile(weights: Array, share: float) -> Array:
    """Quantile of every group (groups, n)."""
    n = weights.shape[1]
    lower, part = histogram.places(n, share)
    upper = min(lower + 1, n - 1)
    found = np.partition(weights, sorted({lower, upper}), axis=1)
    low: Array = found[:, lower]
    return low + part * (found[:, upper] - low)


def _ranges_of(weights: Array, share: float, *, symmetric: bool) -> tuple[Array, Array]:
    if symmetric:
        alpha = _quantile(np.abs(weights), share)
        return -alpha, alpha
    tail = (1 - share) / 2
    return _quantile(weights, tail), _quantile(weights, 1 - tail)


def _parameters(lo: Array, hi: Array, least: Array, most: Array, scheme: Scheme) -> Ideal:
    """Parameters of ranges; empty ones fall back to the whole range."""
    low, high = (lo, hi) if scheme.zero_point == "float" else (np.minimum(lo, 0), np.maximum(hi, 0))
    empty = low >= high
    return ranges.spanning(np.where(empty, least, lo), np.where(empty, most, hi), scheme)


def _share(scheme: Scheme) -> float:
    return float(scheme.options["percentile"]) / 100


def local(kernels: Kernels, tile: Tile, scheme: Scheme, store: Store = EXACT) -> Ideal | None:
    """Parameters of the groups of a tile."""
    if not tile.ranges(kernels).finite:
        return None

    def of(weights: Array, _: Array | None) -> tuple[Array, Array | None]:
        lo, hi = _ranges_of(weights, _share(scheme), symmetric=scheme.symmetric)
        found = _parameters(lo, hi, weights.min(axis=1), weights.max(axis=1), scheme)
        return found.scale, found.zero

    return trials.by_groups(tile, of)


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Parameters of the weights of a histogram."""
    values, counts = histogram.distinct(seen)
    share = _share(scheme)
    if scheme.symmetric:
        order = np.argsort(np.abs(values), kind="stable")
        alpha = histogram.quantile(np.abs(values)[order], counts[order], share)
        lo, hi = -alpha, alpha
    else:
        tail = (1 - share) / 2
        lo, hi = histogram.quantile(values, counts, tail), histogram.quantile(values, counts, 1 - tail)
    ends = [np.full((1, 1), v) for v in (lo, hi, values[0], values[-1])]
    return _parameters(ends[0], ends[1], ends[2], ends[3], scheme)


def caution(scheme: Scheme, n: int) -> str | None:
    """Why groups of n weights make it the same as min-max."""
    share = _share(scheme)
    if n * (1 - share) >= 1:
        return None
    return f"in groups of {n} weights the percentile {100 * share:g} lies beside the largest: all but min-max"


PROVIDES = Calibrator(
    gather=histogram.GATHER,
    solve=solve,
    local=local,
    families=("int", "midrise", "levels"),
    auto=False,
    options={"percentile": Option(default=99.9, low=50.0, high=100.0)},
    caution=caution,
)
