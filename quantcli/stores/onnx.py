"""ONNX files: the initializers and constants of the graphs in them as tensors, and the nodes that decode them.

    ModelProto      graph 7, functions 25
    GraphProto      node 1, initializer 5, sparse_initializer 15
    FunctionProto   name 1, node 7, domain 10, overload 13
    NodeProto       input 1, output 2, op_type 4, attribute 5, domain 7
    AttributeProto  name 1, i 3, t 5, g 6, graphs 11
    TensorProto     dims 1, data_type 2, name 8, and its elements: raw_data 9, or in another file (external_data 13,
                    data_location 14: location, offset and length), or one by one in a field of their kind

A Constant node's value is a tensor under the name of the node's output. Constants that hold no weights are skipped:
a single number, or one row of integers, is a shape, an axis or an index, unless a node decodes with it. A tensor in the
graph of a node (the branches of If, the body of Loop or Scan) is named OUTPUT/ATTRIBUTE/NAME after the first output of
the node and the attribute that holds the graph; one in a function DOMAIN/FUNCTION/NAME. So names are unique: two
branches may use the same one.

Numbers of fewer than 8 bits are given as U8, the bytes as stored, low bits first: `Graph.packed` has their real type. A
second file must lie in the folder of the first or below it. Elements one by one are read when the file is opened, up to
8 MiB of them; floats that are packed in one field are read in place. Training information, and constants that are text,
sparse or lists in an attribute instead of tensors, are skipped.

The reader is stricter than protobuf's: no message may come in two parts, no tensor twice or with more or fewer bytes
than its shape has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.stores.files import InputFile
from quantcli.stores.onnx_tensors import Elements, Entry, Graph, Node, pair, tensor_fields
from quantcli.stores.protobuf import Field, Wire
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo

DEPTH = 8
"""Deepest nesting of graphs: the branches of a condition inside a loop are the third level."""

OPERATORS = {("com.microsoft", "MatMulNBits"), ("", "DequantizeLinear"), ("ai.onnx", "DequantizeLinear"),
             ("com.microsoft", "DequantizeLinear")}  # fmt: skip
"""The nodes that decode a stored weight, by domain and name."""

DOMAINS = ("", "ai.onnx", "com.microsoft")
INTEGER_OPERATORS = ("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
                     "DynamicQuantizeLSTM", "QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulBnb4",
                     "MatMulFpQ4", "GatherBlockQuantized")  # fmt: skip
"""Nodes of DOMAINS that compute with quantized weights, beside those whose names begin with QLinear and QOrdered: from
the operator lists of ONNX and of onnxruntime."""

CODES = ("U8", "I8", "U16", "I16", "F8_E4M3", "F8_E5M2")
"""Dtypes of the weights they take; numbers of fewer bits are U8 here."""


Names = dict[str, str]
"""The tensors of a graph: from the name in the graph to the name it is listed under."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """The graph that is being read: the prefix of its tensors' names, and the tensors visible in it, its
    own and those of the graphs around it."""

    prefix: str
    seen: tuple[Names, ...]

    def inside(self, label: str) -> _Scope:
        """The scope of a graph in a node of this one."""
        return _Scope(f"{self.prefix}{label}/", (*self.seen, {}))

    def listed(self, name: str) -> str:
        """The name under which an input of a node of this graph is listed; a name that no tensor has where it
        is computed."""
        found = next((names[name] for names in reversed(self.seen) if name in names), None)
        return found if found is not None else f"{self.prefix}{name}" if name else ""


class _Attribute(NamedTuple):
    """An attribute of a node: the places of its name, number, tensor and graphs."""

    name: Field | None
    number: Field | None
    value: Field | None
    graphs: list[Field]


class _Reader:
    """Collects the tensors and nodes of a file."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.wire = file, Wire(file)
        self.elements = Elements(file, self.wire)
        self.entries: dict[str, Entry] = {}
        self.constants: set[str] = set()
        self.taken: list[tuple[_Scope, str, tuple[str, ...], dict[str, int] | None]] = []
        self.metadata: dict[str, str] = {}

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
        if name is not None:
            self.constants.add(found.name)

    # ---- graphs ---------------------------------------------------------------------------------------------------

    def _attribute(self, message: Field) -> _Attribute:
        """An attribute: its name, and the place of its value."""
        name: Field | None = None
        number: Field | None = None
        value: Field | None = None
        graphs = list[Field]()
        for own in self.wire.inside(message):
            if own.number == 1:
                name = own
            elif own.number == 3:
                number = own
            elif own.number == 5:
                value = own
            elif own.number in (6, 11):
                graphs.append(own)
        return _Attribute(name, number, value, graphs)

    def _node(self, message: Field, scope: _Scope, depth: int) -> None:
        inputs, operator, domain, output = list[str](), "", "", None
        attributes = list[_Attribute]()
        for own in self.wire.inside(message):
            if own.number == 1:
                inputs.append(self.wire.text(own))
            elif own.number == 2:
                output = output or own
            elif own.number == 4:
                operator = self.wire.text(own)
            elif own.number == 7:
                domain = self.wire.text(own)
            elif own.number == 5:
                attributes.append(self._attribute(own))
        if (domain, operator) in OPERATORS:
            self.taken.append((scope, operator, tuple(inputs), self._numbers(attributes)))
        elif domain in DOMAINS and (operator in INTEGER_OPERATORS or operator.startswith(("QLinear", "QOrdered"))):
            self.taken.append((scope, operator, tuple(inputs), None))
        for held in attributes:
            if held.value is not None and operator == "Constant" and domain in DOMAINS[:2]:
                self._tensor(held.value, scope, self.wire.text(output) if output is not None else "")
            for i, graph in enumerate(held.graphs):
                name = self.wire.text(held.name) if held.name is not None else ""
                label = self.wire.text(output) if output is not None else operator
                which = name if len(held.graphs) == 1 else f"{name}/{i}"
                self.graph(graph, scope.inside(f"{label}/{which}"), depth + 1)

    def _numbers(self, attributes: Sequence[_Attribute]) -> dict[str, int]:
        """The attributes that are whole numbers."""
        return {
            "" if a.name is None else self.wire.text(a.name): self.wire.whole(a.number)
            for a in attributes
            if a.number is not None
        }

    def graph(self, message: Field, scope: _Scope, depth: int = 0) -> None:
        """Read a graph."""
        if depth > DEPTH:
            raise DataError("its graphs are nested too deeply")
        for own in self.wire.inside(message):
            if own.number == 1:
                self._node(own, scope, depth)
            elif own.number == 5:
                self._tensor(own, scope)
            elif own.number == 15:
                raise DataError("sparse initializers are not supported")

    def _function(self, message: Field) -> None:
        """Read the nodes of a function; its names are local."""
        names, nodes = dict[int, str](), list[Field]()
        for own in self.wire.inside(message):
            if own.number in (1, 10, 13):
                names[own.number] = self.wire.text(own)
            elif own.number == 7:
                nodes.append(own)
        scope = _Scope("".join(f"{names[n]}/" for n in (10, 1, 13) if names.get(n)), ({},))
        for own in nodes:
            self._node(own, scope, 0)

    def _opset(self, message: Field) -> None:
        domain, version = "", 0
        for own in self.wire.inside(message):
            if own.number == 1:
                domain = self.wire.text(own)
            elif own.number == 2:
                version = self.wire.whole(own)
        self.metadata[f"opset {domain}".rstrip()] = str(version)

    def model(self) -> None:
        """Read the file."""
        seen = 0
        for own in self.wire.fields(0, self.file.size):
            if own.number == 1:
                self.metadata["ir_version"] = str(self.wire.whole(own))
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
        self._pass_over_operands()
        if not self.entries:
            raise DataError("its graph holds no weights, as initializers or as constants")

    def _pass_over_operands(self) -> None:
        """Drop constants that are shapes, axes, indices or single numbers, unless a node decodes with them."""
        used = {scope.listed(name) for scope, _, inputs, _ in self.taken for name in inputs}
        for name in self.constants - used:
            entry = self.entries[name]
            if not entry.shape or (len(entry.shape) == 1 and not DTYPES[entry.info.dtype].is_float):
                del self.entries[name]

    def result(self) -> Graph:
        """The facts about tensors that the nodes give."""
        nodes, computed = list[Node](), dict[str, str]()
        for scope, operator, inputs, numbers in self.taken:
            names = tuple(scope.listed(name) for name in inputs)
            if numbers is not None:
                nodes.append(Node(operator, names, numbers))
                continue
            for name in names:
                entry = self.entries.get(name)
                if entry is not None and entry.info.dtype in CODES and len(entry.shape) > 1:
                    computed.setdefault(name, operator)
        packed = {name: e.packed for name, e in self.entries.items() if e.packed is not None}
        return Graph(tuple(nodes), packed, computed)


class OnnxFile(Source):
    """An ONNX file as a source. graph: the facts about its tensors."""

    kind = "onnx"
    graph: Graph

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        reader = _Reader(file)
        try:
            reader.model()
        except QuantcliError as error:
            file.close()
            raise (error if error.place[:1] == [file.path] else error.within(file.path)) from None
        except BaseException:
            file.close()
            raise
        self._entries = reader.entries
        self._beside = list(reader.elements.beside.values())
        self.metadata = {key: value for key, value in reader.metadata.items() if key != "quantcli"}
        self.graph = reader.result()

    def infos(self) -> Sequence[TensorInfo]:
        return [e.info for e in self._entries.values()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        entry = self._entries[name]
        if entry.file is not None:
            entry.file.read_into(entry.begin + start, buffer)
        else:
            buffer.cast("B")[:] = entry.held[start : start + buffer.nbytes]

    def files(self) -> Sequence[InputFile]:
        return [self.file, *self._beside]

    def close(self) -> None:
        for file in self.files():
            file.close()
