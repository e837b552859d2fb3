"""Blocks of GGUF as float32, and their codes as other layouts may store them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.kernels import INTEGER, LEVELS, OFFSET, BlockScales, CodeGrid, QuantParams
from quantcli.layouts.gguf.parts import TYPES, half
from quantcli.layouts.reader import Found, Held, Read, not_moved
from quantcli.layouts.small import table
from quantcli.layouts.stored import wrong
from quantcli.scheme import IN_SUPER_BLOCKS
from quantcli.stores.gguf_types import Block
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats
    from quantcli.kernels.codebook import Codebook

KEY = "gguf"
"""The key under which `find` gets the blocks of a GGUF in place of config.json."""

FORMATS = {"MXFP4": "fp4", "IQ4_NL": "iq4", "IQ4_XS": "iq4"}
"""Formats of codes that are no whole numbers, by type."""

TERNARY = ("TQ1_0", "TQ2_0")
"""Types of the codes 0 to 2, which stand for -1 to 1."""


def _blocks(name: str, block: Block, read: Read, first: int, last: int) -> Bytes:
    """The blocks (B, bytes) that some rows are in. Raises DataError where a scale is not finite."""
    size, cols = block.type.bytes, block.shape[-1]
    begin, end = first * cols // block.type.weights, -(-last * cols // block.type.weights)
    blocks = read(name, begin * size, (end - begin) * size).reshape(-1, size)
    no_number = block.type.name == "MXFP4" and (blocks[:, 0] == 255).any()
    if no_number or not all(np.isfinite(half(blocks, at)).all() for at in TYPES[block.type.name].halves):
        raise wrong(name, "a scale is not finite")
    return blocks


@lru_cache(maxsize=4)
def _levels(kind: str) -> Codebook:
    """What bytes stand for as codes of a table."""
    levels = TYPES[kind].levels
    assert levels is not None
    return table(np.resize(levels, 256))


def _values(kind: str, blocks: Bytes) -> Floats:
    """The weights of blocks, one after another: (code - middle) * scale, scale * code + offset, or scale * level."""
    parts = TYPES[kind]
    codes = np.ascontiguousarray(parts.codes(blocks)).reshape(1, -1)
    scale, offset = parts.scales(blocks)
    book = None if parts.levels is None else _levels(kind)
    params = QuantParams(scale.reshape(1, -1), None if offset is None else offset.reshape(1, -1), book)
    mode = LEVELS if book is not None else INTEGER if offset is None else OFFSET
    grid = CodeGrid(mode=mode, bits=8, umin=0, umax=255, zero=parts.middle)
    with np.errstate(over="ignore", invalid="ignore"):
        return kernels.load().decode(codes, codes.shape, codes.size // scale.size, params, grid).reshape(-1)


def _decode(name: str, block: Block, read: Read, first: int, last: int) -> Floats:
    cols = block.shape[-1]
    found = _values(block.type.name, _blocks(name, block, read, first, last))
    begin = first * cols % block.type.weights  # 0 but for rows that are not whole blocks
    return found[begin : begin + (last - first) * cols].reshape(last - first, cols)


def _around_two(name: str, codes: Bytes) -> Bytes:
    """Codes of ternary weights as those of 2 bits around the code 2. Raises DataError for one that would not fit."""
    if codes.size and codes.max() > 2:
        raise wrong(name, "a code beyond 2, which no quantizer writes")
    found: Bytes = codes + np.uint8(1)
    return found


def _held(name: str, block: Block, read: Read) -> Held | str:
    """The codes of rows of whole blocks, with the scales of super-blocks as they are stored too."""
    kind, cols = block.type.name, block.shape[-1]
    if cols % block.type.weights:
        return not_moved()
    parts, row = TYPES[kind], block.type.bytes * (cols // block.type.weights)
    stored = parts.stored
    groups = parts.scales(np.zeros((1, block.type.bytes), np.uint8))[0].shape[1]  # of a block, whatever is in it

    def packed(first: int, last: int) -> Bytes:
        codes = parts.codes(read(name, first * row, (last - first) * row).reshape(-1, block.type.bytes))
        codes = _around_two(name, codes) if kind in TERNARY else codes
        return packing.pack(np.ascontiguousarray(codes).reshape(last - first, cols), parts.bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, offset = parts.scales(_blocks(name, block, read, first, last))
        return scale.reshape(last - first, -1), None if offset is None else offset.reshape(last - first, -1)

    def blocks(first: int, last: int) -> BlockScales:
        assert stored is not None
        own, rows = stored(_blocks(name, block, read, first, last)), last - first
        return BlockScales(
            own.d.reshape(rows, -1), own.m.reshape(rows, -1), own.scales.reshape(rows, -1), own.minima.reshape(rows, -1)
        )

    return Held(
        format=FORMATS.get(kind, "int"),
        bits=parts.bits,
        group=block.type.weights // groups,
        offsets="float" if len(parts.halves) > 1 else "",
        scale_dtype=IN_SUPER_BLOCKS if stored is not None else "F8_E8M0" if kind == "MXFP4" else "F16",
        packed=packed,
        params=params,
        blocks=blocks if stored is not None else None,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that a GGUF stores in blocks."""
    blocks, found = config.get(KEY), []
    for name, info in infos.items():
        block = blocks.get(name) if isinstance(blocks, Mapping) else None
        if not isinstance(block, Block):
            continue
        if block.type.name not in TYPES:
            raise wrong(name, f"{block.type.name} blocks are not supported", f"supported: {', '.join(TYPES)}")
        if info.numel == 0:
            raise wrong(name, "it is empty")
        found.append(
            Found(
                name=name,
                shape=block.shape,
                scheme=block.type.name,
                bits=TYPES[block.type.name].bits,
                parts=(info,),
                decode=partial(_decode, name, block),
                held=partial(_held, name, block),
            )
        )
    return found
