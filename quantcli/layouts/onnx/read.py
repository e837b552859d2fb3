"""Weights that the nodes of an ONNX graph decode: their parts, and their values as float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import to_float32
from quantcli.kernels import INTEGER, CodeGrid, QuantParams, row_bytes
from quantcli.layouts.reader import Found, Read
from quantcli.layouts.stored import FLOATS, floats, part, scheme_name, wrong
from quantcli.stores.onnx_graph import Graph, Node
from quantcli.stores.onnx_tensors import Packed
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

KEY = "onnx"
"""The key under which `find` gets the graph in place of config.json."""

BITS = (2, 4, 8)
INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4"}
FLOAT8 = {"F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}


def _input(node: Node, at: int) -> str:
    return node.inputs[at] if at < len(node.inputs) else ""


def _parameter(infos: Mapping[str, TensorInfo], node: Node, at: int, what: str, dtypes: tuple[str, ...]) -> TensorInfo:
    """An input that must be stored in the file."""
    if _input(node, at) not in infos:
        raise wrong(node.weight, f"its {what} is not an initializer")
    return part(infos, _input(node, at), node.weight, dtypes)


# ---- MatMulNBits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    name: str
    rows: int
    cols: int
    bits: int
    block: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.cols // self.block)


def _number(node: Node, key: str, otherwise: int | None = None) -> int:
    value = node.numbers.get(key, otherwise)
    if value is None or value < 1:
        raise wrong(node.weight, f"its {key} {value} is not a whole number of 1 or more")
    return value


def _matrix(infos: Mapping[str, TensorInfo], node: Node) -> _Matrix:
    name = node.weight
    rows, cols, bits = _number(node, "N"), _number(node, "K"), _number(node, "bits", 4)
    block = _number(node, "block_size")
    if bits not in BITS:
        raise wrong(name, f"MatMulNBits of {bits} bits is not supported")
    if block < 16 or block & (block - 1):
        raise wrong(name, f"its block size {block} is not a power of 2 of 16 or more")
    if _input(node, 4):
        raise wrong(name, "reordered groups (g_idx) are not supported")
    codes = part(infos, name, name, ("U8",))
    scale = _parameter(infos, node, 2, "scale", FLOATS)
    zero = _parameter(infos, node, 3, "zero point", ("U8", *FLOATS)) if _input(node, 3) else None
    blocks = -(-cols // block)
    if codes.numel != rows * blocks * block * bits // 8 or scale.numel != rows * blocks:
        shapes = f"{list(codes.shape)} and {list(scale.shape)}"
        raise wrong(name, f"codes and scales {shapes} do not match {rows} x {cols} in blocks of {block}")
    if zero is not None and zero.numel != (rows * -(-blocks * bits // 8) if zero.dtype == "U8" else rows * blocks):
        raise wrong(name, f"zero points {zero.dtype} {list(zero.shape)} do not match {rows} x {blocks} blocks")
    return _Matrix(name=name, rows=rows, cols=cols, bits=bits, block=block, codes=codes, scale=scale, zero=zero)


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


def _decode_matrix(stored: _Matrix, read: Read, first: int, last: int) -> Floats:
    rows, cols, bits, blocks = last - first, stored.cols, stored.bits, stored.blocks
    held = blocks * stored.block * bits // 8
    packed: Bytes = read(stored.codes.name, first * held, rows * held).reshape(rows, held)
    packed = np.ascontiguousarray(packed[:, : row_bytes(cols, bits)])
    scale = floats(read, stored.scale, stored.name, first * blocks, rows * blocks).reshape(rows, blocks)
    params = QuantParams(scale, _zeros(stored, read, first, last))
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1))
    return kernels.load().decode(packed, (rows, cols), min(stored.block, cols), params, grid)


def _multiplied(infos: Mapping[str, TensorInfo], node: Node) -> Found:
    stored = _matrix(infos, node)
    kind = "" if stored.zero is None else "int" if stored.zero.dtype == "U8" else "float"
    return Found(
        name=stored.name,
        shape=(stored.rows, stored.cols),
        scheme=scheme_name(stored.bits, "channel" if stored.blocks == 1 else stored.block, kind),
        bits=stored.bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        unit=1,
        decode=partial(_decode_matrix, stored),
    )


# ---- DequantizeLinear -------------------------------------------------------------------------------------------


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


def _axis(node: Node, shape: tuple[int, ...], scale: TensorInfo) -> tuple[int | None, int]:
    """The axis along which scales differ, None when there is one for the tensor, and how many indices share one."""
    axis, block = node.numbers.get("axis", 1), node.numbers.get("block_size", 0)
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
    scale = _parameter(infos, node, 1, "scale", FLOATS)
    zero = _parameter(infos, node, 2, "zero point", (codes.dtype,)) if _input(node, 2) else None
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


def _elements(read: Read, info: TensorInfo, packed: Packed | None, first: int, count: int) -> Floats:
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
    out = _elements(read, stored.codes, stored.packed.get(stored.name), first * cols, rows * cols).reshape(rows, cols)
    own = stored.rows_of_scales(first, last)
    low, count = int(own.min()), int(own.max()) + 1 - int(own.min())

    def spread(values: Floats) -> Floats:
        found: Floats = values.reshape(count, width)[own - low]
        if width in (1, cols):
            return found
        return np.repeat(found, stored.block, axis=1)[:, :cols]

    with np.errstate(over="ignore", invalid="ignore"):
        if stored.zero is not None:
            zero = stored.zero
            out -= spread(_elements(read, zero, stored.packed.get(zero.name), low * width, count * width))
        out *= spread(floats(read, stored.scale, stored.name, low * width, count * width))
    return out


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


def _decoded(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> Found:
    kind, bits = _kind(infos[node.weight], packed)
    stored = _linear(infos, node, packed)
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=_label(stored, kind),
        bits=bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        unit=1,
        decode=partial(_decode_linear, stored),
    )


# ---- together ---------------------------------------------------------------------------------------------------


def _is_weight(node: Node, infos: Mapping[str, TensorInfo], packed: Mapping[str, Packed]) -> bool:
    """Whether the tensor that a node decodes is in the file, and more than a single number."""
    info = infos.get(node.weight)
    return info is not None and bool(packed[info.name].shape if info.name in packed else info.shape)


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that the nodes of an ONNX graph decode."""
    graph = config.get(KEY)
    if not isinstance(graph, Graph):
        return []
    found, users, taken = list[Found](), dict[str, Node](), set[str]()
    for node in graph.nodes:
        if not _is_weight(node, infos, graph.packed):
            continue
        earlier = users.setdefault(node.weight, node)
        if earlier is not node:
            if earlier != node:
                raise wrong(node.weight, "two nodes decode it in different ways")
            continue
        weight = _multiplied(infos, node) if node.operator == "MatMulNBits" else _decoded(infos, node, graph.packed)
        found.append(_with_parts(weight, taken))
    return found


def _with_parts(weight: Found, taken: set[str]) -> Found:
    """A weight with the parts that no earlier weight has: several may share a zero point."""
    parts = tuple(p for p in weight.parts if p.name not in taken)
    taken.update(p.name for p in parts)
    return replace(weight, parts=parts)
