"""The file of a model again, with values inside it as more outputs.

A value becomes an output by a Cast to float32 behind it. Where it is in a branch of If, that branch has an output more,
the other branch one of no elements, and the If itself; in the body of a Loop the values of all rounds become one, with
an axis more in front. Values in the graphs of other nodes, and in functions, cannot become outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from quantcli.errors import DataError
from quantcli.layouts.onnx.nodes import fresh_among, node, whole
from quantcli.layouts.onnx.taps import Tap
from quantcli.stores.onnx_graph import Graph
from quantcli.stores.protobuf import VARINT, Field, Wire
from quantcli.stores.protobuf_writer import message, number, opened, text, varint

FLOAT = 1

LIMIT = (1 << 31) - (1 << 20)
"""Largest model that onnxruntime takes as bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """A model with more outputs. values: the name of that of each value of a tap, empty for one it has not. Taps
    whose values cannot become outputs are missing."""

    model: bytes
    values: dict[Tap, tuple[str, ...]]


@dataclass(slots=True)
class _Inside:
    """A graph that is written: its fields, and the names of what is to be its outputs."""

    fields: list[bytes] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def exposed(graph: Graph, taps: Sequence[Tap]) -> Exposed:
    """The model of a graph with the values of taps as outputs. Raises DataError for one too large."""
    if graph.file.size > LIMIT:
        raise DataError(f"a file of {graph.file.size} bytes is more than onnxruntime takes", place=[graph.file.path])
    walk = _Walk(graph, taps)
    model = walk.model()
    return Exposed(model=model, values=walk.values())


class _Walk:
    """One walk through the file."""

    def __init__(self, graph: Graph, taps: Sequence[Tap]) -> None:
        self.graph, self.taps = graph, taps
        self.wire, self.fresh = Wire(graph.file), fresh_among(graph.names)
        self._at = defaultdict[int, list[Tap]](list)
        for tap in taps:
            self._at[tap.place].append(tap)
        self._named: dict[Tap, list[str]] = {}
        self._above: dict[str, str] = {}
        self._outside: list[str] = []

    def values(self) -> dict[Tap, tuple[str, ...]]:
        """The outputs of the taps."""
        found = dict[Tap, tuple[str, ...]]()
        for tap, names in self._named.items():
            own = list[str]()
            for name in names:
                while name in self._above:
                    name = self._above[name]
                own.append(name)
            if all(name in self._outside for name in own if name):
                found[tap] = tuple(own)
        return found

    def model(self) -> bytes:
        """The fields of the model."""
        found = list[bytes]()
        for own in self.wire.fields(0, self.graph.file.size):
            if own.number != 7:
                found.append(self._copied(own))
                continue
            inside = self._graph(own)
            self._outside = inside.found
            outputs = [_output(name) for name in inside.found]
            found.append(message(7, b"".join([*inside.fields, *outputs])))
        return b"".join(found)

    def _copied(self, own: Field) -> bytes:
        head = varint(own.number << 3 | own.kind)
        if own.kind == VARINT:
            return head + varint(own.value)
        body = self.wire.file.read(own.value, own.size)
        return (opened(own.number, own.size) if own.kind == 2 else head) + body

    def _graph(self, graph: Field) -> _Inside:
        """A graph whose taps have nodes behind them that give their values."""
        inside, behind = _Inside(), list[bytes]()
        known = dict[str, str]()
        for own in self.wire.inside(graph):
            if own.number != 1:
                inside.fields.append(self._copied(own))
                continue
            states = ""
            for tap in self._at.get(own.value, ()):
                names = self._named[tap] = []
                for at, value in enumerate(tap.values):
                    if not value and tap.kind == "states" and at == 0:
                        states = value = states or self.fresh(f"{tap.weight}_states")
                    if value and value not in known:
                        known[value] = self.fresh(f"{value}_observed")
                        cast = node("Cast", [value], [known[value]], self.fresh(f"{value}_Cast"))
                        behind.append(message(1, cast + whole("to", FLOAT)))
                        inside.found.append(known[value])
                    names.append(known[value] if value else "")
            inside.fields.append(self._node(own, states, inside.found))
        inside.fields += behind
        return inside

    def _node(self, own: Field, states: str, found: list[str]) -> bytes:
        """A node: a recurrent one gives its states under a name, and one with graphs what is found in them."""
        fields = list(self.wire.inside(own))
        operator = self.graph.calls[own.value].operator
        inside = {f.value: self._attribute(f) for f in fields if f.number == 5 and self._holds_graphs(f)}
        if states:
            return message(1, self._with_states(fields, states))
        if operator not in ("If", "Loop") or not any(i.found for one in inside.values() for i in one[1]):
            return self._copied(own)
        graphs = [graph for _, held in inside.values() for graph in held]
        names = [name for graph in graphs for name in graph.found]
        parts = list[bytes]()
        for part in fields:
            if part.value in inside and part.number == 5:
                head, held = inside[part.value]
                parts.append(message(5, head + b"".join(message(6, self._whole(graph, names)) for graph in held)))
            else:
                parts.append(self._copied(part))
        for name in names:
            self._above[name] = self.fresh(f"{name}_outside")
            found.append(self._above[name])
            parts.append(text(2, self._above[name]))
        return message(1, b"".join(parts))

    def _holds_graphs(self, attribute: Field) -> bool:
        return any(f.number == 6 for f in self.wire.inside(attribute))

    def _attribute(self, attribute: Field) -> tuple[bytes, list[_Inside]]:
        """The fields of an attribute but its graph, and the graph."""
        fields = list(self.wire.inside(attribute))
        return b"".join(self._copied(f) for f in fields if f.number != 6), [
            self._graph(f) for f in fields if f.number == 6
        ]

    def _whole(self, graph: _Inside, names: Sequence[str]) -> bytes:
        """A branch or body with all these outputs, of which it has some."""
        parts = list(graph.fields)
        for name in names:
            if name not in graph.found:
                name = self.fresh(f"{name}_none")
                empty = message(5, number(1, 0) + number(2, FLOAT) + message(9, b""))
                value = message(5, text(1, "value") + empty + number(20, 4))
                parts.append(message(1, node("Constant", [], [name]) + value))
            parts.append(_output(name))
        return b"".join(parts)

    def _with_states(self, fields: Sequence[Field], states: str) -> bytes:
        """The fields of a node whose first output has a name."""
        outputs = [f for f in fields if f.number == 2]
        others = [self._copied(f) for f in fields if f.number != 2]
        return b"".join([*others, text(2, states), *(self._copied(f) for f in outputs[1:])])


def _output(name: str) -> bytes:
    """An output of a graph; its type is inferred."""
    return message(12, text(1, name))
