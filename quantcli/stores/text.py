"""The text of a JSON document that is read a piece at a time, by patterns of what comes next."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Callable

PIECE = 1 << 20
"""Bytes that are read at a time, and characters that what matches a pattern may have for certain."""

Read = Callable[[int, int], bytes]
"""So many bytes of a document from a place on."""


class Text:
    """A text from the place on that was reached, as far as it has been read. Raises UnicodeError where it is not
    UTF-8."""

    def __init__(self, read: Read, length: int) -> None:
        self._read, self._length, self._done = read, length, 0
        self._decoder = getincrementaldecoder("utf-8")()
        self.text, self.at = "", 0

    def more(self) -> bool:
        """Read on, as much again as there is and a piece at least; whether there was more to read."""
        size = min(max(PIECE, len(self.text) - self.at), self._length - self._done)
        raw = self._read(self._done, size) if size else b""
        self._done += size
        self.text = self.text[self.at :] + self._decoder.decode(raw, self._done == self._length)
        self.at = 0
        return size > 0

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What comes next, by a pattern, which is passed; None where it does not, or goes on for more than a piece."""
        found = pattern.match(self.text, self.at)
        if found is None and len(self.text) - self.at < PIECE and self.more():
            found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def is_blank(self, blanks: str = " ") -> bool:
        """Whether nothing but blanks is left."""
        while not self.text[self.at :].strip(blanks):
            self.at = len(self.text)
            if not self.more():
                return True
        return False
