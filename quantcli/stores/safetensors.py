"""safetensors files: a strict reader of tiles, and the layout of a file to write.

The reader is stricter than the safetensors library: duplicate keys, unknown fields and half bytes are refused. An
output is read again before it takes its name (see safetensors_check).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError
from quantcli.stores import foreign, safetensors_check, seal
from quantcli.stores.compact import ByName, Tensors
from quantcli.stores.files import InputFile
from quantcli.stores.safetensors_header import METADATA, check_memory, parsed
from quantcli.stores.source import HeaderDocument, Source
from quantcli.tensors.info import Endings, Kind, TensorInfo, alone

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER_LIMIT = 100_000_000


class HeaderTooLargeError(DataError):
    """More tensors than the header of one file can hold."""

    @classmethod
    def of(cls, count: int) -> HeaderTooLargeError:
        """The error for a file of so many tensors."""
        problem = f"a header of {count:,} tensors would have more than the {HEADER_LIMIT} bytes that safetensors allows"
        hint = "make several files: put it into a folder of its own, and quantize that with --max-shard-size 100MB"
        return cls(problem, hint=hint)


_AT_ONCE, _PIECE = 1024, 1 << 20
"""Tensors whose entries in a header are made at a time, and characters of metadata or bytes of a header."""


def parse_header(file: InputFile) -> tuple[dict[str, str], Tensors, int]:
    """Metadata, tensors in file order and the bytes before them. Raises DataError with the place of the problem."""
    place = f"{file.path}"
    if file.size < 8:
        raise DataError(f"a file of {file.size} bytes is not a safetensors file", place=[place])
    start = file.read(0, 8 if file.once else min(file.size, 64))  # a pipe may hold no more than a header
    has_header = start[8:9] == b"{"  # then the first bytes are a length, whatever they look like
    if not has_header and (what := foreign.told_by_bytes(start) or foreign.told_by_name(file.path)):
        raise DataError(what, place=[place])
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT or 8 + length > file.size:
        whole = "" if file.once else f" of a file of {file.size}"
        raise DataError(f"not a safetensors file, or cut short: its header claims {length} bytes{whole}", place=[place])
    metadata, tensors = parsed(lambda at, size: file.read(8 + at, size), length, place)
    file.expect(8 + length + tensors.end)
    if not tensors:
        raise DataError("the file holds no tensors", place=[place])
    return metadata, tensors, 8 + length


class SafetensorsFile(Source):
    """A safetensors file as a source."""

    kind = "safetensors"

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        try:
            self.metadata, self._tensors, self.data = parse_header(self.file)
            if "quantcli" in self.metadata:
                check_memory(self.data, self.path)
            self._seal = seal.holds(self._header()) if "quantcli" in self.metadata else None
            self.file.passed(0, self.data)
        except BaseException:
            self.file.close()
            raise

    def _header(self) -> Iterator[bytes]:
        return (self.file.read(at, min(_PIECE, self.data - at)) for at in range(0, self.data, _PIECE))

    @property
    def documents(self) -> list[HeaderDocument]:
        """The quantcli document of the header, with the tensors of its file; none in other people's files."""
        if "quantcli" not in self.metadata:
            return []
        return [HeaderDocument(self.metadata["quantcli"], self._tensors, self._seal)]

    def infos(self) -> Sequence[TensorInfo]:
        return self._tensors

    def named(self) -> Mapping[str, TensorInfo]:
        return ByName(self._tensors)

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self.file.read_into(self.data + self._tensors.begin(name) + start, buffer)

    def read_each(self, names: Sequence[str], buffer: memoryview) -> None:
        starts, first = [self._tensors.begin(name) for name in names], 0
        size = len(buffer) // max(len(names), 1)
        for at in range(1, len(names) + 1):  # tensors that lie beside each other in one go
            if at == len(names) or starts[at] != starts[first] + (at - first) * size:
                self.file.read_into(self.data + starts[first], buffer[first * size : at * size])
                first = at

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        self.file.read_runs(self.data + self._tensors.begin(name) + start, step, [run.data for run in runs])

    def passed(self, name: str, start: int, size: int) -> None:
        self.file.passed(self.data + self._tensors.begin(name) + start, size)

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A safetensors file before it is written: its tensors as they were given, the place of each, and the exact sizes
    of header and file. names, endings: what names of tensors begin with, and how they end; starts: the place of each
    tensor in turn."""

    names: Sequence[str]
    endings: Sequence[Endings]
    starts: Sequence[int]
    header_size: int
    size: int

    @property
    def infos(self) -> list[TensorInfo]:
        """The tensors in file order."""
        return [TensorInfo(name, *kind) for _, name, kind in self._in_order()]

    @property
    def offsets(self) -> dict[str, int]:
        """The place of each tensor, by name, in file order."""
        return {name: self.starts[number] for number, name, _ in self._in_order()}

    def _in_order(self) -> Iterator[tuple[int, str, Kind]]:
        return _in_order(self.names, self.endings)

    def header(self, metadata: Texts) -> Iterator[tuple[int, bytes]]:
        """Length and JSON of the header with this metadata, filled up with spaces: pieces, and where each is."""
        at = 8
        yield 0, (self.header_size - at).to_bytes(at, "little")
        for piece in _header(self.names, self.endings, metadata):
            yield at, piece
            at += len(piece)
        assert at <= self.header_size, f"a header of {at} bytes does not fit the {self.header_size} reserved"
        yield at, b" " * (self.header_size - at)

    def check(self, path: str, shown: str) -> None:
        """Read the header of the finished file again. Raises DataError where it is not this one."""
        placed = ((name, kind, self.starts[number]) for number, name, kind in self._in_order())
        safetensors_check.check(path, shown, placed, self.header_size)


Texts = Mapping[str, "str | Iterable[str]"]
"""Metadata, whole texts or in pieces: a native document may have 100 MB."""


def _header(names: Sequence[str], endings: Sequence[Endings], metadata: Texts) -> Iterator[bytes]:
    """The JSON of the header of these tensors, one after another, in pieces; a key of the metadata and the beginning of
    its text are in one.

    Keys are sorted, so the same content gives the same bytes.
    """
    yield b'{"__metadata__":{'
    for number, (key, value) in enumerate(sorted(metadata.items())):
        begin = f'{"," if number else ""}{encode_basestring_ascii(key)}:"'
        for text in _cut(value) if isinstance(value, str) else value:
            yield f"{begin}{encode_basestring_ascii(text)[1:-1]}".encode()
            begin = ""
        yield f'{begin}"'.encode()
    yield b"}"
    entries = _entries(names, endings)
    while some := ",".join(islice(entries, _AT_ONCE)):
        yield f",{some}".encode()
    yield b"}"


def _cut(text: str) -> Iterator[str]:
    """A text in pieces."""
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


def _by_width(endings: Sequence[Endings]) -> Iterator[dict[int, list[tuple[int, str, Kind, str, int]]]]:
    """What is in a file in turn: wider elements first, so that every tensor is aligned when the file is mapped. Of each
    of these endings, by its id, those of one width: number, ending, dtype and shape, what an entry says of these before
    its offsets, and bytes."""
    kinds = {id(own): own for own in endings}
    widths = {DTYPES[dtype].bits for own in kinds.values() for _, (dtype, _) in own}
    for bits in sorted(widths, reverse=True):
        yield {
            key: [
                (number, ending, kind, *_said(kind))
                for number, (ending, kind) in enumerate(own)
                if DTYPES[kind[0]].bits == bits
            ]
            for key, own in kinds.items()
        }


def _in_order(names: Sequence[str], endings: Sequence[Endings]) -> Iterator[tuple[int, str, Kind]]:
    """The number, name, dtype and shape of tensors in file order; as they were given among those of one width."""
    for wanted in _by_width(endings):
        first = 0
        for name, own in zip(names, endings):
            for number, ending, kind, _, _ in wanted[id(own)]:
                yield first + number, name + ending, kind
            first += len(own)


def _entries(names: Sequence[str], endings: Sequence[Endings]) -> Iterator[str]:
    """The entries in a header of tensors that lie one after another."""
    at = 0
    for wanted in _by_width(endings):
        for name, own in zip(names, endings):
            for _, ending, _, text, nbytes in wanted[id(own)]:
                end = at + nbytes
                yield f"{encode_basestring_ascii(name + ending)}:{text}{at},{end}]}}"
                at = end


@lru_cache(maxsize=4096)
def _said(kind: Kind) -> tuple[str, int]:
    """What the entries of all tensors of a dtype and shape say before their offsets, and the bytes of each."""
    dtype, shape = kind
    dims = ",".join(map(str, shape))
    return f'{{"dtype":"{dtype}","shape":[{dims}],"data_offsets":[', TensorInfo("", dtype, shape).nbytes


def lay_out(infos: Sequence[TensorInfo], metadata: Texts) -> FileLayout:
    """The layout of a file of these tensors, as `lay_out_all` gives it."""
    return lay_out_all([info.name for info in infos], [alone(info.dtype, info.shape) for info in infos], metadata)


def lay_out_all(names: Sequence[str], endings: Sequence[Endings], metadata: Texts) -> FileLayout:
    """The layout of a file with room for metadata of up to the size of the given one. names, endings: what names of
    tensors begin with, and how they end: of 300,000 tensors a record of each would take 140 MiB.

    Raises DataError for a tensor with the name that headers have for their metadata, and for a header that is too
    large.
    """
    if any(name + ending == METADATA for name, own in zip(names, endings) if name in METADATA for ending, _ in own):
        problem = "a safetensors file cannot hold a tensor of this name"
        raise DataError(problem, place=[METADATA], hint="rename it in the source")
    room = 0
    for piece in _header(names, endings, metadata):
        room += len(piece)
        if room > HEADER_LIMIT:
            raise HeaderTooLargeError.of(len(names))
    room = -(-room // 8) * 8
    at = header = 8 + room
    starts = array("q", bytes(8 * sum(map(len, endings))))
    for wanted in _by_width(endings):
        first = 0
        for own in endings:
            for number, _, _, _, nbytes in wanted[id(own)]:
                starts[first + number] = at
                at += nbytes
            first += len(own)
    return FileLayout(names, endings, starts, header, at)
