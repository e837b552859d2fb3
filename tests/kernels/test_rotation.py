"""Rotations by a regular Hadamard matrix: every variant of the kernels against the matrix itself."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_parts import TABLES, needs_native, variants
from layout_parts import hadamard

from quantcli.kernels import Kernels
from quantcli.kernels.numpy_kernels import NumpyKernels

SIZES = [4**n for n in range(1, 6)]


def rotated(table: Kernels, values: np.ndarray, size: int) -> np.ndarray:
    found: np.ndarray = values.astype(np.float32).copy()
    table.rotate(found, size)
    return found


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_matrix(table: Kernels, size: int) -> None:
    values = np.random.default_rng(size).standard_normal((3, 5 * size)).astype(np.float32)
    matrix = hadamard(size)
    np.testing.assert_array_equal(matrix @ matrix, np.eye(size))
    expected = (values.reshape(-1, size).astype(np.float64) @ matrix).reshape(3, -1)
    np.testing.assert_allclose(rotated(table, values, size), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("size", SIZES)
def test_codes_come_back_exactly(table: Kernels, size: int) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, 1 << 12).astype(np.float32)
    codes[:size] = -128
    once = rotated(table, codes, size)
    matrix = hadamard(size)
    np.testing.assert_array_equal(once, (codes.reshape(-1, size) @ matrix).ravel())
    np.testing.assert_array_equal(rotated(table, once, size), codes)


@needs_native
@pytest.mark.parametrize("size", SIZES)
def test_all_kernels_give_the_same_bytes(size: int) -> None:
    rng = np.random.default_rng(size)
    values = np.ldexp(rng.standard_normal(3 << 18), rng.integers(-149, 120, 3 << 18)).astype(np.float32)
    expected = rotated(NumpyKernels(), values, size).view(np.uint32)
    for table in variants():
        np.testing.assert_array_equal(rotated(table, values, size).view(np.uint32), expected, table.name)
