"""The reader of ONNX files: every tensor with the place of its bytes, and every node with what it takes and makes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.stores.files import InputFile
from quantcli.stores.onnx_graph import COMPUTING, CONTRIB, DECODING, DOMAINS, LISTS, WORDS, Call, Graph, Held, Node
from quantcli.stores.onnx_tensors import Elements, Entry, pair, tensor_fields
from quantcli.stores.protobuf import FOUR, Field, Wire

DEPTH = 8
"""Deepest nesting of graphs: the branches of a condition inside a loop are the third level."""

OTHERS = ("QEmbedLayerNormalization", "QMoE", "MatMulBnb4", "MatMulFpQ4")
"""Operators that compute with quantized weights which quantcli does not decode, beside those of COMPUTING and those
whose names begin with QLinear and QOrdered: from the operator lists of ONNX and of onnxruntime."""

CODES = ("U8", "I8", "U16", "I16", "F8_E4M3", "F8_E5M2")
"""Dtypes of the weights they take; numbers of fewer bits are U8 here."""

_MOST_AXES = 16

Names = dict[str, str]
"""The names of a graph: from the name in the graph to the name it is listed under."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """The graph that is being read: the prefix of its names, the names visible in it, its own and those of the graphs
    around it, and whether it is in a function."""

    prefix: str
    seen: tuple[Names, ...]
    in_function: bool = False

    def inside(self, label: str) -> _Scope:
        """The scope of a graph in a node of this one."""
        return _Scope(f"{self.prefix}{label}/", (*self.seen, {}), self.in_function)

    def listed(self, name: str) -> str:
        """The name under which an input of a node of this graph is listed."""
        found = next((names[name] for names in reversed(self.seen) if name in names), None)
        return found if found is not None else f"{self.prefix}{name}" if name else ""

    def computed(self, name: str) -> str:
        """The listed name of what this graph computes or is given."""
        listed = f"{self.prefix}{name}"
        self.seen[-1].setdefault(name, listed)
        return listed


@dataclass(slots=True)
class _Attribute:
    """An attribute of a node: its name, number, numbers in a list, word, and the places of its tensor and graphs."""

    name: str = ""
    whole: int | None = None
    real: float | None = None
    listed: tuple[int, ...] = ()
    word: str = ""
    value: Field | None = None
    graphs: list[Field] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    """A node as it is read: its own names, which are looked up when all tensors are known."""

    scope: _Scope
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[_Attribute] = field(default_factory=list)

    @property
    def known(self) -> str:
        """Its operator where that is ONNX's or onnxruntime's, else empty."""
        return self.operator if self.domain in (*DOMAINS, CONTRIB) else ""

    @property
    def numbers(self) -> dict[str, int]:
        """The attributes that are whole numbers."""
        return {a.name: a.whole for a in self.attributes if a.whole is not None}

    def call(self) -> Call:
        """The node with the names under which things are listed."""
        return Call(
            operator=self.operator if self.domain in DOMAINS else f"{self.domain}.{self.operator}",
            inputs=tuple(map(self.scope.listed, self.inputs)),
            outputs=tuple(f"{self.scope.prefix}{name}" if name else "" for name in self.outputs),
            takes=tuple(self.inputs),
            makes=tuple(self.outputs),
            numbers=self.numbers,
            floats={a.name: a.real for a in self.attributes if a.real is not None},
            lists={a.name: a.listed for a in self.attributes if a.name in LISTS},
            words={a.name: a.word for a in self.attributes if a.name in WORDS},
            scope=self.scope.prefix,
            in_function=self.scope.in_function,
        )


class Reader:
    """Collects the tensors and nodes of a file."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.wire = file, Wire(file)
        self.elements = Elements(file, self.wire)
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        self._held: dict[str, Held] = {}
        self._places: dict[int, str] = {}
        self._nodes: dict[int, _Node] = {}
        self._given, self._results, self._names = set[str](), set[str](), set[str]()
        self._versions: dict[str, int] = {}
        self._ir = 0
        self._reshaped: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._looked_up: dict[str, str] = {}

    def _tensor(self, message: Field, scope: _Scope, name: str | None = None) -> None:
        """List a tensor: an initializer, or under the name of a node's output the value of a constant."""
        found = tensor_fields(self.wire, message)
        if name is not None and found.is_text:
            return  # for readers; the model computes with numbers
        own = found.name = found.name if name is None else name
        try:
            if not own:
                raise DataError("a tensor without a name")
            found.name = f"{scope.prefix}{own}"
            if found.name in self.entries:
                raise DataError("duplicate tensor")
            self.entries[found.name] = self.elements.entry(found)
        except QuantcliError as error:
            raise error.within(printable(found.name)) from None
        scope.seen[-1][own] = found.name
        self._held[found.name] = Held(own=own, is_constant=name is not None, in_function=scope.in_function)
        self._places[message.value] = found.name
        self._names.add(own)

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def _attribute(self, message: Field) -> _Attribute:
        """An attribute: its name, and its value or the place of it."""
        found = _Attribute()
        named, word, numbers = None, None, list[Field]()
        for own in self.wire.inside(message):
            if own.number == 1:
                named = own
            elif own.number == 2 and own.kind == FOUR:
                (found.real,) = struct.unpack("<f", self.wire.bytes(own))
            elif own.number == 3:
                found.whole = self.wire.whole(own)
            elif own.number == 4:
                word = own
            elif own.number == 5:
                found.value = own
            elif own.number in (6, 11):
                found.graphs.append(own)
            elif own.number == 8:
                numbers.append(own)
        found.name = "" if named is None else self.wire.text(named)
        if found.name in LISTS:
            found.listed = tuple(islice(self._flat(numbers), _MOST_AXES + 1))
        if found.name in WORDS and word is not None:
            found.word = self.wire.text(word)
        return found

    def _flat(self, fields: Iterable[Field]) -> Iterator[int]:
        for own in fields:
            yield from self.wire.varints(own)

    def _node(self, message: Field, scope: _Scope, depth: int) -> None:
        node = self._nodes[message.value] = _Node(scope)
        for own in self.wire.inside(message):
            if own.number == 1:
                node.inputs.append(self.wire.text(own))
            elif own.number == 2:
                node.outputs.append(self.wire.text(own))
            elif own.number == 4:
                node.operator = self.wire.text(own)
            elif own.number == 7:
                node.domain = self.wire.text(own)
            elif own.number == 5:
                node.attributes.append(self._attribute(own))
        first = node.outputs[0] if node.outputs else ""
        self._names.update(node.outputs)
        for held in node.attributes:
            if held.value is not None and node.operator == "Constant" and node.domain in DOMAINS:
                self._tensor(held.value, scope, first)
            for i, graph in enumerate(held.graphs):
                label = first or node.operator
                which = held.name if len(held.graphs) == 1 else f"{held.name}/{i}"
                self.graph(graph, scope.inside(f"{label}/{which}"), depth + 1)
        for name in node.outputs:
            if name:
                scope.computed(name)

    # ---- graphs ---------------------------------------------------------------------------------------------------

    def _value(self, message: Field) -> str:
        """The name of an input or output of a graph."""
        return next((self.wire.text(own) for own in self.wire.inside(message) if own.number == 1), "")

    def graph(self, message: Field, scope: _Scope, depth: int = 0) -> None:
        """Read a graph."""
        if depth > DEPTH:
            raise DataError("its graphs are nested too deeply")
        results = list[str]()
        for own in self.wire.inside(message):
            if own.number == 1:
                self._node(own, scope, depth)
            elif own.number == 5:
                self._tensor(own, scope)
            elif own.number == 11:
                name = self._value(own)
                self._names.add(name)
                self._given.add(scope.computed(name))
            elif own.number == 12:
                results.append(self._value(own))
            elif own.number == 15:
                raise DataError("sparse initializers are not supported")
        self._results.update(map(scope.listed, results))

    def _function(self, message: Field) -> None:
        """Read the nodes of a function; its names are local."""
        names, nodes, given, results = dict[int, str](), list[Field](), list[str](), list[str]()
        for own in self.wire.inside(message):
            if own.number in (1, 10, 13):
                names[own.number] = self.wire.text(own)
            elif own.number == 4:
                given.append(self.wire.text(own))
            elif own.number == 5:
                results.append(self.wire.text(own))
            elif own.number == 7:
                nodes.append(own)
        scope = _Scope("".join(f"{names[n]}/" for n in (10, 1, 13) if names.get(n)), ({},), True)
        self._names.update(given)
        self._given.update(map(scope.computed, given))
        for own in nodes:
            self._node(own, scope, 0)
        self._results.update(map(scope.listed, results))

    def _opset(self, message: Field) -> None:
        domain, version = "", 0
        for own in self.wire.inside(message):
            if own.number == 1:
                domain = self.wire.text(own)
            elif own.number == 2:
                version = self.wire.whole(own)
        self._versions["" if domain in DOMAINS else domain] = version
        self.metadata[f"opset {domain}".rstrip()] = str(version)

    def model(self) -> None:
        """Read the file."""
        seen = 0
        for own in self.wire.fields(0, self.file.size):
            if own.number == 1:
                self._ir = self.wire.whole(own)
                self.metadata["ir_version"] = str(self._ir)
            elif own.number in (2, 3):
                self.metadata["producer_name" if own.number == 2 else "producer_version"] = self.wire.text(own)
            elif own.number == 8:
                self._opset(own)
            elif own.number == 14:
                key, value = pair(self.wire, own)
                self.metadata[key] = value
            elif own.number == 7:
                seen += 1
                if seen > 1:
                    raise DataError("it holds two graphs")
                self.graph(own, _Scope("", ({},)))
            elif own.number == 25:
                self._function(own)
        if not seen:
            raise DataError("it holds no graph")
        self._look_behind()
        self._pass_over_operands()
        if not self.entries:
            raise DataError("its graph holds no weights, as initializers or as constants")

    def _decodes(self) -> Iterator[_Node]:
        """Nodes that decode a weight, or compute with one as codes."""
        for node in self._nodes.values():
            decodes = node.known in DECODING and (node.known == "DequantizeLinear" or node.domain == CONTRIB)
            computes = node.known in (*COMPUTING, *OTHERS) or node.known.startswith(("QLinear", "QOrdered"))
            if decodes or (computes and (node.known != "Gather" or self._takes_codes(node))):
                yield node

    def _takes_codes(self, node: _Node) -> bool:
        """Whether a node looks up rows of codes, by the names that onnxruntime's quantizers give these."""
        name = node.scope.listed(node.inputs[0]) if node.inputs else ""
        stem = name.removesuffix("_quantized")
        return stem != name and name in self.entries and f"{stem}_scale" in self.entries

    def _pass_over_operands(self) -> None:
        """Drop constants that are shapes, axes, indices or single numbers, unless a node decodes with them."""
        used = {node.scope.listed(name) for node in self._decodes() for name in node.inputs}
        for name in [name for name, held in self._held.items() if held.is_constant and name not in used]:
            entry = self.entries[name]
            if not entry.shape or (len(entry.shape) == 1 and not DTYPES[entry.info.dtype].is_float):
                del self.entries[name], self._held[name]
        self._places = {place: name for place, name in self._places.items() if name in self._held}

    def _decoding(self, node: _Node, names: tuple[str, ...]) -> Node:
        """A node that decodes. Rows of codes that were looked up before it stand for the codes they are rows of."""
        shape: tuple[int, ...] = ()
        if node.operator == "DequantizeLinear" and len(names) > 1:
            scale = self.entries.get(names[1])
            if scale is not None and scale.info.numel == 1:
                names = (self._looked_up.get(names[0], names[0]), *names[1:])
            result, found = self._reshaped.get(node.scope.listed("".join(node.outputs[:1])), ("", ()))
            shape = found if result and names[0].startswith(f"{result}_quantized") else ()
        places = DECODING[node.operator]
        return Node(operator=node.operator, inputs=names, numbers=node.numbers, places=places, shape=shape)

    def _look_behind(self) -> None:
        """Find what Reshape nodes give a constant shape, and what Gather nodes look up in a stored tensor."""
        for node in self._nodes.values():
            if node.domain not in DOMAINS or len(node.inputs) < 2 or not node.outputs:
                continue
            first, second = map(node.scope.listed, node.inputs[:2])
            if node.operator == "Reshape" and second in self.entries:
                result = node.scope.listed(node.outputs[0])
                self._reshaped[first] = (result, self._small(self.entries[second]))
            elif node.operator == "Gather" and first in self.entries and not node.numbers.get("axis", 0):
                self._looked_up[node.scope.listed(node.outputs[0])] = first

    def _small(self, entry: Entry) -> tuple[int, ...]:
        """The numbers of a tensor that is a shape; none where it is anything else."""
        if entry.info.dtype != "I64" or not 0 < entry.info.numel <= _MOST_AXES:
            return ()
        raw = entry.held if entry.file is None else entry.file.read(entry.begin, entry.info.nbytes)
        found = struct.unpack(f"<{entry.info.numel}q", raw)
        return found if min(found) > 0 else ()

    def result(self) -> Graph:
        """The facts about tensors that the nodes give."""
        nodes, integer, computed = list[Node](), list[Node](), dict[str, str]()
        for node in sorted(self._decodes(), key=lambda node: node.operator == "Gather"):  # which tells the least
            names = tuple(map(node.scope.listed, node.inputs))
            if node.operator in DECODING:
                nodes.append(self._decoding(node, names))
                continue
            for places in COMPUTING.get(node.operator, ()):
                found = Node(operator=node.operator, inputs=names, numbers=node.numbers, places=places)
                integer += [found] if found.weight in self.entries else []
            for name in names:
                entry = self.entries.get(name)
                if entry is not None and entry.info.dtype in CODES and len(entry.shape) > 1:
                    computed.setdefault(name, node.operator)
        return Graph(
            nodes=tuple(nodes),
            integer=tuple(integer),
            packed={name: e.packed for name, e in self.entries.items() if e.packed is not None},
            computed=computed,
            file=self.file,
            calls={place: node.call() for place, node in self._nodes.items()},
            held=self._held,
            places=self._places,
            given=frozenset(self._given),
            results=frozenset(self._results),
            names=frozenset(self._names),
            ir=self._ir,
            opset=self._versions.get("", 0),
        )
