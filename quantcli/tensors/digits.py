"""Codes of other numbers of levels than powers of two, several of them as the digits of one number.

Of three levels, five codes are a number below 3^5 = 243 and take one byte: 1.6 bits each, where log2(3) = 1.585 is the
least there could be and the stream of bits takes 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes

MOST_BYTES = 5
"""Most bytes of a number of digits. With one byte 3 and 6 levels take 1.6 and 2.67 bits, but 12 take 4; with five they
take 3.64 of at least 3.58. Eight would save 0.03 bits more for 5 and 7 levels, and none for 3, 6, 9 and 12."""


@dataclass(frozen=True, slots=True)
class Digits:
    """How codes are stored: `count` of them as the digits, lowest first, of a number in `size` bytes, little-endian."""

    levels: int
    count: int
    size: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of codes: whole numbers, filled up with digits of 0.

        >>> Digits(levels=3, count=5, size=1).row_bytes(64)
        13
        """
        return -(-cols // self.count) * self.size

    @property
    def below(self) -> int:
        """What every number is below."""
        return int(self.levels**self.count)


@lru_cache(maxsize=4096)
def digits_of(levels: int, bits: int, cols: int) -> Digits | None:
    """How rows of so many codes are stored in the fewest bytes; None where the stream of bits is as short.

    >>> digits_of(3, 2, 64), digits_of(6, 3, 64), digits_of(12, 4, 64)  # doctest: +NORMALIZE_WHITESPACE
    (Digits(levels=3, count=5, size=1), Digits(levels=6, count=3, size=1), Digits(levels=12, count=11, size=5))
    >>> digits_of(8, 3, 64), digits_of(15, 4, 64), digits_of(12, 4, 8)
    (None, None, None)
    """
    found = []
    for size in range(1, MOST_BYTES + 1):
        count = 0
        while levels ** (count + 1) <= 256**size:
            count += 1
        found.append(Digits(levels, count, size))
    best = min((d for d in found if d.count), key=lambda d: d.size / d.count)
    shorter = best.size * 8 < best.count * bits and best.row_bytes(cols) < row_bytes(cols, bits)
    return best if shorter else None


def canonical(codes: NDArray[Any], digits: Digits) -> NDArray[Any]:
    """Codes below the number of levels: those above stand for the largest level too, and encoders use both."""
    found: NDArray[Any] = np.minimum(codes, codes.dtype.type(digits.levels - 1))
    return found


def pack(codes: NDArray[Any], digits: Digits) -> Bytes:
    """Bytes (rows, row_bytes) of codes (rows, cols), those of the largest level made one.

    >>> pack(np.array([[2, 1, 0, 0, 2, 1]], np.uint8), Digits(3, 5, 1)).tolist()
    [[167, 1]]
    """
    rows, cols = codes.shape
    codes = canonical(codes, digits)
    numbers = digits.row_bytes(cols) // digits.size
    if cols % digits.count:
        codes = np.pad(codes, ((0, 0), (0, numbers * digits.count - cols)))
    places = codes.reshape(rows, numbers, digits.count)
    found = places[:, :, -1].astype(np.uint8 if digits.size == 1 else "<u8")
    for place in range(digits.count - 2, -1, -1):
        found *= found.dtype.type(digits.levels)
        found += places[:, :, place]
    return np.ascontiguousarray(_bytes(found)[:, :, : digits.size]).reshape(rows, -1)


def unpack(packed: Bytes, cols: int, digits: Digits) -> NDArray[np.uint8]:
    """Codes (rows, cols) of bytes (rows, row_bytes). Of numbers that are too large the excess is left out."""
    found = numbers(packed, digits)
    codes = np.empty((*found.shape, digits.count), np.uint8)
    for place in range(digits.count):
        rest = found // found.dtype.type(digits.levels)
        np.subtract(found, rest * found.dtype.type(digits.levels), out=codes[:, :, place], casting="unsafe")
        found = rest
    return codes.reshape(len(packed), -1)[:, :cols]


def numbers(packed: Bytes, digits: Digits) -> NDArray[Any]:
    """The numbers (rows, count) of bytes (rows, row_bytes)."""
    stored = packed.reshape(len(packed), -1, digits.size)
    if digits.size == 1:
        return stored[:, :, 0]
    wide = np.zeros((*stored.shape[:2], 8), np.uint8)
    wide[:, :, : digits.size] = stored
    return wide.view("<u8")[:, :, 0]


def _bytes(found: NDArray[Any]) -> Bytes:
    """The bytes (rows, count, bytes) of numbers (rows, count)."""
    return np.ascontiguousarray(found).view(np.uint8).reshape(*found.shape, found.itemsize)
