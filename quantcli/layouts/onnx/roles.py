"""What a graph does with each of its tensors: the product it is the weight of, and the form that can take its place.

A tensor is followed through nodes that hand it on as it is (Identity), turned (Transpose), or in other pieces or
shapes, until nodes compute with it. If all of these multiply with it, it is a weight. Where every one is a MatMul or
Gemm with the tensor as right-hand matrix, MatMulNBits takes the place of these nodes; where every one looks up rows,
GatherBlockQuantized does; anything else gets its weight back from DequantizeLinear, under the name it had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcli.stores.onnx_graph import Call, Graph

WEIGHTS = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Einsum": (0, 1, 2), "Conv": (1,), "ConvTranspose": (1,), "DeformConv": (1,),
    "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.FusedGemm": (0, 1), "com.microsoft.FusedConv": (1,), "com.microsoft.Attention": (1,),
    "com.microsoft.EmbedLayerNormalization": (2, 3, 4),
}  # fmt: skip
"""Operators, and the inputs that are weights where they are stored."""

MOVING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Cast")
"""Operators that hand on their first input in another form."""

LOOKING = ("Shape", "Size")
"""Operators that take the shape alone: whoever else there is, the tensor keeps its name."""

_LONGEST, _MOST = 64, 10_000
"""Nodes that a tensor is followed through, one after another and in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a tensor is to the graph.

    why: why it is not a weight that can be quantized; empty where it is one. multiplied, rows: the nodes that multiply
    with it as a matrix, and those that look up rows of it, by their place, where these are all there are. turned:
    whether it is stored [in, out]. passing: nodes that only hand it on to those.
    """

    why: str = ""
    multiplied: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    turned: bool = False
    passing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """A node that computes with a tensor: its place, the input it is, whether it was turned on the way, whether its
    form was changed, and the nodes on the way."""

    place: int
    at: int
    turned: bool
    changed: bool
    way: tuple[int, ...]


class Uses:
    """The nodes that take each name."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.left = graph, _MOST
        self.takers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, call in graph.calls.items():
            for at, name in enumerate(call.inputs):
                if name:
                    self.takers[name].append((place, at))

    def reset(self) -> None:
        """Follow another tensor."""
        self.left = _MOST

    def of(self, name: str, turned: bool = False, changed: bool = False, way: tuple[int, ...] = ()) -> Iterator[Use]:
        """The nodes that compute with a tensor; one of place -1 stands for what is outside."""
        self.left -= 1
        if name in self.graph.results or len(way) > _LONGEST or self.left < 0:
            yield Use(-1, 0, turned, changed, way)
            return
        for place, at in self.takers.get(name, ()):
            call = self.graph.calls[place]
            onward = (*way, place)
            if call.operator == "Identity" and at == 0:
                yield from self._behind(call, turned, changed, onward)
            elif call.operator == "Transpose" and at == 0:
                whole = call.order in ((), (1, 0))
                yield from self._behind(call, turned ^ whole, changed or not whole, onward)
            elif (call.operator in MOVING and at == 0) or call.operator == "Concat":
                yield from self._behind(call, turned, True, onward)
            else:
                yield Use(place, at, turned, changed, way)

    def _behind(self, call: Call, turned: bool, changed: bool, way: tuple[int, ...]) -> Iterator[Use]:
        for name in filter(None, call.outputs):
            yield from self.of(name, turned, changed, way)


def _multiplies(call: Call, use: Use) -> bool:
    """Whether a node is a product with a tensor as its right-hand matrix, and nothing more than a sum behind it."""
    if use.changed or use.at != 1 or call.inputs[0] in ("", call.inputs[1]) or len(call.makes) != 1:
        return False
    if call.operator == "MatMul":
        return True
    alone = len(call.inputs) < 3 or not call.inputs[2]
    plain = call.floats.get("alpha", 1.0) == 1.0 and (alone or call.floats.get("beta", 1.0) == 1.0)
    return call.operator == "Gemm" and plain and not call.numbers.get("transA", 0)


def _looks_up(call: Call, use: Use) -> bool:
    """Whether a node looks up rows of a tensor."""
    whole = len(call.takes) == 2 and use.at == 0 and not (use.changed or use.turned)
    return call.operator == "Gather" and whole and _axis(call) == 0


def _axis(call: Call) -> int:
    axis = call.numbers.get("axis", 0)
    return 0 if axis == -2 else axis


def _turned(call: Call, use: Use) -> bool:
    """Whether a matrix that a product takes is stored [in, out]."""
    return use.turned == bool(call.operator == "Gemm" and call.numbers.get("transB", 0))


def _role(uses: Uses, name: str) -> Role:
    graph = uses.graph
    if name in graph.given and graph.ir >= 4:
        return Role(why="it is an input of the graph, and this is its default")
    uses.reset()
    found = list(uses.of(name))
    if any(use.place < 0 for use in found):
        return Role(why="the graph gives it out" if uses.left >= 0 else "too many nodes hand it on")
    computing = [use for use in found if graph.calls[use.place].operator not in LOOKING]
    if not computing:
        return Role(why="no node computes with it")
    for use in computing:
        operator = graph.calls[use.place].operator
        if use.at not in WEIGHTS.get(operator, ()):
            return Role(why=f"{operator} computes with it, but not as a weight")
    multiplied = tuple(use for use in found if _multiplies(graph.calls[use.place], use))
    rows = tuple(use for use in found if _looks_up(graph.calls[use.place], use))
    ways = {_turned(graph.calls[use.place], use) for use in multiplied} | ({False} if rows else set())
    if len(multiplied) + len(rows) < len(found) or len(ways) > 1:
        return Role()
    return Role(
        multiplied=tuple(dict.fromkeys(use.place for use in multiplied)),
        rows=tuple(dict.fromkeys(use.place for use in rows)),
        turned=ways == {True},
        passing=tuple(dict.fromkeys(place for use in found for place in use.way)),
    )


@lru_cache(maxsize=4)
def roles(graph: Graph) -> Mapping[str, Role]:
    """The role of every tensor of a graph."""
    uses = Uses(graph)
    return {name: _role(uses, name) for name in graph.held}
