"""A finished safetensors file, read again before it takes its name.

The library's own check keeps a record of every tensor, 300 MiB for 100,000 of them. This one walks through the header
and demands more: just the tensors that were to be written, each where it was to be.

Reference: safetensors, Format.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from json import loads
from json.encoder import encode_basestring_ascii as quoted

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores import places
from quantcli.stores.files import InputFile
from quantcli.tensors.info import Kind, TensorInfo

_TEXT = rb'[^"\\\x00-\x1f\x80-\xff]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f\x80-\xff]*)'
_KEY = rb'"%s*":"' % _TEXT
_FIRST_KEY = re.compile(rb'\{"__metadata__":\{(?:%s|\})' % _KEY)
_NEXT_KEY = re.compile(rb'"(?:,%s|\})' % _KEY)
_VALUE = re.compile(b"%s{0,1000}" % _TEXT)
"""A part of the text of a value: an expression with no limit would remember every one of its escapes."""
_ENTRY = re.compile(rb',("%s*"):\{("dtype":"\w+","shape":\[(?:\d+(?:,\d+)*)?\]),"data_offsets":\[(\d+,\d+)\]\}' % _TEXT)
_END, _BLANKS = re.compile(rb"\}"), re.compile(b" *")
_BLOCK, _AHEAD = 1 << 20, 1 << 16
"""Bytes of a header that are read at a time, and that are in memory at least before something is looked for."""
_AT_ONCE = 512
"""Entries that are compared at a time with the text that they have as a rule."""

Placed = tuple[str, Kind, int]
"""Name, dtype and shape of a tensor, and the place of its bytes in the file."""


def check(path: str, shown: str, placed: Iterable[Placed], header: int) -> None:
    """Raise DataError unless a file holds these tensors, one after another at their places behind a header of so many
    bytes, and nothing else. shown: its name for the error."""
    with contextlib.closing(places.opened(path)) as file:
        size = file.size
        length = int.from_bytes(file.read(0, 8), "little") if size >= 8 else 0
        wrong = None if 8 + length == header else "its header has another length"
        wrong = wrong or _problem(_Text(file, length), iter(placed), header, size)
    if wrong is not None:
        raise DataError(f"the output is not as it was written: {wrong}", place=[shown])


class _Text:
    """The text of a header, read as it is needed."""

    def __init__(self, file: InputFile, size: int) -> None:
        self._file, self._left, self._text, self._at = file, size, b"", 0
        self._end = 8 + size

    def passes(self, text: bytes) -> bool:
        """Whether this text comes next, which is passed then."""
        while len(self._text) - self._at < len(text) and self._left:
            self._read()
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """What comes next, by a pattern, which is passed; None where it does not."""
        return next(self.each(pattern), None)

    def each(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """All that comes next by a pattern. Where that ends, the rest of the text is read in search of more."""
        while True:
            if len(self._text) - self._at < _AHEAD:
                self._read()
            found = pattern.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                yield found
            elif self._left:
                self._read()
            else:
                return

    def ends(self) -> bool:
        """Whether nothing is left."""
        return not self._left and self._at == len(self._text)

    def _read(self) -> None:
        start = self._end - self._left
        block = self._file.read(start, min(_BLOCK, self._left, max(self._file.size - start, 0)))
        self._left = self._left - len(block) if block else 0
        self._text, self._at = self._text[self._at :] + block, 0


def _problem(text: _Text, placed: Iterator[Placed], header: int, size: int) -> str | None:
    """What is wrong with a header, of so many bytes in a file of this size; None when nothing is."""
    if not _passes_metadata(text):
        return "its metadata are not a map of texts"
    begin, kinds = 0, dict[Kind, tuple[str, int]]()
    while some := list(islice(placed, _AT_ONCE)):
        usual, end = _usual(some, header, begin, kinds)
        if not text.passes(usual) and (wrong := _wrong_entry(text, some, header, begin)) is not None:
            return wrong
        begin = end
    closed = text.take(_END) is not None
    while (blanks := text.take(_BLANKS)) is not None and blanks[0]:
        pass
    if not closed or not text.ends():
        return "its header does not end behind the last tensor"
    return None if size == header + begin else f"it has {size} bytes instead of {header + begin}"


def _usual(placed: Sequence[Placed], header: int, begin: int, kinds: dict[Kind, tuple[str, int]]) -> tuple[bytes, int]:
    """The text that the entries of tensors have as a rule, with names in ASCII and keys in one order, where they are at
    their places and these follow each other from `begin` on; and where they end. kinds: what entries of a dtype and
    shape have in common, and their bytes."""
    found = list[str]()
    for name, key, place in placed:
        kind = kinds.get(key)
        if kind is None:
            dims = ",".join(map(str, key[1]))
            kind = kinds[key] = f'{{"dtype":"{key[0]}","shape":[{dims}],"data_offsets":[', TensorInfo("", *key).nbytes
        begin, at = begin + kind[1], begin
        found.append(f",{quoted(name)}:{kind[0]}{at},{begin}]}}" if header + at == place else "?")
    return "".join(found).encode(), begin


def _wrong_entry(text: _Text, placed: Sequence[Placed], header: int, begin: int) -> str | None:
    """What is wrong with the entries of some tensors, however they are spelt; None when nothing is. begin: where the
    first of them is to be, behind a header of so many bytes."""
    found = text.each(_ENTRY)
    for wanted, (dtype, shape), place in placed:
        entry = next(found, None)
        if entry is None:
            return f"its header is not valid where {printable(wanted)} should be"
        name, kind, ends = entry.groups()
        own = name[1:-1].decode() if b"\\" not in name else loads(name)
        known, nbytes = _kind(kind)
        end = begin + nbytes
        if own != wanted or place != header + begin or ends != b"%d,%d" % (begin, end):
            return f"{printable(own)} is not in its place"
        if known.dtype != dtype or known.shape != shape:
            return f"{printable(own)} has another dtype or shape"
        begin = end
    return None


def _kind(text: bytes) -> tuple[TensorInfo, int]:
    """A tensor of the dtype and shape that an entry states, and its bytes; -1 where there is no such dtype."""
    found = loads(b"{%s}" % text)
    info = TensorInfo("", found["dtype"], tuple(found["shape"]))
    return info, info.nbytes if info.dtype in DTYPES else -1


def _passes_metadata(text: _Text) -> bool:
    """Pass the metadata of a header; whether they are a map of texts."""
    key = text.take(_FIRST_KEY)
    while key is not None and not key[0].endswith(b"}"):
        while (part := text.take(_VALUE)) is not None and part[0]:
            pass
        key = text.take(_NEXT_KEY)
    return key is not None
