"""Matrices in blocks along their rows, of MatMulNBits and GatherBlockQuantized: their parts, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels
from quantcli.kernels import INTEGER, CodeGrid, QuantParams, row_bytes
from quantcli.layouts.onnx.inputs import SCALE, ZERO, parameter
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.regrouped import Regrouped, by_scales
from quantcli.layouts.stored import FLOATS, floats, part, scheme_name, wrong
from quantcli.stores.onnx_graph import Node
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

BITS = (2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """A matrix and its parts. padded: whether a row fills its last block."""

    name: str
    rows: int
    cols: int
    bits: int
    block: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    padded: bool

    @property
    def held(self) -> int:
        """Bytes of a row of codes."""
        return (self.blocks * self.block if self.padded else self.cols) * self.bits // 8

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.cols // self.block)


def _number(node: Node, key: str, otherwise: int | None = None) -> int:
    value = node.numbers.get(key, otherwise)
    if value is None or value < 1:
        raise wrong(node.weight, f"its {key} {value} is not a whole number of 1 or more")
    return value


def _block(node: Node) -> tuple[int, int]:
    """Bits of a code, and weights of a block."""
    bits, block = _number(node, "bits", 4), _number(node, "block_size", None if node.operator == "MatMulNBits" else 128)
    if bits not in BITS:
        raise wrong(node.weight, f"{node.operator} of {bits} bits is not supported")
    if block < 16 or block & (block - 1):
        raise wrong(node.weight, f"its block size {block} is not a power of 2 of 16 or more")
    return bits, block


def _matrix(infos: Mapping[str, TensorInfo], node: Node) -> _Matrix:
    name = node.weight
    multiplied = node.operator == "MatMulNBits"
    codes = part(infos, name, name, ("U8",))
    bits, block = _block(node)
    if multiplied:
        rows, cols = _number(node, "N"), _number(node, "K")
    elif len(codes.shape) == 2 and node.numbers.get("quantize_axis", 1) in (1, -1):
        rows, cols = codes.shape[0], codes.shape[1] * 8 // bits
    else:
        raise wrong(name, f"GatherBlockQuantized of the shape {list(codes.shape)} is not supported")
    if multiplied and len(node.inputs) > 4 and node.inputs[4]:
        raise wrong(name, "reordered groups (g_idx) are not supported")
    scale = parameter(infos, node, SCALE, "scale", FLOATS)
    zero = parameter(infos, node, ZERO, "zero point", ("U8", *FLOATS)) if node.input(ZERO) else None
    found = _Matrix(
        name=name,
        rows=rows,
        cols=cols,
        bits=bits,
        block=block,
        codes=codes,
        scale=scale,
        zero=zero,
        padded=multiplied,
    )
    blocks = found.blocks
    if codes.numel != rows * found.held or scale.numel != rows * blocks:
        shapes = f"{list(codes.shape)} and {list(scale.shape)}"
        raise wrong(name, f"codes and scales {shapes} do not match {rows} x {cols} in blocks of {block}")
    if zero is not None and zero.numel != (rows * -(-blocks * bits // 8) if zero.dtype == "U8" else rows * blocks):
        raise wrong(name, f"zero points {zero.dtype} {list(zero.shape)} do not match {rows} x {blocks} blocks")
    return found


def _zeros(stored: _Matrix, read: Read, first: int, last: int) -> Floats | None:
    """Zero points (last - first, blocks)."""
    zero, blocks, rows = stored.zero, stored.blocks, last - first
    if zero is None:
        return None
    if zero.dtype != "U8":
        return floats(read, zero, stored.name, first * blocks, rows * blocks).reshape(rows, blocks)
    width = -(-blocks * stored.bits // 8)
    stream = np.zeros((rows, row_bytes(blocks, stored.bits)), np.uint8)
    stream[:, :width] = read(zero.name, first * width, rows * width).reshape(rows, width)
    return packing.unpack(stream, rows, blocks, stored.bits).astype(np.float32)


def _packed(stored: _Matrix, read: Read, first: int, last: int) -> Bytes:
    """Codes of rows, each in whole 32-bit words."""
    rows, held, width = last - first, stored.held, row_bytes(stored.cols, stored.bits)
    packed: Bytes = read(stored.codes.name, first * held, rows * held).reshape(rows, held)
    if held < width:
        packed = np.pad(packed, ((0, 0), (0, width - held)))
    return np.ascontiguousarray(packed[:, :width])


def _scales(stored: _Matrix, read: Read, first: int, last: int) -> Floats:
    """Scales (last - first, blocks)."""
    rows, blocks = last - first, stored.blocks
    return floats(read, stored.scale, stored.name, first * blocks, rows * blocks).reshape(rows, blocks)


def _decode_matrix(stored: _Matrix, read: Read, first: int, last: int) -> Floats:
    shape, bits = (last - first, stored.cols), stored.bits
    params = QuantParams(_scales(stored, read, first, last), _zeros(stored, read, first, last))
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1))
    packed = _packed(stored, read, first, last)
    return kernels.load().decode(packed, shape, min(stored.block, stored.cols), params, grid)


def _held(stored: _Matrix, read: Read) -> Held | str:
    """The codes; of zero points that are floats with -zero * scale as offsets."""
    bits, cols = stored.bits, stored.cols
    if stored.blocks > 1 and cols % stored.block:
        return "its last block is short"
    floating = stored.zero is not None and stored.zero.dtype != "U8"

    def packed(first: int, last: int) -> Bytes:
        found = _packed(stored, read, first, last)
        if cols * bits % 32 == 0:
            return found
        return packing.pack(packing.unpack(found, last - first, cols, bits), bits)  # without what fills up the block

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = _scales(stored, read, first, last), _zeros(stored, read, first, last)
        with np.errstate(over="ignore"):
            return scale, -zero * scale if floating and zero is not None else zero

    return Held(
        bits=bits,
        group="channel" if stored.blocks == 1 else stored.block,
        offsets="float" if floating else "int" if stored.zero is not None else "",
        scale_dtype=stored.scale.dtype,
        packed=packed,
        params=params,
        exact=not floating,
    )


def _regrouped(stored: _Matrix, read: Read) -> Regrouped | None:
    """How groups lie in it where the last one is short."""
    zero = _zeros(stored, read, 0, stored.rows)
    if stored.zero is not None and stored.zero.dtype != "U8":
        return None
    shape, scale = (stored.rows, stored.cols), _scales(stored, read, 0, stored.rows)
    return by_scales(shape, 1, stored.block, scale, zero, stored.bits, stored.scale.dtype)


def matrix(infos: Mapping[str, TensorInfo], node: Node) -> Found:
    """A weight of MatMulNBits or GatherBlockQuantized. Raises DataError for parts that do not match."""
    stored = _matrix(infos, node)
    kind = "" if stored.zero is None else "int" if stored.zero.dtype == "U8" else "float"
    return Found(
        name=stored.name,
        shape=(stored.rows, stored.cols),
        scheme=scheme_name(stored.bits, "channel" if stored.blocks == 1 else stored.block, kind),
        bits=stored.bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        decode=partial(_decode_matrix, stored),
        held=partial(_held, stored),
        regrouped=partial(_regrouped, stored),
        outputs_first=True if stored.padded else None,
    )
