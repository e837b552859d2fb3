"""Second-order rounding of tiles: "no tensor is worse with them than without", by float64 and by the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_parts import NATIVE, float_of, needs_native, tile_of

from quantcli.kernels import BF16, INTEGER, CodeGrid, Kernels, QuantParams, Tile, row_bytes
from quantcli.kernels.numpy_kernels import NumpyKernels
from quantcli.metrics import decibels
from quantcli.tensors.decided import Columns, Factors
from quantcli.tensors.rounds import finish
from quantcli.tensors.second_order import SecondOrder, learned


class Given:
    """Second moments that are at hand."""

    place = ("moments",)

    def __init__(self, h: np.ndarray) -> None:
        self.h = h

    def rows(self, first: int, last: int) -> np.ndarray:
        return self.h[first:last]


def learn(table: Kernels, h: np.ndarray, count: float, factors: Factors | None = None) -> SecondOrder:
    columns: Any = Columns(h.diagonal().copy(), "", None, Given(h), count, factors=factors)  # type: ignore[arg-type]
    found: SecondOrder = finish(learned(table, columns))
    return found


def second_moments(chance: np.random.Generator, cols: int, samples: int, spread: float, mean: float) -> np.ndarray:
    """Of inputs that go together, some of which are far larger than others; degenerate where samples are few."""
    size = np.exp(spread * chance.standard_normal(cols))
    x = (chance.standard_normal((samples, cols // 4 + 1)) @ chance.standard_normal((cols // 4 + 1, cols))) * size
    x += mean * size * chance.standard_normal(cols)
    found: np.ndarray = x.T @ x / samples
    return found


def roundings(table: Kernels, tile: Tile, grid: CodeGrid, scale: np.ndarray, how: SecondOrder) -> tuple[Any, Any, Any]:
    """Values with and without statistics, and what is said of them."""
    params = QuantParams(scale.astype(np.float32))
    plain, packed = np.zeros((2, tile.rows * row_bytes(tile.cols, grid.bits)), np.uint8)
    table.encode(tile, params, grid, plain, preserve=False)
    params, output = how.better(table, tile, grid, params, (params, plain), packed)
    shape = (tile.rows, tile.cols)
    after, before = (table.decode(p, shape, tile.group, params, grid).astype(np.float64) for p in (packed, plain))
    return after, before, output


def cost(errors: np.ndarray, h: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("ri,ij,rj->r", errors, h, errors)
    return found


@needs_native
@given(data=st.data())
def test_no_row_is_worse_and_what_is_said_is_true(data: st.DataObject) -> None:
    """In float64, without a tolerance for the rows, and to 0.001 dB for the tensor."""
    assert NATIVE is not None
    chance = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    cols, samples = data.draw(st.integers(2, 300)), data.draw(st.integers(1, 900))
    h = second_moments(chance, cols, samples, data.draw(st.floats(0, 3)), data.draw(st.floats(0, 3)))
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1))
    tile = tile_of(chance.standard_t(4, (20, cols)), BF16, data.draw(st.integers(1, cols)))
    scale = chance.uniform(1, 3, (20, tile.groups)) / (1 << (bits - 1))
    how = learn(NATIVE, h, float(samples))
    after, before, output = roundings(NATIVE, tile, grid, scale, how)
    w = float_of(tile).astype(np.float64)
    own, plain, power = (cost(e, h) for e in (w - after, w - before, w))
    slack = 1e-13 * (how.damping + h.diagonal().max()) * ((w - after) ** 2).sum(axis=1)  # what float64 is off itself
    assert (own <= plain + slack).all()
    for said, exact, lost in ((output.sqnr_db, own, w - after), (output.plain_sqnr_db, plain, w - before)):
        if exact.sum() > 0.05 * how.damping * (lost**2).sum():  # else next to nothing is lost
            assert said == pytest.approx(decibels(exact.sum(), power.sum()), abs=1e-3)


@pytest.mark.parametrize("table", [NumpyKernels(), pytest.param(NATIVE, marks=needs_native)], ids=["numpy", "native"])
def test_second_order_is_taken_where_it_helps(table: Kernels) -> None:
    chance = np.random.default_rng(0)
    h = second_moments(chance, 200, 2000, 0.5, 0.5)
    grid = CodeGrid(mode=INTEGER, bits=3, umin=0, umax=7, zero=4)
    tile = tile_of(chance.standard_normal((30, 200)), BF16, 50)
    after, before, output = roundings(table, tile, grid, np.full((30, 4), 0.5), learn(table, h, 2000.0))
    w = float_of(tile).astype(np.float64)
    assert cost(w - after, h).sum() < 0.3 * cost(w - before, h).sum()
    assert (after != before).any(axis=1).all() and output.error < 0.3 * output.plain


def test_moments_are_factored_once_for_layers_that_follow_each_other_with_the_same_ones() -> None:
    """As those of q, k and v are. Other moments with the same diagonal, in rows that were not looked at, are not."""
    chance = np.random.default_rng(0)
    h = second_moments(chance, 96, 500, 0.3, 0.5)
    other = h.copy()
    other[41, 57] = other[57, 41] = h[41, 57] * (1 + 1e-12)
    table, factors = NumpyKernels(), Factors()
    first = learn(table, h, 500, factors)
    assert learn(table, h.copy(), 500, factors) is first
    second = learn(table, other, 500, factors)
    assert second is not first and second is learn(table, other, 500, factors)
    assert learn(table, h, 500, factors) is not first
