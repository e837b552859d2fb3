"""Calls of the operating system that not every one has: positioned reads and writes, reserved room, flags of open.

Linux has all of them. macOS lacks posix_fallocate and copy_file_range, Windows nearly all. What takes their place gives
the same bytes, slower: without positioned reads and writes, threads take turns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""The flag of open that refuses a link; 0 where there is none."""
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | _BINARY
READ = os.O_RDONLY | _AT_ONCE
"""Flags of open for reading; a pipe of that name does not keep us waiting."""
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK | _BINARY
"""Flags of open for a new file."""
WRITE = os.O_RDWR | NO_LINK | _AT_ONCE
"""Flags of open for a file to go on with."""

_turn = threading.Lock()


@contextlib.contextmanager
def _at(fd: int, offset: int) -> Iterator[None]:
    """The position of a file, which its threads share: one at a time."""
    with _turn:
        os.lseek(fd, offset, os.SEEK_SET)
        yield


def _read_in_turn(fd: int, buffer: memoryview, offset: int) -> int:
    with _at(fd, offset):
        got = os.read(fd, len(buffer))
    buffer[: len(got)] = got
    return len(got)


def _write_in_turn(fd: int, data: memoryview, offset: int) -> int:
    with _at(fd, offset):
        return os.write(fd, data)


def _read(fd: int, buffer: memoryview, offset: int) -> int:
    return os.preadv(fd, [buffer], offset)


def _write(fd: int, data: memoryview, offset: int) -> int:
    return os.pwrite(fd, data, offset)


read_at = _read if hasattr(os, "preadv") else _read_in_turn
"""Read into a buffer from an offset: read_at(fd, buffer, offset) is how many bytes there were, 0 at the end."""
write_at = _write if hasattr(os, "pwrite") else _write_in_turn
"""Write bytes at an offset: write_at(fd, data, offset) is how many were written."""


def reserve(fd: int, size: int) -> None:
    """Make an empty file so large, its room reserved where the file system can. Raises OSError without room."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
    os.ftruncate(fd, size)


def copy_range(source: int, start: int, fd: int, offset: int, size: int) -> int:
    """Have the system copy bytes between open files; how many it has copied. Raises OSError, ENOSYS where it cannot."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(source, fd, size, start, offset)


def link(old: str, new: str) -> None:
    """Another name for a file, not for what a link leads to. Raises OSError, ENOSYS where it cannot."""
    try:
        os.link(old, new, follow_symlinks=False)
    except NotImplementedError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None


def set_mode(fd: int, path: str, mode: int) -> None:
    """Give an open file, which has this path, its permissions. Raises OSError."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, mode)
    else:
        os.chmod(path, mode)


def free_space(folder: str) -> int | None:
    """Bytes that may still be written to the file system of a folder; None where nothing counts them."""
    try:
        if not hasattr(os, "statvfs"):
            import shutil  # which brings along all that packs files

            return shutil.disk_usage(folder).free
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize if status.f_blocks else None  # /proc and the like count no blocks
    except OSError:
        return None


def sync_folder(folder: str) -> None:
    """Sync a folder's entries to disk, where a folder can be opened; an error does not matter, they are in place."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _BINARY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
