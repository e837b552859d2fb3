"""The layout of a GGUF file, version 3, before it is written: its header, and the place of every tensor."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.stores.gguf import ALIGNMENT, HEADER_LIMIT, MAGIC, MAX_DIMENSIONS, VIDEO_DIMENSIONS
from quantcli.stores.gguf_types import TYPES

VERSION = 3
LONGEST_NAME = 63
"""Longest name of a tensor in bytes that llama.cpp supports."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a program has room for: bytes of a tensor's name, and dimensions."""

    program: str
    name: int
    dimensions: int


LLAMA = Room("llama.cpp", LONGEST_NAME, MAX_DIMENSIONS)
COMFYUI = Room("ComfyUI-GGUF", 127, VIDEO_DIMENSIONS)

_NUMBERS = {t.name: number for number, t in TYPES.items()}
_U32, _I32, _F32, _BOOL, _TEXT, _ARRAY = 4, 5, 6, 7, 8, 9
_FORMS = {_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor to write: name, ggml's type by name, and its shape in C order."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements or blocks."""
        kind = TYPES[_NUMBERS[self.type]]
        return math.prod(self.shape) // kind.weights * kind.bytes


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """A GGUF before it is written: the bytes of its header, the offset of every tensor in the file, and its size.

    Gaps between the tensors, and after the last, are zeros.
    """

    header: bytes
    offsets: Mapping[str, int]
    size: int


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _kind(value: Any) -> int:
    for kind, number in ((bool, _BOOL), (int, _U32), (float, _F32), (str, _TEXT)):
        if type(value) is kind:
            return number
    raise AssertionError(f"a key cannot hold {type(value).__name__}")


def _packed(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return _text(value)
    try:
        return struct.pack(_FORMS[kind], value)
    except (struct.error, OverflowError):
        raise DataError(f"{value} does not fit 32 bits") from None


def value_bytes(value: Any) -> bytes:
    """A key's value with its kind: whole numbers are u32 and in lists i32, others f32; bytes are an encoded value
    already.

    >>> value_bytes(7).hex(), value_bytes([True]).hex()
    ('0400000007000000', '0900000007000000010000000000000001')
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, (list, tuple)):
        kind = _kind(value)
        return struct.pack("<I", kind) + _packed(kind, value)
    if not value:
        raise AssertionError("an empty list has no kind")
    if len(set(map(type, value))) > 1:
        raise AssertionError("a list of several kinds")
    kind = _kind(value[0])
    if kind == _U32:
        kind = _I32
    if kind == _TEXT:
        held = b"".join(_text(v) for v in value)
    else:
        try:
            held = struct.pack(f"<{len(value)}{_FORMS[kind][1]}", *value)
        except (struct.error, OverflowError):
            raise DataError("a number of a list does not fit 32 bits") from None
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + held


def _tensor_bytes(tensor: GgufTensor, at: int, room: Room) -> bytes:
    kind = TYPES[_NUMBERS[tensor.type]]
    if len(tensor.name.encode()) > room.name:
        raise DataError(f"its name is longer than the {room.name} bytes {room.program} has room for")
    if len(tensor.shape) > room.dimensions:
        raise DataError(f"{len(tensor.shape)} dimensions, and {room.program} has up to {room.dimensions}")
    if (tensor.shape[-1] if tensor.shape else 1) % kind.weights:
        raise DataError(f"its rows are not whole {tensor.type} blocks of {kind.weights}")
    dims = tensor.shape[::-1]
    return _text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _NUMBERS[tensor.type], at)


def lay_out(keys: Mapping[str, Any], tensors: Sequence[GgufTensor], room: Room = LLAMA) -> GgufLayout:
    """The layout of a GGUF of these keys and tensors, both in this order.

    Values of keys are texts, truth values, numbers and lists of them (see `value_bytes`). room: of the program that is
    to load it. Raises DataError for names, shapes and numbers that it cannot hold.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    for name, value in keys.items():
        try:
            parts.append(_text(name) + value_bytes(value))
        except DataError as error:
            raise error.within(printable(name)) from None
    places, at = dict[str, int](), 0
    for tensor in tensors:
        try:
            if tensor.name in places:
                raise DataError("two tensors have this name")
            parts.append(_tensor_bytes(tensor, at, room))
        except DataError as error:
            raise error.within(printable(tensor.name)) from None
        places[tensor.name] = at
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    header = b"".join(parts)
    header += bytes(-len(header) % ALIGNMENT)
    if len(header) > HEADER_LIMIT:
        raise DataError(f"a header of {len(header)} bytes is more than the {HEADER_LIMIT} that are read")
    return GgufLayout(header, {name: len(header) + begin for name, begin in places.items()}, len(header) + at)
