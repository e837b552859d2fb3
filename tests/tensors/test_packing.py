"""The bit stream against Python's big integers and against worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantcli import Scheme
from quantcli.kernels import row_bytes
from quantcli.tensors import packing

SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 331]


def codes_of(rows: int, cols: int, bits: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 1 << bits, (rows, cols))
    return found.astype(np.uint8 if bits <= 8 else np.uint16)


def stream_of(codes: np.ndarray, bits: int) -> bytes:
    """The stream by its definition: value i of a row in bits [i*b, (i+1)*b), rows filled up to 32-bit words."""
    found = b""
    for row in codes.tolist():
        whole = sum(code << (i * bits) for i, code in enumerate(row))
        found += whole.to_bytes((len(row) * bits + 31) // 32 * 4, "little")
    return found


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_stream_is_its_definition(bits: int) -> None:
    for rows in (1, 2, 5):
        for cols in SIZES:
            codes = codes_of(rows, cols, bits)
            packed = packing.pack(codes, bits)
            assert packed.tobytes() == stream_of(codes, bits)
            assert packed.shape == (rows, row_bytes(cols, bits))


@pytest.mark.parametrize("bits", range(1, 17))
def test_unpacking_gives_the_codes_back(bits: int) -> None:
    """unpack(pack(x)) == x"""
    for rows, cols in ((1, 1), (3, 33), (2, 100), (7, 64)):
        for codes in (codes_of(rows, cols, bits), np.full((rows, cols), (1 << bits) - 1), np.zeros((rows, cols), int)):
            found = packing.unpack(packing.pack(codes, bits), rows, cols, bits)
            np.testing.assert_array_equal(found, codes)
            assert found.dtype == (np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("bits", range(1, 17))
def test_padding_bits_are_zero(bits: int) -> None:
    for cols in SIZES:
        packed = packing.pack(np.full((1, cols), (1 << bits) - 1), bits)
        assert int.from_bytes(packed.tobytes(), "little") == (1 << cols * bits) - 1


@pytest.mark.parametrize(("bits", "codes", "expected"), [
    (4, range(8), "10 32 54 76"),
    (4, [q + 8 for q in range(-8, 2)], "10 32 54 76 98 00 00 00"),
    (3, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], "88 c6 fa 88 06 00 00 00"),
    (5, [31, 1, 2, 3, 4, 5, 6, 7], "3f 88 41 8a 39 00 00 00"),
    (6, [1, 5, 9, 13, 17, 21, 25, 29], "41 91 34 51 95 75 00 00"),
])  # fmt: skip
def test_examples_worked_by_other_writers(bits: int, codes: list[int], expected: str) -> None:
    assert packing.pack(np.array([list(codes)], np.uint8), bits).tobytes() == bytes.fromhex(expected)


def test_zero_points_run_down_the_columns() -> None:
    """Ten output rows, two groups, 4 bits: the first column holds 0, 2, 4 .. 14, 0, 2."""
    zero = np.stack([np.array([0, 2, 4, 6, 8, 10, 12, 14, 0, 2]), np.arange(10)], axis=1).astype(np.uint8)
    words = packing.pack_columns(zero, 4)
    assert words.shape == (2, 2)
    assert words[:, 0].tolist() == [0xECA86420, 0x00000020]
    assert words[:, 1].tolist() == [0x76543210, 0x00000098]
    np.testing.assert_array_equal(packing.unpack_columns(words, 10, 4), zero)


@given(st.integers(1, 16), st.integers(1, 80), st.integers(1, 6), st.integers(0, 1000))
def test_columns_are_packed_like_rows(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = codes_of(rows, groups, bits, seed)
    words = packing.pack_columns(codes, bits)
    assert words.dtype == np.uint32 and words.shape == ((rows * bits + 31) // 32, groups)
    for group in range(groups):
        assert np.ascontiguousarray(words[:, group]).tobytes() == stream_of(codes[:, group][None], bits)
    np.testing.assert_array_equal(packing.unpack_columns(words, rows, bits), codes)


def test_codes_as_people_count_them() -> None:
    every = np.arange(16, dtype=np.uint8)[None]
    assert packing.signed(every, Scheme(bits=4)).tolist() == [list(range(-8, 8))]
    assert packing.signed(every, Scheme(bits=4)).dtype == np.int8
    assert packing.signed(every, Scheme(bits=4, symmetric=False)) is every
    assert packing.signed(np.array([[0, 1]], np.uint8), Scheme(bits=1)).tolist() == [[-1, 1]]
    wide = packing.signed(np.array([[0, 65535]], np.uint16), Scheme(bits=16))
    assert wide.tolist() == [[-32768, 32767]] and wide.dtype == np.int16


@pytest.mark.parametrize(("bits", "dtype"), [(7, np.int8), (8, np.int8), (9, np.int16), (16, np.int16)])
def test_signed_codes_have_the_smallest_dtype_that_holds_them(bits: int, dtype: type) -> None:
    """int8, or int16 above 8 bits"""
    ends = np.array([[0, (1 << bits) - 1]], np.uint8 if bits <= 8 else np.uint16)
    found = packing.signed(ends, Scheme(bits=bits))
    assert found.dtype == dtype and found.tolist() == [[-(1 << bits - 1), (1 << bits - 1) - 1]]
