"""Second-order rounding: both kernel tables, the textbook's GPTQ with dense inverses, and enumeration.

Sums in float32 are held to TIE, by which costs must differ to count as different (tensors/second_order.py).
"""

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
from quantcli.kernels.feedback import PANEL, Costs, Feedback, block_of, narrowed, panels_of, triangle
from quantcli.kernels.numpy_kernels import NumpyKernels
from quantcli.kernels.table import Coded
from quantcli.tensors.second_order import TIE


def moments(cols: int, samples: int, seed: int = 0) -> np.ndarray:
    """Second moments of inputs that go together."""
    chance = np.random.default_rng(seed)
    mixed = chance.standard_normal((samples, cols)) @ (np.eye(cols) + chance.standard_normal((cols, cols)) / 4) + 0.3
    found: np.ndarray = mixed.T @ mixed / samples + 0.01 * np.eye(cols)
    return found


def factors(h: np.ndarray, table: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """The triangle in blocks, and the pivots."""
    cols, panels = len(h), panels_of(len(h))
    filled = np.eye(panels * PANEL)
    filled[:cols, :cols] = h
    wide, pivots, spare = triangle(cols), np.zeros(panels * PANEL), np.zeros((2, panels, PANEL, PANEL))
    for column in range(panels):
        for row in range(column + 1):
            wide[block_of(row, column)] = filled[row * PANEL :, column * PANEL :][:PANEL, :PANEL]
    for own in reversed(range(panels)):
        assert table.factor(wide, own, 0, range(0), 0.0, spare, pivots)
        for step in (1, 2):
            for rows in (range(own // 2), range(own // 2, own)):
                table.factor(wide, own, step, rows, 0.0, spare, pivots)
    return wide, pivots


def factored(h: np.ndarray, table: Kernels, order: np.ndarray | None = None) -> Feedback:
    order = np.arange(len(h)) if order is None else order
    wide, pivots = factors(h[np.ix_(order, order)], table)
    return Feedback(order.astype(np.int32), pivots, narrowed(wide))


def ranked(mean: np.ndarray, variance: np.ndarray, order: np.ndarray) -> Feedback:
    m, v = mean[order], variance[order]
    behind = np.concatenate([np.cumsum((m * m / v)[::-1])[::-1][1:], [0.0]])
    pivots = v + m * m / (1 + behind)
    return Feedback(order.astype(np.int32), pivots, None, m, v, m / (v * (1 + behind) + m * m))


SIGNED = CodeGrid(mode=INTEGER, bits=3, umin=0, umax=7, zero=4)


def rounded(
    table: Kernels, tile: Tile, params: QuantParams, grid: CodeGrid, how: Feedback, given: Any = None
) -> tuple[Any, Costs]:
    """Codes, and what they cost; beside others, all of which are 0 where none are given."""
    size = tile.rows * row_bytes(tile.cols, grid.bits)
    packed = np.zeros(size, np.uint8)
    other = Coded(params, np.zeros(size, np.uint8) if given is None else given)
    return packed, table.feedback(tile, grid, how, Coded(params, packed), other)


def of_output(errors: np.ndarray, h: np.ndarray) -> np.ndarray:
    """What errors of rows cost, from the definition."""
    found: np.ndarray = np.einsum("ri,ij,rj->r", errors, h, errors)
    return found


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("cols", [1, 64, 65, 200])
def test_factors_make_up_the_moments(table: Kernels, cols: int) -> None:
    h = moments(cols, 3 * cols)
    wide, pivots = factors(h, table)
    upper = np.zeros((len(pivots), len(pivots)))
    for column in range(len(pivots) // PANEL):
        for row in range(column + 1):
            upper[row * PANEL :, column * PANEL :][:PANEL, :PANEL] = wide[block_of(row, column)]
    upper = np.triu(upper, 1) + np.eye(len(pivots))
    again = upper * pivots @ upper.T
    np.testing.assert_allclose(again[:cols, :cols], h, rtol=0, atol=1e-13 * h.diagonal().max() * cols)
    np.testing.assert_array_equal(again[cols:, cols:], np.eye(len(pivots) - cols))


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
    other = chance.integers(0, 256, 40 * row_bytes(cols, 3)).astype(np.uint8)
    packed, found = rounded(table, tile, params, SIGNED, factored(h, table), other)
    values, given_ = (table.decode(p, (40, cols), 16, params, SIGNED).astype(np.float64) for p in (packed, other))
    wanted = gptq(w, h, np.repeat(scale.astype(np.float64), 16, axis=1)[:, :cols], -4, 3)
    assert np.mean(np.abs(values - wanted) > 1e-6) < 0.002  # float32 quotients may fall on the other side of a tie
    for kind, errors in enumerate((w - values, w - given_, w)):
        np.testing.assert_allclose(found.cost[kind], of_output(errors, h), rtol=TIE)
        np.testing.assert_allclose(found.square[kind], (errors**2).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_it_is_near_the_best_there_is(table: Kernels) -> None:
    """of all codes of six columns, and never worse on average than rounding to nearest"""
    h, chance = moments(6, 40, seed=3), np.random.default_rng(1)
    grid = CodeGrid(mode=INTEGER, bits=2, umin=0, umax=3, zero=2)
    tile = tile_of(chance.standard_normal((30, 6)), F32, 6)
    w, scale = tile.weights.reshape(30, 6).astype(np.float64), np.full((30, 1), 0.6, np.float32)
    params = QuantParams(scale)
    cost = rounded(table, tile, params, grid, factored(h, table))[1].cost[0]
    choices = np.array(list(itertools.product([-2, -1, 0, 1], repeat=6))) * float(scale[0, 0])
    every = w[:, None, :] - choices
    best = np.einsum("rci,ij,rcj->rc", every, h, every).min(axis=1)
    near = w - np.clip(np.rint(w / float(scale[0, 0])), -2, 1) * float(scale[0, 0])
    plain = np.einsum("ri,ij,rj->r", near, h, near)
    assert (cost >= best * (1 - TIE)).all()
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
    same = (fast[0] == full[0]).reshape(33, -1).all(axis=1)
    np.testing.assert_allclose(fast[1].cost[:, same], full[1].cost[:, same], rtol=TIE)


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
            for column in range(panels_of(cols)):
                for row in range(column + 1):
                    both = [f.triangle[block_of(row, column)] for f in (how, every[0][1]) if f.triangle is not None]
                    if row == column:
                        both = [np.triu(block, 1) for block in both]
                    assert both[0].tobytes() == both[1].tobytes(), (cols, row, column)
    else:
        how = ranked(chance.standard_normal(cols), chance.uniform(0.1, 2, cols), order)
        every = [(t, how) for t in (NumpyKernels(), *variants())]
    other = chance.integers(0, 256, rows * row_bytes(cols, bits)).astype(np.uint8)
    found = [rounded(table, tile, params, grid, how, other) for table, how in every]
    for packed, costs in found:
        assert [v.tobytes() for v in (packed, *costs)] == [v.tobytes() for v in (found[0][0], *found[0][1])], (
            rows, cols, group, mode, bits,
        )  # fmt: skip
