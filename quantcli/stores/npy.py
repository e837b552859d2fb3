"""NumPy files: one array (.npy) or a zip of arrays (.npz), read in tiles whatever their byte order and layout.

The header is read by a grammar of three keys, never evaluated; objects and pickles are refused.
"""

from __future__ import annotations

import math
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from quantcli.dtypes import DTYPES, FROM_NUMPY
from quantcli.errors import DataError, os_error, printable
from quantcli.stores import places, zipped
from quantcli.stores.files import InputFile, OpenFile
from quantcli.stores.source import Source
from quantcli.stores.strided import Strided, merged
from quantcli.tensors.info import TensorInfo

_HEADER_LIMIT = 10_000
"""Bytes of a header: numpy's own limit."""

_ITEM = re.compile(
    r"""\s*(?:(?P<q>['"])descr(?P=q)\s*:\s*(?P<p>['"])(?P<descr>[^'"]*)(?P=p)
                        |  ['"]fortran_order['"]\s*:\s*(?P<fortran>True|False)
                        |  ['"]shape['"]\s*:\s*\((?P<shape>[\d,\sL]*)\))\s*(?:,|(?=\}))""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """dtype and shape of an array, whether its bytes are big-endian or Fortran-ordered, and where they begin."""

    dtype: str
    shape: tuple[int, ...]
    swapped: bool
    fortran: bool
    data: int

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return DTYPES[self.dtype].nbytes(math.prod(self.shape))


def parse_header(start: bytes, size: int) -> ArrayHeader:
    """The header in the first bytes of a .npy file of `size` bytes. Raises DataError."""
    if start[:6] != b"\x93NUMPY":
        kind = "a pickle, which is never loaded" if start[:1] == b"\x80" else "something else"
        raise DataError(f"not a NumPy array file but {kind}")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise DataError(f"unknown NumPy file version {'.'.join(map(str, version)) or 'none'}")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    data = 8 + width + length
    if length > _HEADER_LIMIT or data > size or len(start) < 8 + width:
        raise DataError(f"its header claims {length} bytes of a file of {size}")
    try:
        text = start[8 + width : data].decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeError:
        raise DataError("its header is not valid UTF-8") from None
    header = _fields(text)
    array = _array(header, data)
    if data + array.nbytes != size:
        problem = "cut short" if data + array.nbytes > size else "followed by bytes that belong to no array"
        raise DataError(f"the file is {problem}: {size} bytes, {data + array.nbytes} by its header")
    return array


def _fields(text: str) -> dict[str, str]:
    body = text.strip(" \n")
    fields: dict[str, str] = {}
    at = 1
    while body[:1] == "{" and (match := _ITEM.match(body, at)):
        for key in ("descr", "fortran", "shape"):
            if (value := match.group(key)) is not None:
                if key in fields:
                    raise DataError(f"its header has {key} twice")
                fields[key] = value
        at = match.end()
    if body[at:].strip(" \t\r\n") != "}" or len(fields) != 3:
        raise DataError("its header is not a plain description of one array of numbers (descr, fortran_order, shape)")
    return fields


def _array(fields: dict[str, str], data: int) -> ArrayHeader:
    match = re.fullmatch(r"([<>|=]?)([a-zA-Z]\d{0,2})", fields["descr"])
    dtype = FROM_NUMPY.get(match.group(2)) if match else None
    if match is None or dtype is None or dtype.name == "C64":
        raise DataError(
            f"an array of {printable(fields['descr'], 40)!r} is not one of plain real numbers",
            hint="only booleans, integers and floats of up to 64 bits are read",
        )
    sizes = [n.strip().rstrip("L") for n in fields["shape"].split(",")]
    if sizes and sizes[-1] == "":
        sizes.pop()
    if not all(n.isdecimal() and len(n) < 20 for n in sizes):
        raise DataError(f"its shape ({printable(fields['shape'], 60)}) is not a list of whole numbers")
    shape = tuple(int(n) for n in sizes)
    swapped = match.group(1) == ">" and dtype.bits > 8
    return ArrayHeader(dtype.name, shape, swapped, fields["fortran"] == "True" and len(shape) > 1, data)


def _array_in(file: InputFile, header: ArrayHeader, base: int) -> Strided:
    """The elements of an array in a file, whatever their order. base: where the first one begins."""
    item, shape = DTYPES[header.dtype].bits // 8, header.shape
    sizes = shape[::-1] if header.fortran else shape
    strides = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
    dims = merged(shape, strides[::-1] if header.fortran else strides) if math.prod(shape) else ()
    return Strided(file, base, item, dims, swap=item if header.swapped else 0)


class NpyFile(Source):
    """A .npy file as a source of one tensor, named after the file."""

    kind = "npy"

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.file = places.opened(path)
        try:
            start = self.file.read(0, min(self.file.size, _HEADER_LIMIT + 16))
            header = parse_header(start, self.file.size)
        except DataError as error:
            self.file.close()
            raise (error if error.place else error.within(path)) from None
        stem = os.path.splitext(places.name(path))[0]
        name = stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace") or "array"
        self._info = TensorInfo(name, header.dtype, header.shape)
        self._array = _array_in(self.file, header, header.data)

    def infos(self) -> Sequence[TensorInfo]:
        return [self._info]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._array.read(start, buffer)

    def release(self, name: str) -> None:
        self._array.release()

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        self.file.close()


class NpzFile(Source):
    """A .npz file as a source: every array a tensor, named as its member without .npy.

    Stored members are read in place, after one pass over them to check their checksum; compressed ones go to a
    temporary file, one at a time.
    """

    kind = "npz"

    def __init__(self, path: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.file = places.opened(path)
        self._lock = threading.Lock()
        self._arrays: dict[str, Strided] = {}
        try:
            self._members = self._open()
            self._headers = {name: self._header(name, member) for name, member in self._members.items()}
        except BaseException:
            self.file.close()
            raise

    def _fail(self, problem: str, member: str | None = None) -> DataError:
        return DataError(problem, place=[self.path, *([printable(member)] if member is not None else [])])

    def _open(self) -> dict[str, zipfile.ZipInfo]:
        if not zipped.begins(self.file):
            raise self._fail("not a .npz file")
        try:
            self._zip = zipped.open_zip(self.file)
            entries = self._zip.infolist()
        except zipped.PROBLEMS as error:
            raise self._fail(f"not a readable .npz file: {error}") from None
        members: dict[str, zipfile.ZipInfo] = {}
        end = 0
        for entry in sorted(entries, key=lambda e: e.header_offset):
            if entry.header_offset < end:
                raise self._fail("its bytes overlap another member's", entry.filename)
            end = entry.header_offset + 30 + len(entry.orig_filename.encode()) + entry.compress_size
        packed = sum(e.compress_size for e in entries)
        unpacked = sum(e.file_size for e in entries)
        if unpacked > 64 << 20 and unpacked > 100 * packed:
            raise self._fail(f"{packed} bytes that claim to become {unpacked}: refused as a zip bomb")
        for entry in entries:
            name = entry.filename
            if not name.endswith(".npy"):
                raise self._fail("this member is not an array", name)
            if entry.flag_bits & 1:
                raise self._fail("this member is encrypted", name)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._fail(f"unknown compression method {entry.compress_type}", name)
            if name[:-4] in members:
                raise self._fail("there are two members of this name", name)
            members[name[:-4]] = entry
        if not members:
            raise self._fail("the file holds no arrays")
        return members

    def _header(self, name: str, member: zipfile.ZipInfo) -> ArrayHeader:
        try:
            with self._zip.open(member) as stream:
                return parse_header(stream.read(min(member.file_size, _HEADER_LIMIT + 16)), member.file_size)
        except DataError as error:
            raise error.within(self.path, printable(name)) from None
        except zipped.PROBLEMS as error:
            raise self._fail(f"it cannot be read: {error}", name) from None

    def _array(self, name: str) -> Strided:
        with self._lock:
            if name not in self._arrays:
                member, header = self._members[name], self._headers[name]
                try:
                    if member.compress_type == zipfile.ZIP_STORED:
                        self._arrays[name] = _array_in(self.file, header, self._check(member) + header.data)
                    else:
                        self._arrays[name] = _array_in(self._spool(member), header, header.data)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise self._fail(f"it is damaged: {error}", name) from None
                except OSError as error:
                    raise os_error(error, self.path) from None
            return self._arrays[name]

    def _check(self, member: zipfile.ZipInfo) -> int:
        """The offset of a stored member's bytes, after checking their checksum."""
        with self._zip.open(member) as stream:
            while stream.read(1 << 20):
                pass
        return zipped.data_of(self.file, member)

    def _spool(self, member: zipfile.ZipInfo) -> InputFile:
        import tempfile

        with tempfile.TemporaryFile() as spool:
            with self._zip.open(member) as stream:
                size = 0
                while block := stream.read(1 << 20):
                    size += len(block)
                    if size > member.file_size:
                        raise zipfile.BadZipFile("it is longer than it claims")
                    spool.write(block)
            spool.flush()
            if size != member.file_size:
                raise zipfile.BadZipFile("it is shorter than it claims")
            return OpenFile(self.path, os.dup(spool.fileno()))

    def infos(self) -> Sequence[TensorInfo]:
        return [TensorInfo(name, h.dtype, h.shape) for name, h in self._headers.items()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._array(name).read(start, buffer)

    def release(self, name: str) -> None:
        with self._lock:
            array = self._arrays.pop(name, None)
            if array is not None and array.file is not self.file:
                array.file.close()

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        for name in list(self._arrays):
            self.release(name)
        self.file.close()
