"""Sum-preserving rounding to levels of any spacing: the kernels alike, and flips by the definition of their cost."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_parts import KINDS, TABLES, float_of, needs_native, per_weight, tile_of, variants

from quantcli import Scheme
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import LEVELS, CodeGrid, Kernels, QuantParams, Sums, Tile, row_bytes
from quantcli.kernels.codebook import Codebook, codebook
from quantcli.kernels.numpy_kernels import NumpyKernels

FORMATS = ["nf4", "fp4", "fp8-e4m3", "fp8-e5m2", "iq4", "a-law"]
SHAPES = [(1, 1, 1), (3, 7, 7), (2, 96, 32), (4, 100, 32), (9, 130, 64), (2, 1024, 128), (1, 5000, 5000)]


def fixed(name: str) -> tuple[Codebook, CodeGrid]:
    scheme = Scheme(format=name, group_size=32)
    book = fixed_codebook(scheme)
    assert book is not None
    return book, code_grid(scheme)


def learned(count: int, tables: int, seed: int) -> tuple[Codebook, CodeGrid]:
    """Levels that no rule spaces; of several tables some repeat, as those of rows with few weights do."""
    rng = np.random.default_rng(seed)
    bits = max(count - 1, 1).bit_length()
    levels = np.full((tables, 1 << bits), np.nan)
    levels[:, :count] = np.sort(rng.standard_normal((tables, count)) * 2, axis=1)
    if tables > 1:
        levels[::2, count - 1] = levels[::2, count - 2]
    return codebook(levels), CodeGrid(mode=LEVELS, bits=bits, umin=0, umax=count - 1)


def scales(tile: Tile, top: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (tile.rows, -(-tile.cols // tile.group))
    found: np.ndarray = (rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape) * 2 / top).astype(np.float32)
    return found


def cases(tile: Tile, seed: int) -> list[tuple[str, QuantParams, CodeGrid]]:
    books = [(name, *fixed(name)) for name in FORMATS]
    books += [(f"{n} levels", *learned(n, 1, seed)) for n in (2, 3, 6, 16, 200)]
    books += [(f"{n} levels a row", *learned(n, tile.rows, seed)) for n in (4, 16, 40)]
    return [
        (name, QuantParams(scales(tile, float(np.nanmax(np.abs(book.levels))), seed), None, book), grid)
        for name, book, grid in books
    ]


def encoded(
    table: Kernels, tile: Tile, params: QuantParams, grid: CodeGrid, *, preserve: bool
) -> tuple[np.ndarray, Sums]:
    packed = np.zeros(tile.rows * row_bytes(tile.cols, grid.bits), np.uint8)
    sums = table.encode(tile, params, grid, packed, preserve=preserve)
    assert table.measure(tile, params, grid, packed) == sums
    return packed, sums


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_kernels_flip_alike(shape: tuple[int, int, int]) -> None:
    """the same bytes on any CPU, with C++ or numpy kernels"""
    rows, cols, group = shape
    rng = np.random.default_rng(cols)
    for kind in KINDS:
        for digits in (1, 9):  # equal weights make equal costs
            tile = tile_of(np.round(rng.standard_normal((rows, cols)) + 0.1, digits), kind, group)
            for name, params, grid in cases(tile, cols):
                expected = encoded(NumpyKernels(), tile, params, grid, preserve=True)
                for table in variants():
                    found = encoded(table, tile, params, grid, preserve=True)
                    assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1], (name, table.name)


@pytest.mark.parametrize("table", TABLES)
def test_flips_go_to_the_next_level_and_are_the_cheapest_for_their_part_of_the_sum(table: Kernels) -> None:
    """by definition: a flip takes a weight to the level on the other side of it, and raises the squared error least for
    what it takes off the sum"""
    for rows, cols, group in ((6, 384, 96), (30, 9, 9), (2, 1500, 128)):
        rng = np.random.default_rng(cols)
        tile = tile_of(rng.standard_normal((rows, cols)) + 0.1, 2, group)
        for name, params, grid in cases(tile, cols):
            assert params.codebook is not None
            plain, preserved = (encoded(table, tile, params, grid, preserve=p)[0] for p in (False, True))
            old, new = (table.decode(p, (rows, cols), group, params, grid).astype(float) for p in (plain, preserved))
            x, scale = float_of(tile).astype(float), per_weight(params.scale, tile).astype(float)
            for row in range(rows):
                levels = np.unique(params.codebook.sorted[0 if params.codebook.tables == 1 else row]).astype(float)
                assert_cheapest(name, x[row], old[row], new[row], levels, scale[row])


def assert_cheapest(
    name: str, x: np.ndarray, old: np.ndarray, new: np.ndarray, levels: np.ndarray, scale: np.ndarray
) -> None:
    """Of one row whose weights were `old` rounded to nearest, and are `new`."""
    error = x - old
    sign = np.sign(error.sum())
    far = (levels[None, :] * scale[:, None] - old[:, None]) * sign
    least = 1e-5 * np.abs(old) + 1e-3 * np.diff(levels).min(initial=np.inf) * np.abs(scale)
    step = np.where(far > least[:, None], far, np.inf).min(axis=1)
    moved = np.abs(new - old) > least
    assert np.allclose(np.abs(new - old)[moved], step[moved], rtol=1e-2), name
    assert (error[moved] * sign > 0).all(), name
    able = (error * sign > 0) & np.isfinite(step)
    cost = step - 2 * np.abs(error)  # step * (step - 2 |e|) for a part of the sum of `step`
    if moved.any() and (able & ~moved).any():
        assert cost[moved].max() <= cost[able & ~moved].min() + 1e-4, name
    left = (x - new).sum()
    assert abs(left) <= abs(error.sum()) + 1e-4, name
    if able.any():  # it stops where a flip brings the sum no nearer to 0, or none is left
        assert (able & ~moved).sum() == 0 or abs(left) <= step[able].max() / 2 + 1e-4, name
