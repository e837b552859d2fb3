"""What super-blocks of GGUF hold: codes, and the scales of groups as they are stored.

The bytes are those in the picture of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels import BlockScales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

    Split = Callable[["Bytes"], "tuple[NDArray[np.uint8], BlockScales]"]

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The table of IQ4_NL and IQ4_XS."""


def half(blocks: Bytes, at: int) -> Floats:
    """A float16 of every block (B, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def fields(run: Bytes, bits: int, width: int) -> NDArray[np.uint8]:
    """Bit fields of runs of `width` bytes (B, R * width): (B, R, 8 / bits, width), the low field first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    found: NDArray[np.uint8] = (run.reshape(len(run), -1, 1, width) >> shifts) & np.uint8((1 << bits) - 1)
    return found


def _codes(run: Bytes, bits: int, width: int) -> NDArray[np.uint8]:
    return fields(run, bits, width).reshape(-1, 256)


def _stored(
    blocks: Bytes, d: int, scales: NDArray[np.int8], m: int | None = None, minima: NDArray[np.uint8] | None = None
) -> BlockScales:
    """The scales of blocks whose float16s are at these places."""
    first = np.ascontiguousarray(blocks[:, d : d + 2]).view("<u2")
    second = np.zeros_like(first) if m is None else np.ascontiguousarray(blocks[:, m : m + 2]).view("<u2")
    return BlockScales(first, second, scales, np.zeros(scales.shape, np.uint8) if minima is None else minima)


def _six_bits(packed: Bytes) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Scales and minima (B, 8): 16 numbers of 6 bits in 12 bytes."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(63), np.uint8(4)
    scales = np.concatenate([first & low, (mixed & np.uint8(15)) | first >> np.uint8(6) << top], 1)
    return scales.view(np.int8), np.concatenate([second & low, mixed >> top | second >> np.uint8(6) << top], 1)


def _q2_k(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    scales, minima = (blocks[:, :16] & np.uint8(15)).view(np.int8), blocks[:, :16] >> np.uint8(4)
    return _codes(blocks[:, 16:80], 2, 32), _stored(blocks, 80, scales, 82, minima)


def _q3_k(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    codes = _codes(blocks[:, 32:96], 2, 32) | _codes(blocks[:, :32], 1, 32) << np.uint8(2)
    packed = blocks[:, 96:108]
    scales = fields(packed[:, :8], 4, 8).reshape(-1, 16) | fields(packed[:, 8:], 2, 4).reshape(-1, 16) << np.uint8(4)
    return codes, _stored(blocks, 108, scales.view(np.int8) - np.int8(32))


def _q4_k(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    scales, minima = _six_bits(blocks[:, 4:16])
    return _codes(blocks[:, 16:], 4, 32), _stored(blocks, 0, scales, 2, minima)


def _q5_k(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    scales, minima = _six_bits(blocks[:, 4:16])
    codes = _codes(blocks[:, 48:], 4, 32) | _codes(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return codes, _stored(blocks, 0, scales, 2, minima)


def _q6_k(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    codes = _codes(blocks[:, :128], 4, 64) | _codes(blocks[:, 128:192], 2, 32) << np.uint8(4)
    return codes, _stored(blocks, 208, np.ascontiguousarray(blocks[:, 192:208]).view(np.int8))


def _iq4_xs(blocks: Bytes) -> tuple[NDArray[np.uint8], BlockScales]:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = fields(blocks[:, 4:8], 4, 1).reshape(-1, 8) | (high & np.uint16(3)).astype(np.uint8) << np.uint8(4)
    return _codes(blocks[:, 8:], 4, 16), _stored(blocks, 0, scales.view(np.int8) - np.int8(32))


SPLIT: Mapping[str, Split] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
"""Unsigned codes (B, 256) and the scales of blocks (B, bytes)."""
