"""Fields of a protobuf message, read from a file piece by piece: only a window of it is held.

A field is a varint, number << 3 | kind, and its value: kind 0 a varint, 1 and 5 eight and four bytes, 2 a length and so
many bytes, which are text, a message, packed numbers or just bytes. Nothing is read beyond a stated length, and
skipped fields are not read at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from quantcli.errors import DataError

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
MOST_FIELDS = 8_000_000
"""A graph of 50 thousand nodes and their weights has some three million, which take five seconds."""

MOST_TEXT = 1 << 20
ALL_TEXT = 1 << 26
"""Largest size in bytes of one text, and of all texts that are read: names and metadata."""

_WINDOW = 1 << 14
_SIZES = {EIGHT: 8, FOUR: 4}


class Field(NamedTuple):
    """A field: its number and kind; the value of a varint, or the place and number of its bytes."""

    number: int
    kind: int
    value: int
    size: int


def signed(value: int) -> int:
    """The int64 that a varint encodes."""
    return value - (1 << 64) if value >> 63 else value


class Bytes(Protocol):
    """What messages are read from."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, start: int, size: int) -> bytes:
        """A run of them."""


class Wire:
    """The fields of messages of one file."""

    def __init__(self, file: Bytes) -> None:
        self.file = file
        self._left, self._room = MOST_FIELDS, ALL_TEXT
        self._window, self._start = b"", 0

    def _look(self, at: int) -> None:
        self._start = at
        self._window = self.file.read(at, min(_WINDOW, self.file.size - at))

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A varint, and the place after it."""
        place, value = at - self._start, 0
        if 0 <= place < len(self._window) and self._window[place] < 128 and at < end:
            return self._window[place], at + 1
        for shift in range(0, 70, 7):
            if at >= end:
                raise DataError("it is cut short")
            if not self._start <= at < self._start + len(self._window):
                self._look(at)
            byte = self._window[at - self._start]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    break
                return value, at
        raise DataError("a number has more than 64 bits")

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message between two places. Raises DataError for an invalid message."""
        at = begin
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise DataError(f"it has more than {MOST_FIELDS} fields")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if not 1 <= number < 1 << 29:
                raise DataError(f"it has a field of number {number}")
            if kind == VARINT:
                value, at = self._varint(at, end)
                yield Field(number, kind, value, 0)
                continue
            if kind == BYTES:
                size, at = self._varint(at, end)
            elif kind in _SIZES:
                size = _SIZES[kind]
            else:
                raise DataError(f"it has a field of kind {kind}")
            if size > end - at:
                raise DataError("a length reaches beyond the end")
            yield Field(number, kind, at, size)
            at += size

    def bytes(self, field: Field, limit: int = MOST_TEXT) -> bytes:
        """The bytes of a field."""
        if field.kind == VARINT:
            raise DataError("a number where bytes should be")
        if field.size > limit:
            raise DataError(f"{field.size} bytes where up to {limit} are expected")
        place = field.value - self._start
        if place >= 0 and place + field.size <= len(self._window):
            return self._window[place : place + field.size]
        return self.file.read(field.value, field.size)

    def text(self, field: Field) -> str:
        """The text of a field."""
        self._room -= field.size
        if self._room < 0:
            raise DataError(f"it has more than {ALL_TEXT} bytes of text")
        try:
            return self.bytes(field).decode()
        except UnicodeError:
            raise DataError("a text is not valid UTF-8") from None

    def whole(self, field: Field) -> int:
        """The whole number of a field."""
        if field.kind != VARINT:
            raise DataError("bytes where a number should be")
        return signed(field.value)

    def inside(self, field: Field) -> Iterator[Field]:
        """The fields of the message that a field holds."""
        if field.kind != BYTES:
            raise DataError("a number where a message should be")
        return self.fields(field.value, field.value + field.size)

    def varints(self, field: Field) -> Iterator[int]:
        """The whole numbers of a field, one by one: a single one, or as many as are packed in it."""
        if field.kind == VARINT:
            yield signed(field.value)
            return
        at, end = field.value, field.value + field.size
        while at < end:
            value, at = self._varint(at, end)
            yield signed(value)
