"""Files that are read over a network, a few pieces ahead of whoever asks.

A read that no piece covers begins one: small at first, for a header is a few kilobytes, and four times as large each
time the reading goes on where the last piece ended, up to 4 MiB; from then on several pieces are under way at once. All
pieces of all files together stay within `ROOM` bytes. What is read ahead goes on in the file that follows, where one
is known to. Every answer must come from the same version of the file.
"""

from __future__ import annotations

import mmap
import queue
import random
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from quantcli.errors import DataError, QuantcliError
from quantcli.stores import system
from quantcli.stores.files import InputFile
from quantcli.stores.remote import MissingError
from quantcli.stores.remote.refusals import ExpiredError

if TYPE_CHECKING:
    from http.client import HTTPResponse

FIRST, PIECE, FLIGHTS = 12 << 10, 1 << 22, 8
"""Bytes of the first piece of a file, and of the largest, and requests at a time. A new connection carries 14,600 bytes
at first (RFC 6928), so that an answer of 16 KiB took two round trips. Over a link of 100 MB/s and 50 ms, pieces of
8 MiB in as much memory are no faster: 84 MB/s, and 85 in pieces of 4."""
ROOM, BESIDE = 40 << 20, 16 << 20
"""Bytes of pieces in memory, and beside an upload, which takes as much: 85 and 73 MB/s over that link."""
WHOLE_ONLY = "this server sends whole files only (it does not honour ranges)"
PAUSES = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
"""Seconds to wait, more or less, before a request is tried again."""

_BUSY = {408, 425, 429, 500, 502, 503, 504}
"""What servers answer that may answer otherwise a little later."""

T = TypeVar("T")

_MAPPED = 1 << 20
"""Bytes from which a piece has pages of its own. The C library keeps what is freed for each thread: a run took 144 to
152 MiB with its memory, and takes 119 to 126."""

Buffer = bytearray | mmap.mmap
_Reader = tuple["RemoteFile", int]
"""Where somebody reads: a file, and the place in it."""


class PassingError(Exception):
    """A problem that may pass: a connection reset, a server that is busy. after: seconds it asks to be left alone."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class Transport(Protocol):
    """What gets ranges of one file. size: its bytes."""

    size: int

    @property
    def version(self) -> str | None:
        """What tells that it is the same one, once something was read."""

    def fetch(self, start: int, into: memoryview) -> None:
        """Fill a buffer from byte `start`. Raises PassingError, and QuantcliError for what will not pass."""


def raise_if_busy(answer: HTTPResponse) -> None:
    """Raise PassingError for an answer that a server gives while it is busy, after reading it to its end."""
    if answer.status in _BUSY:
        answer.read()
        after = answer.headers.get("Retry-After", "")
        raise PassingError(f"{answer.status} {answer.reason}", float(after) if after.isdigit() else 0.0)


def retried(attempt: Callable[[], T], place: str) -> T:
    """What an attempt returns, made again for as long as its problem may pass. Raises QuantcliError."""
    expired = False
    for pause in [*PAUSES, None]:
        try:
            return attempt()
        except ExpiredError:
            if expired or pause is None:
                raise
            expired = True  # keys that were renewed are taken within a tenth of a second
            threading.Event().wait(0.2)
        except PassingError as problem:
            if pause is None:
                hint = "try again later"
                raise QuantcliError(f"{problem}, after {len(PAUSES) + 1} tries", place=[place], hint=hint) from None
            # Not all at the same moment again.
            threading.Event().wait(max(min(problem.after, 60.0), pause * random.uniform(0.5, 1.5)))
    raise AssertionError("unreachable")


def changed(place: str) -> DataError:
    """The error for a file of which another version was found."""
    return DataError(
        "the file was changed while it was read", place=[place], hint="run again when nothing writes to it"
    )


class _Piece:
    """A run of bytes of a file that is there or on its way. users: reads that wait for it or copy from it; left: bytes
    that nobody has asked for yet."""

    __slots__ = ("begin", "buffer", "error", "file", "left", "ready", "size", "users")

    def __init__(self, file: RemoteFile, begin: int, size: int, buffer: Buffer) -> None:
        self.file, self.begin, self.size, self.buffer = file, begin, size, buffer
        self.ready, self.error = threading.Event(), None
        self.users, self.left = 0, size

    error: BaseException | None

    @property
    def end(self) -> int:
        return self.begin + self.size

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.ready.is_set()


class _Pieces:
    """The pieces of all files, the longest unused first, and the threads that fetch them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = OrderedDict[_Piece, None]()
        self._bytes = 0
        self.room, self.flights = ROOM, FLIGHTS
        self._spare: list[Buffer] = []
        self._wanted: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        self._threads = 0

    def add(self, file: RemoteFile, content: bytes) -> None:
        """The start of a file, which came with its size."""
        with self._lock:
            piece = _Piece(file, 0, len(content), bytearray(content))
            piece.ready.set()
            self._keep(piece)

    def copy(self, file: RemoteFile, offset: int, buffer: memoryview) -> int:
        """Copy what one piece has from `offset`, once it is there; how many bytes that was."""
        with self._lock:
            piece = self._covering(file, offset)
            if piece is None:
                piece = self._begin(file, offset, len(buffer))
                assert piece is not None
            piece.users += 1
            self._held.move_to_end(piece)
            self._ahead(piece)
        try:
            while not piece.ready.wait(0.2):
                if file.stopped:
                    raise QuantcliError("reading was cancelled", place=[file.path])
            if piece.error is not None:
                raise piece.error
            skip = offset - piece.begin
            count = min(len(buffer), piece.size - skip)
            buffer[:count] = memoryview(piece.buffer)[skip : skip + count]
        finally:
            with self._lock:
                piece.users -= 1
                if piece.error is not None and piece in self._held:
                    self._drop(piece)
        piece.left -= count
        file.place = offset + count
        return count

    def begin(self, file: RemoteFile) -> None:
        """Ask for what follows the last read of a file, as much as may be held beside an upload."""
        with self._lock:
            at = file.place
            for _ in range(BESIDE // PIECE):
                held = self._covering(file, at)
                at = held.end if held is not None else at
                if at >= file.size or (made := self._begin(file, at, PIECE, (file, at))) is None:
                    return
                at = made.end

    def forget(self, file: RemoteFile) -> None:
        """Drop the pieces of a file that nobody waits for."""
        with self._lock:
            for piece in [p for p in file.pieces if p.idle]:
                self._drop(piece)

    def _covering(self, file: RemoteFile, offset: int) -> _Piece | None:
        at = bisect_right(file.begins, offset) - 1
        found = file.pieces[at] if at >= 0 else None
        return found if found is not None and offset < found.end else None

    def _begin(self, file: RemoteFile, offset: int, wanted: int, reader: _Reader | None = None) -> _Piece | None:
        """Ask for a piece from `offset`, which none covers. reader: who reads elsewhere, and will come here; without
        one the piece is needed now, even beyond the room there is."""
        at = bisect_right(file.begins, offset)
        before = file.pieces[at - 1] if at else None
        goes_on = before is not None and offset - before.end <= before.size
        size = max(wanted, FIRST, 4 * before.size if goes_on and before is not None else 0)
        end = file.pieces[at].begin if at < len(file.pieces) else file.size
        size = min(size, PIECE, end - offset)
        if not self._room(size, reader or (file, offset), needed=reader is None):
            return None
        own = system.pages(size) if size >= _MAPPED and not (size == PIECE and self._spare) else None
        buffer = own or (self._spare.pop() if size == PIECE and self._spare else bytearray(size))
        while self._spare and self._bytes + size + len(self._spare) * PIECE > self.room:
            self._spare.pop()
        piece = _Piece(file, offset, size, buffer)
        self._keep(piece)
        if self._threads < self.flights:
            self._threads += 1
            threading.Thread(target=self._fetch, daemon=True).start()
        self._wanted.put(piece)
        return piece

    def _ahead(self, piece: _Piece) -> None:
        """Ask for what comes behind a piece, the more the larger it is, in the file that follows too."""
        file, at, wanted = piece.file, piece.end, 0
        most = self.room // PIECE - 1
        for _ in range(piece.size * most // PIECE or (most if piece.size >= _MAPPED and at >= file.size else 0)):
            if at >= file.size:
                if file.after is None or file.after.stopped:
                    return
                file, wanted = file.after, PIECE
                header = self._covering(file, file.place)
                at = header.end if header is not None else file.place
            found = self._covering(file, at) or self._begin(file, at, wanted, (piece.file, piece.begin))
            if found is None:
                return
            at = found.end

    def _room(self, size: int, reader: _Reader, *, needed: bool) -> bool:
        """Make room for a piece. What is still to be read from where the reader is, or shortly before, for threads
        take turns, gives way only where it must."""
        file, offset = reader
        for keep_ahead in (True, False) if needed else (True,):
            for piece in list(self._held):
                if self._bytes + size <= self.room:
                    return True
                near = piece.file is file and piece.end > offset - 2 * PIECE
                ahead = piece.left > 0 and (near or piece.file is file.after or piece.file.after is file)
                if piece.idle and not (keep_ahead and ahead):
                    self._drop(piece)
        return needed or self._bytes + size <= self.room

    def _keep(self, piece: _Piece) -> None:
        at = bisect_right(piece.file.begins, piece.begin)
        piece.file.begins.insert(at, piece.begin)
        piece.file.pieces.insert(at, piece)
        self._held[piece] = None
        self._bytes += piece.size

    def _drop(self, piece: _Piece) -> None:
        at = piece.file.pieces.index(piece)
        del piece.file.begins[at], piece.file.pieces[at], self._held[piece]
        self._bytes -= piece.size
        if piece.size == PIECE and piece.idle and self._bytes + (len(self._spare) + 1) * PIECE <= self.room:
            self._spare.append(piece.buffer)

    def _fetch(self) -> None:
        """Fetch pieces, one after another, for as long as the process lives; between them none is held."""
        while True:
            self._fetched(self._wanted.get())

    def _fetched(self, piece: _Piece) -> None:
        try:
            if not piece.file.stopped:
                view = memoryview(piece.buffer)[: piece.size]
                retried(lambda: piece.file.transport.fetch(piece.begin, view), piece.file.path)
        except MissingError:
            piece.error = changed(piece.file.path)
        except BaseException as error:
            piece.error = error
        piece.ready.set()


_PIECES = _Pieces()


def give_way() -> None:
    """Take less memory from now on, for this process uploads too. Nor are there more connections than pieces that fit
    into it: one more begins slowly, and for half a second all waited for its piece."""
    _PIECES.room, _PIECES.flights = BESIDE, BESIDE // PIECE


class RemoteFile(InputFile):
    """A file behind a URL, as an InputFile. start: its first bytes, where they came with its size. place: where the
    last read ended; after: the file that is usually read when this one has been."""

    def __init__(self, path: str, transport: Transport, start: bytes = b"") -> None:
        self.path, self.transport = path, transport
        self.stopped = False
        self.after: RemoteFile | None = None
        self.place = 0
        self.begins: list[int] = []
        self.pieces: list[_Piece] = []
        if start:
            _PIECES.add(self, start)

    @property
    def size(self) -> int:
        """Its bytes, as its server told."""
        return self.transport.size

    @property
    def stamp(self) -> str:
        """What tells that a file is the same one: the commit in its URL on the hub, else its ETag."""
        return f"{self.size} bytes of {self.path if self.path.startswith('hf://') else self.transport.version}"

    @property
    def inode(self) -> tuple[int, int]:
        """No file of this machine."""
        return -1, -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises DataError when the file ends before."""
        if offset + len(buffer) > self.size:
            raise changed(self.path)
        while len(buffer):
            done = _PIECES.copy(self, offset, buffer)
            offset, buffer = offset + done, buffer[done:]

    def read_runs(self, offset: int, step: int, runs: Sequence[memoryview]) -> None:
        """Fill buffers from offsets `step` bytes apart."""
        for run in runs:
            self.read_into(offset, run)
            offset += step

    def precedes(self, other: InputFile) -> None:
        """Read ahead in another file once this one comes to its end."""
        self.after = other if isinstance(other, RemoteFile) else None

    def read_ahead(self) -> None:
        """Begin to read what follows the last read, before it is asked for."""
        _PIECES.begin(self)

    def interrupt(self) -> None:
        """Make waiting reads fail, because the run is over."""
        self.stopped = True

    def check_unchanged(self) -> None:
        """Nothing: every answer was checked to come from the version that was opened."""

    def close(self) -> None:
        """Forget its pieces."""
        _PIECES.forget(self)
