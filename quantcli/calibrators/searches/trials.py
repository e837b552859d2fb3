"""Scales by trial, for cases the fast searches do not cover: other formats, other norms, histograms.

A trial scale gives every weight a level; the scale is then refit to those levels by least squares (norm 2 only), and
the trial that leaves the least error wins, the first of equal ones. A coarse geometric row of trials is followed by a
finer one around its best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.calibrators import Ideal
from quantcli.calibrators.searches import arithmetic
from quantcli.formats import code_grid, fixed_codebook, reach
from quantcli.kernels import INTEGER, LEVELS, Tile, numpy_tiles
from quantcli.metrics import ordered_sum
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROOM = 1 << 19
"""Weights that are tried at a time."""

TRIALS = {"fast": (16, 5), "default": (40, 17), "best": (80, 33), "exact": (160, 65)}
"""How many coarse and fine trials."""


def by_groups(
    tile: Tile, of: Callable[[Array, Array | None], tuple[Array, Array | None]], importance: NDArray[Any] | None = None
) -> Ideal:
    """Parameters (rows, groups) of a tile from those of its groups, given as float64 (groups, n) with the importance
    of each weight, from the `importance` of every column (None: all the same)."""
    weights = numpy_tiles.floats(tile)
    whole, groups = tile.cols // tile.group, tile.groups
    cut = whole * tile.group
    scale, zero = np.ones((tile.rows, groups)), np.zeros((tile.rows, groups))
    affine = False
    pieces = [(slice(0, whole), weights[:, :cut].reshape(-1, tile.group), slice(0, cut))] if whole else []
    if whole < groups:
        pieces.append((slice(whole, groups), weights[:, cut:], slice(cut, tile.cols)))
    for place, rows, columns in pieces:
        step = max(1, ROOM // rows.shape[1])
        own = None if importance is None else importance[columns].reshape(-1, rows.shape[1]).astype(np.float64)
        found = []
        for i in range(0, len(rows), step):
            part = rows[i : i + step].astype(np.float64)
            found.append(of(part, None if own is None else own[np.arange(i, i + len(part)) % len(own)]))
        shape = scale[:, place].shape
        scale[:, place] = np.concatenate([s for s, _ in found]).reshape(shape)
        if found[0][1] is not None:
            affine = True
            zero[:, place] = np.concatenate([z for _, z in found if z is not None]).reshape(shape)
    return Ideal(scale, zero if affine else None)


def levels_listed(scheme: Scheme) -> Array:
    """The levels of a symmetric scheme, ascending."""
    grid = code_grid(scheme)
    if grid.mode == LEVELS:
        found: Array = fixed_codebook(scheme).sorted[0].astype(np.float64)
    else:
        assert grid.mode == INTEGER
        found = np.arange(grid.umin - grid.zero, grid.umax - grid.zero + 1, dtype=np.float64)
        found += 0.5 if grid.midrise else 0.0
    return found


def levels_of(scheme: Scheme) -> Callable[[Array], Array]:
    """The function from quotients weight / scale to the levels they are given, for a symmetric scheme."""
    grid = code_grid(scheme)
    if grid.mode == LEVELS:
        ordered = levels_listed(scheme)
        thresholds = (ordered[1:] + ordered[:-1]) / 2
        return lambda t: ordered[np.searchsorted(thresholds, t, side="left")]
    low, high = grid.umin - grid.zero, grid.umax - grid.zero
    assert grid.mode == INTEGER
    if grid.midrise:
        return lambda t: np.clip(np.floor(t), low, high) + 0.5
    return lambda t: np.clip(np.rint(t), low, high)


def symmetric(weights: Array, counts: Array | None, scheme: Scheme, *, norm: float, effort: str) -> Array:
    """Scale of every group (groups,) with the least |e|^norm, of either sign on a grid that is not symmetric."""
    levels, extreme = levels_of(scheme), np.abs(weights).max(axis=1, initial=0.0)

    def tried(factors: Array, centre: Array, unit: Array) -> Iterator[_Trial]:
        return (_tried(weights, counts, centre * factor * unit, levels, norm) for factor in factors)

    least = _least(weights.shape[1], counts, effort)
    return _searched(extreme, scheme, effort, least, tried, refits=4 if norm == 2 else 0)


def of_histogram(values: Array, counts: Array, scheme: Scheme, effort: str) -> Array:
    """The same scale (1,) for the ascending values of a histogram and norm 2: weights of a level follow each other, so
    that differences of running sums tell what `symmetric` adds up weight by weight."""
    extreme, sums = np.array([max(-values[0], values[-1])]), _Running(values, counts, levels_listed(scheme))
    return _searched(extreme, scheme, effort, _least(len(values), counts, effort), sums.tried, refits=4)


_Trial = tuple["Array", "Array | float", "Array"]
"""Refit scales, zero points and errors of a trial."""

_Tried = Callable[["Array", "Array", "Array"], Iterator[_Trial]]
"""The trials of scales centre * factor * unit, one for each of the factors (trials,); centre and unit: (groups,)."""


def _searched(extreme: Array, scheme: Scheme, effort: str, least: float, tried: _Tried, *, refits: int) -> Array:
    """The best scale of every group. extreme: its largest magnitude; least: the smallest ratio to try of the scale that
    clips nothing; refits: further trials of the best one."""
    coarse, fine = TRIALS[effort]
    unit, best = np.where(extreme > 0, extreme, 1.0) / reach(scheme), _Best(len(extreme))
    signs = [1.0, -1.0] if _lopsided(scheme) else [1.0]
    row, ones = np.geomspace(1.3, least, coarse), np.ones(len(extreme))
    spacing = (row[0] / row[-1]) ** (1 / (coarse - 1))
    for factors in ((np.append(1.0, row)[:, None] * signs).ravel(), np.geomspace(spacing, 1 / spacing, fine)):
        centre = best.tag
        for factor, trial in zip(factors, tried(factors, centre, unit)):
            best.offer(*trial, centre * factor)
    for _ in range(refits):  # which can only improve
        for trial in tried(np.ones(1), best.scale, ones):
            best.offer(*trial, best.tag)
    return np.where(extreme > 0, best.scale, 1.0)


def _lopsided(scheme: Scheme) -> bool:
    """Whether the negative levels of a symmetric scheme are not the positive ones."""
    if code_grid(scheme).mode == LEVELS:
        levels = levels_listed(scheme)
        return not np.array_equal(levels, -levels[::-1])
    return scheme.grid == "full" and scheme.family == "int"


class _Running:
    """Running sums of ascending values, and the levels they are given."""

    def __init__(self, values: Array, counts: Array, levels: Array) -> None:
        self._values, self._levels = values, levels
        self._upto = np.append(0.0, np.cumsum(counts)), np.append(0.0, np.cumsum(values * counts))
        self._power = float(ordered_sum(values * values * counts))

    def tried(self, factors: Array, centre: Array, unit: Array) -> Iterator[_Trial]:
        """The trials of the one group, computed at once."""
        scales = centre * factors * unit
        found, errors = scales.copy(), np.empty(len(scales))
        for sign in (1.0, -1.0):
            own = np.flatnonzero(np.sign(scales) == sign)
            levels = self._levels if sign > 0 else -self._levels[::-1]
            middles = (levels[1:] + levels[:-1]) / 2
            ends = np.full((len(own), len(levels) + 1), len(self._values))
            ends[:, 0] = 0
            ends[:, 1:-1] = np.searchsorted(self._values, middles * np.abs(scales[own])[:, None], side="left")
            count, total = (np.diff(upto[ends], axis=1) for upto in self._upto)
            square, cross = ordered_sum(levels * levels * count), ordered_sum(levels * total)
            good = (square > 0) & (cross != 0)
            size = np.where(good, cross / np.where(good, square, 1.0), np.abs(scales[own]))
            found[own] = sign * size
            errors[own] = self._power + size * (size * square - 2 * cross)
        return ((scale, 0.0, error) for scale, error in zip(found[:, None], errors[:, None]))


def _least(n: int, counts: Array | None, effort: str) -> float:
    """The smallest candidate: the more weights, the farther the largest lies from where clipping pays."""
    if effort in ("best", "exact"):
        return 0.008
    return 0.15 if n <= 48 and counts is None else 0.08 if n <= 512 and counts is None else 0.008


class _Best:
    """The best trial of every group so far."""

    def __init__(self, groups: int) -> None:
        self.error = np.full(groups, np.inf)
        self.scale, self.zero, self.tag = np.ones(groups), np.zeros(groups), np.ones(groups)

    def offer(self, scale: Array, zero: Array | float, error: Array, tag: Any) -> None:
        """Keep the trial where it is better."""
        better = error < self.error
        self.error = np.where(better, error, self.error)
        self.scale = np.where(better, scale, self.scale)
        self.zero = np.where(better, zero, self.zero)
        self.tag = np.where(better, tag, self.tag)


def _sum(values: Array, counts: Array | None) -> Array:
    return ordered_sum(values if counts is None else values * counts)


def _tried(
    weights: Array, counts: Array | None, scale: Array, levels: Callable[[Array], Array], norm: float
) -> tuple[Array, float, Array]:
    """Scale (refit for norm 2), zero and error of a trial."""
    found = levels(weights / scale[:, None])
    if norm != 2:
        error = arithmetic.power(np.abs(weights - found * scale[:, None]), norm)
        return scale, 0.0, _sum(error, counts)
    square = _sum(found * found, counts)
    refit = _sum(weights * found, counts) / np.where(square > 0, square, 1.0)
    refit = np.where((square > 0) & (refit != 0), refit, scale)
    rest = weights - found * refit[:, None]
    return refit, 0.0, _sum(rest * rest, counts)


def affine(weights: Array, counts: Array | None, scheme: Scheme, *, norm: float, effort: str) -> tuple[Array, Array]:
    """Scale and zero of every group with the least |e|^norm, (groups,) each: whole zero points, or offsets with a float
    one."""
    coarse, fine = TRIALS[effort]
    side = max(4, round(coarse**0.5))
    lo, hi = weights.min(axis=1), weights.max(axis=1)
    if scheme.zero_point == "int":
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    flat = hi <= lo
    hi = np.where(flat, lo + np.maximum(np.abs(lo), 1.0), hi)
    best = _Best(len(weights))
    least = max(_least(weights.shape[1], counts, effort), 0.02)
    ends = [(1.0, 1.0)]
    ends += [(a, b) for a in np.geomspace(1.15, least, side) for b in np.geomspace(1.15, least, side)]
    for number, (a, b) in enumerate(ends):
        _offer_range(best, weights, counts, scheme, norm, lo, hi, np.full(len(lo), a), np.full(len(lo), b), number)
    spacing = (1.15 / least) ** (1 / (side - 1))
    for _ in range(2):
        at = best.tag.astype(int)
        starts = np.array([*ends])[np.clip(at, 0, len(ends) - 1)]
        near = np.geomspace(spacing**0.5, spacing**-0.5, max(3, round(fine**0.5)))
        for a in near:
            for b in near:
                _offer_range(best, weights, counts, scheme, norm, lo, hi, starts[:, 0] * a, starts[:, 1] * b, best.tag)
        spacing **= 0.5
    if scheme.zero_point == "int":
        return np.where(flat, 1.0, best.scale), np.where(flat, 0.0, best.zero)
    for _ in range(12):
        best.offer(*_refit(weights, counts, scheme, norm, best.scale, best.zero), best.tag)
    return np.where(flat, 1.0, best.scale), np.where(flat, lo, best.zero)


def _offer_range(
    best: _Best,
    weights: Array,
    counts: Array | None,
    scheme: Scheme,
    norm: float,
    lo: Array,
    hi: Array,
    below: Array,
    above: Array,
    tag: Any,
) -> None:
    """Try the range shrunk to `below` of its lower part and `above` of its upper part."""
    if scheme.zero_point == "float":
        middle = (lo + hi) / 2
        start, end = middle + (lo - middle) * below, middle + (hi - middle) * above
        scale = (end - start) / reach(scheme)
        best.offer(*_refit(weights, counts, scheme, norm, scale, start), tag)
        return
    start, end = lo * below, hi * above
    scale = np.where(end > start, (end - start) / reach(scheme), 1.0)
    top = float((1 << scheme.bits) - 1)
    zero = np.clip(np.rint(-start / scale), 0.0, top)
    low, high = -zero[:, None], top - zero[:, None]
    refit, _, error = _tried(weights, counts, scale, lambda t: np.minimum(np.maximum(np.rint(t), low), high), norm)
    best.offer(refit, zero, np.where(refit > 0, error, np.inf), tag)


def _refit(
    weights: Array, counts: Array | None, scheme: Scheme, norm: float, scale: Array, offset: Array
) -> tuple[Array, Array, Array]:
    """Scale and offset refit to the codes they give, and the error left (norm 2), or as they are and their error."""
    top = float((1 << scheme.bits) - 1)
    half = 0.5 if scheme.family == "midrise" else 0.0
    turn = np.floor if half else np.rint
    codes = np.clip(turn((weights - offset[:, None]) / scale[:, None]), 0.0, top) + half
    if norm == 2:
        ones = np.ones_like(weights)
        n = _sum(ones, counts)
        code_mean, mean = _sum(codes, counts) / n, _sum(weights, counts) / n
        around = codes - code_mean[:, None]
        square = _sum(around * around, counts)
        slope = _sum((weights - mean[:, None]) * around, counts) / np.where(square > 0, square, 1.0)
        good = (square > 0) & (slope > 0)
        scale, offset = np.where(good, slope, scale), np.where(good, mean - slope * code_mean, offset)
    error = arithmetic.power(np.abs(weights - (codes * scale[:, None] + offset[:, None])), norm)
    return scale, offset, _sum(error, counts)
