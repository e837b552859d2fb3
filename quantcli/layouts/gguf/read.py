"""Blocks of GGUF as float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.reader import Found, Held, Read, not_moved
from quantcli.layouts.small import E2M1, powers
from quantcli.layouts.stored import wrong
from quantcli.stores.gguf_types import Block
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

KEY = "gguf"
"""The key under which `find` gets the blocks of a GGUF in place of config.json."""


def _half(blocks: Bytes, at: int) -> Floats:
    """A float16 of every block (B, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _fields(run: Bytes, bits: int, width: int) -> NDArray[np.uint8]:
    """Bit fields of runs of `width` bytes (B, R * width): (B, R, 8 / bits, width), the low field first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields: NDArray[np.uint8] = (run.reshape(len(run), -1, 1, width) >> shifts) & np.uint8((1 << bits) - 1)
    return fields


def _fifth_bits(four: Bytes) -> NDArray[np.uint8]:
    """16 where bit j of 4 bytes is set, else 0 (B, 32)."""
    bits: NDArray[np.uint8] = np.unpackbits(four, axis=1, bitorder="little") << np.uint8(4)
    return bits


def _low_codes(blocks: Bytes, at: int, fifth: int | None = None) -> NDArray[np.uint8]:
    """Codes (B, 32) of 4 bits from a byte on, or of 5 with the fifth bits from another."""
    codes = _fields(blocks[:, at : at + 16], 4, 16).reshape(-1, 32)
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
    "MXFP4": (lambda blocks: _low_codes(blocks, 1), None),
}
"""Codes (B, 32) of the blocks with a scale, of whole numbers unsigned, and the place of a smallest value, if any."""


def _q4_0(blocks: Bytes) -> Floats:
    signed: NDArray[np.int8] = _low_codes(blocks, 2).astype(np.int8) - np.int8(8)
    return signed.astype(np.float32) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _low_codes(blocks, 4).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    signed: NDArray[np.int8] = _low_codes(blocks, 6, 2).astype(np.int8) - np.int8(16)
    return signed.astype(np.float32) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    return _low_codes(blocks, 8, 4).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _grouped(codes: NDArray[Any], scale: Floats, offset: Floats | None = None) -> Floats:
    """scale * code - offset: codes (B, 256), scale and offset (B, groups)."""
    found = codes.reshape(len(codes), scale.shape[1], -1).astype(np.float32)
    found *= scale[:, :, None]
    if offset is not None:
        found -= offset[:, :, None]
    return found.reshape(len(codes), -1)


def _q2_k(blocks: Bytes) -> Floats:
    scales = blocks[:, :16]
    codes = _fields(blocks[:, 16:80], 2, 32).reshape(-1, 256)
    scale = _half(blocks, 80) * (scales & np.uint8(15)).astype(np.float32)
    return _grouped(codes, scale, _half(blocks, 82) * (scales >> np.uint8(4)).astype(np.float32))


def _q3_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, 32:96], 2, 32).reshape(-1, 256)
    high = _fields(blocks[:, :32], 1, 32).reshape(-1, 256) << np.uint8(2)
    packed = blocks[:, 96:108]
    scales = _fields(packed[:, :8], 4, 8).reshape(-1, 16)
    scales = scales | _fields(packed[:, 8:], 2, 4).reshape(-1, 16) << np.uint8(4)
    scale = _half(blocks, 108) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32)
    return _grouped((low | high).astype(np.int8) - np.int8(4), scale)


def _scales_and_offsets(blocks: Bytes) -> tuple[Floats, Floats]:
    """d * sc and dm * m (B, 8) of Q4_K and Q5_K: 16 numbers of 6 bits in 12 bytes."""
    packed = blocks[:, 4:16]
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(63), np.uint8(4)
    scale = np.concatenate([first & low, (mixed & np.uint8(15)) | first >> np.uint8(6) << top], 1)
    offset = np.concatenate([second & low, mixed >> top | second >> np.uint8(6) << top], 1)
    return _half(blocks, 0) * scale.astype(np.float32), _half(blocks, 2) * offset.astype(np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    return _grouped(_fields(blocks[:, 16:], 4, 32).reshape(-1, 256), *_scales_and_offsets(blocks))


def _q5_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, 48:], 4, 32).reshape(-1, 256)
    high = _fields(blocks[:, 16:48], 1, 32).reshape(-1, 256) << np.uint8(4)
    return _grouped(low | high, *_scales_and_offsets(blocks))


def _q6_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, :128], 4, 64).reshape(-1, 256)
    high = _fields(blocks[:, 128:192], 2, 32).reshape(-1, 256) << np.uint8(4)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _grouped((low | high).astype(np.int8) - np.int8(32), scale)


IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The table of IQ4_NL and IQ4_XS."""


def _iq4_nl(blocks: Bytes) -> Floats:
    found: Floats = IQ4[_fields(blocks[:, 2:], 4, 16).reshape(-1, 32)]
    return found * _half(blocks, 0)


def _iq4_xs(blocks: Bytes) -> Floats:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = _fields(blocks[:, 4:8], 4, 1).reshape(-1, 8) | (high & np.uint16(3)).astype(np.uint8) << np.uint8(4)
    scale = _half(blocks, 0) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32)
    return _grouped(IQ4[_fields(blocks[:, 8:], 4, 16).reshape(-1, 256)], scale)


def _mxfp4(blocks: Bytes) -> Floats:
    found: Floats = (E2M1 + np.float32(0))[_fields(blocks[:, 1:], 4, 16).reshape(-1, 32)]  # ggml has no negative zero
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
    return found * _half(blocks, 52)


def _tq2_0(blocks: Bytes) -> Floats:
    codes: NDArray[np.int8] = _fields(blocks[:, :64], 2, 32).reshape(-1, 256).astype(np.int8) - np.int8(1)
    return codes.astype(np.float32) * _half(blocks, 64)


DECODERS: Mapping[str, tuple[int, Callable[[Bytes], Floats], tuple[int, ...]]] = {
    "Q4_0": (4, _q4_0, (0,)),
    "Q4_1": (4, _q4_1, (0, 2)),
    "Q5_0": (5, _q5_0, (0,)),
    "Q5_1": (5, _q5_1, (0, 2)),
    "Q8_0": (8, _q8_0, (0,)),
    "Q2_K": (2, _q2_k, (80, 82)),
    "Q3_K": (3, _q3_k, (108,)),
    "Q4_K": (4, _q4_k, (0, 2)),
    "Q5_K": (5, _q5_k, (0, 2)),
    "Q6_K": (6, _q6_k, (208,)),
    "IQ4_NL": (4, _iq4_nl, (0,)),
    "IQ4_XS": (4, _iq4_xs, (0,)),
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
    if no_number or not all(np.isfinite(_half(blocks, at)).all() for at in DECODERS[block.type.name][2]):
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
        scale = (powers(blocks[:, 0]) if small else _half(blocks, 0)).reshape(last - first, -1)
        return scale, None if smallest is None else _half(blocks, smallest).reshape(last - first, -1)

    return Held(
        format="fp4" if small else "int",
        bits=bits,
        group=block.type.weights,
        offsets="" if smallest is None else "float",
        scale_dtype="F8_E8M0" if small else "F16",
        packed=packed,
        params=params,
    )


def _movable(block: Block) -> bool:
    """Whether other layouts may hold the codes of a tensor."""
    return block.type.name in UNIFORM and block.shape[-1] % block.type.weights == 0


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
                held=partial(_held, name, block) if _movable(block) else not_moved,
            )
        )
    return found
