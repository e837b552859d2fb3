"""GGUF files, version 2 and 3: a strict reader of tiles.

    GGUF | u32 version | u64 tensors | u64 keys
    for every key     | name | u32 kind | value         an array: u32 kind of its values, u64 how many, the values
    for every tensor  | name | u32 dimensions | u64 each, the fastest first | u32 type | u64 offset in the data
    zeros up to a multiple of the alignment (32, or the key general.alignment)
    the data of the tensors, each filled up with zeros to a multiple of the alignment

All little-endian; names and text are a u64 length and UTF-8. Tensors of numbers are given with their safetensors
dtype and their dimensions in C order, those of blocks as U8 rows of bytes: `blocks` has their types and shapes.
ComfyUI-GGUF stores some tensors in another shape, whose rows are whole blocks, and their own in a key: they have that.
The reader is stricter than llama.cpp's: nothing may overlap, leave holes or follow the last tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.stores.files import InputFile
from quantcli.stores.gguf_types import TYPES, Block
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
HEADER_LIMIT = 100_000_000
"""Bytes of a header; a vocabulary of 256 thousand words with its merges takes 15 million."""

MAX_DIMENSIONS = 4
"""Dimensions of a tensor in llama.cpp."""

VIDEO_DIMENSIONS = 5
"""Dimensions of a convolution over time, which files for ComfyUI have."""

SHAPE = "comfy.gguf.orig_shape."
"""What the key for the own shape of a tensor begins with."""

_WINDOW = 1 << 20


_SCALARS = {
    0: ("u8", "<B"),
    1: ("i8", "<b"),
    2: ("u16", "<H"),
    3: ("i16", "<h"),
    4: ("u32", "<I"),
    5: ("i32", "<i"),
    6: ("f32", "<f"),
    7: ("bool", "<B"),
    10: ("u64", "<Q"),
    11: ("i64", "<q"),
    12: ("f64", "<d"),
}
"""Kinds of key values: name and how `struct` calls it."""
_TEXT, _ARRAY, _BOOL = 8, 9, 7


@dataclass(frozen=True, slots=True)
class _Array:
    """An array that was skipped: the type of its values, their number and their place."""

    kind: int
    count: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.count} x {'str' if self.kind == _TEXT else _SCALARS[self.kind][0]}"


class _Header:
    """The bytes of a header from the start, read piece by piece as far as it goes."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.at = file, 0
        self.end = min(file.size, HEADER_LIMIT)
        self._window, self._start = b"", 0

    def _short(self) -> DataError:
        if self.file.size > self.end:
            return DataError(f"its header has more than {HEADER_LIMIT} bytes")
        return DataError("it is cut short in its header")

    def _around(self, size: int) -> int:
        """Load the next bytes into the window; returns the place of the first in it."""
        if size > self.end - self.at:
            raise self._short()
        if self.at + size > self._start + len(self._window):
            self._window = self.file.read(self.at, min(max(size, _WINDOW), self.end - self.at))
            self._start = self.at
        return self.at - self._start

    def take(self, size: int) -> bytes:
        place = self._around(size)
        self.at += size
        return self._window[place : place + size]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> bytes:
        return self.take(self.number(8))

    def name(self) -> str:
        try:
            return self.text().decode()
        except UnicodeError:
            raise DataError("a name is not valid UTF-8") from None

    def pass_numbers(self, count: int, size: int) -> None:
        if count * size > self.end - self.at:
            raise self._short()
        self.at += count * size

    def pass_texts(self, count: int) -> None:
        """Skip a number of texts, reading only their lengths."""
        if count * 8 > self.end - self.at:
            raise self._short()
        length = struct.Struct("<Q").unpack_from
        while count:
            place = self._around(8)
            window, last = self._window, len(self._window) - 8
            while count and place <= last:
                place += 8 + length(window, place)[0]
                count -= 1
            self.at = self._start + place
        if self.at > self.end:
            raise self._short()


def _value(header: _Header) -> Any:
    """The value of a key; arrays are skipped."""
    kind = header.number(4)
    if kind == _TEXT:
        return header.text().decode(errors="backslashreplace")
    if kind == _ARRAY:
        inner, count = header.number(4), header.number(8)
        begin = header.at
        if inner == _TEXT:
            header.pass_texts(count)
        elif inner in _SCALARS:
            header.pass_numbers(count, struct.calcsize(_SCALARS[inner][1]))
        else:
            raise DataError("an array of arrays" if inner == _ARRAY else f"unknown kind of value {inner}")
        return _Array(inner, count, begin, header.at)
    if kind not in _SCALARS:
        raise DataError(f"unknown kind of value {kind}")
    form = _SCALARS[kind][1]
    (value,) = struct.unpack(form, header.take(struct.calcsize(form)))
    if kind != _BOOL:
        return value
    if value > 1:
        raise DataError(f"a boolean of value {value}")
    return bool(value)


class Keys(Mapping[str, Any]):
    """The keys of a file by name, as numbers, texts, booleans and lists; lists are read on demand."""

    def __init__(self, file: InputFile, values: Mapping[str, Any], places: Mapping[str, tuple[int, int]]) -> None:
        """places: where the value of a key begins, with its kind, and where it ends."""
        self._file, self._values, self._places = file, values, places

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        return list(self._elements(value)) if isinstance(value, _Array) else value

    def _elements(self, array: _Array) -> Iterator[Any]:
        raw = self._file.read(array.begin, array.end - array.begin)
        if array.kind != _TEXT:
            for (value,) in struct.iter_unpack(_SCALARS[array.kind][1], raw):
                yield bool(value) if array.kind == _BOOL else value
            return
        at = 0
        while at < len(raw):
            start = at + 8
            at = start + int.from_bytes(raw[at:start], "little")
            yield raw[start:at].decode(errors="backslashreplace")

    def shown(self, name: str) -> str:
        """A value for display; of a list only the type and number of its values."""
        value = self._values[name]
        return str(value).lower() if isinstance(value, bool) else str(value)

    def raw(self) -> dict[str, bytes]:
        """Every value as it is stored, with its kind."""
        return {name: self._file.read(begin, end - begin) for name, (begin, end) in self._places.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _parse_keys(header: _Header, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The values of keys, and where they are."""
    if count * 13 > header.end - header.at:  # an empty name, a kind and a byte
        raise DataError(f"it claims {count} keys, more than it can hold")
    found: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        name = header.name()
        if name in found:
            raise DataError("duplicate key", place=[printable(name)])
        begin = header.at
        try:
            found[name] = _value(header)
        except DataError as error:
            raise error.within(printable(name)) from None
        places[name] = begin, header.at
    return found, places


def _alignment(keys: Mapping[str, Any]) -> int:
    value = keys.get("general.alignment", ALIGNMENT)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise DataError("it is not a power of 2", place=["general.alignment"])
    return value


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor, the place of its bytes in the data, and its real type and shape if it is made of blocks."""

    info: TensorInfo
    begin: int
    block: Block | None


def _entry(name: str, header: _Header, alignment: int) -> Entry:
    count = header.number(4)
    if count > VIDEO_DIMENSIONS:
        raise DataError(f"{count} dimensions, and GGUF has up to {VIDEO_DIMENSIONS}")
    shape = tuple(header.number(8) for _ in range(count))[::-1]
    number, begin = header.number(4), header.number(8)
    if number not in TYPES:
        raise DataError(f"unknown type {number}")
    kind = TYPES[number]
    if begin % alignment:
        raise DataError(f"it begins at {begin}, which is not a multiple of {alignment}")
    if kind.weights == 1:
        return Entry(TensorInfo(name, kind.name, shape), begin, None)
    if not shape or shape[-1] % kind.weights:
        raise DataError(f"rows of {shape[-1] if shape else 1} are not whole {kind.name} blocks of {kind.weights}")
    rows = (*shape[:-1], shape[-1] // kind.weights * kind.bytes)
    return Entry(TensorInfo(name, "U8", rows), begin, Block(kind, shape))


def _parse_tensors(header: _Header, count: int, alignment: int) -> dict[str, Entry]:
    if count * 24 > header.end - header.at:  # an empty name, no dimensions, a type and an offset
        raise DataError(f"it claims {count} tensors, more than it can hold")
    found: dict[str, Entry] = {}
    for _ in range(count):
        name = header.name()
        try:
            if name in found:
                raise DataError("duplicate tensor")
            found[name] = _entry(name, header, alignment)
        except DataError as error:
            raise error.within(printable(name)) from None
    return found


def _in_its_shape(entry: Entry, keys: Mapping[str, Any]) -> Entry:
    """A tensor in its own shape, where a key gives one. Raises DataError where that has another number of elements."""
    info, block, key = entry.info, entry.block, SHAPE + entry.info.name
    if key not in keys:
        return entry
    shape, numel = keys[key], info.numel if block is None else math.prod(block.shape)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != numel:
        raise DataError("it is not a shape of as many elements", place=[printable(key)])
    if block is not None:
        return replace(entry, block=Block(block.type, tuple(shape)))
    return replace(entry, info=replace(info, shape=tuple(shape)))


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _check_places(entries: Sequence[Entry], start: int, size: int, alignment: int) -> None:
    """Raise DataError when the data is not exactly the tensors one after the other."""
    position = end = 0
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise DataError(f"its data {kind}", place=[printable(entry.info.name)])
        end = position + entry.info.nbytes
        position = _aligned(end, alignment)
    if not start + end <= size <= start + position:
        problem = "cut short" if size < start + end else "followed by bytes that belong to no tensor"
        raise DataError(f"the file is {problem}: {size} bytes, {start + end} by its header")


def _parse(file: InputFile) -> tuple[int, Keys, list[Entry], int]:
    """Version, keys, entries in the order of their data, and where the data begins. Raises DataError."""
    header = _Header(file)
    if file.size < 24 or header.take(4) != MAGIC:
        raise DataError("this is not a GGUF file")
    version = header.number(4)
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "a big-endian GGUF file is" if swapped in VERSIONS else f"GGUF of version {version} is"
        raise DataError(f"{what} not supported")
    tensors, count = header.number(8), header.number(8)
    values, places = _parse_keys(header, count)
    alignment = _alignment(values)
    found = _parse_tensors(header, tensors, alignment)
    if not found and "split.count" not in values:  # the first of several files may hold keys alone
        raise DataError("the file holds no tensors")
    # A tensor without elements begins where the next one does.
    entries = sorted(found.values(), key=lambda e: (e.begin, e.info.nbytes))
    start = _aligned(header.at, alignment)
    _check_places(entries, start, file.size, alignment)
    return version, Keys(file, values, places), entries, start


class GgufFile(Source):
    """A GGUF file as a source.

    keys: its keys by name. blocks: type and shape of the tensors that are read as U8 rows of bytes.
    """

    kind = "gguf"
    keys: Keys

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        try:
            self.version, self.keys, entries, self.data = _parse(file)
            self._entries = {e.info.name: _in_its_shape(e, self.keys) for e in entries}
        except DataError as error:
            self.file.close()
            raise error.within(file.path) from None
        except BaseException:
            self.file.close()
            raise
        self.metadata = {name: self.keys.shown(name) for name in self.keys if name != "quantcli"}
        self.blocks = {name: e.block for name, e in self._entries.items() if e.block is not None}

    def infos(self) -> Sequence[TensorInfo]:
        return [e.info for e in self._entries.values()]

    def raw_keys(self) -> Mapping[str, bytes]:
        return self.keys.raw()

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self.file.read_into(self.data + self._entries[name].begin + start, buffer)

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        self.file.close()
