"""The inputs of nodes that decode, as stored tensors."""

from __future__ import annotations

from collections.abc import Mapping

from quantcli.layouts.stored import part, wrong
from quantcli.stores.onnx_graph import Node
from quantcli.tensors.info import TensorInfo

SCALE, ZERO = 1, 2
"""Which inputs of a node are meant."""


def parameter(
    infos: Mapping[str, TensorInfo], node: Node, which: int, what: str, dtypes: tuple[str, ...]
) -> TensorInfo:
    """An input that must be stored in the file."""
    if node.input(which) not in infos:
        raise wrong(node.weight, f"its {what} is not an initializer")
    return part(infos, node.input(which), node.weight, dtypes)
