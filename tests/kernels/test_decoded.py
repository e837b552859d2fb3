"""Differences of decoded weights and their rounding, in every set of kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_parts import TABLES, needs_native, variants
from making import BF16

from quantcli.kernels import Kernels
from quantcli.kernels.numpy_kernels import NumpyKernels

SIZES = (0, 1, 255, 256, 257, 5000, (1 << 15) + 300)


def runs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    before = rng.standard_normal(n).astype(np.float32) * np.float32(10.0) ** rng.integers(-30, 15, n).astype(np.float32)
    return before, before + (rng.standard_normal(n) * 0.01).astype(np.float32)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("n", SIZES)
def test_differences_are_those_of_exact_sums(table: Kernels, n: int) -> None:
    before, after = runs(n)
    error = before.astype(np.float64) - after
    sse, power, largest = table.difference(before, after)
    assert sse == pytest.approx(math.fsum(error**2), rel=1e-13)
    assert power == pytest.approx(math.fsum(before.astype(np.float64) ** 2), rel=1e-13)
    assert largest == np.abs(error).max(initial=0.0)


@needs_native
@pytest.mark.parametrize("n", SIZES)
def test_all_sets_of_kernels_agree(n: int) -> None:
    before, after = runs(n)
    for table in variants():
        assert table.difference(before, after) == NumpyKernels().difference(before, after)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows(table: Kernels, bad: float) -> None:
    before, after = runs(700)
    for side in (before, after):
        kept, side[300] = side[300], bad
        assert not math.isfinite(sum(table.difference(before, after)[:2]))
        side[300] = kept


@pytest.mark.parametrize("table", TABLES)
def test_rounding_to_bfloat16_is_that_of_a_cast(table: Kernels) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        assert (table.bfloat16(values) == values.astype(BF16).view(np.uint16)).all()
