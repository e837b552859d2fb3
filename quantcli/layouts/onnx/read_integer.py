"""Weights that nodes compute with as codes, as onnxruntime's quantizers write them.

MatMulInteger, ConvInteger and Gather of codes get no scale: it comes in behind the node, and is found by its name,
X_scale beside X_quantized. All others have scales and zero points among their inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.onnx.inputs import SCALE, ZERO, parameter
from quantcli.layouts.onnx.read_linear import integers, linear
from quantcli.layouts.reader import Found, Read
from quantcli.layouts.regrouped import Regrouped, by_scales
from quantcli.layouts.stored import FLOATS, floats, part, wrong
from quantcli.stores.onnx_graph import Node
from quantcli.stores.onnx_tensors import Packed
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

IN_OUT = ("MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
"""Operators whose matrix is [in, out]."""

BIASES = {"QLinearConv": 8, "QGemm": 6}
"""Operators that have a bias among their inputs, and which one."""


def integer(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> Found:
    """A weight that a node computes with as codes. Raises DataError for parts that do not match, or are missing."""
    info = infos[node.weight]
    if node.operator == "DynamicQuantizeLSTM":
        return _lstm(infos, node)
    stem = info.name.removesuffix("_quantized")
    looked_up = node.operator == "Gather"
    zero = f"{stem}_zero_point" if looked_up else node.input(ZERO)
    axis = 0 if "Conv" in node.operator else len(info.shape) - 1
    first = not axis or (node.operator == "QGemm" and bool(node.numbers.get("transB", 0)))
    as_decoding = Node(
        operator="DequantizeLinear",
        inputs=(info.name, node.input(SCALE) or f"{stem}_scale", zero),
        numbers={"axis": 0 if first else axis},
        places=(0, 1, 2),
    )
    found = linear(infos, as_decoding, packed)
    if node.operator not in (*IN_OUT, "QGemm") or len(info.shape) != 2:
        return found
    return replace(found, outputs_first=first, held=found.held if first else _inputs_first)


def _inputs_first(read: Read) -> str:
    """Why codes are not moved that other layouts have transposed."""
    return "it is stored as [in, out]"


# ---- biases ----------------------------------------------------------------------------------------------------------


def bias(infos: Mapping[str, TensorInfo], node: Node) -> Found | None:
    """The bias that a node adds to its sums as I32, whose scale is that of its inputs times that of its weight. None
    where it has none."""
    at = BIASES.get(node.operator, 0)
    info = infos.get(node.inputs[at]) if 0 < at < len(node.inputs) else None
    if info is None or info.dtype != "I32" or len(info.shape) != 1:
        return None
    own = parameter(infos, node, SCALE, "scale", FLOATS)
    inputs = part(infos, node.inputs[1], info.name, FLOATS)
    if inputs.numel != 1 or own.numel not in (1, info.numel):
        raise wrong(info.name, f"scales {list(inputs.shape)} and {list(own.shape)} do not match {list(info.shape)}")

    def scale(read: Read) -> Floats:
        return floats(read, own, info.name, 0, own.numel) * floats(read, inputs, info.name, 0, 1)

    def decode(read: Read, first: int, last: int) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            return (integers(read, info, None, 0, info.numel) * scale(read)).reshape(1, -1)

    def regrouped(read: Read) -> Regrouped:
        return by_scales(info.shape, 0 if own.numel > 1 else None, 0, scale(read), None, 32, own.dtype)

    return Found(
        name=info.name,
        shape=info.shape,
        scheme="w32c" if own.numel > 1 else "w32t",
        bits=32,
        parts=(info,),
        decode=decode,
        regrouped=regrouped,
    )


# ---- LSTM -------------------------------------------------------------------------------------------------------


def _lstm(infos: Mapping[str, TensorInfo], node: Node) -> Found:
    """A weight that was [directions, out, in] and is stored [directions, in, out], with scales for directions or all
    their outputs."""
    codes = infos[node.weight]
    scale = parameter(infos, node, SCALE, "scale", FLOATS)
    zero = parameter(infos, node, ZERO, "zero point", (codes.dtype,)) if node.input(ZERO) else None
    if len(codes.shape) != 3 or codes.dtype not in ("I8", "U8"):
        raise wrong(codes.name, f"DynamicQuantizeLSTM of {codes.dtype} {list(codes.shape)} is not supported")
    directions, cols, rows = codes.shape
    if scale.numel not in (directions, directions * rows) or (zero is not None and zero.numel != scale.numel):
        raise wrong(codes.name, f"scales {list(scale.shape)} do not match {list(codes.shape)}")
    own = scale.numel > directions
    return Found(
        name=codes.name,
        shape=(directions, rows, cols),
        scheme="w8" + ("c" if own else "t") + ("" if zero is None else "-asym"),
        bits=8,
        parts=tuple(p for p in (codes, scale, zero) if p is not None),
        unit=rows,
        decode=partial(_decode_lstm, codes, scale, zero),
        regrouped=partial(_regrouped_lstm, codes, scale, zero),
    )


def _regrouped_lstm(codes: TensorInfo, scale: TensorInfo, zero: TensorInfo | None, read: Read) -> Regrouped:
    """Rows of the decoded weight that share a scale: of an output, or of a direction."""
    directions, cols, rows = codes.shape
    parts = scale.numel if directions > 1 or scale.numel > 1 else 1
    shape, signed = (parts, directions * rows * cols // parts), codes.dtype == "I8"
    points = np.zeros(parts, np.float32) if zero is None else integers(read, zero, None, 0, parts)
    found, points = floats(read, scale, codes.name, 0, parts), points + np.float32(128 * signed)
    return by_scales(shape, 0 if parts > 1 else None, 0, found, points, 8, scale.dtype)


def _decode_lstm(
    codes: TensorInfo, scale: TensorInfo, zero: TensorInfo | None, read: Read, first: int, last: int
) -> Floats:
    _, cols, rows = codes.shape
    found = np.empty((last - first, cols), np.float32)
    for at in range(first // rows, -(-last // rows)):
        low, high = max(first, at * rows), min(last, (at + 1) * rows)
        own = slice(low - at * rows, high - at * rows)
        raw = integers(read, codes, None, at * rows * cols, rows * cols).reshape(cols, rows)[:, own].T
        begin, count = (low, high - low) if scale.numel > codes.shape[0] else (at, 1)
        if zero is not None:
            raw = raw - integers(read, zero, None, begin, count)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            found[low - first : high - first] = raw * floats(read, scale, codes.name, begin, count)[:, None]
    return found
