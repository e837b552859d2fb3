"""What blocks of GGUF hold: unsigned codes, and the scales of groups, of super-blocks as they are stored too.

Where in a block each of them stands is listed in the docstring of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels import BlockScales
from quantcli.layouts.small import E2M1, powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

    Codes = Callable[["Bytes"], "Bytes"]
    Scales = Callable[["Bytes"], "tuple[Floats, Floats | None]"]

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The table of IQ4_NL and IQ4_XS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a type of blocks.

    bits: of a code. codes(blocks): unsigned codes (B, weights) of blocks (B, bytes). scales(blocks): what they are
    multiplied by, and what is added, None where nothing is (B, groups). middle: what is subtracted from codes first.
    levels: what they stand for instead, where that is a table. halves: places of the float16s. stored(blocks): the
    scales of super-blocks as they are stored.
    """

    bits: int
    codes: Codes
    scales: Scales
    halves: tuple[int, ...]
    middle: int = 0
    levels: Floats | None = None
    stored: Callable[[Bytes], BlockScales] | None = None


# ---- numbers in blocks --------------------------------------------------------------------------------------------


def half(blocks: Bytes, at: int) -> Floats:
    """A float16 of every block (B, 1)."""
    return blocks.view("<f2")[:, at // 2, None].astype(np.float32)


def _fields(run: Bytes, bits: int, width: int) -> Bytes:
    """Bit fields of runs of `width` bytes (B, R * width), all low fields of a run first: (B, R * width * 8 / bits)."""
    kind = np.uint64 if width % 8 == 0 else np.uint8  # eight bytes at a time, for runs are short
    runs = np.ascontiguousarray(run).view(kind).reshape(-1, width // kind().itemsize)
    mask = kind(0x0101010101010101 * ((1 << bits) - 1) & np.iinfo(kind).max)
    found = np.empty((len(runs), 8 // bits, runs.shape[1]), kind)
    np.bitwise_and(runs, mask, out=found[:, 0])
    for number in range(1, 8 // bits):
        np.bitwise_and(runs >> kind(number * bits), mask, out=found[:, number])
    return found.view(np.uint8).reshape(len(run), -1)


def _high(codes: Bytes, high: Bytes, shift: int) -> Bytes:
    """Codes (B, a multiple of 8), which are changed, with further bits above those they have."""
    codes.view(np.uint64)[...] |= high.view(np.uint64) << np.uint64(shift)  # eight at a time: all stay in their byte
    return codes


def _low_codes(at: int, fifth: int | None, blocks: Bytes) -> Bytes:
    """Codes (B, 32) of 4 bits from a byte on, or of 5 with the fifth bits from another."""
    codes = _fields(blocks[:, at : at + 16], 4, 16)
    if fifth is None:
        return codes
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, fifth : fifth + 4]).reshape(-1), bitorder="little")
    return _high(codes, bits.reshape(-1, 32), 4)


def _bytes(blocks: Bytes) -> Bytes:
    unsigned: Bytes = blocks[:, 2:] ^ np.uint8(128)
    return unsigned


def _digits(run: Bytes, count: int) -> Bytes:
    """0, 1 or 2 for each of `count` digits of bytes that are fractions to the base 3, the first digit of all first."""
    shifted = run[:, None, :] * np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    digits = (shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    found: Bytes = digits.astype(np.uint8).reshape(len(run), -1)
    return found


def _ternary(blocks: Bytes) -> Bytes:
    return np.concatenate([_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)], 1)


def _one_scale(at: int, smallest: int | None, blocks: Bytes) -> tuple[Floats, Floats | None]:
    """The scale of every block, and its smallest value where there is one."""
    return half(blocks, at), None if smallest is None else half(blocks, smallest)


# ---- super-blocks ---------------------------------------------------------------------------------------------------


def _stored(
    blocks: Bytes, d: int, scales: NDArray[np.int8], m: int | None = None, minima: NDArray[np.uint8] | None = None
) -> BlockScales:
    """The scales of blocks whose float16s are at these places."""
    numbers = blocks.view("<u2")
    first = numbers[:, d // 2, None].copy()
    second = np.zeros_like(first) if m is None else numbers[:, m // 2, None].copy()
    return BlockScales(first, second, scales, np.zeros(scales.shape, np.uint8) if minima is None else minima)


def _six_bits(packed: Bytes) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Scales and minima (B, 8): 16 numbers of 6 bits in 12 bytes."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(63), np.uint8(4)
    scales = np.concatenate([first & low, (mixed & np.uint8(15)) | first >> np.uint8(6) << top], 1)
    return scales.view(np.int8), np.concatenate([second & low, mixed >> top | second >> np.uint8(6) << top], 1)


def _q2_k(blocks: Bytes) -> BlockScales:
    return _stored(blocks, 80, (blocks[:, :16] & np.uint8(15)).view(np.int8), 82, blocks[:, :16] >> np.uint8(4))


def _q3_k(blocks: Bytes) -> BlockScales:
    low, high = _fields(blocks[:, 96:104], 4, 8), _fields(blocks[:, 104:108], 2, 4)
    return _stored(blocks, 108, _high(low, high, 4).view(np.int8) - np.int8(32))


def _q4_k(blocks: Bytes) -> BlockScales:
    scales, minima = _six_bits(blocks[:, 4:16])
    return _stored(blocks, 0, scales, 2, minima)


def _q6_k(blocks: Bytes) -> BlockScales:
    return _stored(blocks, 208, np.ascontiguousarray(blocks[:, 192:208]).view(np.int8))


def _iq4_xs(blocks: Bytes) -> BlockScales:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = _high(_fields(blocks[:, 4:8], 4, 1), (high & np.uint16(3)).astype(np.uint8), 4)
    return _stored(blocks, 0, scales.view(np.int8) - np.int8(32))


def _scales_of(stored: Callable[[Bytes], BlockScales], affine: bool, blocks: Bytes) -> tuple[Floats, Floats | None]:
    """d * scale and, where there are minima, -(m * minimum) of every group, as ggml computes them."""
    own = stored(blocks)
    scale: Floats = own.d.view(np.float16).astype(np.float32) * own.scales
    if not affine:
        return scale, None
    lowest: Floats = own.m.view(np.float16).astype(np.float32) * own.minima
    return scale, np.negative(lowest, out=lowest)


def _super(
    bits: int,
    codes: Codes,
    stored: Callable[[Bytes], BlockScales],
    halves: tuple[int, ...],
    middle: int = 0,
    levels: Floats | None = None,
) -> Parts:
    """The parts of super-blocks."""
    scales = partial(_scales_of, stored, len(halves) > 1)
    return Parts(bits=bits, codes=codes, scales=scales, halves=halves, middle=middle, levels=levels, stored=stored)


# ---- all types ----------------------------------------------------------------------------------------------------


def _flat(bits: int, codes: Codes, halves: tuple[int, ...], middle: int = 0, levels: Floats | None = None) -> Parts:
    """The parts of blocks with one scale."""
    scales = partial(_one_scale, halves[0], halves[1] if halves[1:] else None)
    return Parts(bits=bits, codes=codes, scales=scales, halves=halves, middle=middle, levels=levels)


TYPES: Mapping[str, Parts] = {
    "Q4_0": _flat(4, partial(_low_codes, 2, None), (0,), 8),
    "Q4_1": _flat(4, partial(_low_codes, 4, None), (0, 2)),
    "Q5_0": _flat(5, partial(_low_codes, 6, 2), (0,), 16),
    "Q5_1": _flat(5, partial(_low_codes, 8, 4), (0, 2)),
    "Q8_0": _flat(8, _bytes, (0,), 128),
    "Q2_K": _super(2, lambda blocks: _fields(blocks[:, 16:80], 2, 32), _q2_k, (80, 82)),
    "Q3_K": _super(
        3, lambda blocks: _high(_fields(blocks[:, 32:96], 2, 32), _fields(blocks[:, :32], 1, 32), 2), _q3_k, (108,), 4
    ),
    "Q4_K": _super(4, lambda blocks: _fields(blocks[:, 16:], 4, 32), _q4_k, (0, 2)),
    "Q5_K": _super(
        5, lambda blocks: _high(_fields(blocks[:, 48:], 4, 32), _fields(blocks[:, 16:48], 1, 32), 4), _q4_k, (0, 2)
    ),
    "Q6_K": _super(
        6,
        lambda blocks: _high(_fields(blocks[:, :128], 4, 64), _fields(blocks[:, 128:192], 2, 32), 4),
        _q6_k,
        (208,),
        32,
    ),
    "IQ4_NL": _flat(4, partial(_low_codes, 2, None), (0,), levels=IQ4),
    "IQ4_XS": _super(4, lambda blocks: _fields(blocks[:, 8:], 4, 16), _iq4_xs, (0,), levels=IQ4),
    "MXFP4": Parts(
        bits=4,
        codes=partial(_low_codes, 1, None),
        scales=lambda blocks: (powers(blocks[:, :1]), None),
        halves=(),
        levels=E2M1 + np.float32(0),  # ggml has no negative zero
    ),
    "TQ1_0": _flat(2, _ternary, (52,), 1),
    "TQ2_0": _flat(2, lambda blocks: _fields(blocks[:, :64], 2, 32), (64,), 1),
}
"""The types of blocks that are read."""
