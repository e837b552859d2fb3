"""The graph of a model as it was before its weights were quantized: floats, and nodes that compute with them.

What decodes a weight, or computes with its codes, is replaced, so that a weight X is one initializer of floats again:

    MatMulNBits                                  MatMul with X, transposed; Add for a bias
    GatherBlockQuantized                         Gather
    DequantizeLinear                             Identity, which hands on X under the name that the decoded weight had
    Gather of codes, and DequantizeLinear        Gather, Identity
    MatMulInteger, ConvInteger, Cast and Mul     MatMul or Conv of what DynamicQuantizeLinear took
    DynamicQuantizeMatMul, MatMulIntegerToFloat  MatMul; Add for a bias

No floats are written. The file of this graph is never on a disk: it is segments of the source and new messages, with
holes where the floats would be, which are read once more to write the model from them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, cast

from quantcli.errors import UsageError, printable
from quantcli.layouts.onnx import nodes
from quantcli.layouts.onnx.forms import SCALES
from quantcli.layouts.onnx.model import IR_WITHOUT_INPUTS, Hole, Range, Segment, copied, in_message, size_of
from quantcli.stores.onnx_reading import Reader
from quantcli.stores.protobuf import Field, Wire
from quantcli.stores.protobuf_writer import message, number, opened, text

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile
    from quantcli.stores.onnx_graph import Call, Graph
    from quantcli.tensors.info import TensorInfo

Weights = tuple[tuple[str, "TensorInfo"], ...]
"""Weights of floats, each with the name under which its codes are listed."""

_INTEGER = ("MatMulInteger", "ConvInteger")
_CONTRIB = "com.microsoft."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A node in place of another one. attributes: whether it has those of that one; numbers: its own."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: bool = False
    numbers: Mapping[str, int] = field(default_factory=dict)


class _Replacing:
    """The nodes that are replaced. made: by the place of each, the nodes that stand there now; none where it goes."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph, self.weights = graph, dict(weights)
        self.made: dict[int, Sequence[_Made]] = {}
        self._fresh = nodes.fresh_among(graph.names)
        self._takers, self._makers = defaultdict[str, list[int]](list), dict[str, int]()
        for place, call in graph.calls.items():
            for name in dict.fromkeys(filter(None, call.inputs)):
                self._takers[name].append(place)
            self._makers.update(dict.fromkeys(filter(None, call.outputs), place))
        for codes in self.weights:
            held = graph.held[codes]
            if held.is_constant or held.in_function:
                raise self._refused(codes, "codes in a Constant node or a function are not")
            for place in self._takers[codes]:
                try:
                    self._node(place, graph.calls[place], codes)
                except IndexError:
                    lacks = f"a {graph.calls[place].operator} that lacks inputs or outputs is not"
                    raise self._refused(codes, lacks) from None
        for place, call in graph.calls.items():  # inputs that nothing takes as codes any more
            if call.operator == "DynamicQuantizeLinear" and not any(map(self._is_taken, call.outputs)):
                self.made[place] = []
        if graph.ir >= IR_WITHOUT_INPUTS:
            for codes in self.weights:
                self._check_parameters(codes)

    def _check_parameters(self, codes: str) -> None:
        """Raise UsageError where codes, or what would go with them, are inputs whose values may be given anew."""
        takers = (self.graph.calls[place] for place in self._takers[codes])
        for name in dict.fromkeys([codes, *(name for call in takers for name in call.inputs)]):
            if name in self.graph.given and name in self.graph.held and (name == codes or not self.is_needed(name)):
                raise self._refused(codes, "codes and scales that are inputs of the graph are not")

    def _is_taken(self, name: str) -> bool:
        """Whether a node that stays takes a tensor, or the graph gives it out."""
        return name in self.graph.results or any(place not in self.made for place in self._takers.get(name, ()))

    def _refused(self, codes: str, why: str) -> UsageError:
        name = printable(self.weights[codes].name)
        hint = "start from the float model, or name a .safetensors file for the weights alone"
        return UsageError(f"{why} written again in ONNX", place=[name], hint=hint)

    def own(self, codes: str) -> str:
        """The name of a weight in its own graph."""
        prefix = codes[: len(codes) - len(self.graph.held[codes].own)]
        return self.weights[codes].name.removeprefix(prefix)

    def _node(self, place: int, call: Call, codes: str) -> None:
        """Replace a node that takes codes."""
        operator, weight, at = call.operator, self.own(codes), call.inputs.index(codes)
        if operator == f"{_CONTRIB}MatMulNBits" and at == 1:
            turned = self._fresh(f"{weight}_turned")
            back = _Made(operator="Transpose", inputs=(weight,), outputs=(turned,))
            self.made[place] = [back, *self._product(call.takes[0], turned, call.makes[0], call.takes[5:6])]
        elif operator == f"{_CONTRIB}GatherBlockQuantized" and at == 0 and not call.numbers.get("gather_axis", 0):
            self.made[place] = [_Made(operator="Gather", inputs=(weight, call.takes[1]), outputs=call.makes)]
        elif operator.removeprefix(_CONTRIB) == "DequantizeLinear" and at == 0:
            self.made[place] = self._handed_on(weight, call.makes[0])
        elif operator == "Gather" and at == 0:
            self._looked_up(place, call, codes)
        elif operator in _INTEGER and at == 1:
            self._integer(place, call, codes)
        elif operator == f"{_CONTRIB}DynamicQuantizeMatMul" and at == 1:
            self.made[place] = self._product(call.takes[0], weight, call.makes[0], call.takes[4:5])
        elif operator == f"{_CONTRIB}MatMulIntegerToFloat" and at == 1:
            self.made[place] = self._product(self._before(call, codes), weight, call.makes[0], call.takes[6:7])
        else:
            raise self._refused(codes, f"a {operator} that computes with codes is not")

    def _product(self, left: str, right: str, result: str, bias: Sequence[str]) -> list[_Made]:
        if not any(bias):
            return [_Made(operator="MatMul", inputs=(left, right), outputs=(result,))]
        between = self._fresh(f"{result}_product")
        first = _Made(operator="MatMul", inputs=(left, right), outputs=(between,))
        return [first, _Made(operator="Add", inputs=(between, bias[0]), outputs=(result,))]

    def _handed_on(self, weight: str, result: str) -> list[_Made]:
        """A node that gives a weight another name, where it has one."""
        return [] if weight == result else [_Made(operator="Identity", inputs=(weight,), outputs=(result,))]

    def _only(self, name: str, operator: str) -> int | None:
        """The node that alone takes a tensor, where it is of this operator."""
        takers = self._takers[name]
        found = len(takers) == 1 and name not in self.graph.results and self.graph.calls[takers[0]].operator == operator
        return takers[0] if found else None

    def _looked_up(self, place: int, call: Call, codes: str) -> None:
        """Rows of codes, and the nodes behind that decode them."""
        inputs = (self.own(codes), *call.takes[1:])
        self.made[place] = [_Made(operator="Gather", inputs=inputs, outputs=call.makes, numbers=call.numbers)]
        for behind in self._takers[call.outputs[0]]:
            taker = self.graph.calls[behind]
            if taker.operator == "DequantizeLinear":
                self.made[behind] = self._handed_on(call.makes[0], taker.makes[0])
            elif taker.operator not in _INTEGER or taker.inputs[1] not in self.weights:
                raise self._refused(codes, f"rows of codes that {taker.operator} computes with are not")

    def _before(self, call: Call, codes: str) -> str:
        """The floats that the codes of inputs were made of, or that rows of codes become."""
        maker = self._makers.get(call.inputs[0], -1)
        before = self.graph.calls.get(maker)
        if before is not None and before.operator == "DynamicQuantizeLinear":
            return before.takes[0]
        if before is not None and before.operator == "Gather" and before.inputs[0] in self.weights:
            return call.takes[0]
        raise self._refused(codes, f"a {call.operator} of inputs that are not quantized as they come is not")

    def _integer(self, place: int, call: Call, codes: str) -> None:
        """A product of codes, whose scales come in behind it: (codes -> Cast) * (scale of inputs * scale)."""
        inputs, calls = self._before(call, codes), self.graph.calls
        cast_at = self._only(call.outputs[0], "Cast")
        last = self._only(calls[cast_at].outputs[0], "Mul") if cast_at is not None else None
        if cast_at is None or last is None:
            raise self._refused(codes, f"a {call.operator} without Cast and Mul behind it is not")
        other = next((n for n in calls[last].inputs if n != calls[cast_at].outputs[0]), "")
        scales = self._makers.get(other)
        if scales is None or self._only(other, "Mul") != last or calls[scales].operator != "Mul":
            raise self._refused(codes, f"a {call.operator} whose scales are not multiplied behind it is not")
        operator = call.operator.removesuffix("Integer")
        made = _Made(operator=operator, inputs=(inputs, self.own(codes)), outputs=calls[last].makes, attributes=True)
        self.made.update({place: [made], cast_at: [], last: [], scales: []})

    def is_needed(self, name: str) -> bool:
        """Whether a tensor is taken by a node that stays or is new, or was taken by none before either."""
        return not self._takers.get(name) or self._is_taken(name) or self.graph.held[name].own in self._used

    @cached_property
    def _used(self) -> set[str]:
        """What the new nodes take."""
        return {name for made in self.made.values() for node in made for name in node.inputs}


# ---- the file -----------------------------------------------------------------------------------------------------


class _Segments:
    """A file of segments, with zeros in its holes; it has as much of an InputFile as reading a graph needs."""

    def __init__(self, source: InputFile, segments: Sequence[Segment]) -> None:
        self.path, self._source, self._segments = source.path, source, segments
        self._ends = [*accumulate(size_of([segment]) for segment in segments)]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, size: int) -> bytes:
        """A run of them."""
        found, at, end = list[bytes](), start, start + size
        number = bisect_right(self._ends, start)
        while at < end:
            segment, last = self._segments[number], self._ends[number]
            skip, count = at - (last - size_of([segment])), min(end, last) - at
            if isinstance(segment, bytes):
                found.append(segment[skip : skip + count])
            elif isinstance(segment, Range):
                found.append(self._source.read(segment.begin + skip, count))
            else:
                found.append(bytes(count))
            at, number = at + count, number + 1
        return b"".join(found)


class _Walk:
    """One walk through the source."""

    def __init__(self, replacing: _Replacing) -> None:
        self.replacing, self.graph = replacing, replacing.graph
        self.wire = Wire(self.graph.file)

    def model(self) -> Iterator[Segment]:
        """The fields of the model."""
        for own in self.wire.fields(0, self.graph.file.size):
            yield from in_message(7, self._graph(own, top=True)) if own.number == 7 else copied(self.wire, own)

    def _graph(self, graph: Field, *, top: bool) -> list[Segment]:
        found = list[Segment]()
        for own in self.wire.inside(graph):
            if own.number == 1:
                found += self._node(own)
            elif own.number == 5:
                found += self._tensor(own)
            elif own.number != 13 and not (top and self._is_initial(own)):  # 13: shapes of values, some no more there
                found += copied(self.wire, own)
        return found

    def _is_initial(self, own: Field) -> bool:
        """Whether a field is the input that each initializer of an old file was."""
        if own.number != 11 or self.graph.ir >= IR_WITHOUT_INPUTS:
            return False
        return any(f.number == 1 and self.wire.text(f) in self.graph.held for f in self.wire.inside(own))

    def _tensor(self, own: Field) -> list[Segment]:
        """An initializer: floats in place of codes, and nothing in place of scales."""
        name = self.graph.places.get(own.value)
        if name in self.replacing.weights:
            info = self.replacing.weights[name]
            head = b"".join(number(1, n) for n in info.shape) + number(2, SCALES[info.dtype])
            named = text(8, self.replacing.own(name))
            return in_message(5, [head + named + opened(9, info.nbytes), Hole(info.name, info.nbytes)])
        return copied(self.wire, own) if name is None or self.replacing.is_needed(name) else []

    def _node(self, own: Field) -> list[Segment]:
        made = self.replacing.made.get(own.value)
        if made is not None:
            return [s for node in made for s in self._made(own, node)]
        fields = list(self.wire.inside(own))
        if not any(f.number == 5 and self._has_graphs(f) for f in fields):
            return copied(self.wire, own)
        found = list[Segment]()
        for inner in fields:
            found += in_message(5, self._attribute(inner)) if inner.number == 5 else copied(self.wire, inner)
        return in_message(own.number, found)

    def _has_graphs(self, attribute: Field) -> bool:
        return any(f.number in (6, 11) for f in self.wire.inside(attribute))

    def _attribute(self, attribute: Field) -> list[Segment]:
        found = list[Segment]()
        for own in self.wire.inside(attribute):
            graphs = own.number in (6, 11)
            found += in_message(own.number, self._graph(own, top=False)) if graphs else copied(self.wire, own)
        return found

    def _made(self, place: Field, made: _Made) -> list[Segment]:
        head = nodes.node(made.operator, made.inputs, made.outputs)
        head += b"".join(nodes.whole(key, value) for key, value in made.numbers.items())
        if not made.attributes:
            return [message(place.number, head)]
        same = [s for f in self.wire.inside(place) if f.number == 5 for s in copied(self.wire, f)]
        return in_message(place.number, [head, *same])


@lru_cache(maxsize=4)
def floating(graph: Graph, weights: Weights) -> Graph:
    """The graph with these weights as floats; where there are none, the graph. Raises UsageError where nodes that
    compute with codes are not replaced."""
    if not weights:
        return graph
    for _, info in weights:
        if info.dtype not in SCALES:
            raise UsageError(f"ONNX multiplies with no {info.dtype}", place=[printable(info.name)])
    segments = list(_Walk(_Replacing(graph, weights)).model())
    reader = Reader(cast("InputFile", _Segments(graph.file, segments)))
    reader.model()
    return reader.result()
