"""Outputs that are made on this machine one file at a time, and sent when each is complete: those on the hub, on Google
Cloud Storage and on Azure.

A file is made in a spool, a folder of its own in the temporary one (TMPDIR), and removed from there once it is sent.
What makes an output of the files that were sent is told by a Sink.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import ClassVar, Protocol

from quantcli.errors import QuantcliError, UsageError, os_error
from quantcli.stores import files
from quantcli.stores.complete import no_longer
from quantcli.stores.files import InputFile
from quantcli.stores.temporary import TemporaryFolder


class Sink(Protocol):
    """Where the files of one output go. Names are below the output; of a single file its own is the last step of it."""

    def check(self, *, force: bool) -> None:
        """Raise UsageError where there is an output already and `force` is not given, QuantcliError where nothing can
        be written. Nothing is changed."""

    def begin(self, *, force: bool) -> None:
        """Claim the place, before the first weight is read. Raises QuantcliError."""

    def send(self, name: str, path: str) -> None:
        """Send a finished file. Raises QuantcliError."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file that was sent."""

    def publish(self) -> None:
        """Make the output of the files that were sent. Raises QuantcliError."""

    def abandon(self) -> None:
        """Remove what was sent, as far as that is possible and needed, for there will be no output."""


MakeSink = Callable[[str, bool], Sink]
"""Makes a sink for a URL; whether that is of a folder."""

_COPY = 1 << 22
"""Bytes of a file that are copied at a time."""

LAST = ("adapter_config.json", "config.json", "modules.json", "model_index.json", "README.md")
"""Files of a folder that are sent last: without them no loader takes it."""


def _renamed(error: BaseException | None, old: str, new: str) -> None:
    """Have an error name the output instead of the spool."""
    if isinstance(error, QuantcliError):
        error.place = [place.replace(old, new, 1) for place in error.place]


class SpooledFolder:
    """A folder that is sent file by file, as an OutputFolder: `temp` is the spool, in which a file stays until it is
    `finished`."""

    found: bytes | None = None

    def __init__(self, path: str, sink: Sink, *, force: bool) -> None:
        self.path, self._sink = path, sink
        self.hold = False
        self._spool = TemporaryFolder()
        self.temp = self._spool.path
        self._last: dict[str, bytes] = {}
        self._published = False
        try:
            sink.begin(force=force)
        except BaseException:
            self._spool.close()
            raise

    def __enter__(self) -> SpooledFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _renamed(error, self.temp, self.path)
        self._spool.close()
        if not self._published:
            self._sink.abandon()

    def begin(self, keep: Collection[str]) -> None:
        """Nothing: it begins empty."""

    def make(self, name: str) -> None:
        """Make a subfolder of the spool."""
        os.makedirs(os.path.join(self.temp, name), exist_ok=True)

    def record(self, journal: bytes, *, more: bool = False) -> None:
        """Nothing: the journal is not kept."""

    def finished(self, name: str) -> None:
        """Send a file, and remove it from the spool."""
        path = os.path.join(self.temp, name)
        if not os.path.isfile(path):
            raise no_longer(path)
        self._sink.send(name, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a small file, or a text in pieces."""
        blocks = [content] if isinstance(content, bytes) else content
        if os.path.basename(name) in LAST:
            self._last[name] = b"".join(blocks)
            return
        self._put(name, blocks)

    def _put(self, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file and send it."""
        path = os.path.join(self.temp, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.writelines(blocks)
        except OSError as error:
            raise os_error(error, path) from None
        self.finished(name)

    def copy(self, name: str, file: InputFile) -> None:
        """Copy a file of any size."""
        if os.path.basename(name) in LAST:
            self._last[name] = file.read(0, file.size)
            return
        self._put(name, (file.read(at, min(_COPY, file.size - at)) for at in range(0, file.size, _COPY)))

    def rename(self, old: str, new: str) -> None:
        """Rename a file of the folder."""
        self._sink.rename(old, new)

    def take(self, name: str, path: str) -> bool:
        """No: nothing lies elsewhere already."""
        return False

    def publish(self) -> None:
        """Send what makes it whole, and make the output."""
        for name, content in sorted(self._last.items(), key=lambda item: LAST.index(os.path.basename(item[0]))):
            self._put(name, [content])
        self._sink.publish()
        self._published = True


class SpooledFile:
    """A file that is made in the spool and sent when it is published, as an OutputFile. alone: whether it is all of its
    output."""

    def __init__(self, path: str, size: int, hidden: HiddenSpool, *, alone: bool = False) -> None:
        self.path, self.size, self.force, self._alone = path, size, True, alone
        self._hidden, self._name = hidden, os.path.basename(path)
        self._file = files.OutputFile(os.path.join(hidden.folder, self._name), size, force=True)

    @property
    def temp(self) -> str:
        """Where its bytes can be read."""
        return self._file.temp

    def __enter__(self) -> SpooledFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Write all of `data` at `offset`; safe from several threads."""
        self._file.write(offset, data)

    def copy(self, file: InputFile, start: int, offset: int, size: int) -> None:
        """Write bytes of another file."""
        self._file.copy(file, start, offset, size)

    def sync(self) -> None:
        """Declare that all bytes are written."""
        self._file.sync()

    def publish(self) -> None:
        """Send it; it appears with the others of its output."""
        self._hidden.sink.send(self._name, self._file.temp)
        self._hidden.sent = True
        self._file.discard()
        if self._alone:
            self._hidden.close(published=True)

    def withdraw(self) -> None:
        """Nothing: it has not appeared."""

    def discard(self) -> None:
        """Remove it from the spool."""
        self._file.discard()
        if self._alone:
            self._hidden.close(published=False)


class HiddenSpool:
    """The spool in which a file, or several that belong together, are made: they appear when its context is left
    without an error."""

    _open: ClassVar[dict[str, HiddenSpool]] = {}

    def __init__(self, path: str, sink: Sink, *, force: bool) -> None:
        self.path, self.sink, self.sent = path, sink, False
        self._spool = TemporaryFolder()
        self.folder = self._spool.path
        try:
            sink.begin(force=force)
        except BaseException:
            self._spool.close()
            raise
        self._open[self.folder] = self

    @classmethod
    def of(cls, folder: str) -> HiddenSpool:
        """The one whose folder this is."""
        return cls._open[folder]

    def __enter__(self) -> HiddenSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _renamed(error, self.folder, os.path.dirname(self.path))
        self.close(published=error is None and self.sent)

    def close(self, *, published: bool) -> None:
        """Remove the spool, and make the output of what was sent, or drop it; nothing where it is closed already."""
        if self._open.pop(self.folder, None) is None:
            return
        self._spool.close()
        if not published:
            self.sink.abandon()
            return
        try:
            self.sink.publish()
        except BaseException:
            self.sink.abandon()
            raise

    def clear(self) -> None:
        """Nothing: it is new."""


class SpooledKind:
    """A kind of place to which files are sent one at a time. most: bytes of the largest file that it takes."""

    def __init__(self, sink: MakeSink, most: int | None = None) -> None:
        self._sink, self._most = sink, most

    def check_space(self, path: str, room: int, largest: int, source: str) -> None:
        """Raise QuantcliError where so many bytes have no room in the temporary folder, UsageError where a file of
        `largest` bytes is not taken."""
        if self._most is not None and largest > self._most:
            problem = f"a file of {largest} bytes is more than the {self._most} that are taken"
            raise UsageError(problem, place=[path], hint="split it with --max-shard-size, such as 40GB")
        files.check_space(os.path.join(tempfile.gettempdir(), os.path.basename(path)), room, source)

    def file(self, path: str, size: int, *, force: bool, within: str | None, joined: bool) -> SpooledFile:
        """A file to write, in the spool `within`, or in one of its own."""
        if within is not None:
            return SpooledFile(path, size, HiddenSpool.of(within))
        return SpooledFile(path, size, self.hidden(path, force=force), alone=True)

    def folder(self, path: str, *, force: bool, in_place: bool) -> SpooledFolder:
        """A folder to write."""
        if in_place:
            raise UsageError("parts are not written here", place=[path], hint="name a folder or s3://, and copy it")
        return SpooledFolder(path, self._sink(path, True), force=force)

    def hidden(self, path: str, *, force: bool) -> HiddenSpool:
        """A spool for a file."""
        return HiddenSpool(path, self._sink(path, False), force=force)

    def check(self, path: str, *, force: bool, folder: bool) -> None:
        """Raise UsageError where there is an output already, QuantcliError where nothing can be written."""
        self._sink(path, folder).check(force=force)

    def sizes(self, folder: str) -> Mapping[str, int]:
        """No files: nothing is seen before all of it is."""
        return {}

    def remove(self, path: str) -> None:
        """Nothing is ever beside an output."""

    def resumable(self, path: str) -> bool:
        """No: the same command sends only what was not sent before."""
        return False
