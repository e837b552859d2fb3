"""Checkpoint folders to write: everything is made in a hidden folder beside the destination and moved as one.

The hidden folder is `.NAME.quantcli-partial`. In it are `folder`, which becomes the destination, `journal`, what has
been finished of it, and `lock`, which the run that writes holds. It stays behind when a run is killed or the disk
fails, and another run can go on with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable
from types import TracebackType

from quantcli.errors import DataError, QuantcliError, UsageError, os_error
from quantcli.stores.files import InputFile, read_small, sync_folder

_COPY = 1 << 22
"""Bytes of a side file that are copied at a time."""

_JOURNAL_LIMIT = 1 << 28


def check_folder(path: str, *, force: bool, source: str) -> str:
    """The real path of a folder to write, or the reason why it may not be. Raises UsageError or QuantcliError."""
    target = os.path.realpath(path)
    if os.path.realpath(source) == target:
        raise UsageError("output and input are the same folder", place=[path], hint="choose another name with -o")
    if os.path.lexists(target):
        if not os.path.isdir(target):
            raise UsageError("the output exists and is not a folder", place=[path])
        if not force:
            raise UsageError("the output exists", place=[path], hint="use --force to replace it")
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise QuantcliError("no such folder", place=[parent, os.path.basename(path)], hint="create it first")
    return target


def partial_of(path: str) -> str:
    """The hidden folder in which a folder is made; a name too long for the file system is cut and its digest added."""
    parent, base = os.path.split(path)
    raw = os.fsencode(base)
    if len(raw) > 200:
        short = raw[:160].decode("utf-8", "ignore")
        base = f"{short}-{hashlib.sha256(raw).hexdigest()[:16]}"
    return os.path.join(parent, f".{base}.quantcli-partial")


class OutputFolder:
    """A folder that takes its name only when it is complete.

    temp: where it is made. found: the journal of an interrupted run, None where there was none. Leaving the context
    without `publish` removes all, unless something is finished and the fault is not in the request or the weights; or
    `hold` is set.
    """

    def __init__(self, path: str, *, force: bool) -> None:
        self.path, self.force, self.hold = path, force, False
        self.parent = os.path.dirname(path)
        self.partial = partial_of(path)
        self.temp = os.path.join(self.partial, "folder")
        self._journal = os.path.join(self.partial, "journal")
        self._finished = False
        self._lock = _locked(self.partial, path)
        self.found: bytes | None = None
        with contextlib.suppress(QuantcliError):
            self.found = read_small(self._journal, _JOURNAL_LIMIT)

    def begin(self, keep: Collection[str]) -> None:
        """Start with these files of the interrupted run and no others."""
        try:
            if os.path.islink(self.temp):
                os.unlink(self.temp)
            os.makedirs(self.temp, exist_ok=True)
            if not keep:
                _remove(self._journal)
            self._finished = bool(keep)
            for name in os.listdir(self.temp):
                if name not in keep:
                    _remove(os.path.join(self.temp, name))
        except OSError as error:
            raise os_error(error, self.path) from None

    def record(self, journal: bytes) -> None:
        """Say what has been finished: it is kept if the run is interrupted from here on."""
        new = f"{self._journal}.new"
        try:
            with open(new, "wb") as file:
                file.write(journal)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._journal)
        except OSError as error:
            raise os_error(error, self.path) from None
        sync_folder(self.partial)
        self._finished = True

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fault = isinstance(error, (DataError, UsageError))  # running it again would end the same way
        if error is None or not (self.hold or (self._finished and not fault)):
            with contextlib.suppress(OSError):
                _remove(self._journal)  # first: what is left without it is never taken for finished
            shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)

    def write(self, name: str, content: bytes) -> None:
        """Write a side file and bring it to the disk."""
        self._put(name, [content])

    def copy(self, name: str, file: InputFile) -> None:
        """Copy a file of any size, in a subfolder too, and bring it to the disk."""
        starts = range(0, file.size, _COPY)
        self._put(name, (file.read(start, min(_COPY, file.size - start)) for start in starts))

    def _put(self, name: str, blocks: Iterable[bytes]) -> None:
        path = os.path.join(self.temp, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                for block in blocks:
                    view = memoryview(block)
                    while view:
                        view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name)) from None

    def rename(self, old: str, new: str) -> None:
        """Give a file of the folder another name."""
        try:
            os.rename(os.path.join(self.temp, old), os.path.join(self.temp, new))
        except OSError as error:
            raise os_error(error, os.path.join(self.path, new)) from None

    def publish(self) -> None:
        """Move the folder into place; an old one is exchanged in one step, then removed."""
        sync_folder(self.temp)
        try:
            if self.force and os.path.lexists(self.path):
                _exchange(self.temp, self.path)
            else:
                if os.path.lexists(self.path):
                    raise QuantcliError(
                        "the output came into being meanwhile", place=[self.path], hint="use --force to replace it"
                    )
                os.rename(self.temp, self.path)
        except OSError as error:
            raise os_error(error, self.path) from None
        sync_folder(self.parent)


def _remove(path: str) -> None:
    """Remove a file, a link or a folder with all in it, if it is there."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _locked(partial: str, path: str) -> int:
    """The descriptor of the lock of a hidden folder, which is made if there is none; closing it gives the lock back.

    Raises QuantcliError when another run has it, or the folder is somebody else's.
    """
    lock = os.path.join(partial, "lock")
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(partial)
            status = os.lstat(partial)
            if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
                raise QuantcliError("this is in the way", place=[path, partial], hint="remove it")
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the run that had it has just ended
            continue
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(partial)  # if nothing is in it
            raise os_error(error, path) from None
        try:
            _flock(fd, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(lock)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _flock(fd: int, path: str) -> None:
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise QuantcliError("another run is writing it", place=[path], hint="wait until it has ended") from None
        # Some network file systems have no locks; there is nothing better then.


def _exchange(new: str, old: str) -> None:
    """Swap two folders. renameat2 does it at once; elsewhere the old one is moved aside first."""
    with contextlib.suppress(AttributeError, OSError):
        at_fdcwd, exchange = -100, 2
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), exchange) == 0:
            return
    aside = f"{new}.old"
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)
