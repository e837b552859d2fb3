"""Codebooks in the kernels: thresholds, codes, trials and optimal levels against exact arithmetic, and both tables."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_parts import KINDS, NATIVE, TABLES, float_of, needs_native, per_weight, tile_of, tried, variants

from quantcli.calibrators.searches import histogram, kmeans
from quantcli.kernels import (
    BF16,
    F16,
    F32,
    LEVELS,
    Choices,
    CodeGrid,
    Kernels,
    Kind,
    QuantParams,
    Sums,
    Tile,
    row_bytes,
)
from quantcli.kernels.codebook import Codebook, codebook
from quantcli.kernels.numpy_kernels import NumpyKernels

COUNTS = [2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 200, 255, 256]
SHAPES = [(4, 256, 128), (3, 100, 32), (7, 33, 5), (2, 1500, 1500), (5, 1, 1), (64, 9, 9), (2, 257, 64), (1, 40, 1)]


def library_tables() -> list[Kernels]:
    """The native table in every variant this CPU can run, then numpy's."""
    found: list[Kernels] = [*variants(), NumpyKernels()]
    return found


def levels_of(count: int, tables: int, seed: int, *, repeated: int = 0) -> np.ndarray:
    """Ascending levels (tables, count) of which the last ones may repeat, and by code in a shuffled order."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.uniform(-1, 1, (tables, count)).astype(np.float32), axis=1)
    if repeated:
        levels[:, -repeated:] = levels[:, -repeated - 1 : -repeated]
    return levels[:, rng.permutation(count)]


def tile_with_ties(rows: int, cols: int, group: int, kind: Kind, seed: int) -> Tile:
    """Weights among which there are zeros of both signs, and small dyadic numbers that tie."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols))
    chosen = rng.random((rows, cols)) < 0.3
    values[chosen] = rng.choice(np.array([0.0, -0.0, 0.5, -0.25, 0.125, 3.0, -3.0]), int(chosen.sum()))
    return tile_of(values, kind, min(group, cols))


def encoded(table: Kernels, tile: Tile, params: QuantParams, grid: CodeGrid) -> tuple[np.ndarray, Sums]:
    packed = np.zeros(tile.rows * row_bytes(tile.cols, grid.bits), np.uint8)
    sums = table.encode(tile, params, grid, packed)
    assert table.measure(tile, params, grid, packed) == sums
    return packed, sums


# ---- thresholds --------------------------------------------------------------------------------------------------


@given(levels=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=20))
def test_a_threshold_is_the_largest_float_not_above_the_middle(levels: list[float]) -> None:
    book = codebook(np.array([levels], np.float32))
    ordered = sorted(levels)
    for low, high, threshold in zip(ordered, ordered[1:], book.thresholds[0]):
        # float64 holds the sum of two levels unless they are 2^29 apart; then the middle is off by less than 2^-52.
        middle = Fraction((low + high) / 2)
        assert Fraction(float(threshold)) <= middle < Fraction(float(np.nextafter(threshold, np.float32(np.inf))))


def test_a_weight_in_the_middle_goes_to_the_lower_level() -> None:
    book = codebook(np.array([[1.0, -1.0, 0.0, 0.5]]))  # by code; -1, 0, 0.5, 1 are codes 1, 2, 3, 0
    tile = Tile(np.array([-0.5, 0.25, 0.75, 0.75000006, 9.0, -9.0, 1.25, 1.2500001], np.float32), F32, 1, 8, 8)
    grid = CodeGrid(mode=LEVELS, bits=2, umin=0, umax=3)
    for table in (NumpyKernels(), *([NATIVE] if NATIVE else [])):
        packed, sums = encoded(table, tile, QuantParams(np.ones((1, 1), np.float32), None, book), grid)
        codes = [int(packed[i // 4]) >> 2 * (i % 4) & 3 for i in range(8)]
        assert codes == [1, 2, 3, 0, 0, 1, 0, 0]
        assert sums.clipped == 3  # 9, -9 and what is beyond 1.25, half a step past the last level


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2], ids=["e4m3", "e5m2"])
def test_ties_to_even_are_those_of_a_cast(dtype: type) -> None:
    """Every middle of two neighbours and the floats next to it."""
    levels = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    levels[~np.isfinite(levels)] = np.nan
    book = codebook(levels[None], ties_to_even=True)
    values = book.sorted[0].astype(np.float64)
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(s)) for s in (-np.inf, np.inf)]
    weights = np.concatenate([middles, *near])
    places = np.searchsorted(book.thresholds[0, : len(values) - 1], weights, side="left")
    np.testing.assert_array_equal(book.sorted[0][places], weights.astype(dtype).astype(np.float32))


# ---- codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("count", [2, 5, 16, 17, 100])
def test_codes_are_the_nearest_levels(table: Kernels, count: int) -> None:
    """By exact comparison of distances, quotient by quotient, and the decoded value is one float32 product."""
    bits = max(1, (count - 1).bit_length())
    levels = np.full((1, 1 << bits), np.nan, np.float32)
    levels[:, :count] = levels_of(count, 1, count)
    book, tile = codebook(levels), tile_with_ties(3, 50, 16, F32, count)
    scale = np.array([[0.5, -0.7, 3.0, 0.1]] * 3, np.float32)
    grid = CodeGrid(mode=LEVELS, bits=bits, umin=0, umax=count - 1)
    params = QuantParams(scale, None, book)
    packed, _ = encoded(table, tile, params, grid)
    values = table.decode(packed, (3, 50), 16, params, grid)
    weights, scales = float_of(tile), per_weight(scale, tile)
    ascending = sorted(float(v) for v in levels[0, :count])
    for weight, s, value in zip(weights.ravel(), scales.ravel(), values.ravel()):
        quotient = Fraction(float(weight / s))
        nearest = min(ascending, key=lambda level: (abs(quotient - Fraction(level)), level))
        assert value == np.float32(nearest) * s


@needs_native
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
@pytest.mark.parametrize("count", COUNTS)
def test_every_table_and_variant_encodes_alike(count: int, per_row: bool) -> None:
    tables, bits = library_tables(), max(1, (count - 1).bit_length())
    for number, (rows, cols, group) in enumerate(SHAPES):
        for kind in KINDS:
            tile = tile_with_ties(rows, cols, group, kind, number)
            repeated = count // 3 if number % 2 else 0
            levels = np.full((rows if per_row else 1, 1 << bits), np.nan, np.float32)
            levels[:, :count] = levels_of(count, len(levels), number, repeated=repeated)
            rng = np.random.default_rng(number)
            shape = (rows, -(-cols // tile.group))
            scale = rng.choice(np.array([1, -0.5, 0.3, 2.5], np.float32), shape)
            params = QuantParams(scale, None, codebook(levels))
            grid = CodeGrid(mode=LEVELS, bits=bits, umin=0, umax=count - 1)
            packed, sums = encoded(tables[0], tile, params, grid)
            values = tables[0].decode(packed, (rows, cols), tile.group, params, grid)
            for table in tables[1:]:
                theirs, their_sums = encoded(table, tile, params, grid)
                np.testing.assert_array_equal(theirs, packed, err_msg=table.name)
                assert their_sums == sums, table.name
                decoded = table.decode(packed, (rows, cols), tile.group, params, grid)
                np.testing.assert_array_equal(decoded.view(np.uint32), values.view(np.uint32), err_msg=table.name)


# ---- trials ------------------------------------------------------------------------------------------------------


def squared_error(weights: np.ndarray, scale: float, book: Codebook) -> float:
    return float((np.abs(weights[:, None] - scale * book.sorted[0].astype(np.float64)).min(axis=1) ** 2).sum())


@needs_native
@pytest.mark.parametrize("trials", [1, 2, 7, 8, 9, 12, 64])
@pytest.mark.parametrize("count", [2, 8, 9, 16, 17, 256])
def test_every_table_and_variant_tries_alike(count: int, trials: int) -> None:
    book = codebook(np.sort(levels_of(count, 1, 5)))
    rng = np.random.default_rng(trials)
    for number, (rows, cols, group) in enumerate(SHAPES):
        tile = tile_with_ties(rows, cols, group, KINDS[number % 3], number)
        shape = (rows, -(-cols // tile.group), trials)
        sizes = rng.uniform(0.5, 4, shape)
        if number % 2:  # nearly equal trials: the last digits of the sums, and so their order, decide
            sizes = sizes[..., :1] * (1 + 1e-6 * rng.integers(0, 9, shape))
        trial = (sizes * rng.choice([-1, 1], (*shape[:2], 1))).astype(np.float32)
        found = []
        for table in library_tables():
            cross, square = np.zeros(count), np.zeros(count)
            found.append([tried(table, tile, book, trial, cross, square), cross, square])
            np.testing.assert_array_equal(tried(table, tile, book, trial, None, None), found[-1][0])
        for other in found[1:]:
            for ours, theirs in zip(found[0], other):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("table", TABLES)
def test_the_best_trial_and_the_sums_are_brute_force(table: Kernels) -> None:
    book, tile = codebook(np.sort(levels_of(16, 1, 3))), tile_with_ties(6, 100, 32, BF16, 4)
    rng = np.random.default_rng(0)
    trial = (rng.uniform(1, 4, (6, 4, 8)) * rng.choice([-1, 1], (6, 4, 8))).astype(np.float32)
    cross, square = np.full(16, 3.0), np.full(16, 5.0)  # sums go on top of what is there
    best = tried(table, tile, book, trial, cross, square)
    weights, wanted = float_of(tile).astype(np.float64), np.tile([[3.0], [5.0]], 16)
    for row, group in np.ndindex(6, 4):
        part = weights[row, group * 32 : (group + 1) * 32]
        errors = [squared_error(part, float(s), book) for s in trial[row, group]]
        assert errors[best[row, group]] == pytest.approx(min(errors), rel=1e-5)
        scale = float(trial[row, group, best[row, group]])
        places = np.abs(part[:, None] / scale - book.sorted[0].astype(np.float64)).argmin(axis=1)
        np.add.at(wanted[0], places, scale * part)
        np.add.at(wanted[1], places, scale * scale)
    np.testing.assert_allclose([cross, square], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_trials_from_a_list_are_those_written_out(table: Kernels) -> None:
    rng, book = np.random.default_rng(2), codebook(np.sort(levels_of(16, 1, 3)))
    values = (rng.uniform(1, 4, 40) * rng.choice([-1, 1], 40)).astype(np.float32)
    for group in (16, 100, 32):
        tile = tile_with_ties(9, 100, group, BF16, 4)
        first = rng.integers(0, 33, (9, tile.groups)).astype(np.int32)
        listed = table.trial_levels(tile, book, Choices(values, first, 7, 0), None, None)
        trial = np.ascontiguousarray(values[first[..., None] + np.arange(7)])
        np.testing.assert_array_equal(listed, tried(table, tile, book, trial, None, None))


@pytest.mark.parametrize("table", TABLES)
def test_the_first_of_equal_trials_counts(table: Kernels) -> None:
    book, tile = codebook(np.array([[-1.0, -0.5, 0.5, 1.0]])), tile_of(np.array([[0.5, -1.0, 1.0, 0.5]] * 2), BF16, 4)
    trial = np.array([[[3.0, 1.0, -1.0, 1.0]], [[-1.0, 1.0, 1.0, 3.0]]], np.float32)  # 1 and -1 are exact
    np.testing.assert_array_equal(tried(table, tile, book, trial, None, None), [[1], [0]])


# ---- optimal levels ----------------------------------------------------------------------------------------------


def fisher(values: np.ndarray, counts: np.ndarray, k: int) -> float:
    """Least squared error of k cells: every place of every cut, O(k n^2), costs from the values themselves."""
    n = len(values)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            mean = np.average(values[i:j], weights=counts[i:j])
            cost[i, j] = (counts[i:j] * (values[i:j] - mean) ** 2).sum()
    best = cost[0].copy()
    best[0] = np.inf
    for _ in range(k - 1):
        best = np.array([min((best[i] + cost[i, j] for i in range(j)), default=np.inf) for j in range(n + 1)])
    return float(best[n])


@pytest.mark.parametrize("table", ["numpy", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize(("shift", "power"), [(0, 1), (0, 3), (1000, 1)], ids=["normal", "peaked", "far-from-0"])
def test_optimal_levels_are_fishers(monkeypatch: pytest.MonkeyPatch, table: str, shift: float, power: int) -> None:
    from quantcli import kernels

    monkeypatch.setenv("QUANTCLI_KERNELS", table)
    kernels.load.cache_clear()
    try:
        rng = np.random.default_rng(power)
        for n, k in ((20, 2), (40, 7), (70, 16), (33, 32)):
            values = np.unique(rng.standard_normal(n) ** power + shift)
            counts = rng.integers(1, 50, len(values)).astype(np.float64)
            levels = kmeans.optimal(values, counts, k)
            error = float((counts * ((values[:, None] - levels) ** 2).min(axis=1)).sum())
            assert error == pytest.approx(fisher(values, counts, k), rel=1e-9, abs=1e-12)
    finally:
        kernels.load.cache_clear()


# ---- histograms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
def test_distinct_values_are_numpys(table: Kernels, kind: Kind) -> None:
    tile = tile_with_ties(9, 777, 777, kind, 3)
    size = 1 << (20 if kind == F32 else 16)
    counts, lows = np.zeros(size, np.int64), np.zeros(size, np.int64) if kind == F32 else None
    assert table.histogram(tile, counts, lows)
    seen = {"counts": counts, "kind": kind} | ({"lows": lows} if lows is not None else {})
    values, often = histogram.distinct(seen)
    weights = float_of(tile).ravel() + np.float32(0)
    assert (np.diff(values) > 0).all() and often.sum() == weights.size
    if kind in (BF16, F16):
        expected, expected_counts = np.unique(weights, return_counts=True)
        np.testing.assert_array_equal(values, expected.astype(np.float64))
        np.testing.assert_array_equal(often, expected_counts)
    else:  # means of bins that share 20 bits: the sum stays, and every weight has a value within 2^-11 of it
        assert (values * often).sum() == pytest.approx(weights.astype(np.float64).sum(), rel=1e-12)
        near = values[np.abs(values[:, None] - weights[None, :200]).argmin(axis=0)]
        assert (np.abs(near - weights[:200]) <= np.abs(weights[:200]) * 2.0**-11).all()
