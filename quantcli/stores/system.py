"""Calls of the operating system that not every one has: positioned reads and writes, reserved room, locks, flags of
open.

Linux has all of them. macOS lacks posix_fallocate and copy_file_range, Windows nearly all. What takes their place gives
the same bytes, slower: without positioned reads and writes, threads take turns. Windows neither removes nor renames a
file that is open, which for other processes is its lock.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Iterator

try:
    import fcntl

    HAS_LOCKS = True
except ImportError:
    HAS_LOCKS = False
"""Whether open files can be locked, and removed. On Windows they can be neither: one is closed before it is removed,
and one that cannot be removed is in use."""

_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)
"""What a system answers that does not copy between two files."""

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
    """Have the system copy bytes between open files, which some file systems do without moving one; how many it has
    copied: fewer where it does not copy between these files, or the source ends. Raises OSError."""
    done = 0
    while done < size and hasattr(os, "copy_file_range"):
        try:
            got = os.copy_file_range(source, fd, size - done, start + done, offset + done)
        except OSError as error:
            if error.errno not in _NOT_COPIED:
                raise
            break
        if not got:
            break
        done += got
    return done


def lock(fd: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where the system or the file system has no locks.

    Raises BlockingIOError where another process has locked it; OSError, EBADF where only what is open for writing is
    locked, as on NFS.
    """
    if not HAS_LOCKS:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from None
        if error.errno == errno.EBADF:
            raise
        return False
    return True


def open_locked(path: str) -> int:
    """The descriptor of an empty file, made where it is missing, that is locked until it is closed.

    Raises BlockingIOError where another process has locked it, OSError where it cannot be opened.
    """
    if not HAS_LOCKS:
        with contextlib.suppress(FileExistsError):  # another process was faster
            if not is_locked(path):
                return os.open(path, CREATE, 0o600)
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
    access = READ  # closing what was not open for writing cannot fail
    while True:
        fd = os.open(path, access | os.O_CREAT | NO_LINK, 0o600)
        try:
            lock(fd)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBADF or access == WRITE:
                raise
            access = WRITE
        else:
            return fd


def is_locked(path: str) -> bool:
    """Whether another process has locked a file with `open_locked`. On Windows a file that is not locked is removed:
    that it can be is the only sign."""
    try:
        if not HAS_LOCKS:
            os.unlink(path)
            return False
        fd = os.open(path, READ | NO_LINK)
        try:
            lock(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return isinstance(error, PermissionError if not HAS_LOCKS else BlockingIOError)
    return False


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


def is_read_only(folder: str) -> bool:
    """Whether nothing is written to the file system of a folder, where that is known."""
    with contextlib.suppress(OSError, AttributeError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False


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


def pages(size: int) -> mmap.mmap:
    """So many bytes, zeros, in pages of their own, which the system has back as soon as nothing refers to them.

    What malloc keeps of arrays of some MiB, in an arena for each thread, is more than the arrays that are in use. Large
    pages where the system has them: a 5 MiB buffer that is filled once takes 1.1 ms with them, and 3.0 in pages of
    4 KiB that can be shared, which is the default of mmap.
    """
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    found = mmap.mmap(-1, size, private) if private else mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


def share_heap() -> None:
    """Have threads that begin from now on share the memory that they free, where the C library can: what reads and
    writes over networks has a dozen, and each would keep what it took at most, together 8 to 20 MiB."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of glibc
