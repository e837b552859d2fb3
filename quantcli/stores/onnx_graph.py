"""The graph of an ONNX model as facts: the nodes, what each takes and makes, and where in the file everything stands.

Names are those under which tensors are listed (see `stores.onnx`), also for what nodes compute, so that a name means
one thing in the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile
    from quantcli.stores.onnx_tensors import Packed

DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's."""


DECODING = {"MatMulNBits": (1, 2, 3), "DequantizeLinear": (0, 1, 2), "GatherBlockQuantized": (0, 2, 3)}
"""Operators that decode a weight: which of their inputs are the codes, the scales and the zero points."""

COMPUTING = {
    "MatMulInteger": ((1, -1, 3),), "ConvInteger": ((1, -1, 3),), "QLinearMatMul": ((3, 4, 5), (0, 1, 2)),
    "QLinearConv": ((3, 4, 5),), "QGemm": ((3, 4, 5),), "QAttention": ((1, 4, 7),),
    "MatMulIntegerToFloat": ((1, 3, 5),),
    "DynamicQuantizeMatMul": ((1, 2, 3),), "DynamicQuantizeLSTM": ((1, 8, 9), (2, 10, 11)), "Gather": ((0, -1, -1),),
}  # fmt: skip
"""The same of operators that compute with codes; -1 for scales that come in later, behind the product."""


LISTS, WORDS = ("perm", "strides", "pads", "dilations", "kernel_shape"), ("auto_pad", "direction")
"""Attributes that are lists of numbers, and words: those that tell what a node sums over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that decodes a weight, or computes with its codes: its operator, inputs by name, the attributes that are
    whole numbers, and which inputs are codes, scales and zero points. shape: the one that a Reshape behind it gives the
    weight; empty where there is none."""

    operator: str
    inputs: tuple[str, ...]
    numbers: Mapping[str, int]
    places: tuple[int, int, int]
    shape: tuple[int, ...] = ()

    def input(self, which: int) -> str:
        """The name of its codes (0), scales (1) or zero points (2); empty where it has none."""
        at = self.places[which]
        return self.inputs[at] if 0 <= at < len(self.inputs) else ""

    @property
    def weight(self) -> str:
        """The input that is decoded; empty when there is none."""
        return self.input(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A node of a graph or function. operator: with its domain where that is not ONNX's. inputs, outputs: by the names
    they are listed under; takes, makes: the same as the node has them, empty where one is left out. numbers, floats:
    attributes of one number each; lists: those of LISTS; words: those of WORDS. scope: the prefix of the names of its
    graph; in_function: whether that is a function's."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    takes: tuple[str, ...]
    makes: tuple[str, ...]
    numbers: Mapping[str, int]
    floats: Mapping[str, float]
    lists: Mapping[str, tuple[int, ...]]
    words: Mapping[str, str]
    scope: str
    in_function: bool

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of a Transpose; empty where it turns them all round."""
        return self.lists.get("perm", ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Where a tensor is: its name in its own graph, whether it is the value of a Constant node, and whether that is in
    a function, which has no initializers."""

    own: str
    is_constant: bool
    in_function: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """The facts about a model.

    nodes: those that decode a weight; integer: those that compute with codes. packed: the real types of packed U8
    tensors. computed: weights that nodes compute with as codes, by name with the operator. calls: every node, by the
    place of its message in the file. held: every tensor that is listed; places: the same by the place of its message.
    given: inputs of graphs, results: what graphs and functions give. names: every name in the model. file: the file;
    ir, opset: the version of the format, and of ONNX's operators.
    """

    nodes: tuple[Node, ...]
    integer: tuple[Node, ...]
    packed: Mapping[str, Packed]
    computed: Mapping[str, str]
    file: InputFile
    calls: Mapping[int, Call]
    held: Mapping[str, Held]
    places: Mapping[int, str]
    given: frozenset[str]
    results: frozenset[str]
    names: frozenset[str]
    ir: int
    opset: int

    @property
    def parameters(self) -> frozenset[str]:
        """What nodes may have as scales and zero points: of weights, and of what the model computes."""
        found = set[str]()
        for call in self.calls.values():
            name = call.operator.rpartition(".")[2]
            if name in ("QuantizeLinear", "DequantizeLinear"):
                found.update(call.inputs[1:3])
            elif name.startswith("QLinear") or name == "QGemm":
                found.update(call.inputs)
        return frozenset(found)
