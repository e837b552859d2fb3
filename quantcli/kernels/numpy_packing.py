"""Codes of 1 to 16 bits <-> rows of whole 32-bit words, low code first: the bit stream of packing.h. Fields of blocks
as in fields.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_tiles import scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.block_types import BlockField
    from quantcli.kernels.table import Bytes


def pack(codes: NDArray[Any], bits: int, packed: Bytes) -> None:
    """Write codes (rows, cols) of `bits` bits to rows of whole 32-bit words (rows, row_bytes).

    Eight codes are squeezed into one 64-bit word in three steps, as in packing.h.
    """
    rows, cols = codes.shape
    if bits == 8 and cols % 4 == 0:
        packed[...] = codes
        return
    if bits == 4 and cols % 8 == 0 and codes.flags.c_contiguous:
        pairs = codes.view("<u2")
        high = scratch.take("pairs", pairs.shape, np.uint16)
        np.right_shift(pairs, 4, out=high)
        np.bitwise_or(pairs, high, out=high)
        np.copyto(packed, high, casting="unsafe")  # keeps the low byte
        return
    if bits > 8:
        stream = np.unpackbits(codes.astype("<u2").view(np.uint8).reshape(rows, cols, 2), axis=2, bitorder="little")
        dense = np.packbits(stream[:, :, :bits].reshape(rows, cols * bits), axis=1, bitorder="little")
        packed[...] = 0
        packed[:, : dense.shape[1]] = dense
        return
    blocks = -(-cols // 8)
    if cols % 8:
        padded = scratch.take("pad", (rows, blocks * 8), np.uint8)
        padded[:, :cols] = codes
        padded[:, cols:] = 0
        codes = padded
    v: NDArray[Any] = codes.reshape(rows, blocks * 8).view("<u8")
    pair, quad = (1 << 2 * bits) - 1, (1 << 4 * bits) - 1
    mask = pair | pair << 32
    v = (v & 0x00FF00FF00FF00FF) | (v & 0xFF00FF00FF00FF00) >> (8 - bits)
    v = (v & mask) | (v >> 16 & mask) << 2 * bits
    v = (v & quad) | (v >> 32 & quad) << 4 * bits
    dense = v.view(np.uint8).reshape(rows, blocks, 8)[:, :, :bits].reshape(rows, blocks * bits)
    width = min(packed.shape[1], dense.shape[1])
    packed[:, :width] = dense[:, :width]
    packed[:, width:] = 0


def _unpack_eights(packed: Bytes, bits: int) -> NDArray[np.uint8]:
    """Codes (n, 8) of the bytes (n, bits) that hold eight: several times as fast as bit by bit."""
    words = packed[:, 0].astype(np.uint64)
    for byte in range(1, bits):
        words |= packed[:, byte].astype(np.uint64) << np.uint64(8 * byte)
    codes = np.empty((len(packed), 8), np.uint8)
    for i in range(8):
        codes[:, i] = words >> np.uint64(bits * i)
    codes &= np.uint8((1 << bits) - 1)
    return codes


def unpack(packed: Bytes, cols: int, bits: int) -> NDArray[Any]:
    """Codes (rows, cols), uint8 up to 8 bits and uint16 above, from rows of 32-bit words."""
    rows = packed.shape[0]
    if bits == 8:
        return packed[:, :cols]
    if bits == 4:
        pairs = np.empty((rows, packed.shape[1], 2), np.uint8)
        np.bitwise_and(packed, 15, out=pairs[:, :, 0])
        np.right_shift(packed, 4, out=pairs[:, :, 1])
        return pairs.reshape(rows, -1)[:, :cols]
    if bits < 8 and cols % 8 == 0:
        return _unpack_eights(packed[:, : cols // 8 * bits].reshape(-1, bits), bits).reshape(rows, cols)
    stream = np.unpackbits(packed, axis=1, count=cols * bits, bitorder="little").reshape(rows, cols, bits)
    if bits > 8:
        dense = np.packbits(stream, axis=2, bitorder="little")
        return np.ascontiguousarray(dense).view("<u2").reshape(rows, cols)
    return np.packbits(stream, axis=2, bitorder="little").reshape(rows, cols)


def fill_blocks(packed: Bytes, cols: int, bits: int, fields: Sequence[BlockField], blocks: Bytes) -> None:
    """Write the fields of blocks (blocks, bytes) from rows of 32-bit words."""
    codes: Any = unpack(packed, cols, bits).reshape(len(blocks), -1)
    for field in fields:
        part = codes >> np.uint8(field.shift) if field.shift else codes
        if field.shift + field.bits < bits:
            part = part & np.uint8((1 << field.bits) - 1)
        deep = 8 // field.bits
        parts = part.reshape(len(blocks), -1, deep, field.run)
        found = parts[:, :, 0]
        for k in range(1, deep):
            found = found | parts[:, :, k] << np.uint8(k * field.bits)
        out = blocks[:, field.at : field.at + codes.shape[1] // deep]
        np.bitwise_xor(found.reshape(out.shape), np.uint8(field.flip), out=out)
