"""Text as UTF-8 on a stream of bytes, piece by piece: the report on 100,000 tensors has 120 MB."""

from __future__ import annotations

from typing import Protocol

_PIECE = 1 << 16
"""Characters that are encoded and written at a time."""


class Bytes(Protocol):
    """A stream of bytes; without buffering a write may take a part only, and says how much."""

    def write(self, data: memoryview, /) -> int | None:
        """Write bytes, or some of them."""


class Utf8:
    """A text stream over one of bytes, as far as renderings need it."""

    def __init__(self, raw: Bytes) -> None:
        self._raw, self._held, self._size = raw, list[str](), 0

    def write(self, text: str) -> int:
        """Write a text."""
        self._held.append(text)
        self._size += len(text)
        if self._size > _PIECE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Hand over all that was written."""
        left = memoryview("".join(self._held).encode("utf-8", "backslashreplace"))
        self._held, self._size = [], 0
        while left:
            left = left[self._raw.write(left) or 0 :]
