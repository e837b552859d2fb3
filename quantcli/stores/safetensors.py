"""safetensors files: a strict reader of tiles, and the layout of a file to write.

The reader is stricter than the safetensors library: duplicate keys, unknown fields and half bytes are refused. An
output is opened with the library before it takes its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.interrupts import Terminated
from quantcli.stores import seal
from quantcli.stores.files import InputFile
from quantcli.stores.source import HeaderDocument, Source
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER_LIMIT = 100_000_000
_AT_ONCE, _PIECE = 1024, 1 << 20
"""Tensors whose entries in a header are made at a time, and characters of metadata."""

METADATA = "__metadata__"
"""The key of a header that is not a tensor."""

_PICKLES = "; a checkpoint of PyTorch is read from a file with its own ending, such as .pt or .bin"
_STRANGERS = [
    (b"GGUF", "this is a GGUF file"),
    (b"\x93NUMPY", "this is a NumPy array; its name must end in .npy"),
    (b"PK\x03\x04", f"this is a zip archive (of torch.save or .npz), not safetensors{_PICKLES}"),
    (b"version https://git-lfs", "this is a Git LFS pointer; fetch the file with 'git lfs pull'"),
    (b"\x80\x02", f"this is a Python pickle, not safetensors{_PICKLES}"),
    (b"\x80\x04", f"this is a Python pickle, not safetensors{_PICKLES}"),
    (b"<!DOCTYPE", "this is a web page"),
    (b"<html", "this is a web page"),
]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and the place of its bytes behind the header."""

    info: TensorInfo
    begin: int


def _count(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{what} {printable(repr(value), 60)} is not a whole number of 0 or more")
    return value


def _entry(name: str, fields: Any) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise DataError("its header entry does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"unknown dtype {printable(repr(dtype), 60)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise DataError("its shape or data_offsets are not lists of numbers")
    dims = tuple(_count(n, "dimension") for n in shape)
    begin, end = (_count(n, "offset") for n in offsets)
    bits = math.prod(dims) * DTYPES[dtype].bits
    if bits % 8 or end - begin != bits // 8:
        raise DataError(f"its {dtype} elements take {bits / 8:g} bytes, but its offsets leave {end - begin}")
    return Entry(TensorInfo(name, DTYPES[dtype].name, dims), begin)  # one text for all, not one of the header's


def parse_header(file: InputFile) -> tuple[dict[str, str], list[Entry], bytes]:
    """Metadata, entries in file order and the header itself. Raises DataError with the place of the problem."""
    place = f"{file.path}"
    if file.size < 8:
        raise DataError(f"a file of {file.size} bytes is not a safetensors file", place=[place])
    start = file.read(0, 8 if file.once else min(file.size, 64))  # a pipe may hold no more than a header
    if start[8:9] != b"{":  # else the first bytes are a length, whatever they look like
        for magic, what in _STRANGERS:
            if start.lstrip().startswith(magic):
                raise DataError(what, place=[place])
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT or 8 + length > file.size:
        whole = "" if file.once else f" of a file of {file.size}"
        raise DataError(f"not a safetensors file, or cut short: its header claims {length} bytes{whole}", place=[place])
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise DataError("not a safetensors file: its header does not start with '{'", place=[place])
    header = strict_json(text, f"{place}: header")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DataError("__metadata__ is not a map of strings", place=[place, "header"])
    entries = []
    for name, fields in header.items():
        try:
            entries.append(_entry(name, fields))
        except DataError as error:
            raise error.within(place, printable(name)) from None
    entries.sort(key=lambda e: (e.begin, e.begin + e.info.nbytes))
    position = 0
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise DataError(f"its data {kind}", place=[place, printable(entry.info.name)])
        position += entry.info.nbytes
    file.expect(8 + length + position)
    if not entries:
        raise DataError("the file holds no tensors", place=[place])
    return metadata, entries, start[:8] + text


class SafetensorsFile(Source):
    """A safetensors file as a source."""

    kind = "safetensors"

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        try:
            self.metadata, entries, header = parse_header(self.file)
            self.data = len(header)
            self._seal = seal.holds(header) if "quantcli" in self.metadata else None
            self.file.passed(0, self.data)
        except BaseException:
            self.file.close()
            raise
        self._entries = {e.info.name: e for e in entries}

    @property
    def documents(self) -> list[HeaderDocument]:
        """The quantcli document of the header, with the tensors of its file; none in other people's files."""
        if "quantcli" not in self.metadata:
            return []
        return [HeaderDocument(self.metadata["quantcli"], self.infos(), self._seal)]

    def infos(self) -> Sequence[TensorInfo]:
        return [e.info for e in self._entries.values()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self.file.read_into(self.data + self._entries[name].begin + start, buffer)

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        self.file.read_runs(self.data + self._entries[name].begin + start, step, [run.data for run in runs])

    def passed(self, name: str, start: int, size: int) -> None:
        self.file.passed(self.data + self._entries[name].begin + start, size)

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A safetensors file before it is written: its tensors in order, the place of each, and the exact size of the
    file."""

    infos: Sequence[TensorInfo]
    offsets: Mapping[str, int]
    header_size: int
    size: int

    def header(self, metadata: Mapping[str, str]) -> bytearray:
        """Length and JSON of the header with this metadata, filled up with spaces."""
        return header_bytes(self.infos, metadata, self.header_size)


def header_bytes(infos: Sequence[TensorInfo], metadata: Mapping[str, str], size: int | None = None) -> bytearray:
    """Length and JSON of the header of these tensors, one after another, filled up with spaces to `size` bytes
    (default: the next multiple of 8).

    Keys are sorted, so the same content gives the same bytes.
    """
    text = bytearray(8)
    text += b'{"__metadata__":{'
    for number, (key, value) in enumerate(sorted(metadata.items())):
        text += f'{"," if number else ""}{encode_basestring_ascii(key)}:"'.encode()
        for start in range(0, len(value), _PIECE):  # a native document may have 100 MB
            text += encode_basestring_ascii(value[start : start + _PIECE])[1:-1].encode()
        text += b'"'
    text += b"}"
    at = 0
    for first in range(0, len(infos), _AT_ONCE):
        lines = []
        for info in infos[first : first + _AT_ONCE]:
            end = at + info.nbytes
            shape = ",".join(map(str, info.shape))
            name = encode_basestring_ascii(info.name)
            lines.append(f',{name}:{{"dtype":"{info.dtype}","shape":[{shape}],"data_offsets":[{at},{end}]}}')
            at = end
        text += "".join(lines).encode()
    text += b"}"
    length = len(text) - 8
    room = size - 8 if size is not None else -(-length // 8) * 8
    if length > room:
        raise AssertionError(f"a header of {length} bytes does not fit the {room} reserved")
    if room > HEADER_LIMIT:
        raise DataError(
            f"a header of {room} bytes is more than safetensors allows", hint="quantize fewer tensors at once"
        )
    text[:8] = room.to_bytes(8, "little")
    text += b" " * (room - length)
    return text


def lay_out(infos: Sequence[TensorInfo], metadata: Mapping[str, str]) -> FileLayout:
    """The layout of a file of these tensors, with room for metadata of up to the size of the given one.

    Wider elements go first, so that every tensor is aligned when the file is mapped. Raises DataError for a tensor
    with the name that headers have for their metadata.
    """
    if any(info.name == METADATA for info in infos):
        problem = "a safetensors file cannot hold a tensor of this name"
        raise DataError(problem, place=[METADATA], hint="rename it in the source")
    ordered = sorted(infos, key=lambda i: -DTYPES[i.dtype].bits)  # stable: source order among equals
    at = header = len(header_bytes(ordered, metadata))
    offsets: dict[str, int] = {}
    for info in ordered:
        offsets[info.name] = at
        at += info.nbytes
    return FileLayout(ordered, offsets, header, at)


def validate(path: str, shown: str) -> None:
    """Open a finished file with the safetensors library. Raises DataError when it rejects the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (KeyboardInterrupt, Terminated, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library's panics are not Exceptions
        raise DataError(f"the safetensors library does not accept the output: {error}", place=[shown]) from None
