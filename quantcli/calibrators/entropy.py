"""Entropy: the range whose codes tell most, by KL divergence.

Our own, well-posed definition, without bins. Exact zeros are left out. A code says that |w| lies in its cell, where it
is taken to be uniform; the range T minimises the cross entropy of the weights under that density, over 2,048
candidates T, the larger one on a tie. Clipped weights lie outside all cells and pay for it. Affine (float offsets) the
same over ranges shrunk towards the median. The published procedure (2,048 bins, 128 levels, tail mass into the last
bin) changes its sample space from candidate to candidate, merges bins that are not the cells used later, and loses up
to 22 dB where half the weights are 0.

It is offered for parity with other tools: KL ignores magnitudes and never beats the squared-error search in SQNR.
Groups of fewer than 32 * 2^b weights that are not 0 are too few for it and take the scale of least squared error
instead; a warning says so where all are.

Reference: Migacz, 8-bit Inference with TensorRT, 2017, for the idea; the definition is different.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, Observed
from quantcli.calibrators.searches import arithmetic, histogram, ranges, trials
from quantcli.metrics import ordered_sum
from quantcli.scales import EXACT, Store
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Kernels, Tile

    Array = NDArray[np.float64]

CANDIDATES = 2048
ESCAPE = 2.0**-10
PER_LEVEL = 32


def fewest(scheme: Scheme) -> int:
    """Weights a group must have for a divergence to mean anything."""
    return int(PER_LEVEL << scheme.bits)


def _cross_entropy(values: Array, upto: Array, edges: Array, lo: float, hi: float, *, under: bool) -> Array:
    """Nats per weight under the cells between edges (candidates, cells + 1); `upto`: how many weights lie below each
    value, and all. Weights beyond the last edge belong to the last code, with `under` those below the first to it."""
    first = np.searchsorted(values, edges.ravel(), side="left").reshape(edges.shape)
    last = np.searchsorted(values, edges[:, -1], side="right")
    first[:, -1] = np.where(edges[:, -1] >= hi, last, first[:, -1])
    below = upto[first]
    inside = np.diff(below, axis=1)
    mass = inside.copy()
    lost = upto[-1] - below[:, -1]
    mass[:, -1] += lost
    if under:
        mass[:, 0] += below[:, 0]
        lost = lost + below[:, 0]
    width = np.diff(edges, axis=1)
    some = (inside > 0) & (width > 0)
    density = (1 - ESCAPE) * (mass / upto[-1]) / np.where(some, width, 1.0) * (hi - lo) + ESCAPE
    cost = ordered_sum(np.where(some, inside * arithmetic.log(density), 0.0))
    found: Array = (-cost - lost * arithmetic.log(np.array([ESCAPE]))[0]) / upto[-1]
    return found


def _chosen(cost: Array) -> int:
    return int(np.flatnonzero(cost <= cost.min() + 1e-12)[-1]) + 1


def _symmetric(sizes: Array, counts: Array, scheme: Scheme) -> float:
    """The range T of sorted sizes > 0."""
    upto = np.append(0.0, np.cumsum(counts))
    most, top = float(sizes[-1]), (1 << (scheme.bits - 1)) - 1
    costs = []
    for part in np.array_split(np.arange(1, CANDIDATES + 1), max(1, CANDIDATES * top >> 14)):
        step = most * part / CANDIDATES / top
        edges = np.minimum((np.arange(top + 1) + 0.5) * step[:, None], most)
        edges = np.concatenate([np.zeros((len(part), 1)), edges], axis=1)
        costs.append(_cross_entropy(sizes, upto, edges, 0.0, most, under=False))
    return most * _chosen(np.concatenate(costs)) / CANDIDATES


def _affine(values: Array, counts: Array, scheme: Scheme) -> tuple[float, float]:
    """The range of sorted values, shrunk towards their median."""
    upto = np.append(0.0, np.cumsum(counts))
    lo, hi, middle = float(values[0]), float(values[-1]), histogram.quantile(values, counts, 0.5)
    cells, costs = 1 << scheme.bits, []
    for part in np.array_split(np.arange(1, CANDIDATES + 1), max(1, CANDIDATES * cells >> 14)):
        start = middle - part / CANDIDATES * (middle - lo)
        step = (middle + part / CANDIDATES * (hi - middle) - start) / (cells - 1)
        inner = start[:, None] + (np.arange(cells - 1) + 0.5) * step[:, None]
        ends = np.maximum(start - step / 2, lo)[:, None], np.minimum(start + (cells - 0.5) * step, hi)[:, None]
        costs.append(
            _cross_entropy(values, upto, np.concatenate([ends[0], inner, ends[1]], axis=1), lo, hi, under=True)
        )
    share = _chosen(np.concatenate(costs)) / CANDIDATES
    return middle - share * (middle - lo), middle + share * (hi - middle)


def _of(values: Array, counts: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scale and zero (1,) of one group's ascending distinct values."""
    some = values != 0
    values, counts = values[some], counts[some]
    if counts.sum() < fewest(scheme) or (not scheme.symmetric and values[0] == values[-1]):
        if not len(values):
            values, counts = np.zeros(1), np.ones(1)
        return _least_squares(values[None], counts[None], scheme)
    if scheme.symmetric:
        sizes, back = np.unique(np.abs(values), return_inverse=True)
        alpha = _symmetric(sizes, np.bincount(back.reshape(-1), counts).astype(np.float64), scheme)
        lo, hi = -alpha, alpha
    else:
        lo, hi = _affine(values, counts, scheme)
    found = ranges.spanning(np.array([lo]), np.array([hi]), scheme)
    return found.scale, found.zero


def _least_squares(weights: Array, counts: Array | None, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scale and zero of groups (groups, n) by the least squared error."""
    if scheme.symmetric:
        return trials.symmetric(weights, counts, scheme, norm=2.0, effort="default"), None
    return trials.affine(weights, counts, scheme, norm=2.0, effort="default")


def local(kernels: Kernels, tile: Tile, scheme: Scheme, store: Store = EXACT) -> Ideal | None:
    """Parameters of the groups of a tile."""
    if not tile.ranges(kernels).finite:
        return None

    def of(weights: Array, _: Array | None) -> tuple[Array, Array | None]:
        few = np.count_nonzero(weights, axis=1) < fewest(scheme)
        scale, zero = np.ones(len(weights)), np.zeros(len(weights))
        if few.any():
            found = _least_squares(weights[few], None, scheme)
            scale[few], zero[few] = found[0], 0.0 if found[1] is None else found[1]
        for i in np.flatnonzero(~few):
            values, counts = np.unique(weights[i] + 0.0, return_counts=True)
            own = _of(values, counts.astype(np.float64), scheme)
            scale[i], zero[i] = own[0][0], 0.0 if own[1] is None else own[1][0]
        return scale, None if scheme.symmetric else zero

    return trials.by_groups(tile, of)


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Parameters of the weights of a histogram."""
    values, counts = histogram.distinct(seen)
    scale, zero = _of(values, counts, scheme)
    return Ideal(scale[:, None], None if zero is None else zero[:, None])


def caution(scheme: Scheme, n: int) -> str | None:
    """Why groups of n weights are too few."""
    if n >= fewest(scheme):
        return None
    return (
        f"{n} weights that share a scale are too few for entropy at {scheme.bits} bits "
        f"({fewest(scheme)} needed): mse is used"
    )


PROVIDES = Calibrator(
    gather=histogram.GATHER,
    solve=solve,
    local=local,
    auto=False,
    caution=caution,
)
