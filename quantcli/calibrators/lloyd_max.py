"""Lloyd-Max: levels learned for the least squared error.

Per tensor and per channel the levels are globally optimal: one-dimensional k-means by dynamic programming on the exact
histogram (16-bit weights) or a fine weighted one (float32). `effort` fast takes plain Lloyd iterations instead.

With groups, every group has a separate scale, and one set of levels serves the normalised weights of the tensor.
The levels start as the optimal ones of all weights divided by the extreme of their group, sign included, so that the
far end of the levels is known; then scales and levels are refined alternately: each group tries scales around its
extreme, of both signs, the best one counts, and each level moves to (and, except in the last rounds, beyond) the mean
of its weights. That happens on a sample of up to 262,144 weights, spread evenly; then every group tries its scales
against the final levels. Scales are tried as the values the file can hold, such as the few of E4M3. A factor keeps
them in its range and is part of the levels.

References: Lloyd, Least Squares Quantization in PCM, 1982; Max, Quantizing for Minimum Distortion, 1960. Their
conditions are necessary only: the dynamic programming is what makes the levels optimal.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, LevelSearch, Observed, Option, Shared
from quantcli.calibrators.searches import histogram, kmeans
from quantcli.dtypes import from_float32, to_float32
from quantcli.kernels import Choices, numpy_tiles
from quantcli.kernels.codebook import Codebook, codebook
from quantcli.kernels.numpy_levels import FEW
from quantcli.scales import EXACT, Store, chosen
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats, Kernels, Tile

    Array = NDArray[np.float64]

BINS = 4096
ROUNDS = {"fast": 2, "default": 14, "best": 40}
BEYOND = 2.0
"""How far past its mean a level moves: twice as far converges in half the rounds; four times as far diverges."""

SPACED = np.array([0.84, 0.9, 0.95, 1.0, 1.06, 1.13, 1.22, 1.35])
"""Scales tried, in units of the extreme's, where the dtype is fine enough to choose."""

PHASES = 1 + np.arange(8) / 8
"""Factors between powers of two. E4M3 is twice as fine, relative to its values, below a power of two as above it: the
phase that suits the extremes gains 0.03 dB on normal weights in groups of 64, and on other weights nothing is lost."""

AROUND = {"fast": ((1, 2), (1, 2)), "default": ((2, 4), (0, 4)), "best": ((3, 4), (2, 4))}
"""Representable scales tried below, and from the nearest one up: of the sign of the extreme, and of the other."""


def _levels(values: Array, counts: Array, scheme: Scheme) -> Array:
    """Levels (1, count) of weights with these counts."""
    k = scheme.level_count
    if scheme.options["effort"] == "fast":
        return kmeans.lloyd(values, counts, kmeans.quantiles(values, counts, k), 100)[None]
    return kmeans.optimal(values, counts, k)[None]


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Levels of the weights of a histogram."""
    return Ideal(np.ones((1, 1)), None, _levels(*histogram.distinct(seen), scheme))


def local(kernels: Kernels, tile: Tile, scheme: Scheme, store: Store = EXACT) -> Ideal | None:
    """Levels of every row of a tile."""
    if not tile.ranges(kernels).finite:
        return None
    found = []
    for row in numpy_tiles.floats(tile):
        values, counts = np.unique(row + np.float32(0), return_counts=True)
        found.append(_levels(values.astype(np.float64), counts.astype(np.float64), scheme))
    return Ideal(np.ones((tile.rows, 1)), None, np.concatenate(found))


# ---- levels shared by groups - -----------------------------------------------------------------------------------


def _representable(scales: NDArray[Any], dtype: str) -> Floats:
    raw = from_float32(scales.astype(np.float32), dtype)
    return to_float32(np.ascontiguousarray(raw).reshape(-1).view(np.uint8), dtype).reshape(scales.shape)


@lru_cache(maxsize=4)
def _e4m3_trials(effort: str) -> Floats:
    """For each of the 126 positive values of E4M3 the scales tried around it (252, trials): first for positive
    extremes, then for negative ones."""
    table = to_float32(np.arange(1, 127, dtype=np.uint8), "F8_E4M3")
    same, other = (table[np.clip(np.arange(126)[:, None] + np.arange(-a, b), 0, 125)] for a, b in AROUND[effort])
    return np.concatenate([np.hstack([same, -other]), np.hstack([-same, other])])


def _trials(extreme: Floats, factor: float, dtype: str, effort: str) -> Choices:
    """Scales to try for every group, as stored: representable ones around that of the extreme, of both signs."""
    wanted = extreme / np.float32(factor)
    if dtype == "F8_E4M3":
        table = _e4m3_trials(effort)
        place = np.maximum(from_float32(np.abs(wanted), dtype), np.uint8(1)).astype(np.int32) - np.int32(1)
        place += (wanted < 0) * np.int32(126)
        return Choices(table.ravel(), place * np.int32(table.shape[1]), table.shape[1], 0)
    sizes = _representable(np.abs(wanted.astype(np.float64))[..., None] * SPACED, dtype)
    sizes = np.maximum(sizes, _representable(np.full(1, 2.0**-14), dtype))
    signed = np.where(wanted < 0, np.float32(-1), np.float32(1))[..., None] * sizes
    spread: Floats = np.ascontiguousarray(np.stack([signed, -signed], axis=-1).reshape(*wanted.shape, -1))
    return Choices(spread, None, spread.shape[2], 0)


def _trials_of(tile: Tile, extreme: Floats, factor: float, dtype: str, effort: str) -> Choices:
    """The trials of a tile, found once: passes over the sample look at the same tiles again."""
    return tile.once(f"trials {factor} {dtype} {effort}", lambda: _trials(extreme, factor, dtype, effort))


def _book(levels: Array) -> Codebook:
    return _book_of(levels.astype(np.float32).tobytes())


@lru_cache(maxsize=64)
def _book_of(levels: bytes) -> Codebook:
    """The codebook of levels in float32: all tiles of a pass have the same."""
    return codebook(np.frombuffer(levels, np.float32)[None])


def observe(kernels: Kernels, tile: Tile, scheme: Scheme, shared: Shared | None, dtype: str) -> Observed | None:
    """The statistics of a pass: first the largest weight, then normalised weights, then sums for better levels."""
    ranges = tile.ranges(kernels)
    if not ranges.finite:
        return None
    if shared is None:
        return {"largest": np.abs(ranges.extreme).max(initial=0.0, keepdims=True)}
    if shared.step == 0:
        return _normalised(tile, ranges.extreme) | {"spacing": _spacing(ranges.extreme, dtype)}
    trials = _trials_of(tile, ranges.extreme, shared.factor, dtype, scheme.options["effort"])
    cross, square = (np.zeros(_book(shared.levels).sorted.shape[1]) for _ in range(2))
    unit = _try(kernels, tile, shared, trials, cross, square)[1]
    return {"cross": cross / unit, "square": square / unit**2}


def _try(
    kernels: Kernels, tile: Tile, shared: Shared, trials: Choices, cross: Array | None, square: Array | None
) -> tuple[NDArray[np.int32], float]:
    """The best trials, and the unit of the levels while they are tried.

    The kernels sum up more than 16 levels in float32: levels as small or large as their weights would leave its range
    at 1e-20 and 1e19. A power of two moves to the scales exactly. For few levels, which are compared in whole numbers,
    one over the smallest scale of all, 2^-14, must stay within float32.
    """
    unit = max(2.0 ** (np.frexp(shared.factor)[1] - 5), 2.0**-100 if shared.levels.size <= FEW else 2.0**-116)
    book = _book(shared.levels / unit)
    moved = replace(trials, values=trials.values * np.float32(unit))
    return kernels.trial_levels(tile, book, moved, cross, square), unit


def _spacing(extreme: Floats, dtype: str) -> Array:
    """For every phase the sum of the squared steps E4M3 has at the extremes of the groups; zeros for finer dtypes."""
    if dtype != "F8_E4M3":
        return np.zeros(len(PHASES))
    sizes = np.abs(extreme[extreme != 0].astype(np.float64))
    exponents = np.frexp(sizes / PHASES[:, None])[1]
    squares = np.ldexp(PHASES[:, None], exponents) ** 2
    total: Array = np.cumsum(np.append(np.zeros((len(PHASES), 1)), squares, axis=1), axis=1)[:, -1]
    return total


def _normalised(tile: Tile, extreme: Floats) -> Observed:
    """Weights over the extreme of their group, in bins: sums of extreme * weight and extreme^2."""
    unit = np.where(extreme == 0, np.float32(1), extreme)
    spread = np.repeat(unit, tile.group, axis=1)[:, : tile.cols].astype(np.float64)
    weights = numpy_tiles.floats(tile)
    bins = np.minimum(((weights / spread + 1) * (BINS / 2)).astype(np.int64), BINS - 1).ravel()
    return {
        "cross": np.bincount(bins, (spread * weights).ravel(), BINS),
        "square": np.bincount(bins, (spread * spread).ravel(), BINS),
    }


def merge(earlier: Observed, later: Observed) -> Observed:
    """The sums of both."""
    if "largest" in earlier:
        return {"largest": np.maximum(earlier["largest"], later["largest"])}
    return {k: earlier[k] + later[k] for k in earlier}


def learn(seen: Observed, scheme: Scheme, shared: Shared | None) -> Shared:
    """Better levels from a pass."""
    k = scheme.level_count
    if shared is None:
        largest = float(seen["largest"].max())
        # The largest scale becomes 112 to 224: twice that still fits E4M3, whose largest value is 448.
        factor = 2.0 ** (np.ceil(np.log2(largest)) - 8) * 2 if largest else 1.0
        return Shared(np.zeros(k), max(factor, 2.0**-120), 0, not largest)
    some = seen["square"] > 0
    if shared.step == 0:
        values = seen["cross"][some] / seen["square"][some]
        factor = shared.factor * float(PHASES[seen["spacing"].argmin()])
        levels = kmeans.optimal(values, seen["square"][some], k) * factor
        return Shared(levels, factor, 1, False)
    means = shared.levels.copy()
    places = np.flatnonzero(some)
    means[places] = seen["cross"][some] / seen["square"][some]
    rounds = ROUNDS[scheme.options["effort"]]
    beyond = BEYOND if shared.step <= rounds - 2 else 1.0
    levels = np.sort(shared.levels + beyond * (means - shared.levels))
    return Shared(levels, shared.factor, shared.step + 1, shared.step >= rounds)


def scales(kernels: Kernels, tile: Tile, scheme: Scheme, shared: Shared, dtype: str) -> Ideal | None:
    """Scales of the groups of a tile for the final levels; 0 for groups of zeros."""
    ranges = tile.ranges(kernels)
    if not ranges.finite:
        return None
    trials = _trials(ranges.extreme, shared.factor, dtype, scheme.options["effort"])
    best, _ = _try(kernels, tile, shared, trials, None, None)
    return Ideal(np.where(ranges.extreme == 0, 0.0, chosen(trials, best)), None, shared.levels[None])


PROVIDES = Calibrator(
    gather=histogram.GATHER,
    solve=solve,
    local=local,
    families=("learned",),
    affine=False,
    options={"effort": Option(default="default", choices=("fast", "default", "best"))},
    shared=LevelSearch(observe=observe, merge=merge, solve=learn, local=scales),
)
