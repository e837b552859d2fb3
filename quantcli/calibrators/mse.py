"""Squared error: the scale with the least squared error.

Candidates around the largest weight are scored by the squared error after a least-squares refit of the scale, which
comes for free (see kernels/search.h). On the full grid the scale may be negative, so that the 2^b-th code serves the
side that needs it: at 4 bits and groups of 128 normal weights 20.2 dB instead of min-max's 18.6, for the same bytes.
Small floats (FP8, FP4) take the best of the scales that can be stored around that of the largest weight.
Affine schemes search zero points as well, or float offsets (see kernels/offsets.h). `effort` sets the number of
candidates: `default` stays within 0.1 dB of the least error there is, `best` within 0.03 dB, `exact` finds it by a
sweep over all breakpoints, up to 8 bits. There is no such sweep for float offsets: `exact` is their densest search, and
at 8 bits `default` is within 0.3 dB of it. `norm` P makes the error |e|^P. Where the importance of columns is known,
their squared errors are weighted by it. For weights that do not fit a tile the exact histogram is searched.

Reference: the sweep is ours; the refit is the codeword update of Lloyd, Least Squares Quantization in PCM, 1982, for
evenly spaced codewords.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import registry, scales
from quantcli.calibrators import Calibrator, Ideal, Observed, Option
from quantcli.calibrators.searches import breakpoints, candidates, histogram, importance, ranges, trials
from quantcli.formats import fixed_codebook, reach
from quantcli.kernels import Choices, Finding, Grids, Method
from quantcli.scales import EXACT, Store
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Kernels, Small, Tile

    Array = NDArray[np.float64]


def local(kernels: Kernels, tile: Tile, scheme: Scheme, store: Store = EXACT) -> Ideal | None:
    """Parameters of the groups of a tile."""
    ranges = tile.ranges(kernels)
    if not ranges.finite:
        return None
    together = scales.of(scheme).search
    if together is not None:
        found = together(kernels, tile, scheme)
        if found is None:
            return Ideal(np.full((1, 1), np.nan))
        scale, offset, blocks = found
        offsets = None if offset is None else offset.astype(np.float64)
        return Ideal(scale.astype(np.float64), offsets, None, blocks)
    effort = scheme.options["effort"]
    if _searched(scheme) and scheme.symmetric:
        return _symmetric(kernels, tile, scheme, ranges.extreme)
    form = registry.get("formats", scheme.format)
    if form.small is not None and scheme.options["norm"] == 2:
        return _floats(kernels, tile, scheme, store, form.small)
    if scheme.family == "levels" and scheme.options["norm"] == 2 and tile.importance is None:
        return _levels(kernels, tile, scheme, ranges.extreme, effort, store)
    lo, hi = (v.astype(np.float64) for v in (ranges.lo, ranges.hi))
    if _searched(scheme) and scheme.zero_point == "int":
        return _affine(kernels, tile, scheme, lo, hi)
    if scheme.zero_point == "float" and scheme.options["norm"] == 2:
        return _offsets(kernels, tile, scheme, lo, hi, effort)
    return _by_groups(tile, scheme)


def _by_groups(tile: Tile, scheme: Scheme) -> Ideal:
    return trials.by_groups(tile, lambda weights, counts: _of(weights, counts, scheme), importance.counts(tile))


def _searched(scheme: Scheme) -> bool:
    """Whether it is integers whose scales the kernels search, where they have no float offsets."""
    return scheme.family == "int" and scheme.options["norm"] == 2 and scheme.options["effort"] != "exact"


def finding(scheme: Scheme, n: int, *, weighted: bool = False) -> Finding | None:
    """How the kernels find the scales of groups of n integers or small floats. weighted: whether columns count
    differently."""
    if registry.get("formats", scheme.format).small is not None and scheme.options["norm"] == 2:
        return Finding(Method.TRIALS)
    if not _searched(scheme) or scheme.zero_point == "float":
        return None
    effort, affine = scheme.options["effort"], not scheme.symmetric
    tried = candidates.ratios(scheme.bits, n, effort, affine=affine, weighted=weighted)
    if affine:
        many = weighted or effort == "best" or scheme.bits > 4 or n > 2048
        grids = Grids.FIVE_ZEROS if many else Grids.THREE_ZEROS
    elif scheme.grid == "restricted":
        grids = Grids.RESTRICTED
    else:
        grids = Grids.TURNED if not weighted and _turned(scheme, n, effort) else Grids.BOTH_SIGNS
    top = (1 << scheme.bits) - 1 if affine else (1 << (scheme.bits - 1)) - 1
    return Finding(Method.SEARCH, (top / tried).astype(np.float32), grids)


def _symmetric(kernels: Kernels, tile: Tile, scheme: Scheme, extreme: NDArray[Any]) -> Ideal:
    top = (1 << (scheme.bits - 1)) - 1
    size = np.abs(extreme)
    normal = size >= np.float32(2.0**-126)
    reciprocal = np.where(normal, np.float32(1) / np.where(normal, size, np.float32(1)), np.float32(0))
    how = finding(scheme, tile.group, weighted=tile.importance is not None)
    assert how is not None and how.multipliers is not None
    if how.grids == Grids.TURNED:
        reciprocal = np.where(extreme < 0, -reciprocal, reciprocal)
    scale, grid = kernels.search(tile, reciprocal, None, how.multipliers, top, how.grids, importance.counts(tile))
    negative = (grid == 1) | (how.grids == Grids.TURNED)
    scale = np.where(negative, -scale, scale) / np.where(normal, reciprocal, np.float32(1)).astype(np.float64)
    plain = np.where(size > 0, size.astype(np.float64) / top, 1.0)
    return Ideal(np.where(normal & (scale != 0), scale, plain))


def _turned(scheme: Scheme, n: int, effort: str) -> bool:
    """Whether the extra code goes to the side of the largest weight without trying the other side: that costs at most
    0.02 dB from 4 bits up in groups, and nothing from 6 bits up, for half the search."""
    return effort != "best" and (scheme.bits >= 6 or (scheme.bits >= 4 and n <= 400))


def _affine(kernels: Kernels, tile: Tile, scheme: Scheme, lo: Array, hi: Array) -> Ideal:
    plain = ranges.spanning(lo, hi, scheme)
    assert plain.zero is not None
    top = (1 << scheme.bits) - 1
    span = np.maximum(hi, 0.0) - np.minimum(lo, 0.0)
    normal = (span >= 2.0**-126) & (span < 2.0**127)
    width = np.where(normal, span, 1.0).astype(np.float32)
    reciprocal = np.where(normal, np.float32(1) / width, np.float32(0))
    centre = np.rint(plain.zero).astype(np.float32)
    how = finding(scheme, tile.group, weighted=tile.importance is not None)
    assert how is not None and how.multipliers is not None
    scale, grid = kernels.search(tile, reciprocal, centre, how.multipliers, top, how.grids, importance.counts(tile))
    scale = scale / np.where(normal, reciprocal, np.float32(1)).astype(np.float64)
    good = normal & (scale > 0)
    zero = centre + grid - how.grids // 2
    return Ideal(np.where(good, scale, plain.scale), np.where(good, zero, plain.zero))


def _offsets(kernels: Kernels, tile: Tile, scheme: Scheme, lo: Array, hi: Array, effort: str) -> Ideal:
    """Scales and offsets, never worse than min-max; with effort `exact` than the search by trials. Mid-rise codes are
    integer codes half a step higher."""
    lo, hi = lo + 0.0, hi + 0.0  # not -0: the kernels differ in which zero is the smallest
    start = _by_groups(tile, scheme) if effort == "exact" else ranges.spanning(lo, hi, scheme)
    assert start.zero is not None
    half = 0.5 if scheme.family == "midrise" else 0.0
    middle = ((lo + hi) / 2).astype(np.float32)
    span = hi - lo
    normal = span >= 2.0**-126
    reciprocal = np.where(normal, 1 / np.where(normal, span, 1.0), 0.0).astype(np.float32)
    ratios = candidates.ends(scheme.bits, tile.group, effort, weighted=tile.importance is not None)
    begin = start.scale, start.zero + half * start.scale - middle
    top = (1 << scheme.bits) - 1
    scale, offset = kernels.search_offsets(tile, middle, reciprocal, begin, ratios, top, importance.counts(tile))
    return Ideal(np.where(span > 0, scale, 1.0), np.where(span > 0, middle + offset - half * scale, lo))


def _floats(kernels: Kernels, tile: Tile, scheme: Scheme, store: Store, small: Small) -> Ideal:
    """Scales for small floats: of those that can be stored around that of min-max, the one whose codes leave the least
    error, never worse than that of min-max."""
    found = tile.ranges(kernels)
    plain = ranges.spanning(found.lo.astype(np.float64), found.hi.astype(np.float64), scheme).scale
    choices = scales.of(scheme).choices(plain, scheme, store, scheme.options["effort"])
    best = kernels.trial_floats(tile, small, choices, importance.counts(tile))
    return Ideal(np.where(found.extreme != 0, scales.chosen(choices, best), plain))


def _levels(kernels: Kernels, tile: Tile, scheme: Scheme, extreme: NDArray[Any], effort: str, store: Store) -> Ideal:
    """Scales for fixed levels: as tried, without a refit; of either sign where the levels are not symmetric."""
    book = fixed_codebook(scheme)
    count = {"fast": 8, "default": 16, "best": 31, "exact": 31}[effort]
    row = np.append(1.0, np.geomspace(1.1, 0.72 if tile.group <= 400 else 0.3, count - 1))
    if not np.array_equal(book.sorted[0], -book.sorted[0, ::-1]):
        row = np.concatenate([row, -row])
    unit = np.where(extreme != 0, np.abs(extreme), np.float32(1)).astype(np.float64) / reach(scheme)
    trials = np.maximum(np.abs(unit[..., None] * row), 2.0**-126) * np.sign(row)
    trials = np.ascontiguousarray(trials.astype(np.float32))
    choices = Choices(trials, None, len(row), 0)
    found = scales.chosen(choices, kernels.trial_levels(tile, book, choices, None, None))
    zeros = 1.0 if (book.sorted == 0).any() else 2.0**-24 if store.dtype == "F16" else 2.0**-126
    return Ideal(np.where(extreme != 0, found, zeros))


def _of(weights: Array, counts: Array | None, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scale and zero of groups (groups, n) of weights with their counts, by the search that the scheme needs."""
    norm, effort = float(scheme.options["norm"]), scheme.options["effort"]
    if norm == 2 and effort == "exact" and scheme.family == "int" and scheme.zero_point == "int":
        return _exact(weights, counts, scheme)
    if scheme.symmetric:
        return trials.symmetric(weights, counts, scheme, norm=norm, effort=effort), None
    return trials.affine(weights, counts, scheme, norm=norm, effort=effort)


def _exact(weights: Array, counts: Array | None, scheme: Scheme) -> tuple[Array, Array | None]:
    """Scale and zero of least error over all zero points; on a tie the zero point nearest the middle."""
    groups = len(weights)
    if scheme.symmetric:
        top = (1 << (scheme.bits - 1)) - 1
        if scheme.grid == "full":
            return breakpoints.both_signs(weights, top, counts)[0], None
        return breakpoints.exact(weights, np.full(groups, -float(top)), np.full(groups, float(top)), counts)[0], None
    top = (1 << scheme.bits) - 1
    scale, zero, most = np.ones(groups), np.zeros(groups), np.full(groups, -1.0)
    for z in sorted(range(top + 1), key=lambda z: (abs(2 * z - top), z)):
        found, gain = breakpoints.exact(weights, np.full(groups, -float(z)), np.full(groups, float(top - z)), counts)
        better = gain > most * (1 + 1e-12)
        scale, zero, most = (np.where(better, a, b) for a, b in ((found, scale), (float(z), zero), (gain, most)))
    return scale, zero


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Parameters of the weights of a histogram."""
    values, counts = histogram.distinct(seen)
    exact = scheme.family == "int" and scheme.options["effort"] == "exact"
    if scheme.symmetric and scheme.options["norm"] == 2 and not exact and scheme.level_count < len(values):
        return Ideal(trials.of_histogram(values, counts, scheme, scheme.options["effort"])[:, None])
    scale, zero = _of(values[None], counts[None], scheme)
    return Ideal(scale[:, None], None if zero is None else zero[:, None])


def obstacle(scheme: Scheme) -> str | None:
    """Why the sweep over all breakpoints does not support a scheme."""
    if scheme.options["effort"] != "exact":
        return None
    if scheme.family != "int":
        return "effort exact is for integers"
    if scheme.bits > 8:
        return f"effort exact is for up to 8 bits, not {scheme.bits}"
    return "effort exact is for norm 2" if scheme.options["norm"] != 2 else None


PROVIDES = Calibrator(
    gather=histogram.GATHER,
    solve=solve,
    local=local,
    families=("int", "midrise", "levels"),
    grid="full",
    options={
        "effort": Option(default="default", choices=("fast", "default", "best", "exact")),
        "norm": Option(default=2.0, low=0.5, high=8.0),
    },
    obstacle=obstacle,
    weighs=True,
    finding=finding,
)
