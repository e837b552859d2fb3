"""ONNX files byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, U8, I8, FLOAT16, UINT4, INT4 = 1, 2, 3, 10, 21, 22


def varint(value: int) -> bytes:
    out, value = b"", value % (1 << 64)
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def tensor(name: str, kind: int, dims: tuple[int, ...], raw: bytes | None, more: bytes = b"") -> bytes:
    own = b"".join(field(1, n) for n in dims) + field(2, kind) + field(8, name) + more
    return field(5, own + (b"" if raw is None else field(9, raw)))


def node(operator: str, inputs: list[str], domain: str = "", **numbers: int) -> bytes:
    own = b"".join(field(1, i) for i in inputs) + field(2, "y") + field(4, operator)
    for key, value in numbers.items():
        own += field(5, field(1, key) + field(3, value) + field(20, 2))
    return field(1, own + (field(7, domain) if domain else b""))


def model(*graph: bytes, more: bytes = b"", ir: int = 10) -> bytes:
    return field(1, ir) + more + field(7, b"".join(graph))


def f32(name: str, values: np.ndarray, more: bytes = b"") -> bytes:
    return tensor(name, FLOAT, values.shape, values.astype("<f4").tobytes(), more)


def op(operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> bytes:
    """A node with attributes of any kind: numbers, lists of them, arrays, and graphs as bytes."""
    own = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs) + field(4, operator)
    for key, value in attributes.items():
        if isinstance(value, float):
            own += field(5, field(1, key) + b"\x15" + np.float32(value).tobytes() + field(20, 1))
        elif isinstance(value, int):
            own += field(5, field(1, key) + field(3, value) + field(20, 2))
        elif isinstance(value, list):
            own += field(5, field(1, key) + b"".join(field(8, n) for n in value) + field(20, 7))
        elif isinstance(value, bytes):
            own += field(5, field(1, key) + field(6, value) + field(20, 5))
        else:
            assert isinstance(value, np.ndarray)
            kind = {"f4": FLOAT, "f2": FLOAT16, "i8": 7}[value.dtype.str[1:]]
            held = b"".join(field(1, n) for n in value.shape) + field(2, kind) + field(9, value.tobytes())
            own += field(5, field(1, key) + field(5, held) + field(20, 4))
    return field(1, own + (field(7, domain) if domain else b""))


def value(key: int, name: str) -> bytes:
    """An input (11), output (12) or value (13) of a graph, of floats."""
    return field(key, field(1, name) + field(2, field(1, field(1, FLOAT))))


def opset(version: int, domain: str = "") -> bytes:
    return field(8, field(1, domain) + field(2, version))


def written(path: Path, *graph: bytes, ir: int = 10) -> Path:
    """A file of a graph from x to y, with the operators of onnxruntime."""
    opsets = opset(21) + opset(1, "com.microsoft")
    path.write_bytes(model(value(11, "x"), *graph, value(12, "y"), more=opsets, ir=ir))
    return path


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes two to a byte, the first in the low half."""
    low = codes.astype(np.uint8)
    found: np.ndarray = low[..., ::2] | low[..., 1::2] << np.uint8(4)
    return found


# ---- read, and run ----------------------------------------------------------------------------------------------


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: numbers, and bytes."""

    def number(at: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    at = 0
    while at < len(data):
        key, at = number(at)
        if key & 7 == 0:
            found, at = number(at)
            yield key >> 3, found
        else:
            size, at = number(at) if key & 7 == 2 else (4 if key & 7 == 5 else 8, at)
            yield key >> 3, data[at : at + size]
            at += size


_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8", 10: "<f2", 11: "<f8"}


def _array(data: bytes, folder: Path) -> tuple[str, np.ndarray]:
    own = [*fields(data)]
    last, dims = dict(own), tuple(v for k, v in own if k == 1)
    raw = last.get(9)
    if last.get(14):
        place = {dict(fields(v))[1].decode(): dict(fields(v))[2].decode() for k, v in own if k == 13}
        start, size = int(place["offset"]), int(place["length"])
        assert start % 4096 == 0
        raw = (folder / place["location"]).read_bytes()[start : start + size]
    assert raw is not None
    name, kind = last.get(8, b"").decode(), last[2]
    if kind in (UINT4, INT4):
        count = int(np.prod(dims))
        nibbles = np.stack([np.frombuffer(raw, np.uint8) & 15, np.frombuffer(raw, np.uint8) >> 4], axis=1).ravel()
        assert len(raw) == -(-count // 2)
        codes = nibbles[:count].astype(np.int8)
        return name, (np.where(codes > 7, codes - 16, codes) if kind == INT4 else codes).reshape(dims)
    return name, np.frombuffer(raw, _DTYPES[kind]).reshape(dims)


@dataclass
class Node:
    """A node: its operator with the domain, names, and attributes."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """A graph as onnx would show it."""

    nodes: list[Node]
    tensors: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]
    values: list[str]

    @property
    def operators(self) -> list[str]:
        return [node.operator for node in self.nodes]


def _attribute(parts: list[tuple[int, Any]], folder: Path) -> Any:
    held = dict(parts)
    if held[20] == 1:
        return np.frombuffer(held[2], "<f4")[0]
    if held[20] == 4:
        return _array(held[5], folder)[1]
    if held[20] == 5:
        return graph_of(held[6], folder)
    return held[3] if held[20] == 2 else [n for key, n in parts if key == 8]


def _node(data: bytes, folder: Path) -> Node:
    own = [*fields(data)]
    last = {k: v.decode() for k, v in own if k in (4, 7)}
    attributes: dict[str, Any] = {}
    for k, v in own:
        if k == 5:
            parts = [*fields(v)]
            attributes[dict(parts)[1].decode()] = _attribute(parts, folder)
    operator = last[4] if not last.get(7) else f"{last[7]}.{last[4]}"
    return Node(operator, [v.decode() for k, v in own if k == 1], [v.decode() for k, v in own if k == 2], attributes)


def graph_of(data: bytes, folder: Path) -> Graph:
    own = [*fields(data)]
    named = {key: [dict(fields(v))[1].decode() for k, v in own if k == key] for key in (11, 12, 13)}
    tensors = dict(_array(v, folder) for k, v in own if k == 5)
    return Graph([_node(v, folder) for k, v in own if k == 1], tensors, named[11], named[12], named[13])


def read_model(path: Path) -> tuple[Graph, dict[str, int], int]:
    """The graph of a file, its operator sets, and the version of the format."""
    own = [*fields(path.read_bytes())]
    (graph,) = [v for k, v in own if k == 7]
    sets = {dict(fields(v)).get(1, b"").decode(): dict(fields(v))[2] for k, v in own if k == 8}
    return graph_of(graph, path.parent), sets, dict(own)[1]


def _stream(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Numbers of some bits, low ones first, of each row of bytes."""
    ones = np.unpackbits(data.reshape(len(data), -1), axis=1, bitorder="little")[:, : count * bits]
    found: np.ndarray = ones.reshape(len(data), count, bits) @ (1 << np.arange(bits))
    return found


def _in_blocks(node: Node, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, cols: int) -> np.ndarray:
    """(code - zero point) * scale of a matrix in blocks, by the documentation of onnxruntime's operators."""
    bits, block = node.attributes["bits"], node.attributes["block_size"]
    blocks = -(-cols // block)
    u = _stream(codes, bits, cols)
    z = np.full((len(codes), blocks), 1 << (bits - 1)) if zeros is None else _stream(zeros, bits, blocks)
    spread = [np.repeat(a.reshape(len(codes), blocks), block, axis=1)[:, :cols] for a in (z, scales)]
    found: np.ndarray = ((u - spread[0]) * spread[1]).astype(scales.dtype)
    return found


def _linear(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int) -> np.ndarray:
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    around = x.astype(np.float32) - (0 if zero is None else zero.astype(np.float32).reshape(shape))
    found: np.ndarray = (around * scale.astype(np.float32).reshape(shape)).astype(scale.dtype)
    return found


def _conv(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    found = np.zeros((len(x), len(k), x.shape[2] - k.shape[2] + 1, x.shape[3] - k.shape[3] + 1), np.float32)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            found[:, :, i, j] = np.einsum("ncij,ocij->no", x[:, :, i : i + k.shape[2], j : j + k.shape[3]], k)
    return found


def _gemm(node: Node, a: np.ndarray, b: np.ndarray, c: np.ndarray | float = 0.0) -> np.ndarray:
    a = a.T if node.attributes.get("transA") else a
    b = b.T if node.attributes.get("transB") else b
    found: np.ndarray = node.attributes.get("alpha", 1) * (a @ b) + node.attributes.get("beta", 1) * c
    return found


def _multiply(node: Node, x: list[Any]) -> np.ndarray:
    a, codes, scales, *zeros = x
    found: np.ndarray = a @ _in_blocks(node, codes, scales, zeros[0] if zeros else None, node.attributes["K"]).T
    return found


def _look_up(node: Node, x: list[Any]) -> np.ndarray:
    codes, rows, scales, *zeros = x
    cols = codes.shape[1] * 8 // node.attributes["bits"]
    found: np.ndarray = _in_blocks(node, codes, scales, zeros[0] if zeros else None, cols)[rows]
    return found


def _decode(node: Node, x: list[Any]) -> np.ndarray:
    return _linear(x[0], x[1], x[2] if x[2:] else None, node.attributes.get("axis", 1))


OPERATORS: dict[str, Callable[[Node, list[Any]], np.ndarray]] = {
    "MatMul": lambda node, x: x[0] @ x[1],
    "Add": lambda node, x: x[0] + x[1],
    "Identity": lambda node, x: x[0],
    "Relu": lambda node, x: np.maximum(x[0], 0),
    "Cast": lambda node, x: x[0].astype(_DTYPES[node.attributes["to"]]),
    "Transpose": lambda node, x: x[0].transpose(node.attributes.get("perm")),
    "Gemm": lambda node, x: _gemm(node, *x),
    "Gather": lambda node, x: np.take(x[0], x[1], axis=node.attributes.get("axis", 0)),
    "Reshape": lambda node, x: x[0].reshape(x[1]),
    "Constant": lambda node, x: node.attributes["value"],
    "Conv": lambda node, x: _conv(x[0], x[1]),
    "DequantizeLinear": _decode,
    "com.microsoft.DequantizeLinear": _decode,
    "com.microsoft.MatMulNBits": _multiply,
    "com.microsoft.GatherBlockQuantized": _look_up,
}


def run_graph(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that a graph computes, by name."""
    known: dict[str, Any] = {**given, **graph.tensors}
    for node in graph.nodes:
        x = [known[name] if name else None for name in node.inputs]
        if node.operator == "If":
            branch = node.attributes["then_branch" if x[0] else "else_branch"]
            inner = run_graph(branch, known)
            known |= {outer: inner[own] for outer, own in zip(node.outputs, branch.outputs)}
        else:
            known[node.outputs[0]] = OPERATORS[node.operator](node, x)
    return known
