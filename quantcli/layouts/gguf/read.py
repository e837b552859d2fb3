"""Blocks of GGUF as float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import BlockScales, Form
from quantcli.layouts.gguf import parts
from quantcli.layouts.gguf.parts import IQ4, fields, half
from quantcli.layouts.reader import Found, Held, Read, not_moved
from quantcli.layouts.small import E2M1, powers
from quantcli.layouts.stored import wrong
from quantcli.scales.super_blocks import TYPES, parameters
from quantcli.scheme import IN_SUPER_BLOCKS
from quantcli.stores.gguf_types import Block
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

KEY = "gguf"
"""The key under which `find` gets the blocks of a GGUF in place of config.json."""


def _fifth_bits(four: Bytes) -> NDArray[np.uint8]:
    """16 where bit j of 4 bytes is set, else 0 (B, 32)."""
    bits: NDArray[np.uint8] = np.unpackbits(four, axis=1, bitorder="little") << np.uint8(4)
    return bits


def _low_codes(blocks: Bytes, at: int, fifth: int | None = None) -> NDArray[np.uint8]:
    """Codes (B, 32) of 4 bits from a byte on, or of 5 with the fifth bits from another."""
    codes = fields(blocks[:, at : at + 16], 4, 16).reshape(-1, 32)
    return codes if fifth is None else codes | _fifth_bits(blocks[:, fifth : fifth + 4])


def _bytes(blocks: Bytes) -> NDArray[np.uint8]:
    unsigned: NDArray[np.uint8] = blocks[:, 2:] ^ np.uint8(128)
    return unsigned


UNIFORM: Mapping[str, tuple[Callable[[Bytes], NDArray[np.uint8]], int | None]] = {
    "Q4_0": (lambda blocks: _low_codes(blocks, 2), None),
    "Q4_1": (lambda blocks: _low_codes(blocks, 4), 2),
    "Q5_0": (lambda blocks: _low_codes(blocks, 6, 2), None),
    "Q5_1": (lambda blocks: _low_codes(blocks, 8, 4), 2),
    "Q8_0": (_bytes, None),
    "IQ4_NL": (lambda blocks: _low_codes(blocks, 2), None),
    "MXFP4": (lambda blocks: _low_codes(blocks, 1), None),
}
"""Codes (B, 32) of the blocks with a scale, of whole numbers unsigned, and the place of a smallest value, if any."""


def _q4_0(blocks: Bytes) -> Floats:
    signed: NDArray[np.int8] = _low_codes(blocks, 2).astype(np.int8) - np.int8(8)
    return signed.astype(np.float32) * half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _low_codes(blocks, 4).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    signed: NDArray[np.int8] = _low_codes(blocks, 6, 2).astype(np.int8) - np.int8(16)
    return signed.astype(np.float32) * half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    return _low_codes(blocks, 8, 4).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half(blocks, 0)


def _grouped(codes: NDArray[Any], scale: Floats, offset: Floats | None = None) -> Floats:
    """scale * code - offset: codes (B, 256), scale and offset (B, groups)."""
    found = codes.reshape(len(codes), scale.shape[1], -1).astype(np.float32)
    found *= scale[:, :, None]
    if offset is not None:
        found -= offset[:, :, None]
    return found.reshape(len(codes), -1)


def _in_super_blocks(kind: str) -> Callable[[Bytes], Floats]:
    """What decodes super-blocks of a type: scale * code - minimum, as ggml computes it."""
    split, block = parts.SPLIT[kind], TYPES[kind]
    middle = np.int8(1 << (block.bits - 1))

    def decode(blocks: Bytes) -> Floats:
        codes, own = split(blocks)
        scale = own.d.view(np.float16).astype(np.float32) * own.scales.astype(np.float32)
        if block.form == Form.AFFINE:
            return _grouped(codes, scale, own.m.view(np.float16).astype(np.float32) * own.minima.astype(np.float32))
        return _grouped(IQ4[codes] if block.form == Form.TABLE else codes.view(np.int8) - middle, scale)

    return decode


def _iq4_nl(blocks: Bytes) -> Floats:
    found: Floats = IQ4[fields(blocks[:, 2:], 4, 16).reshape(-1, 32)]
    return found * half(blocks, 0)


def _mxfp4(blocks: Bytes) -> Floats:
    found: Floats = (E2M1 + np.float32(0))[fields(blocks[:, 1:], 4, 16).reshape(-1, 32)]  # ggml has no negative zero
    with np.errstate(over="ignore"):
        found *= powers(blocks[:, :1])
    return found


def _digits(run: Bytes, count: int) -> NDArray[np.int8]:
    """-1, 0 or 1 for each of `count` digits of bytes that are fractions to the base 3, the first digit of all first."""
    shifted = run[:, None, :] * np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    digits = (shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    found: NDArray[np.int8] = digits.astype(np.int8).reshape(len(run), -1) - np.int8(1)
    return found


def _tq1_0(blocks: Bytes) -> Floats:
    codes = [_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)]
    found: Floats = np.concatenate(codes, 1).astype(np.float32)
    return found * half(blocks, 52)


def _tq2_0(blocks: Bytes) -> Floats:
    codes: NDArray[np.int8] = fields(blocks[:, :64], 2, 32).reshape(-1, 256).astype(np.int8) - np.int8(1)
    return codes.astype(np.float32) * half(blocks, 64)


DECODERS: Mapping[str, tuple[int, Callable[[Bytes], Floats], tuple[int, ...]]] = {
    "Q4_0": (4, _q4_0, (0,)),
    "Q4_1": (4, _q4_1, (0, 2)),
    "Q5_0": (5, _q5_0, (0,)),
    "Q5_1": (5, _q5_1, (0, 2)),
    "Q8_0": (8, _q8_0, (0,)),
    "Q2_K": (2, _in_super_blocks("Q2_K"), (80, 82)),
    "Q3_K": (3, _in_super_blocks("Q3_K"), (108,)),
    "Q4_K": (4, _in_super_blocks("Q4_K"), (0, 2)),
    "Q5_K": (5, _in_super_blocks("Q5_K"), (0, 2)),
    "Q6_K": (6, _in_super_blocks("Q6_K"), (208,)),
    "IQ4_NL": (4, _iq4_nl, (0,)),
    "IQ4_XS": (4, _in_super_blocks("IQ4_XS"), (0,)),
    "MXFP4": (4, _mxfp4, ()),
    "TQ1_0": (2, _tq1_0, (52,)),
    "TQ2_0": (2, _tq2_0, (64,)),
}
"""Bits of a code, float32 (B, weights) of blocks (B, bytes), and the positions of the float16s in a block."""


def _blocks(name: str, block: Block, read: Read, first: int, last: int) -> Bytes:
    """The blocks (B, bytes) that some rows are in. Raises DataError where a scale is not finite."""
    size, cols = block.type.bytes, block.shape[-1]
    begin, end = first * cols // block.type.weights, -(-last * cols // block.type.weights)
    blocks = read(name, begin * size, (end - begin) * size).reshape(-1, size)
    no_number = block.type.name == "MXFP4" and (blocks[:, 0] == 255).any()
    if no_number or not all(np.isfinite(half(blocks, at)).all() for at in DECODERS[block.type.name][2]):
        raise wrong(name, "a scale is not finite")
    return blocks


def _decode(name: str, block: Block, read: Read, first: int, last: int) -> Floats:
    cols = block.shape[-1]
    found = DECODERS[block.type.name][1](_blocks(name, block, read, first, last)).reshape(-1)
    begin = first * cols % block.type.weights  # 0 but for rows that are not whole blocks
    return found[begin : begin + (last - first) * cols].reshape(last - first, cols)


def _held(name: str, block: Block, read: Read) -> Held:
    """The codes of blocks with one scale."""
    bits = DECODERS[block.type.name][0]
    codes_of, smallest = UNIFORM[block.type.name]
    small = block.type.name == "MXFP4"
    row = block.type.bytes * (block.shape[-1] // block.type.weights)

    def packed(first: int, last: int) -> Bytes:
        blocks = read(name, first * row, (last - first) * row).reshape(-1, block.type.bytes)
        return packing.pack(np.ascontiguousarray(codes_of(blocks)).reshape(last - first, -1), bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        blocks = _blocks(name, block, read, first, last)
        scale = (powers(blocks[:, 0]) if small else half(blocks, 0)).reshape(last - first, -1)
        return scale, None if smallest is None else half(blocks, smallest).reshape(last - first, -1)

    return Held(
        format={"MXFP4": "fp4", "IQ4_NL": "iq4"}.get(block.type.name, "int"),
        bits=bits,
        group=block.type.weights,
        offsets="" if smallest is None else "float",
        scale_dtype="F8_E8M0" if small else "F16",
        packed=packed,
        params=params,
    )


def _held_in_super_blocks(name: str, block: Block, read: Read) -> Held:
    """The codes of super-blocks, with their scales as they are stored."""
    kind, cols = block.type.name, block.shape[-1]
    row = block.type.bytes * (cols // block.type.weights)

    def packed(first: int, last: int) -> Bytes:
        codes, _ = parts.SPLIT[kind](read(name, first * row, (last - first) * row).reshape(-1, block.type.bytes))
        return packing.pack(np.ascontiguousarray(codes).reshape(last - first, cols), TYPES[kind].bits)

    def stored(first: int, last: int) -> BlockScales:
        _, own = parts.SPLIT[kind](_blocks(name, block, read, first, last))
        rows = last - first
        return BlockScales(
            own.d.reshape(rows, -1), own.m.reshape(rows, -1), own.scales.reshape(rows, -1), own.minima.reshape(rows, -1)
        )

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        return parameters(stored(first, last), TYPES[kind])

    return Held(
        format="iq4" if TYPES[kind].form == Form.TABLE else "int",
        bits=TYPES[kind].bits,
        group=TYPES[kind].sub,
        offsets="float" if TYPES[kind].form == Form.AFFINE else "",
        scale_dtype=IN_SUPER_BLOCKS,
        packed=packed,
        params=params,
        blocks=stored,
    )


def _codes_of(name: str, block: Block) -> Callable[[Read], Held | str]:
    """What gives the codes of a tensor where layouts may hold them."""
    if block.shape[-1] % block.type.weights:
        return not_moved
    if block.type.name in parts.SPLIT:
        return partial(_held_in_super_blocks, name, block)
    return partial(_held, name, block) if block.type.name in UNIFORM else not_moved


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that a GGUF stores in blocks."""
    blocks, found = config.get(KEY), []
    for name, info in infos.items():
        block = blocks.get(name) if isinstance(blocks, Mapping) else None
        if not isinstance(block, Block):
            continue
        if block.type.name not in DECODERS:
            raise wrong(name, f"{block.type.name} blocks are not supported", f"supported: {', '.join(DECODERS)}")
        if info.numel == 0:
            raise wrong(name, "it is empty")
        found.append(
            Found(
                name=name,
                shape=block.shape,
                scheme=block.type.name,
                bits=DECODERS[block.type.name][0],
                parts=(info,),
                decode=partial(_decode, name, block),
                held=_codes_of(name, block),
            )
        )
    return found
