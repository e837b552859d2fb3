"""ONNX files byte by byte."""

from __future__ import annotations

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


def model(*graph: bytes, more: bytes = b"") -> bytes:
    return field(1, 10) + more + field(7, b"".join(graph))


def f32(name: str, values: np.ndarray, more: bytes = b"") -> bytes:
    return tensor(name, FLOAT, values.shape, values.astype("<f4").tobytes(), more)
