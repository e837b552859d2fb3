"""Weights that the nodes of an ONNX graph decode or compute with: their parts, and their values as float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantcli.layouts.onnx.read_blocks import matrix
from quantcli.layouts.onnx.read_integer import bias, integer
from quantcli.layouts.onnx.read_linear import linear
from quantcli.layouts.reader import Found, Read
from quantcli.layouts.stored import wrong
from quantcli.stores.onnx_graph import DECODING, Graph, Node
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
    for node in (*graph.nodes, *graph.integer):
        if not _is_weight(node, infos, graph.packed) or (node.operator == "Gather" and node.weight in users):
            continue
        way = (node.operator, node.input(1), node.input(2), [node.numbers.get(key) for key in _DECIDING], node.shape)
        earlier = users.setdefault(node.weight, way)
        if earlier is not way:
            if earlier != way:
                raise wrong(node.weight, "two nodes decode it in different ways")
            continue
        found.append(_named(_with_parts(_weight(infos, node, graph.packed), taken), names))
    scaled = {name for call in graph.calls.values() if call.floats.get("alpha", 1) != 1 for name in call.inputs}
    for node in graph.integer:
        weight = bias(infos, node)
        if weight is not None and weight.name not in taken | scaled:
            found.append(_named(_with_parts(weight, taken), names))
    return found


def _named(weight: Found, names: set[str]) -> Found:
    """A weight under the name that it had before it was quantized, where no other tensor has that."""
    own = _CODES.fullmatch(weight.name)
    name = own[1] if own is not None and own[1] not in names else weight.name
    names.add(name)
    return replace(weight, name=name)


def _weight(infos: Mapping[str, TensorInfo], node: Node, packed: Mapping[str, Packed]) -> Found:
    """The weight that a node decodes. Raises DataError for parts that do not match."""
    if node.operator not in DECODING:
        return integer(infos, node, packed)
    in_blocks = node.operator == "MatMulNBits" or (node.operator != "DequantizeLinear" and node.weight not in packed)
    return matrix(infos, node) if in_blocks else linear(infos, node, packed)


def _with_parts(weight: Found, taken: set[str]) -> Found:
    """A weight with the parts that no earlier weight has: several may share a zero point."""
    parts = tuple(p for p in weight.parts if p.name not in taken)
    taken.update(p.name for p in parts)
    return replace(weight, parts=parts)
