"""Weights that the nodes of an ONNX graph decode or compute with: their parts, and their values as float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantcli.layouts.onnx.read_blocks import matrix
from quantcli.layouts.onnx.read_linear import linear
from quantcli.layouts.reader import Found, Read
from quantcli.layouts.stored import wrong
from quantcli.stores.onnx_graph import Graph, Node
from quantcli.stores.onnx_tensors import Packed
from quantcli.tensors.info import TensorInfo

KEY = "onnx"
"""The key under which `find` gets the graph in place of config.json."""

_CODES = re.compile(r"(.+?)(?:_quantized_*|(?:_DQ)?_Q[0-9]+)")
"""How onnxruntime's quantizers, and quantcli, name the codes of a weight."""

_DECIDING = ("K", "N", "bits", "block_size", "axis", "quantize_axis")
"""Attributes that decide what codes stand for."""


def _is_weight(node: Node, infos: Mapping[str, TensorInfo], packed: Mapping[str, Packed]) -> bool:
    """Whether the tensor that a node decodes is in the file, and more than a single number."""
    info = infos.get(node.weight)
    return info is not None and bool(packed[info.name].shape if info.name in packed else info.shape)


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that the nodes of an ONNX graph decode, and those that they compute with as codes."""
    graph = config.get(KEY)
    if not isinstance(graph, Graph):
        return []
    found, users, taken, names = list[Found](), dict[str, Any](), set[str](), set(infos)
    for node in (*graph.nodes, *(_as_decoding(infos, node) for node in graph.integer)):
        if not _is_weight(node, infos, graph.packed):
            continue
        way = (node.operator, node.input(1), node.input(2), [node.numbers.get(key) for key in _DECIDING], node.shape)
        earlier = users.setdefault(node.weight, way)
        if earlier is not way:
            if earlier != way:
                raise wrong(node.weight, "two nodes decode it in different ways")
            continue
        weight = _with_parts(_weight(infos, node, graph.packed), taken)
        own = _CODES.fullmatch(weight.name)
        name = own[1] if own is not None and own[1] not in names else weight.name
        names.add(name)
        found.append(replace(weight, name=name))
    return found


def _weight(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> Found:
    """The weight that a node decodes. Raises DataError for parts that do not match."""
    in_blocks = node.operator == "MatMulNBits" or (node.operator != "DequantizeLinear" and node.weight not in packed)
    return matrix(infos, node) if in_blocks else linear(infos, node, packed)


def _as_decoding(infos: Mapping[str, TensorInfo], node: Node) -> Node:
    """A DequantizeLinear that would decode what a node computes with as codes. Where scales come in behind the node,
    they are found by the name that onnxruntime's quantizers give them."""
    info = infos.get(node.weight)
    if info is None or not info.shape:
        return node
    stem = re.sub("_quantized$", "", info.name)
    scale = node.input(1) or f"{stem}_scale"
    first = "Conv" in node.operator or "LSTM" in node.operator
    axis = 0 if first else len(info.shape) - 1
    inputs = (info.name, scale, node.input(2))
    return Node(operator="DequantizeLinear", inputs=inputs, numbers={"axis": axis}, places=(0, 1, 2))


def _with_parts(weight: Found, taken: set[str]) -> Found:
    """A weight with the parts that no earlier weight has: several may share a zero point."""
    parts = tuple(p for p in weight.parts if p.name not in taken)
    taken.update(p.name for p in parts)
    return replace(weight, parts=parts)
