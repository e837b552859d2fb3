"""Zip archives as containers of stores: their members checked, and where the bytes of each are."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence

from quantcli.errors import DataError, printable
from quantcli.stores.files import InputFile

_AT_ONCE = 1 << 24
"""Most bytes that are read at once: a list of all members, of which torch.save writes a hundred bytes for a tensor."""
PROBLEMS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError, struct.error)
"""What the standard library raises for a damaged archive."""


class Reader:
    """The seekable file object that zipfile needs, on top of pread."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.position = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self.position, 2: self.file.size}[whence]
        if base + offset < 0:
            raise OSError("negative seek")
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.file.size - self.position)
        size = left if size < 0 else min(size, left)
        if size > _AT_ONCE:
            raise ValueError(f"its list of members claims {size} bytes")
        data = self.file.read(self.position, size)
        self.position += len(data)
        return data

    def close(self) -> None:
        pass


def begins(file: InputFile) -> bool:
    """Whether a file begins like a zip archive."""
    return file.size >= 4 and file.read(0, 4) in (b"PK\x03\x04", b"PK\x05\x06")


def open_zip(file: InputFile) -> zipfile.ZipFile:
    """The archive in a file. Raises one of PROBLEMS."""
    return zipfile.ZipFile(Reader(file))


def data_of(file: InputFile, member: zipfile.ZipInfo) -> int:
    """The byte at which a member's data begins. Raises DataError where there is no member."""
    local = file.read(member.header_offset, min(30, max(file.size - member.header_offset, 0)))
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise DataError("it is not where the list of members puts it", place=[printable(member.filename)])
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def stored(file: InputFile, members: Sequence[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Where the bytes of each member begin, and how many it has. Raises DataError for one that is compressed or
    encrypted, and where two overlap, have one name or go on over the end of the file."""
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        place = [printable(member.filename)]
        if member.flag_bits & 1:
            raise DataError("this member is encrypted", place=place)
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise DataError("this member is compressed, which torch.save never does", place=place)
        if member.filename in found:
            raise DataError("there are two members of this name", place=place)
        if member.header_offset < end:
            raise DataError("its bytes overlap another member's", place=place)
        begin = data_of(file, member)
        end = begin + member.file_size
        if end > file.size:
            raise DataError(f"it claims {member.file_size} bytes, beyond the end of the file", place=place)
        found[member.filename] = (begin, member.file_size)
    return found
