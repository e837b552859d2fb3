"""Standard input and output: a file when it is one, else a stream that keeps only the bytes still needed."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from bisect import bisect_right

from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.stores.files import InputFile, OpenFile

NAME = "stdin"
BLOCK = 1 << 20


class Stream(InputFile):
    """Standard input that is a pipe, as a file that can be read once.

    Bytes are kept from their arrival until they and all before them have been released. `expect` sets its size, where
    the stream must end exactly.
    """

    once = True

    def __init__(self) -> None:
        self.path = NAME
        self._fd = os.dup(0)
        self._size: int | None = None
        self._starts: list[int] = []
        self._blocks: list[bytes] = []
        self._end = 0
        self._low = 0
        self._passed: dict[int, int] = {}
        self._lock = threading.Lock()
        self._stopped = False
        try:
            import fcntl

            fcntl.fcntl(self._fd, 1031, BLOCK)  # F_SETPIPE_SZ: fewer, larger reads
        except (ImportError, OSError):
            pass

    @property
    def size(self) -> int:
        """Total number of bytes, once it is known."""
        return self._size if self._size is not None else sys.maxsize

    @property
    def inode(self) -> tuple[int, int]:
        """A stream has no identity."""
        return -1, -1

    def expect(self, size: int) -> None:
        """Declare the length of the stream by its header."""
        self._size = size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, waiting for the bytes. Raises DataError when the stream ends before."""
        if not len(buffer):
            return
        with self._lock:
            if offset < self._low:
                raise AssertionError("these bytes were released already")
            while self._end < offset + len(buffer):
                self._receive(offset + len(buffer))
            at, done = bisect_right(self._starts, offset) - 1, 0
            while done < len(buffer):
                block, skip = self._blocks[at], offset + done - self._starts[at]
                part = memoryview(block)[skip : skip + len(buffer) - done]
                buffer[done : done + len(part)] = part
                done += len(part)
                at += 1

    def _receive(self, wanted: int) -> None:
        block = self._next()
        if not block:
            raise DataError(f"the stream is cut short: it ends after {self._end} bytes", place=[NAME])
        self._starts.append(self._end)
        self._blocks.append(block)
        self._end += len(block)

    def _next(self) -> bytes:
        """The next bytes; empty at the end."""
        assert self._fd is not None
        while not self._stopped:
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    return os.read(self._fd, BLOCK)
                except OSError as error:
                    raise QuantcliError((error.strerror or str(error)).lower(), place=[NAME]) from None
        raise QuantcliError("reading was cancelled", place=[NAME])

    def passed(self, offset: int, size: int) -> None:
        """Say that these bytes will not be read again."""
        if not size:
            return
        with self._lock:
            self._passed[offset] = max(self._passed.get(offset, 0), offset + size)
            while self._low in self._passed:
                self._low = self._passed.pop(self._low)
            keep = bisect_right(self._starts, self._low) - 1
            if keep > 0 and self._starts[keep - 1] + len(self._blocks[keep - 1]) <= self._low:
                del self._starts[:keep], self._blocks[:keep]

    def interrupt(self) -> None:
        """Let a read that waits fail: the run is over."""
        self._stopped = True

    def check_unchanged(self) -> None:
        """Read to the end. Raises DataError when the stream is shorter or longer than its header says."""
        with self._lock:
            while block := self._next():
                self._end += len(block)
        if self._end != self.size:
            kind = "cut short" if self._end < self.size else "followed by bytes that belong to no tensor"
            raise DataError(f"the stream is {kind}: {self._end} bytes, {self.size} by its header", place=[NAME])


def open_input() -> InputFile:
    """Standard input. Raises UsageError when it is a terminal."""
    if os.isatty(0):
        raise UsageError("this is a terminal", place=[NAME], hint="pipe or redirect a file into it")
    regular = stat.S_ISREG(os.fstat(0).st_mode) and os.lseek(0, 0, os.SEEK_CUR) == 0
    return OpenFile(NAME, os.dup(0)) if regular else Stream()


def send(path: str) -> None:
    """Copy a file to standard output."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(1, view) :]


def check_output() -> None:
    """Raise UsageError when standard output is a terminal."""
    if os.isatty(1):
        raise UsageError("this is a terminal", place=["stdout"], hint="pipe or redirect it, or name a file")
