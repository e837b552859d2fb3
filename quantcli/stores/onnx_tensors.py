"""TensorProto: the name, dtype, shape and place of the elements of one tensor of an ONNX file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores import places
from quantcli.stores.files import InputFile
from quantcli.stores.protobuf import BYTES, EIGHT, FOUR, Field, Wire
from quantcli.tensors.info import TensorInfo

TYPES = {1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64",
         12: "U32", 13: "U64", 14: "C64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2",
         20: "F8_E5M2FNUZ", 24: "F8_E8M0"}  # fmt: skip
"""TensorProto's numbers of the dtypes of whole bytes."""

_TEXT = 8
UNKNOWN = {0: "undefined", 15: "complex128"}
MOST_DIMENSIONS = 64
MOST_ELEMENTS = 1 << 23
"""Largest total size in bytes of elements that are stored one by one."""

MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Packed:
    """The real type of a U8 tensor: the bits of its numbers, and its shape."""

    bits: int
    signed: bool
    is_float: bool
    shape: tuple[int, ...]


_PACKED = {
    21: (4, False, False),
    22: (4, True, False),
    23: (4, True, True),
    25: (2, False, False),
    26: (2, True, False),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and its bytes: a place in a file, or the bytes."""

    info: TensorInfo
    packed: Packed | None
    file: InputFile | None
    begin: int
    held: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; for numbers packed in bytes, the shape of the numbers."""
        return self.info.shape if self.packed is None else self.packed.shape


@dataclass(slots=True)
class _Tensor:
    """The fields of a TensorProto in file order."""

    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: Field | None = None
    location: int = 0
    external: dict[str, str] = field(default_factory=dict)
    typed: dict[int, list[Field]] = field(default_factory=dict)
    is_text: bool = False


_ONE_BY_ONE = {4: "float_data", 5: "int32_data", 7: "int64_data", 10: "double_data", 11: "uint64_data"}
_FIELD_OF = {"F32": 4, "C64": 4, "F64": 10, "I64": 7, "U64": 11, "U32": 11}
"""The field that holds each dtype; int32_data holds all others."""


def pair(wire: Wire, message: Field) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    found = {own.number: wire.text(own) for own in wire.inside(message) if own.number in (1, 2)}
    return found.get(1, ""), found.get(2, "")


def tensor_fields(wire: Wire, message: Field) -> _Tensor:
    """The fields of a TensorProto. Raises DataError for a duplicate field or a segment."""
    found, seen = _Tensor(), set[int]()
    for own in wire.inside(message):
        if own.number in (2, 8, 9, 14) and own.number in seen:
            raise DataError("one of its fields appears twice", place=[printable(found.name)])
        seen.add(own.number)
        if own.number == 1:
            found.dims += islice(wire.varints(own), MOST_DIMENSIONS + 1)
            if len(found.dims) > MOST_DIMENSIONS:
                raise DataError(f"it has more than {MOST_DIMENSIONS} dimensions", place=[printable(found.name)])
        elif own.number == 2:
            found.kind = wire.whole(own)
        elif own.number == 8:
            found.name = wire.text(own)
        elif own.number == 9:
            found.raw = own
        elif own.number == 14:
            found.location = wire.whole(own)
        elif own.number == 13:
            key, value = pair(wire, own)
            found.external[key] = value
        elif own.number in _ONE_BY_ONE:
            found.typed.setdefault(own.number, []).append(own)
        elif own.number == 6:
            found.is_text = True
        elif own.number == 3:
            raise DataError("it is a segment, which is not supported", place=[printable(found.name)])
    found.is_text |= found.kind == _TEXT
    return found


def _decimal(external: Mapping[str, str], key: str, otherwise: int) -> int:
    value = external.get(key, str(otherwise))
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise DataError(f"its {key} {printable(repr(value), 40)} is not a whole number")
    return int(value)


class Elements:
    """The places of the elements of tensors: in the file, in files beside it, or in memory. beside: those files by
    location."""

    def __init__(self, file: InputFile, wire: Wire) -> None:
        self.file, self.wire = file, wire
        self.beside: dict[str, InputFile] = {}
        self._room = MOST_ELEMENTS

    def _outside(self, external: Mapping[str, str]) -> InputFile:
        """The file that holds the elements of a tensor."""
        location = external.get("location", "")
        steps = [step for step in location.split("/") if step != "."]
        if not location or location.startswith("/") or {"", ".."} & set(steps) or {"\\", "\0"} & set(location):
            raise DataError(f"its location {printable(repr(location), 120)} is not a file in this folder")
        if location not in self.beside:
            if len(self.beside) >= MOST_FILES:
                raise DataError(f"it is spread over more than {MOST_FILES} files")
            folder = os.path.dirname(self.file.path)
            self.beside[location] = places.opened(os.path.join(folder, *steps), hold=False)
        return self.beside[location]

    def _external(self, found: _Tensor, nbytes: int) -> tuple[InputFile, int]:
        file = self._outside(found.external)
        begin, length = (_decimal(found.external, k, o) for k, o in (("offset", 0), ("length", nbytes)))
        if length != nbytes:
            raise DataError(f"its elements take {nbytes} bytes, but its length is {length}")
        if begin + nbytes > file.size:
            beyond = f"are beyond the {file.size} bytes of {printable(file.path)}"
            raise DataError(f"its bytes {begin} to {begin + nbytes} {beyond}")
        return file, begin

    def _packed_floats(self, found: _Tensor, nbytes: int) -> Field | None:
        """The field that holds all elements in the same form as raw_data."""
        fields = [own for number, group in found.typed.items() for own in group if number in (4, 10)]
        return fields[0] if len(fields) == 1 and (fields[0].kind, fields[0].size) == (BYTES, nbytes) else None

    def _one_by_one(self, found: _Tensor, dtype: str, nbytes: int) -> bytes:
        """Elements of the field for their kind, as the bytes of a tensor."""
        (number, fields), *more = found.typed.items()
        if more or number != _FIELD_OF.get(dtype, 5):
            raise DataError(f"its elements are in {_ONE_BY_ONE[number]}, which does not hold {dtype}")
        self._room -= sum(own.size or 1 for own in fields)
        if self._room < 0:
            raise DataError(
                f"more than {MOST_ELEMENTS} bytes of elements are stored one by one",
                hint="save the model with raw_data",
            )
        if number in (4, 10):
            kind = FOUR if number == 4 else EIGHT
            if any(own.kind not in (BYTES, kind) for own in fields):
                raise DataError("its elements do not have the type of their field")
            return b"".join(self.wire.bytes(own, MOST_ELEMENTS) for own in fields)
        size = DTYPES[dtype].bits // 8
        low, high = (-(1 << (size * 8 - 1)), (1 << (size * 8 - 1)) - 1) if dtype[0] == "I" else (0, (1 << size * 8) - 1)
        out = bytearray()
        for own in fields:
            for value in self.wire.varints(own):
                value = value % (1 << 64) if dtype == "U64" else value
                if not low <= value <= high or (dtype == "BOOL" and value > 1) or len(out) >= nbytes:
                    raise DataError(f"its elements are not {nbytes // size} numbers of {dtype}")
                out += value.to_bytes(size, "little", signed=low < 0)
        return bytes(out)

    def entry(self, found: _Tensor) -> Entry:
        """A tensor and the place of its bytes. Raises DataError where they do not match its shape."""
        if any(n < 0 for n in found.dims):
            raise DataError(f"dimension {min(found.dims)} is not a whole number of 0 or more")
        if found.is_text:
            raise DataError("its elements are text, which is not supported")
        shape, packed = tuple(found.dims), None
        if found.kind in _PACKED:
            packed = Packed(*_PACKED[found.kind], shape)
            info = TensorInfo(found.name, "U8", (-(-math.prod(shape) * packed.bits // 8),))
        elif found.kind in TYPES:
            info = TensorInfo(found.name, TYPES[found.kind], shape)
        else:
            raise DataError(f"elements of type {UNKNOWN.get(found.kind, found.kind)} are not supported")
        ways = [found.raw is not None, found.location != 0, bool(found.typed)]
        if found.location not in (0, 1) or sum(ways) > 1:
            raise DataError("its elements are stored in more than one way")
        nbytes = info.nbytes
        if found.location:
            file, begin = self._external(found, nbytes)
            return Entry(info, packed, file, begin, b"")
        if found.raw is not None:
            if found.raw.kind != BYTES or found.raw.size != nbytes:
                raise DataError(f"its elements take {nbytes} bytes, but it holds {found.raw.size}")
            return Entry(info, packed, self.file, found.raw.value, b"")
        whole = self._packed_floats(found, nbytes)
        if whole is not None and list(found.typed) == [_FIELD_OF.get(info.dtype)]:
            return Entry(info, packed, self.file, whole.value, b"")
        held = self._one_by_one(found, info.dtype, nbytes) if found.typed else b""
        if len(held) != nbytes:
            raise DataError(f"its elements take {nbytes} bytes, but it holds {len(held)}")
        return Entry(info, packed, None, 0, held)
