"""Second-order rounding: both kernel tables, the textbook's GPTQ with dense inverses, and enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_parts import TABLES, needs_native, tile_of, variants

from quantcli.kernels import BF16, F16, F32, INTEGER, LEVELS, OFFSET, CodeGrid, Kernels, QuantParams, Tile, row_bytes
from quantcli.kernels.codebook import codebook
from quantcli.kernels.feedback import PANEL, Done, Feedback, panel_of, triangle_size
from quantcli.kernels.numpy_kernels import NumpyKernels


def moments(cols: int, samples: int, seed: int = 0) -> np.ndarray:
    """Second moments of inputs that go together."""
    chance = np.random.default_rng(seed)
    mixed = chance.standard_normal((samples, cols)) @ (np.eye(cols) + chance.standard_normal((cols, cols)) / 4) + 0.3
    found: np.ndarray = mixed.T @ mixed / samples + 0.01 * np.eye(cols)
    return found


def factored(h: np.ndarray, table: Kernels, order: np.ndarray | None = None) -> Feedback:
    cols = len(h)
    order = np.arange(cols) if order is None else order
    triangle, pivots, raw = np.zeros(triangle_size(cols)), np.zeros(cols), np.zeros((PANEL, cols))
    turned = h[np.ix_(order, order)]
    for first in range(0, cols, PANEL):
        panel_of(triangle, cols, first)[:] = turned[first : first + PANEL, first:]
    for first in reversed(range(0, cols, PANEL)):
        assert table.factor(triangle, cols, first, 0, range(0), 0.0, raw, pivots)
        for step in (1, 2):
            for rows in (range(first // 2), range(first // 2, first)):
                table.factor(triangle, cols, first, step, rows, 0.0, raw, pivots)
    return Feedback(order.astype(np.int32), pivots, triangle)


def ranked(mean: np.ndarray, variance: np.ndarray, order: np.ndarray) -> Feedback:
    m, v = mean[order], variance[order]
    behind = np.concatenate([np.cumsum((m * m / v)[::-1])[::-1][1:], [0.0]])
    return Feedback(order.astype(np.int32), v + m * m / (1 + behind), None, m, m / (v * (1 + behind) + m * m))


SIGNED = CodeGrid(mode=INTEGER, bits=3, umin=0, umax=7, zero=4)


def rounded(table: Kernels, tile: Tile, params: QuantParams, grid: CodeGrid, how: Feedback) -> tuple[Any, Any, Any]:
    packed = np.zeros(tile.rows * row_bytes(tile.cols, grid.bits), np.uint8)
    cost, square = table.feedback(tile, params, grid, how, Done.CHOSEN, packed)
    return packed, cost, square


def gptq(w: np.ndarray, h: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """The algorithm as published, with a dense inverse and numpy's Cholesky."""
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w, found = w.copy(), np.zeros_like(w)
    for k in range(w.shape[1]):
        found[:, k] = np.clip(np.rint(w[:, k] / scale[:, k]), low, high) * scale[:, k]
        w[:, k:] -= np.outer((w[:, k] - found[:, k]) / upper[k, k], upper[k, k:])
    return found


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("cols", [5, 64, 150])
def test_it_is_gptq(table: Kernels, cols: int) -> None:
    chance = np.random.default_rng(cols)
    h = moments(cols, 3 * cols)
    tile = tile_of(chance.standard_normal((40, cols)), F32, 16)
    w = tile.weights.reshape(40, cols).astype(np.float64)
    scale = chance.uniform(0.3, 0.5, (40, tile.groups)).astype(np.float32)
    params = QuantParams(scale)
    packed, cost, square = rounded(table, tile, params, SIGNED, factored(h, table))
    values = table.decode(packed, (40, cols), 16, params, SIGNED).astype(np.float64)
    wanted = gptq(w, h, np.repeat(scale.astype(np.float64), 16, axis=1)[:, :cols], -4, 3)
    assert np.mean(np.abs(values - wanted) > 1e-6) < 0.002  # float32 quotients may fall on the other side of a tie
    error = w - values
    np.testing.assert_allclose(cost, np.einsum("ri,ij,rj->r", error, h, error), rtol=1e-9)
    np.testing.assert_allclose(square, (error**2).sum(axis=1), rtol=1e-12)
    cost, _ = table.feedback(tile, params, SIGNED, factored(h, table), Done.GIVEN, packed)
    np.testing.assert_allclose(cost, np.einsum("ri,ij,rj->r", error, h, error), rtol=1e-9)
    power, square = table.feedback(tile, None, SIGNED, factored(h, table), Done.ALL_LOST, None)
    np.testing.assert_allclose(power, np.einsum("ri,ij,rj->r", w, h, w), rtol=1e-9)
    np.testing.assert_allclose(square, (w**2).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_it_is_near_the_best_there_is(table: Kernels) -> None:
    """of all codes of six columns, and never worse on average than rounding to nearest"""
    h, chance = moments(6, 40, seed=3), np.random.default_rng(1)
    grid = CodeGrid(mode=INTEGER, bits=2, umin=0, umax=3, zero=2)
    tile = tile_of(chance.standard_normal((30, 6)), F32, 6)
    w, scale = tile.weights.reshape(30, 6).astype(np.float64), np.full((30, 1), 0.6, np.float32)
    params = QuantParams(scale)
    _, cost, _ = rounded(table, tile, params, grid, factored(h, table))
    choices = np.array(list(itertools.product([-2, -1, 0, 1], repeat=6))) * float(scale[0, 0])
    every = w[:, None, :] - choices
    best = np.einsum("rci,ij,rcj->rc", every, h, every).min(axis=1)
    near = w - np.clip(np.rint(w / float(scale[0, 0])), -2, 1) * float(scale[0, 0])
    plain = np.einsum("ri,ij,rj->r", near, h, near)
    assert (cost >= best * (1 - 1e-9)).all()
    assert cost.sum() < 0.75 * plain.sum() and cost.sum() < 1.5 * best.sum()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("cols", [3, 70])
def test_vectors_are_the_matrix_that_they_stand_for(table: Kernels, cols: int) -> None:
    chance = np.random.default_rng(cols)
    mean, variance, order = chance.standard_normal(cols), chance.uniform(0.1, 2, cols), chance.permutation(cols)
    h = np.outer(mean, mean) + np.diag(variance)
    tile = tile_of(chance.standard_normal((33, cols)), F32, 32)
    params = QuantParams(chance.uniform(0.3, 0.5, (33, tile.groups)).astype(np.float32))
    fast = rounded(table, tile, params, SIGNED, ranked(mean, variance, order))
    full = rounded(table, tile, params, SIGNED, factored(h, table, order))
    assert np.mean(fast[0] != full[0]) < 0.002
    np.testing.assert_allclose(fast[1], full[1], rtol=1e-6)


@needs_native
@given(data=st.data())
def test_every_table_gives_the_same_bytes(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 200))
    kind: Any = data.draw(st.sampled_from([BF16, F16, F32]))
    group = data.draw(st.integers(1, cols))
    chance = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    tile = tile_of(chance.standard_t(4, (rows, cols)), kind, group)
    shared = data.draw(st.booleans())
    shape = (1 if shared else rows, tile.groups)
    scale = chance.uniform(0.1, 0.5, shape).astype(np.float32) * chance.choice([-1, 0, 1, 1], shape).astype(np.float32)
    zero, book, mode = None, None, data.draw(st.sampled_from([INTEGER, OFFSET, LEVELS]))
    bits = data.draw(st.sampled_from([2, 4, 8, 12]))
    if mode == OFFSET:
        zero = chance.standard_normal(shape).astype(np.float32)
    elif mode == INTEGER and data.draw(st.booleans()):
        zero = chance.integers(0, 1 << bits, shape).astype(np.float32)
    elif mode == LEVELS:
        own = 1 if shared or data.draw(st.booleans()) else rows
        book = codebook(np.sort(chance.standard_normal((own, 1 << bits)), axis=1))
    midrise = mode != LEVELS and data.draw(st.booleans())
    grid = CodeGrid(mode=mode, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1), midrise=midrise)
    params, order = QuantParams(scale, zero, book), chance.permutation(cols)
    if data.draw(st.booleans()):
        h = moments(cols, 2 * cols)
        every = [(t, factored(h, t, order)) for t in (NumpyKernels(), *variants())]
        for _, how in every:
            assert how.pivots.tobytes() == every[0][1].pivots.tobytes()
            for first in range(0, cols, PANEL):
                both = [
                    np.triu(panel_of(f.triangle, cols, first), 1) for f in (how, every[0][1]) if f.triangle is not None
                ]
                assert both[0].tobytes() == both[1].tobytes(), (cols, first)
    else:
        how = ranked(chance.standard_normal(cols), chance.uniform(0.1, 2, cols), order)
        every = [(t, how) for t in (NumpyKernels(), *variants())]
    found = [rounded(table, tile, params, grid, how) for table, how in every]
    given_ = [table.feedback(tile, params, grid, how, Done.GIVEN, found[0][0]) for table, how in every]
    lost = [table.feedback(tile, None, grid, how, Done.ALL_LOST, None) for table, how in every]
    for results in (found, given_, lost):
        for one in results:
            assert [v.tobytes() for v in one] == [v.tobytes() for v in results[0]], (rows, cols, group, mode, bits)
