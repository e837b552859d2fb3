"""Weights as DequantizeLinear and operators on integers have them, one scale for the tensor, an axis or blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import to_float32
from quantcli.layouts.onnx.inputs import SCALE, ZERO, parameter
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.regrouped import Regrouped, by_scales
from quantcli.layouts.stored import FLOATS, filled_up, floats, wrong
from quantcli.stores.onnx_graph import Node
from quantcli.stores.onnx_tensors import Packed
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4"}
FLOAT8 = {"F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """A weight as rows, and the arrangement of its scales: rows of `width`, one for each row of weights.

    block: indices of the axis that share a scale; before, inner: rows that one index of an axis but the last has in
    the axes behind it, 0 where the axis is the last or missing.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None
    block: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    packed: Mapping[str, Packed]

    @property
    def cols(self) -> int:
        """Weights of a row."""
        return self.shape[-1]

    @property
    def width(self) -> int:
        """Scales of a row of scales."""
        if self.axis is None or (self.block == 0 and self.axis < len(self.shape) - 1):
            return 1
        return -(-self.cols // self.block) if self.block and self.axis == len(self.shape) - 1 else self.cols

    def rows_of_scales(self, first: int, last: int) -> NDArray[np.intp]:
        """The row of scales of every row of weights."""
        rows = np.arange(first, last)
        if self.axis is None:
            return np.zeros_like(rows)
        if self.axis == len(self.shape) - 1:
            return rows if self.block else np.zeros_like(rows)
        inner, size = math.prod(self.shape[self.axis + 1 : -1]), self.shape[self.axis]
        index = rows // inner % size
        if not self.block:
            return index
        outer = rows // (inner * size)
        return (outer * -(-size // self.block) + index // self.block) * inner + rows % inner

    def parameters(self, first: int, last: int) -> tuple[int, int, NDArray[np.intp]]:
        """The first scale of some rows of weights, how many they have, and which row of these is that of each."""
        own = self.rows_of_scales(first, last)
        low, high = int(own.min()), int(own.max()) + 1
        return low * self.width, (high - low) * self.width, own - low


def _axis(node: Node, shape: tuple[int, ...], scale: TensorInfo) -> tuple[int | None, int]:
    """The axis along which scales differ, None when there is one for the tensor, and how many indices share one."""
    looked_up = node.operator == "GatherBlockQuantized"
    axis = node.numbers.get("quantize_axis" if looked_up else "axis", 1)
    block = node.numbers.get("block_size", 128 if looked_up else 0)
    if block < 0 or not -len(shape) <= axis < max(len(shape), 2):
        raise wrong(node.weight, f"axis {axis} in blocks of {block} does not fit the shape {list(shape)}")
    if scale.numel == 1 and len(scale.shape) < 2 and not block:
        return None, 0
    if axis >= len(shape):
        raise wrong(node.weight, f"axis {axis} is not an axis of the shape {list(shape)}")
    axis %= len(shape)
    expected = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]) if block else (shape[axis],)
    if scale.shape != expected:
        what = f"axis {axis}" + (f" in blocks of {block}" if block else "")
        raise wrong(node.weight, f"scales {list(scale.shape)} do not match {what} of {list(shape)}")
    return axis, block


def _kind(info: TensorInfo, packed: Mapping[str, Packed]) -> tuple[str, int]:
    """A name for the elements of a tensor, and their bits. Raises DataError for unsupported elements."""
    own = packed.get(info.name)
    if own is not None and not own.is_float:
        return f"w{own.bits}", own.bits
    if own is None and info.dtype in INTEGERS:
        bits = np.dtype(INTEGERS[info.dtype]).itemsize * 8
        return f"w{bits}", bits
    if own is None and info.dtype in FLOAT8:
        return FLOAT8[info.dtype], 8
    what = "4-bit floats" if own is not None else info.dtype
    raise wrong(info.name, f"DequantizeLinear of {what} is not supported")


def _linear(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> _Linear:
    name = node.weight
    codes = infos[name]
    shape = packed[name].shape if name in packed else codes.shape
    if codes.numel == 0:
        raise wrong(name, "it is empty")
    scale = parameter(infos, node, SCALE, "scale", FLOATS)
    zero = parameter(infos, node, ZERO, "zero point", (codes.dtype,)) if node.input(ZERO) else None
    own, other = packed.get(name), packed.get(zero.name) if zero is not None else None
    if zero is not None:
        across = other.shape if other is not None else zero.shape
        alike = (own is None) == (other is None) and (
            own is None or other is None or (own.bits, own.signed) == (other.bits, other.signed)
        )
        if math.prod(across) != scale.numel or not alike:
            raise wrong(name, f"zero points {list(across)} do not match scales {list(scale.shape)}")
    axis, block = _axis(node, shape, scale)
    return _Linear(name=name, shape=shape, axis=axis, block=block, codes=codes, scale=scale, zero=zero, packed=packed)


def integers(read: Read, info: TensorInfo, packed: Packed | None, first: int, count: int) -> Floats:
    """Elements of a tensor in C order, as float32."""
    if packed is None:
        size = np.dtype(INTEGERS.get(info.dtype, "<u1")).itemsize
        raw = read(info.name, first * size, count * size)
        return (
            to_float32(raw, info.dtype) if info.dtype in FLOAT8 else raw.view(INTEGERS[info.dtype]).astype(np.float32)
        )
    bits, held = packed.bits, 8 // packed.bits
    start, end = first // held, -(-(first + count) // held)
    raw = read(info.name, start, end - start)
    fields = np.empty((len(raw), held), np.uint8)
    for i in range(held):
        fields[:, i] = (raw >> np.uint8(i * bits)) & np.uint8((1 << bits) - 1)
    codes = fields.ravel()[first - start * held :][:count]
    if not packed.signed:
        return codes.astype(np.float32)
    top = np.uint8(1 << (bits - 1))
    signed: NDArray[np.int8] = (codes ^ top).astype(np.int8) - np.int8(top)
    return signed.astype(np.float32)


def _decode_linear(stored: _Linear, read: Read, first: int, last: int) -> Floats:
    cols, width, rows = stored.cols, stored.width, last - first
    out = integers(read, stored.codes, stored.packed.get(stored.name), first * cols, rows * cols).reshape(rows, cols)
    at, count, row_of = stored.parameters(first, last)

    def spread(values: Floats) -> Floats:
        found: Floats = values.reshape(-1, width)[row_of]
        if width in (1, cols):
            return found
        return np.repeat(found, stored.block, axis=1)[:, :cols]

    with np.errstate(over="ignore", invalid="ignore"):
        if stored.zero is not None:
            zero = stored.zero
            out -= spread(integers(read, zero, stored.packed.get(zero.name), at, count))
        out *= spread(floats(read, stored.scale, stored.name, at, count))
    return out


def _middle(stored: _Linear, bits: int) -> int:
    """What makes unsigned codes of those that are stored: 2^(b-1) where they are signed, else 0."""
    own = stored.packed.get(stored.name)
    signed = own.signed if own is not None else stored.codes.dtype[0] == "I"
    return 1 << (bits - 1) if signed else 0


def _held(stored: _Linear, bits: int, read: Read) -> Held | str:
    """The codes of a weight whose scales are those of rows, or of blocks along them."""
    cols, last_axis = stored.cols, stored.axis == len(stored.shape) - 1
    floating = stored.codes.dtype in FLOAT8
    if bits > 8 or (floating and stored.zero is not None):
        return f"{stored.codes.dtype} codes of DequantizeLinear are not moved"
    if stored.axis is not None and last_axis != bool(stored.block):
        return "its scales are not those of rows or groups along them"
    if stored.block and cols % stored.block:
        return "its last block is short"
    if cols * bits % 8:
        return "its rows do not end between bytes"
    middle = _middle(stored, bits)
    turn = np.uint8(sum(middle << at for at in range(0, 8, bits)))  # of every code in a byte

    def packed(first: int, last: int) -> Bytes:
        size = cols * bits // 8
        raw = read(stored.codes.name, first * size, (last - first) * size)
        return filled_up(raw ^ turn, (last - first, cols), bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        (at, count, row_of), width, zero = stored.parameters(first, last), stored.width, stored.zero
        scale = floats(read, stored.scale, stored.name, at, count).reshape(-1, width)[row_of]
        if zero is not None:
            found = integers(read, zero, stored.packed.get(zero.name), at, count) + np.float32(middle)
            return scale, found.reshape(-1, width)[row_of]
        return scale, None if middle or floating else np.zeros_like(scale)

    return Held(
        format=FLOAT8[stored.codes.dtype] if floating else "int",
        bits=bits,
        group=stored.block or ("tensor" if floating and stored.axis is None else "channel"),
        offsets="" if floating or (stored.zero is None and middle) else "int",
        scale_dtype=stored.scale.dtype,
        packed=packed,
        params=params,
    )


def _regrouped(stored: _Linear, bits: int, read: Read) -> Regrouped | None:
    """How groups lie in a weight whose codes are whole numbers."""
    if stored.codes.dtype in FLOAT8:
        return None
    middle, scales, zero = _middle(stored, bits), stored.scale, stored.zero
    scale = floats(read, scales, stored.name, 0, scales.numel)
    if zero is not None:
        points = integers(read, zero, stored.packed.get(zero.name), 0, scales.numel) + np.float32(middle)
    else:
        points = np.full_like(scale, middle)
    return by_scales(stored.shape, stored.axis, stored.block, scale, points, bits, scales.dtype)


def _label(stored: _Linear, kind: str) -> str:
    """The name of its scheme, with the axis where rows do not run along it."""
    last = len(stored.shape) - 1
    if stored.axis is None:
        where = "t"
    elif stored.block:
        where = f"g{stored.block}" + ("" if stored.axis == last else f"-axis{stored.axis}")
    else:
        where = "c" if stored.axis == 0 else f"c{stored.axis}"
    return kind + where + ("" if stored.zero is None else "-asym")


def _decode_pieces(stored: _Linear, shape: tuple[int, ...], read: Read, first: int, last: int) -> Floats:
    """Rows of a weight that is stored as rows of another length, one scale for each."""
    begin, end = first * shape[-1], last * shape[-1]
    low, high = begin // stored.cols, -(-end // stored.cols)
    found = _decode_linear(stored, read, low, high).reshape(-1)
    return found[begin - low * stored.cols : end - low * stored.cols].reshape(last - first, shape[-1])


def _in_pieces(stored: _Linear, node: Node, kind: str, bits: int) -> Found:
    """A weight whose groups are stored as rows."""
    if math.prod(node.shape) != math.prod(stored.shape) or len(stored.shape) != 2 or stored.axis != 0 or stored.block:
        raise wrong(stored.name, f"codes {list(stored.shape)} do not make a weight of the shape {list(node.shape)}")
    where = "c" if stored.cols == math.prod(node.shape[1:]) else f"g{stored.cols}"
    return Found(
        name=stored.name,
        shape=node.shape,
        scheme=kind + where + ("" if stored.zero is None else "-asym"),
        bits=bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        decode=partial(_decode_pieces, stored, node.shape),
        regrouped=partial(_regrouped, stored, bits),
    )


def linear(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> Found:
    """A weight of DequantizeLinear, or of an operator that has its parameters. Raises DataError for parts that do not
    match."""
    kind, bits = _kind(infos[node.weight], packed)
    stored = _linear(infos, node, packed)
    if node.shape:
        return _in_pieces(stored, node, kind, bits)
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=_label(stored, kind),
        bits=bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        decode=partial(_decode_linear, stored),
        held=partial(_held, stored, bits),
        regrouped=partial(_regrouped, stored, bits),
    )
