"""GGUF files byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

U32, F32, STRING, ARRAY = 4, 6, 8, 9
Tensor = tuple[str, int, tuple[int, ...], bytes]


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def raw_key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def raw_info(name: str | bytes, kind: int, dims: tuple[int, ...], offset: int) -> bytes:
    """`dims` as they stand in the file, the fastest first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def whole(
    keys: list[bytes],
    infos: list[bytes],
    held: bytes,
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors, values = counts or (len(infos), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join([*keys, *infos])
    return header + bytes(-len(header) % alignment) + held


def raw_gguf(keys: list[bytes], tensors: list[Tensor], **options: Any) -> bytes:
    """A well-formed file of tensors: name, number of the type, shape in C order, bytes."""
    infos, held = [], b""
    for name, kind, shape, raw in tensors:
        infos.append(raw_info(name, kind, shape[::-1], len(held)))
        held += raw + bytes(-len(raw) % 32)
    return whole(keys, infos, held, **options)


def f32(name: str, values: np.ndarray) -> Tensor:
    return name, 0, values.shape, values.astype("<f4").tobytes()


def architecture(name: str = "llama", heads: int = 4, kv: int = 2) -> list[bytes]:
    return [
        raw_key("general.architecture", STRING, text(name)),
        raw_key(f"{name}.attention.head_count", U32, struct.pack("<I", heads)),
        raw_key(f"{name}.attention.head_count_kv", U32, struct.pack("<I", kv)),
    ]
