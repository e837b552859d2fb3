"""Codes <-> dense little-endian bit stream, and unsigned codes <-> the signed ones shown to users.

Layouts such as compressed-tensors, MLX and ONNX share the stream of the kernels: row by row, low code first, each row
filled up with zero bits to whole 32-bit words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.kernels import row_bytes
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Bytes (rows, row_bytes) of unsigned codes (rows, cols).

    >>> pack(np.arange(8, dtype=np.uint8)[None], 4).tobytes().hex()
    '10325476'
    """
    packed = np.empty((codes.shape[0], row_bytes(codes.shape[1], bits)), np.uint8)
    kernels.load().pack(codes.astype(np.uint8 if bits <= 8 else np.uint16), bits, packed)
    return packed


def unpack(packed: NDArray[np.uint8], rows: int, cols: int, bits: int) -> NDArray[Any]:
    """Unsigned codes (rows, cols) of a bit stream: uint8, or uint16 above 8 bits."""
    return kernels.load().unpack(packed.reshape(rows, row_bytes(cols, bits)), cols, bits)


def signed(codes: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """Codes as the scheme numbers them: around 0 for symmetric integers, from 0 otherwise."""
    if not scheme.symmetric or scheme.family != "int":
        return codes
    if scheme.bits == 1:
        return (codes.astype(np.int8) * 2 - 1).astype(np.int8)
    wide = codes.astype(np.int32) - (1 << (scheme.bits - 1))
    return wide.astype(np.int8 if scheme.bits <= 8 else np.int16)


def pack_columns(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Words (ceil(rows * bits / 32), cols) of codes (rows, cols), the stream running down each column: the layout of
    compressed-tensors' zero points."""
    return np.ascontiguousarray(pack(np.ascontiguousarray(codes.T), bits).view("<u4").T)


def unpack_columns(words: NDArray[Any], rows: int, bits: int) -> NDArray[Any]:
    """Codes (rows, cols) of words (ceil(rows * bits / 32), cols)."""
    columns = np.ascontiguousarray(words.T).view(np.uint8)
    return np.ascontiguousarray(unpack(columns, words.shape[1], rows, bits).T)
