"""Super-blocks of 256 weights made of codes and their scales: Q2_K to Q6_K and IQ4_XS.

The bytes are those in the picture of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import SUPER, BlockScales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes

    Made = Callable[["Bytes", BlockScales], list[NDArray[Any]]]


def _fields(values: Bytes, bits: int, run: int) -> Bytes:
    """Bytes of fields of `bits`, the low one first: those of a run of bytes are values (B, n) one run after another."""
    count = 8 // bits
    parts = values.reshape(len(values), -1, count, run)
    found: Bytes = parts[:, :, 0].copy()
    for k in range(1, count):
        found |= parts[:, :, k] << np.uint8(k * bits)
    return found.reshape(len(values), -1)


def _d(values: NDArray[np.uint16]) -> Bytes:
    """The bytes of float16s (B,)."""
    return values.astype("<u2").view(np.uint8).reshape(len(values), -1)


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Scales and minima (B, 8) of 6 bits in 12 bytes."""
    high, four = np.uint8(4), np.uint8(15)
    first = scales[:, :4] | scales[:, 4:] >> high << np.uint8(6)
    second = minima[:, :4] | minima[:, 4:] >> high << np.uint8(6)
    return np.concatenate([first, second, scales[:, 4:] & four | minima[:, 4:] << high], axis=1)


def _q2_k(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    return [own.scales.view(np.uint8) | own.minima << np.uint8(4), _fields(codes, 2, 32), _d(own.d), _d(own.m)]


def _q3_k(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    scales = (own.scales + np.int8(32)).view(np.uint8)
    packed = [_fields(scales & np.uint8(15), 4, 8), _fields(scales >> np.uint8(4), 2, 4)]
    return [_fields(codes >> np.uint8(2), 1, 32), _fields(codes & np.uint8(3), 2, 32), *packed, _d(own.d)]


def _q4_k(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    return [_d(own.d), _d(own.m), _six_bits(own.scales.view(np.uint8), own.minima), _fields(codes, 4, 32)]


def _q5_k(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    high = _fields(codes >> np.uint8(4), 1, 32)
    scales = _six_bits(own.scales.view(np.uint8), own.minima)
    return [_d(own.d), _d(own.m), scales, high, _fields(codes & np.uint8(15), 4, 32)]


def _q6_k(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    low = _fields(codes & np.uint8(15), 4, 64)
    return [low, _fields(codes >> np.uint8(4), 2, 32), own.scales.view(np.uint8), _d(own.d)]


def _iq4_xs(codes: Bytes, own: BlockScales) -> list[NDArray[Any]]:
    scales = (own.scales + np.int8(32)).view(np.uint8)
    high = _fields(scales >> np.uint8(4), 2, 1)
    return [_d(own.d), high, _fields(scales & np.uint8(15), 4, 1), _fields(codes, 4, 16)]


_MADE: Mapping[str, Made] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}


def encode(kind: str, codes: Bytes, blocks: BlockScales) -> Bytes:
    """The bytes (rows, cols / 256 * size) of super-blocks of unsigned codes (rows, cols)."""
    each = blocks.scales.shape[1] // blocks.d.shape[1]
    own = BlockScales(
        blocks.d.reshape(-1),
        blocks.m.reshape(-1),
        np.ascontiguousarray(blocks.scales).reshape(-1, each),
        np.ascontiguousarray(blocks.minima).reshape(-1, each),
    )
    parts = _MADE[kind](np.ascontiguousarray(codes).reshape(-1, SUPER), own)
    found: Bytes = np.concatenate(parts, axis=1)
    return found.reshape(len(codes), -1)
