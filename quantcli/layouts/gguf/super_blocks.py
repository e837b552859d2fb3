"""Super-blocks of 256 weights made of codes and their scales: Q2_K to Q6_K and IQ4_XS.

The bytes are those in the picture of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.kernels import SUPER, BlockField, BlockScales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes


@dataclass(frozen=True, slots=True)
class _Picture:
    """A type: bits of a code, bytes of a block, its fields of codes, and what writes all else to blocks (B, bytes)."""

    bits: int
    size: int
    fields: tuple[BlockField, ...]
    scales: Callable[[BlockScales, Bytes], None]


def _runs(values: Bytes, bits: int, run: int) -> Bytes:
    """Bytes of fields of `bits`, the low one first: those of a run of bytes are values (B, n) one run after another."""
    count = 8 // bits
    parts = values.reshape(len(values), -1, count, run)
    found: Bytes = parts[:, :, 0].copy()
    for k in range(1, count):
        found |= parts[:, :, k] << np.uint8(k * bits)
    return found.reshape(len(values), -1)


def put_numbers(blocks: Bytes, at: int, values: NDArray[Any]) -> None:
    """Write whole numbers (B,) of one or two bytes to every block."""
    dtype = np.dtype(f"<u{values.itemsize}")
    blocks[:, at : at + dtype.itemsize].view(dtype)[:, 0] = values


def _q2_k(own: BlockScales, blocks: Bytes) -> None:
    blocks[:, :16] = own.scales.view(np.uint8) | own.minima << np.uint8(4)
    put_numbers(blocks, 80, own.d)
    put_numbers(blocks, 82, own.m)


def _q3_k(own: BlockScales, blocks: Bytes) -> None:
    scales = (own.scales + np.int8(32)).view(np.uint8)
    blocks[:, 96:104] = _runs(scales & np.uint8(15), 4, 8)
    blocks[:, 104:108] = _runs(scales >> np.uint8(4), 2, 4)
    put_numbers(blocks, 108, own.d)


def _six_bits(own: BlockScales, blocks: Bytes) -> None:
    """d and m, and in 12 bytes scales and minima (B, 8) of 6 bits."""
    scales, minima = own.scales.view(np.uint8), own.minima
    high, four = np.uint8(4), np.uint8(15)
    put_numbers(blocks, 0, own.d)
    put_numbers(blocks, 2, own.m)
    blocks[:, 4:8] = scales[:, :4] | scales[:, 4:] >> high << np.uint8(6)
    blocks[:, 8:12] = minima[:, :4] | minima[:, 4:] >> high << np.uint8(6)
    blocks[:, 12:16] = scales[:, 4:] & four | minima[:, 4:] << high


def _q6_k(own: BlockScales, blocks: Bytes) -> None:
    blocks[:, 192:208] = own.scales.view(np.uint8)
    put_numbers(blocks, 208, own.d)


def _iq4_xs(own: BlockScales, blocks: Bytes) -> None:
    scales = (own.scales + np.int8(32)).view(np.uint8)
    put_numbers(blocks, 0, own.d)
    blocks[:, 2:4] = _runs(scales >> np.uint8(4), 2, 1)
    blocks[:, 4:8] = _runs(scales & np.uint8(15), 4, 1)


_PICTURES: Mapping[str, _Picture] = {
    "Q2_K": _Picture(2, 84, (BlockField(16, 2, 32),), _q2_k),
    "Q3_K": _Picture(3, 110, (BlockField(0, 1, 32, 2), BlockField(32, 2, 32)), _q3_k),
    "Q4_K": _Picture(4, 144, (BlockField(16, 4, 32),), _six_bits),
    "Q5_K": _Picture(5, 176, (BlockField(16, 1, 32, 4), BlockField(48, 4, 32)), _six_bits),
    "Q6_K": _Picture(6, 210, (BlockField(0, 4, 64), BlockField(128, 2, 32, 4)), _q6_k),
    "IQ4_XS": _Picture(4, 136, (BlockField(8, 4, 16),), _iq4_xs),
}


def encode(kind: str, packed: Bytes, cols: int, scales: BlockScales) -> Bytes:
    """The bytes (rows, cols / 256 * size) of super-blocks of packed codes, rows of whole words."""
    picture, rows = _PICTURES[kind], len(packed)
    each = scales.scales.shape[1] // scales.d.shape[1]
    own = BlockScales(
        scales.d.reshape(-1),
        scales.m.reshape(-1),
        np.ascontiguousarray(scales.scales).reshape(-1, each),
        np.ascontiguousarray(scales.minima).reshape(-1, each),
    )
    blocks = np.empty((rows * cols // SUPER, picture.size), np.uint8)
    picture.scales(own, blocks)
    kernels.load().fill_blocks(packed, cols, picture.bits, picture.fields, blocks)
    return blocks.reshape(rows, -1)
