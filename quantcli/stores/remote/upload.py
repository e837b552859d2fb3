"""Uploads to S3 in parts by number, each sent when its bytes are there, in whatever order they come: the header of a
file of weights is known last, and is in part 1.

All parts but the last have one size, as some servers want it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from quantcli.errors import QuantcliError
from quantcli.stores import remote, system
from quantcli.stores.remote.lock import ExistsError
from quantcli.stores.remote.reading import RemoteFile, changed, give_way
from quantcli.stores.remote.s3 import FLIGHTS, MOST_PARTS, client, copy_part, listed, place, put, told

LEAST = 5 << 20
"""Bytes that S3 wants in every part but the last."""
JOINED, LARGEST = 64, 32 << 20
"""Parts of an object that is put together from others, as long as none has more bytes than these: a part is a request,
and what does not fill one is moved through this process."""
_BLOCK = 1 << 20
COPIES = 8
"""Parts that the bucket copies at a time."""

_SPARE: list[mmap.mmap] = []
"""The memory of parts that were sent, for further parts of any upload, as one is completed while the next begins: to
clear it takes half as long as to get new pages."""


def _spare(size: int) -> mmap.mmap | None:
    """The memory of a part of just this size, where there is some to use again."""
    with contextlib.suppress(IndexError):
        if len(content := _SPARE.pop()) == size:
            return content
    return None


class Upload:
    """An object whose bytes come in any order, from several threads. shown: its name in errors; joined: whether most
    of it is in other objects. Bytes that are never written are zero."""

    def __init__(self, url: str, size: int, shown: str, *, joined: bool = False) -> None:
        give_way()
        self._url, self._size, self._shown = url, size, shown
        least = min(max(LEAST, -(-size // JOINED)), LARGEST) if joined else LEAST
        self._part = max(least, -(-size // MOST_PARTS))
        self._count = -(-size // self._part)
        self._lock, self._room, self._moving = threading.Lock(), threading.Semaphore(FLIGHTS), threading.Lock()
        self._open: dict[int, _Gathering] = {}
        self._sent: dict[int, Future[str]] = {}
        self._failed: BaseException | None = None
        self._client, self._pool, self._begins = client(url), None, None
        if self._count > 1:
            self._pool = ThreadPoolExecutor(FLIGHTS + COPIES)
            self._begins = self._pool.submit(self._created)

    _pool: ThreadPoolExecutor | None
    _begins: Future[str] | None

    def _created(self) -> str:
        """The number of the upload, which is asked for while the first part is made."""
        with told(self._shown):
            return str(self._client.create_multipart_upload(**place(self._url))["UploadId"])

    @property
    def _upload(self) -> str:
        assert self._begins is not None
        return self._begins.result()

    def _size_of(self, number: int) -> int:
        return min(self._part, self._size - number * self._part)

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Take in bytes; waits while too many are on their way."""
        view = memoryview(data).cast("B")
        while len(view):
            if self._failed is not None:
                raise self._failed
            number, inside = divmod(offset, self._part)
            count = min(len(view), self._size_of(number) - inside)
            if number not in self._open:
                with self._room:  # no part is begun before one that is full can be sent
                    pass
            with self._lock:
                assert number not in self._sent, "bytes are written once"
                if number not in self._open:
                    self._open[number] = self._begun(number)
                gathering = self._open[number]
            gathering.buffer[inside : inside + count] = view[:count]
            with self._lock:
                gathering.left -= count
                full = gathering.left == 0 and self._pool is not None
                if full:
                    del self._open[number]
            if full:
                self._send(number, gathering.buffer)
            offset, view = offset + count, view[count:]

    def copied(self, source: str, tag: str | None, start: int, offset: int, size: int) -> tuple[int, int]:
        """Where of `size` bytes from `offset` those begin and end that the bucket copies itself, from byte `start` of
        another object: the parts that they fill. tag: the ETag that this object must have."""
        first, end = -(-offset // self._part), (offset + size) // self._part
        if offset + size == self._size:
            end = self._count
        if self._pool is None or first >= end:
            return offset, offset
        for number in range(first, end):
            at = start + number * self._part - offset
            with self._lock:
                self._sent[number] = self._pool.submit(self._copied, number, source, tag, at)
        return first * self._part, min(end * self._part, self._size)

    def _begun(self, number: int) -> _Gathering:
        """A part of zeros, in pages of its own: the C library keeps what is freed, for each thread."""
        size = self._size_of(number)
        if size == self._part and (content := _spare(size)) is not None:
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(content)), 0, size)
        else:
            content = system.pages(size)
        return _Gathering(content, size)

    def _send(self, number: int, content: mmap.mmap) -> None:
        assert self._pool is not None
        self._room.acquire()
        with self._lock:
            self._sent[number] = self._pool.submit(self._uploaded, number, content)

    def _uploaded(self, number: int, content: mmap.mmap) -> str:
        """Upload a part; its ETag."""
        try:
            with told(self._shown), contextlib.closing(_Body(content)) as body:
                found = self._client.upload_part(
                    **place(self._url), UploadId=self._upload, PartNumber=number + 1, Body=body
                )
            if len(content) == self._part and len(_SPARE) < FLIGHTS:
                _SPARE.append(content)
            return str(found["ETag"])
        except BaseException as error:
            self._failed = self._failed or error
            raise
        finally:
            self._room.release()

    def _copied(self, number: int, source: str, tag: str | None, start: int) -> str:
        """Have the bucket copy a part, or move it through this process where the server cannot; its ETag."""
        end = start + self._size_of(number)
        try:
            found = copy_part(self._url, self._upload, number + 1, source, start, end, tag)
            return self._moved(number, source, tag, start) if found is None else found
        except ExistsError:
            self._failed = self._failed or changed(source)
            raise self._failed from None
        except BaseException as error:
            self._failed = self._failed or error
            raise

    def _moved(self, number: int, source: str, tag: str | None, start: int) -> str:
        """Read a part of another object and upload it, one at a time for the memory; its ETag."""
        with self._moving, contextlib.closing(remote.store(source).open(source)) as file:
            if tag is not None and isinstance(file, RemoteFile) and file.transport.version != tag:
                raise changed(source)
            content = file.read(start, self._size_of(number))
            with told(self._shown):
                own = {**place(self._url), "UploadId": self._upload, "PartNumber": number + 1}
                return str(self._client.upload_part(**own, Body=content)["ETag"])

    def finish(self) -> None:
        """Have the object appear, with all its bytes. Raises QuantcliError."""
        if self._pool is None:
            held = self._open.pop(0, None)
            put(self._url, held.buffer[:] if held is not None else bytes(self._size))
            return
        for number in range(self._count):
            if number not in self._sent:
                self._send(number, (self._open.pop(number, None) or self._begun(number)).buffer)
        parts = [{"PartNumber": number + 1, "ETag": self._sent[number].result()} for number in range(self._count)]
        try:
            with told(self._shown):
                self._client.complete_multipart_upload(
                    **place(self._url), UploadId=self._upload, MultipartUpload={"Parts": parts}
                )
        except QuantcliError:
            if not self._is_there():  # where the answer was lost, the next try finds no upload
                raise
        self._begins = None
        self._pool.shutdown()

    def _is_there(self) -> bool:
        """Whether the object has appeared: nothing else has its name."""
        with contextlib.suppress(QuantcliError):
            return listed(self._url).get("") == self._size
        return False

    def abort(self) -> None:
        """End it, where it is not finished; what was uploaded is removed by the bucket."""
        self._failed = self._failed or QuantcliError("the upload was cancelled", place=[self._shown])
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._begins is not None:
            with contextlib.suppress(Exception, CancelledError):
                self._client.abort_multipart_upload(**place(self._url), UploadId=self._upload)
            self._begins = None


class _Body:
    """A part as botocore reads it, a MiB at a time and without a copy: by itself it takes 16 KiB, 33,000 times for
    520 MB, which was a quarter of the processor time of an upload."""

    def __init__(self, content: mmap.mmap) -> None:
        self._view, self._at = memoryview(content), 0

    def __len__(self) -> int:
        return len(self._view)

    def tell(self) -> int:
        """The place."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """The bytes that follow, more than asked for where that is little."""
        block = self._view[self._at :][: max(size, _BLOCK) if size >= 0 else None]
        self._at += len(block)
        return block

    def close(self) -> None:
        """Let go of the memory."""
        self._view.release()


@dataclass(slots=True)
class _Gathering:
    """A part that is not full yet, and how many of its bytes are missing."""

    buffer: mmap.mmap
    left: int
