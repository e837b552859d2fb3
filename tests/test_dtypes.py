"""Conversions of float types against ml_dtypes and numpy, pattern by pattern."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from making import BF16, NUMPY_OF

from quantcli.dtypes import DTYPES, FROM_NUMPY, LONG_NAMES, from_float32, round_bfloat16, rounded, to_float32

FP8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def awkward_floats() -> np.ndarray:
    """Random float32 of every magnitude, subnormals, and both zeros."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    found = bits.view(np.float32)
    found = found[np.isfinite(found)]
    near = (rng.standard_normal(50_000) * 10.0 ** rng.integers(-6, 3, 50_000)).astype(np.float32)
    return np.concatenate([found, near, np.array([0, -0.0, 1e-45, -1e-45], np.float32)])


def ties(dtype: type, count: int) -> np.ndarray:
    """The float32 values halfway between neighbours of a narrower type, and what lies just beside them."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        every = np.arange(count, dtype=np.uint16 if count > 256 else np.uint8).view(dtype).astype(np.float64)
    finite = np.unique(every[np.isfinite(every)])
    middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    return np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_all_65536_patterns_of_16_bits(name: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    found = to_float32(every.view(np.uint8), name)
    expected = every.view(NUMPY_OF[name]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[finite].view(np.uint32), expected[finite].view(np.uint32))


@pytest.mark.parametrize("name", FP8)
def test_all_256_patterns_of_8_bits(name: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    found, expected = to_float32(every, name), every.view(FP8[name]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[np.isfinite(expected)]), np.signbit(expected[np.isfinite(expected)]))


@pytest.mark.parametrize("name", ["BF16", "F16", *FP8])
def test_every_pattern_is_rounded_to_itself(name: str) -> None:
    every = np.arange(65536, dtype=np.uint16) if DTYPES[name].bits == 16 else np.arange(256, dtype=np.uint8)
    values = to_float32(every.view(np.uint8), name)
    finite = np.isfinite(values)
    back = from_float32(values[finite], name).view(every.dtype)
    np.testing.assert_array_equal(back, every[finite])


def test_bfloat16_rounds_to_nearest_ties_to_even() -> None:
    largest = float(ml_dtypes.finfo(BF16).max)
    for values in (awkward_floats(), ties(BF16, 65536)):
        values = values[np.abs(values) <= largest]
        expected = values.astype(BF16).view(np.uint16)
        np.testing.assert_array_equal(round_bfloat16(values), expected)
        np.testing.assert_array_equal(from_float32(values, "BF16"), expected)


def test_float16_rounds_to_nearest_ties_to_even() -> None:
    for values in (awkward_floats(), ties(np.float16, 65536)):
        values = values[np.abs(values) < 65520]
        np.testing.assert_array_equal(
            from_float32(values, "F16").view(np.uint16), values.astype(np.float16).view(np.uint16)
        )


@pytest.mark.parametrize("name", FP8)
def test_float8_rounds_to_nearest_ties_to_even(name: str) -> None:
    largest = float(ml_dtypes.finfo(FP8[name]).max)
    for values in (awkward_floats(), ties(FP8[name], 256)):
        values = values[np.abs(values) <= largest]
        expected = values.astype(FP8[name]).view(np.uint8)
        np.testing.assert_array_equal(from_float32(values, name), expected)


@pytest.mark.parametrize("name", FP8)
def test_float8_keeps_its_largest_value_beyond_it(name: str) -> None:
    """beyond the largest finite value the largest is kept"""
    largest = float(ml_dtypes.finfo(FP8[name]).max)
    found = to_float32(from_float32(np.array([largest * 1.01, -3e38], np.float32), name), name)
    assert found.tolist() == [largest, -largest]


def test_float64_is_rounded_to_float32() -> None:
    values = np.random.default_rng(1).standard_normal(1000) * 10.0 ** np.random.default_rng(2).integers(-40, 38, 1000)
    np.testing.assert_array_equal(to_float32(values.view(np.uint8), "F64"), values.astype(np.float32))
    beyond = np.array([1e300, -1e300, np.inf, np.nan])
    assert to_float32(beyond.view(np.uint8), "F64").tolist()[:3] == [np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("name", NUMPY_OF)
def test_sizes_are_numpys(name: str) -> None:
    assert DTYPES[name].bits == NUMPY_OF[name].itemsize * 8
    assert DTYPES[name].nbytes(7) == 7 * NUMPY_OF[name].itemsize
    if DTYPES[name].numpy is not None:
        assert np.dtype(DTYPES[name].numpy) == NUMPY_OF[name]


def test_types_of_less_than_a_byte() -> None:
    assert [DTYPES["F4"].nbytes(n) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert DTYPES["F6_E2M3"].nbytes(4) == 3


def test_names() -> None:
    assert {FROM_NUMPY[np.dtype(d).str[1:]].name for d in ("f2", "f4", "f8", "i8", "?")} == \
        {"F16", "F32", "F64", "I64", "BOOL"}  # fmt: skip
    assert all(DTYPES[name].is_float for name in LONG_NAMES.values())


def test_rounding_to_float16_is_numpys() -> None:
    """Every float16, the places half way between two, what is a little beside them, small ones and large ones."""
    every = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (every[:-1] + every[1:]) / np.float32(2)
    beside = [np.nextafter(between, np.float32(side)) for side in (-1e6, 1e6)]
    tiny = np.array([0, 1e-30, 2.0**-25, 1.001 * 2.0**-25, 2.0**-14], np.float32)
    large = np.array([65504, 65519, 65520, 1e30], np.float32)
    for values in (every, between, *beside, tiny, large, np.zeros(0, np.float32)):
        for sign in (1, -1):
            with np.errstate(over="ignore"):
                wanted = (sign * values).astype(np.float16).astype(np.float32)
            found = rounded((sign * values).astype(np.float32), "F16")
            np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
