"""The file of a model again, byte for byte, with other nodes and tensors in place of its weights.

The source is walked once more, message by message. What does not change is copied from it; messages around a change get
a new length. Weights are not read here: where one stands there is a hole of its size, which the pass fills.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantcli.errors import DataError, printable
from quantcli.layouts.onnx import nodes
from quantcli.layouts.onnx.forms import INT4, UINT4, Stored
from quantcli.layouts.onnx.roles import Role
from quantcli.layouts.writer import KEY
from quantcli.stores.onnx_graph import CONTRIB
from quantcli.stores.onnx_tensors import pair
from quantcli.stores.protobuf import BYTES, VARINT, Field, Wire
from quantcli.stores.protobuf_writer import message, number, opened, text, varint

if TYPE_CHECKING:
    from quantcli.stores.onnx_graph import Graph

_DATA = (3, 4, 5, 6, 7, 9, 10, 11, 13, 14)
"""Fields of TensorProto that hold elements or say where they are."""

_REPLACED = (1, 4, 5, 7)
"""Fields of NodeProto that another node in its place has otherwise: inputs, operator, attributes, domain."""

INSIDE = 1024
"""Bytes up to which a tensor stays in the graph where others are in a second file: shapes are looked up there."""

PAGE = 4096

SMALL = 1 << 16
"""Bytes up to which a field that stays as it is is read before the file is written."""

NODE_OF_FUNCTION = 7

_CONTRIB_1 = text(1, CONTRIB) + number(2, 1)
"""The version of onnxruntime's operators."""

IR_WITHOUT_INPUTS, IR_WITH_4_BITS = 4, 10
"""Versions of the format from which on initializers need not be inputs of the graph, and may have 4 bits."""


@dataclass(frozen=True, slots=True)
class Hole:
    """The place of a tensor that the pass writes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the source that stay as they are."""

    begin: int
    size: int


Segment = bytes | Hole | Range


def size_of(segments: Sequence[Segment]) -> int:
    """Bytes of segments together."""
    return sum(len(s) if isinstance(s, bytes) else s.size for s in segments)


def in_message(key: int, segments: Sequence[Segment]) -> list[Segment]:
    """A field that holds a message."""
    return [opened(key, size_of(segments)), *segments]


def copied(wire: Wire, own: Field) -> list[Segment]:
    """A field as it is."""
    head = varint(own.number << 3 | own.kind)
    if own.kind == VARINT:
        return [head + varint(own.value)]
    head += varint(own.size) if own.kind == BYTES else b""
    if own.size > SMALL:
        return [head, Range(own.value, own.size)]
    return [head + wire.file.read(own.value, own.size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What becomes of a model. weights: those that are quantized, by name, with the role of each. kept: the bytes of
    the others. location: the name of the second file, empty where all tensors stay in the one."""

    weights: Mapping[str, tuple[Stored, Role]]
    kept: Mapping[str, int]
    location: str = ""


@dataclass(slots=True)
class Laid:
    """The segments of the file; the offset of each tensor that is in the second one, and its size."""

    segments: list[Segment] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    beside: int = 0


def laid_out(graph: Graph, changes: Changes, record: str) -> Laid:
    """The file of a model with these changes. record: what its metadata says under KEY."""
    walk = _Walk(graph, changes)
    walk.out.segments = list(walk.model(record))
    return walk.out


class _Walk:
    """One walk through the source."""

    def __init__(self, graph: Graph, changes: Changes) -> None:
        self.graph, self.changes = graph, changes
        self.wire, self.out = Wire(graph.file), Laid()
        self._fresh, self._flat = nodes.fresh_among(graph.names), dict[str, str]()
        calls = [(name, s, role) for name, (s, role) in changes.weights.items() if s.form != "linear"]
        self._parts = {name: self._part_names(name, s) for name, (s, _) in changes.weights.items()}
        self._replaced = {place: name for name, _, role in calls for place in (*role.multiplied, *role.rows)}
        self._passing = {place for _, _, role in calls for place in role.passing}
        self._gone = {graph.held[name].own for name, _, _ in calls}
        self._gone |= {name for place in self._passing for name in graph.calls[place].makes}

    def _part_names(self, name: str, stored: Stored) -> tuple[str, ...]:
        own = self.graph.held[name].own
        return tuple(self._fresh(own + e) for e in ("_quantized", "_scale", "_zero_point")[: len(stored.parts)])

    def _all(self, fields: Iterable[Field]) -> list[Segment]:
        return [segment for own in fields for segment in copied(self.wire, own)]

    # ---- tensors --------------------------------------------------------------------------------------------------

    def _elements(self, name: str, size: int, *, inside: bool) -> list[Segment]:
        """The fields of a TensorProto that hold its elements."""
        if inside or not self.changes.location or size <= INSIDE:
            return [opened(9, size), Hole(name, size)]
        begin = -(-self.out.beside // PAGE) * PAGE
        self.out.offsets[name], self.out.beside = begin, begin + size
        place = {"location": self.changes.location, "offset": str(begin), "length": str(size)}
        return [*(message(13, text(1, key) + text(2, value)) for key, value in place.items()), number(14, 1)]

    def _kept(self, tensor: Field, name: str, *, inside: bool) -> list[Segment]:
        """A tensor that stays, with its elements as bytes. Raises DataError for one that cannot."""
        if name not in self.changes.kept:
            problem = "it belongs to codes that become floats, and no node takes it: the graph is damaged"
            raise DataError(problem, place=[printable(name)])
        same = self._all(own for own in self.wire.inside(tensor) if own.number not in _DATA)
        return [*same, *self._elements(name, self.changes.kept[name], inside=inside)]

    def _weight(self, name: str) -> list[Segment]:
        """The parts of a quantized weight: initializers of a graph, in a function Constant nodes."""
        (stored, _), found = self.changes.weights[name], list[Segment]()
        in_function = self.graph.held[name].in_function
        for own, part, info in zip(self._parts[name], stored.parts, stored.job.outputs):
            head = b"".join(number(1, n) for n in part.shape) + number(2, part.kind)
            named = [head, *([] if in_function else [text(8, own)])]
            tensor = in_message(5, [*named, *self._elements(info.name, info.nbytes, inside=in_function)])
            if in_function:
                value = in_message(5, [text(1, "value"), *tensor, number(20, 4)])
                tensor = in_message(NODE_OF_FUNCTION, [nodes.node("Constant", [], [own]), *value])
            found += tensor
        return found

    def _decoded(self, name: str, key: int) -> list[Segment]:
        """The nodes that give a weight back as floats, where it has no form of its own. key: the field of a node."""
        stored, _ = self.changes.weights[name]
        own, parts = self.graph.held[name].own, self._parts[name]
        if stored.form == "linear":
            made = nodes.decoding(stored, parts, own, self.graph.opset, self._fresh)
        elif stored.form == "both":
            rows = self._flat[name] = self._fresh(f"{own}_rows")
            shape = (stored.shape[0], stored.shape[1] * stored.bits // 8)
            made = nodes.reshaped(parts[0], rows, shape, self._fresh)
        else:
            made = []
        return [message(key, node) for node in made]

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, own: Field) -> list[Segment]:
        """What stands in place of a node."""
        place = own.value
        if place in self._passing:
            return []
        if place in self._replaced:
            return self._product(own, self._replaced[place])
        fields = list(self.wire.inside(own))
        found, changed = list[Segment](), False
        for inner in fields:
            if inner.number != 5:
                found += copied(self.wire, inner)
                continue
            held = [f for f in self.wire.inside(inner) if f.number in (5, 6, 11)]
            name = next((n for f in held if f.number == 5 and (n := self.graph.places.get(f.value)) is not None), None)
            if name is not None and name in self.changes.weights:
                return [*self._weight(name), *self._decoded(name, own.number)]
            if name is None and not any(f.number != 5 for f in held):
                found += copied(self.wire, inner)
                continue
            changed = True
            found += in_message(5, self._attribute(inner))
        return in_message(own.number, found) if changed else copied(self.wire, own)

    def _attribute(self, attribute: Field) -> list[Segment]:
        """An attribute that holds a tensor that is listed, or graphs."""
        found = list[Segment]()
        for own in self.wire.inside(attribute):
            name = self.graph.places.get(own.value) if own.number == 5 else None
            if name is not None:
                found += in_message(5, self._kept(own, name, inside=True))
            elif own.number in (6, 11):
                found += in_message(own.number, self._graph(own, top=False))
            else:
                found += copied(self.wire, own)
        return found

    def _product(self, own: Field, name: str) -> list[Segment]:
        """The node that multiplies with a quantized weight, or looks up its rows, in place of one with floats."""
        call, (stored, _), parts = self.graph.calls[own.value], self.changes.weights[name], self._parts[name]
        same = [f for f in self.wire.inside(own) if f.number not in _REPLACED]
        if call.operator == "Gather":
            looked = nodes.lookup(stored, (self._flat.get(name, parts[0]), *parts[1:]), call.takes[1])
            return in_message(own.number, [looked, *self._all(same)])
        product = nodes.product(stored, parts, call.takes[0])
        if call.operator != "Gemm" or len(call.takes) < 3 or not call.takes[2]:
            return in_message(own.number, [product, *self._all(same)])
        result = self._fresh(f"{call.makes[0]}_product")
        behind = nodes.node("Add", [result, call.takes[2]], [call.makes[0]], self._fresh(f"{result}_Add"))
        without = self._all(f for f in same if f.number != 2)
        return [*in_message(own.number, [product, text(2, result), *without]), message(own.number, behind)]

    # ---- graphs ---------------------------------------------------------------------------------------------------

    def _graph(self, graph: Field, *, top: bool) -> list[Segment]:
        """The fields of a graph, the model's own or that of a node."""
        fields = list(self.wire.inside(graph))
        found, started = list[Segment](), False
        names = [self.graph.places[f.value] for f in fields if f.number == 5]
        for own in fields:
            if own.number == 1:
                if not started:
                    started = True
                    found += [s for name in names if name in self.changes.weights for s in self._decoded(name, 1)]
                found += self._node(own)
            elif own.number == 5:
                name = self.graph.places[own.value]
                weight = name in self.changes.weights
                found += self._weight(name) if weight else in_message(5, self._kept(own, name, inside=False))
            elif not self._left_out(own, top=top):
                found += copied(self.wire, own)
        return found

    def _left_out(self, own: Field, *, top: bool) -> bool:
        """Whether a field of a graph describes something that is no more: a value, or in old files the input that each
        initializer was."""
        if own.number not in (11, 13):
            return False
        name = next((self.wire.text(f) for f in self.wire.inside(own) if f.number == 1), "")
        if own.number == 13:
            return name in self._gone
        return top and self.graph.ir < IR_WITHOUT_INPUTS and name in self.graph.held

    def _function(self, function: Field) -> list[Segment]:
        """The fields of a function. What is in it may need onnxruntime's operators."""
        found, imported = list[Segment](), False
        for own in self.wire.inside(function):
            if own.number == NODE_OF_FUNCTION:
                found += self._node(own)
            else:
                imported |= own.number == 9 and self._domain(own) == CONTRIB
                found += copied(self.wire, own)
        return found if imported else [*found, message(9, _CONTRIB_1)]

    def _domain(self, opset: Field) -> str:
        return next((self.wire.text(f) for f in self.wire.inside(opset) if f.number == 1), "")

    def model(self, record: str) -> Iterator[Segment]:
        """The fields of the model."""
        imported = False
        for own in self.wire.fields(0, self.graph.file.size):
            if own.number == 1:
                yield number(1, self._ir())
            elif own.number == 7:
                yield from in_message(7, self._graph(own, top=True))
            elif own.number == 25:
                yield from in_message(25, self._function(own))
            elif own.number != 14 or pair(self.wire, own)[0] not in (KEY, "quantcli"):
                imported |= own.number == 8 and self._domain(own) == CONTRIB
                yield from copied(self.wire, own)
        if not imported:
            yield message(8, _CONTRIB_1)
        yield message(14, text(1, KEY) + text(2, record))

    def _ir(self) -> int:
        """The version of the format that the file needs."""
        small = any(p.kind in (UINT4, INT4) for s, _ in self.changes.weights.values() for p in s.parts)
        return max(self.graph.ir, IR_WITH_4_BITS if small else IR_WITHOUT_INPUTS)
