"""Files: opened once and checked when reading; completed, synced and renamed into place when writing.

Reading uses pread, never mmap: a file that is truncated while it is read gives an error instead of a bus error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from quantcli import interrupts
from quantcli.errors import DataError, QuantcliError, UsageError, os_error, printable
from quantcli.stores import abandoned, system

_COPY = 1 << 23
"""Bytes that are copied at a time where the system does not do it by itself."""

_KINDS = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""Errors of file systems without hard links, the last one of Windows."""


class InputFile:
    """A regular file to read. `once`: whether released bytes are gone. With `hold=False` it is opened again for every
    read and checked to be the same: a checkpoint of a thousand shards must not need a thousand descriptors."""

    once = False
    _flags = system.READ

    def __init__(self, path: str, *, hold: bool = True, follow: bool = True) -> None:
        self.path = path
        if not follow:
            self._flags |= system.NO_LINK
        self._fd: int | None = None
        fd = self._open()
        try:
            self._seen = self._identity(fd)
        finally:
            if hold:
                self._fd = fd
            else:
                _close(fd)

    def _open(self) -> int:
        if not self.path:
            raise UsageError("an empty file name", place=["SRC"])
        try:
            fd = os.open(self.path, self._flags)
        except OSError as error:
            if os.path.isdir(self.path):  # Windows opens none
                raise DataError("this is a folder, not a regular file", place=[self.path]) from None
            raise os_error(error, self.path) from None
        except ValueError:
            raise DataError("a file name cannot hold a NUL character", place=[self.path]) from None
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            what = next((name for test, name in _KINDS if test(mode)), "a special file")
            raise DataError(f"this is {what}, not a regular file", place=[self.path])
        return fd

    @staticmethod
    def _identity(fd: int) -> tuple[int, int, int, int, int]:
        status = os.fstat(fd)
        # The time of change too: a writer can set the time of modification back, but not this one.
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self._seen[2]

    @property
    def stamp(self) -> str:
        """What tells that a file is the same one, on every machine that sees it: its size and when it was changed."""
        return f"{self._seen[2]} bytes of {self._seen[3]}"

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode."""
        return self._seen[:2]

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """Its descriptor, open as long as this is."""
        if self._fd is not None:
            yield self._fd
            return
        fd = self._open()
        try:
            if self._identity(fd) != self._seen:
                raise self._changed()
            yield fd
        finally:
            _close(fd)

    def _changed(self) -> DataError:
        return DataError(
            "the file was changed while it was read", place=[self.path], hint="run again when nothing writes to it"
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises DataError when the file ends before."""
        with self.descriptor() as fd:
            done = 0
            while done < len(buffer):
                try:
                    got = system.read_at(fd, buffer[done:], offset + done)
                except OSError as error:
                    raise os_error(error, self.path) from None
                if got == 0:
                    raise self._changed()
                done += got

    def read_runs(self, offset: int, step: int, runs: Sequence[memoryview]) -> None:
        """Fill buffers from offsets `step` bytes apart: a call of the system each, and little else."""
        with self.descriptor() as fd:
            for run in runs:
                try:
                    got = system.read_at(fd, run, offset)
                except OSError as error:
                    raise os_error(error, self.path) from None
                if got < len(run):
                    self.read_into(offset + got, run[got:])
                offset += step

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""
        buffer = bytearray(size)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def expect(self, size: int) -> None:
        """Declare the length of the file by its header. Raises DataError when it has another size."""
        if size != self.size:
            problem = "cut short" if size > self.size else "followed by bytes that belong to no tensor"
            raise DataError(f"the file is {problem}: {self.size} bytes, {size} by its header", place=[self.path])

    def precedes(self, other: InputFile) -> None:
        """Declare that another file is usually read when this one has been."""

    def read_ahead(self) -> None:
        """Begin to read what follows the last read, before it is asked for; here nothing, for the system does it."""

    def passed(self, offset: int, size: int) -> None:
        """Declare that these bytes will not be read again."""

    def interrupt(self) -> None:
        """Make waiting reads fail, because the run is over."""

    def check_unchanged(self) -> None:
        """Raise DataError when size, times or inode differ from when it was opened."""
        with self.descriptor() as fd:
            if self._identity(fd) != self._seen:
                raise self._changed()

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            _close(fd)


def _close(fd: int) -> None:
    """Close a file that was only read: an error here loses nothing, and must not fail a completed run."""
    with contextlib.suppress(OSError):
        os.close(fd)


def content(file: InputFile, limit: int) -> bytes:
    """All bytes of a small file, which is closed. Raises DataError where it has more than `limit`."""
    with contextlib.closing(file):
        if file.size > limit:
            raise DataError(f"{file.size} bytes are more than the {limit} such a file may have", place=[file.path])
        return file.read(0, file.size)


class OpenFile(InputFile):
    """A regular file that is open already; it takes ownership of the descriptor."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self._fd = path, fd
        self._seen = self._identity(fd)


def leads_outside(folder: str, name: str) -> bool:
    """Whether a file of a folder is a link that leads out of that folder.

    With such a link, a downloaded folder could have another file read and its content copied. The cache of the Hugging
    Face hub consists of links from snapshots/REVISION to blobs beside it, which belong to the same model.
    """
    inside, target = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    if os.path.commonpath([inside, target]) == inside:
        return False
    above, snapshots, _ = inside.rpartition(f"{os.sep}snapshots{os.sep}")
    return not snapshots or os.path.dirname(target) != os.path.join(above, "blobs")


def check_destination(path: str, *, force: bool, sources: list[InputFile]) -> str:
    """The real path to write, or the reason why it may not be written, before anything is read.

    Raises UsageError when it exists and `force` is not given, DataError when it is an input, is not a regular file
    or its folder is missing.
    """
    if not path:
        raise UsageError("an empty file name", place=["-o"])
    try:
        target = os.path.realpath(path)
        try:
            status = os.stat(target)
        except FileNotFoundError:
            status = None
    except OSError as error:
        raise os_error(error, path) from None
    except ValueError:
        raise UsageError("a file name cannot hold a NUL character", place=[path]) from None
    if status is not None:
        if any(s.inode == (status.st_dev, status.st_ino) for s in sources):
            raise UsageError("output and input are the same file", place=[path], hint="choose another name with -o")
        if stat.S_ISDIR(status.st_mode):
            raise UsageError("the output is a folder", place=[path], hint="name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("the output exists and is not a regular file", place=[path])
        if not force:
            raise UsageError("the output exists", place=[path], hint="use --force to replace it")
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise DataError(f"no such folder: {printable(folder, 300)}", place=[path], hint="create it first")
    return target


def check_space(path: str, size: int, source: str) -> None:
    """Raise QuantcliError when the folder of `path` may not be written to, or its file system has no room for what is
    made from `source`."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EROFS if system.is_read_only(folder) else errno.EACCES
        raise os_error(OSError(code, os.strerror(code)), path)
    free = system.free_space(folder)
    if free is not None and size > free:  # in /proc and the like creating the file fails with the reason
        problem = f"not enough space for the {size} bytes made from {source}: {free} bytes are free"
        raise QuantcliError(problem, place=[path])


def another_created(path: str) -> QuantcliError:
    """The error of a run that finds its output created by another one."""
    return QuantcliError("another process created the output", place=[path], hint="use --force to replace it")


class OutputFile:
    """A file that takes its name only when it is complete.

    The bytes go to a hidden file in the same folder, or in `within` on the same file system; `publish` syncs it and
    moves it into place. Leaving the context without that removes it, and the destination stays unchanged. sparse:
    whether much of it stays empty, so that no room is reserved. The hidden file is locked until then: what a run that
    was killed left is not, and the next run on the same destination removes it.
    """

    def __init__(self, path: str, size: int, *, force: bool, within: str | None = None, sparse: bool = False) -> None:
        self.path, self.size, self.force = path, size, force
        folder, base = os.path.split(path)
        self.folder = folder or "."
        short = base.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
        start = f".{short}.quantcli-"
        self.temp = os.path.join(within or self.folder, f"{start}{os.getpid()}-{os.urandom(4).hex()}.tmp")
        self._fd = self._lock = -1
        try:
            interrupts.remember(self.discard)
            if within is None:
                abandoned.remove(self.folder, start)
            self._create()
            (os.ftruncate if sparse else system.reserve)(self._fd, size)
        except OSError as error:
            self.discard()
            raise os_error(error, path) from None
        except BaseException:
            self.discard()
            raise

    def _create(self) -> None:
        """Make the hidden file, and lock it."""
        while True:
            self._fd = os.open(self.temp, system.CREATE, 0o666)
            if not system.HAS_LOCKS:
                return
            # Not the descriptor itself: that one is closed, to learn of errors, before the file has its name.
            self._lock = os.dup(self._fd)
            with contextlib.suppress(OSError):
                system.lock(self._lock, wait=True)
            if os.fstat(self._fd).st_nlink:
                return
            self._close()  # another run has taken it for abandoned before it was locked

    def _close(self) -> None:
        for fd in (self._fd, self._lock):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock = -1

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Write all of `data` at `offset`; safe from several threads."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += system.write_at(self._fd, view[done:], offset + done)
            except OSError as error:
                raise os_error(error, self.path) from None

    def copy(self, file: InputFile, start: int, offset: int, size: int) -> None:
        """Write bytes of another file. Raises DataError where they are not there."""
        with file.descriptor() as source:
            try:
                done = system.copy_range(source, start, self._fd, offset, size)
            except OSError as error:
                raise os_error(error, self.path) from None
        for at in range(done, size, _COPY):
            self.write(offset + at, file.read(start + at, min(_COPY, size - at)))

    def reopen(self) -> None:
        """Write to the file that has the hidden name now."""
        try:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._fd = os.open(self.temp, system.WRITE)
        except OSError as error:
            raise os_error(error, self.path) from None

    def sync(self) -> None:
        """Sync the bytes to disk and close the hidden file, which then can be checked by its path."""
        try:
            os.fsync(self._fd)
            if os.path.exists(self.path):
                system.set_mode(self._fd, self.temp, stat.S_IMODE(os.stat(self.path).st_mode))
            fd, self._fd = self._fd, -1
            os.close(fd)
        except OSError as error:
            raise os_error(error, self.path) from None

    def publish(self) -> None:
        """Move the hidden file into place; the destination appears at once and whole."""
        try:
            if self.force:
                os.replace(self.temp, self.path)
            else:
                try:
                    os.link(self.temp, self.path)
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    if os.path.lexists(self.path):
                        raise FileExistsError(errno.EEXIST, "the output exists") from None
                    os.rename(self.temp, self.path)  # a file system without hard links
                else:
                    with contextlib.suppress(OSError):  # the output is in place; `discard` tries again
                        os.unlink(self.temp)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise another_created(self.path) from None
            raise os_error(error, self.path) from None
        system.sync_folder(self.folder)

    def withdraw(self) -> None:
        """Remove the file that was published, as far as that is possible."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def discard(self) -> None:
        """Remove the hidden file, if it still exists."""
        if not system.HAS_LOCKS:
            self._close()  # Windows removes no file that is open
        with contextlib.suppress(OSError):
            os.unlink(self.temp)
        self._close()
        interrupts.forget(self.discard)
