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

from quantcli.errors import QuantcliError
from quantcli.stores.files import InputFile
from quantcli.stores.onnx_graph import Graph
from quantcli.stores.onnx_reading import Reader
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo


class OnnxFile(Source):
    """An ONNX file as a source. graph: the facts about its tensors."""

    kind = "onnx"
    graph: Graph

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        reader = Reader(file)
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
