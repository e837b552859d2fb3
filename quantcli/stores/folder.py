"""Output checkpoint folders: everything is written in a hidden folder beside the destination and renamed as a whole.

See `workspace` for the hidden folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any

from quantcli import interrupts
from quantcli.errors import DataError, QuantcliError, UsageError, os_error, printable
from quantcli.stores import places, system
from quantcli.stores.complete import CompleteFile, no_longer
from quantcli.stores.files import InputFile, another_created
from quantcli.stores.workspace import Workspace, is_own, remove

_COPY = 1 << 22
"""Bytes of a side file that are copied at a time."""


def check_folder(path: str, *, force: bool, source: str) -> str:
    """The real path of a folder to write. Raises UsageError or QuantcliError."""
    target = os.path.realpath(path)
    if places.real(source) == target:
        raise UsageError("output and input are the same folder", place=[path], hint="choose another name with -o")
    if os.path.lexists(target):
        if not os.path.isdir(target):
            raise UsageError("the output exists and is not a folder", place=[path])
        if not force:
            raise UsageError("the output exists", place=[path], hint="use --force to replace it")
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise QuantcliError(f"no such folder: {printable(parent, 300)}", place=[path], hint="create it first")
    return target


class OutputFolder:
    """A folder that takes its name only when it is complete.

    temp: where it is made. found: the journal of an interrupted run, None where there was none. Leaving the context
    without `publish` removes everything, unless some files are finished and the error is not in the request or the
    weights; or `hold` is set, as it is until `begin`. Errors name the destination, not the hidden folder.
    """

    def __init__(self, path: str, *, force: bool) -> None:
        self.path, self.force = path, force
        self.parent = os.path.dirname(path)
        self._workspace = Workspace(path, force=force)
        self.found = self._workspace.found
        self.hold = self._workspace.keep
        self.temp = os.path.join(self._workspace.folder, "folder")
        self._finished: dict[str, CompleteFile] = {}

    def begin(self, keep: Collection[str]) -> None:
        """Start with exactly these files of the interrupted run."""
        self._workspace.keep = bool(keep)
        try:
            if not keep:
                remove(self._workspace.journal)
            if os.path.lexists(self.temp) and not is_own(self.temp, stat.S_ISDIR):
                remove(self.temp)
            os.makedirs(self.temp, exist_ok=True)
            self._keep_only(self.temp, keep)
        except OSError as error:
            raise os_error(error, self.path) from None
        self.hold = False

    def _keep_only(self, folder: str, keep: Collection[str]) -> None:
        """Remove all files below a folder that are not to be kept, and links."""
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if is_own(path, stat.S_ISDIR):
                self._keep_only(path, keep)
                with contextlib.suppress(OSError):  # if nothing is left in it
                    os.rmdir(path)
            elif os.path.relpath(path, self.temp) not in keep or not is_own(path, stat.S_ISREG):
                remove(path)

    def make(self, name: str) -> None:
        """Make a subfolder, of an empty name the folder itself."""
        try:
            os.makedirs(os.path.join(self.temp, name), exist_ok=True)
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name) if name else self.path) from None

    def record(self, journal: bytes, *, more: bool = False) -> None:
        """Record what has been finished: it is kept if the run is interrupted from now on. more: further lines of the
        journal, of which the last may be cut short by an error or a kill."""
        new = f"{self._workspace.journal}.new"
        try:
            if more:
                _write(self._workspace.journal, [journal], system.WRITE | os.O_APPEND)
                return
            remove(new)
            _write(new, [journal])
            os.replace(new, self._workspace.journal)
        except OSError as error:
            raise os_error(error, self.path) from None
        system.sync_folder(self._workspace.folder)
        self._workspace.keep = True

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fault = isinstance(error, (DataError, UsageError))  # running it again would fail the same way
        if error is None or (fault and not self.hold):
            self._workspace.keep = False
        self._workspace.close()
        if isinstance(error, QuantcliError):
            error.place = [place.replace(self.temp, self.path, 1) for place in error.place]

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a side file, whole or in pieces, and sync it to disk."""
        self._put(name, [content] if isinstance(content, bytes) else content)

    def copy(self, name: str, file: InputFile) -> None:
        """Copy a file of any size, in a subfolder too, and sync it to disk."""
        starts = range(0, file.size, _COPY)
        self._put(name, (file.read(start, min(_COPY, file.size - start)) for start in starts))

    def _put(self, name: str, blocks: Iterable[bytes]) -> None:
        path = os.path.join(self.temp, name)
        inner = os.path.dirname(path)
        try:
            if not os.path.isdir(inner):
                os.makedirs(inner)
            _write(path, blocks)
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name)) from None
        self.finished(name)

    def rename(self, old: str, new: str) -> None:
        """Rename a file of the folder."""
        try:
            os.rename(os.path.join(self.temp, old), os.path.join(self.temp, new))
        except OSError as error:
            raise os_error(error, os.path.join(self.path, new)) from None
        if old in self._finished:
            self._finished[new] = self._finished.pop(old)

    def take(self, name: str, path: str) -> bool:
        """No: files of this machine are linked (see assembled), which is as fast."""
        return False

    def finished(self, name: str) -> None:
        """Declare that a file is complete: `publish` checks that it is still the same."""
        try:
            self._finished[name] = CompleteFile.of(os.path.join(self.temp, name))
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name)) from None

    def _check_finished(self) -> None:
        """Raise QuantcliError where somebody has removed or changed a file of the folder."""
        for name, finished in self._finished.items():
            if not finished.is_at(os.path.join(self.temp, name)):
                raise no_longer(os.path.join(self.path, name))

    def publish(self) -> None:
        """Move the folder into place; an old one is exchanged in one step, then removed."""
        self._check_finished()
        system.sync_folder(self.temp)
        with interrupts.deferred():
            try:
                if os.path.lexists(self.path):
                    if not self.force:
                        raise FileExistsError(errno.EEXIST, "the output exists")
                    _exchange(self.temp, self.path, self._workspace.aside)
                else:
                    os.rename(self.temp, self.path)
            except OSError as error:
                if self.force or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise os_error(error, self.path) from None
                self._workspace.keep = self.hold = False
                raise another_created(self.path) from None
            self._workspace.keep = self.hold = False
            with contextlib.suppress(OSError):
                remove(self._workspace.journal)  # nothing is left to resume
        system.sync_folder(self.parent)


def json_bytes(content: dict[str, Any]) -> bytes:
    """The bytes of a document in a folder."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _write(path: str, blocks: Iterable[bytes], how: int = system.CREATE) -> None:
    """Write a file, a new one but where `how` to open it says otherwise, and sync it to disk."""
    fd = os.open(path, how, 0o666)
    try:
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(new: str, old: str, aside: str) -> None:
    """Swap two folders. renameat2 does it at once; elsewhere the old one is moved aside first."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Windows has no library without a name
        at_fdcwd, exchange = -100, 2
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), exchange) == 0:
            return
    os.rename(old, aside)  # until the second step is done, closing the workspace would restore its name
    os.rename(new, old)
