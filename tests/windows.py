"""A file layer that refuses what Windows refuses, to be imported before quantcli in a process of its own.

Python opens files there so that others may read and write them, but not remove or rename them:

- a file that is open, here or in another process of this session, is neither removed nor renamed nor replaced, and no
  folder is renamed that has such a file in it;
- a file without permission to write is neither removed nor replaced;
- os.rename replaces nothing, os.replace no folder;
- folders are not opened, and what is open for reading only is not synced;
- what is opened without O_BINARY has its line ends changed: here it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from typing import Any

O_BINARY = 1 << 30
"""A flag that Linux does not have."""

_ours = os.getsid(0)
_open, _unlink, _rename, _replace, _fsync = os.open, os.unlink, os.rename, os.replace, os.fsync


def opened() -> set[str]:
    """The paths of all files that a process of this session has open."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            folder = f"/proc/{process}/fd"
            for fd in os.listdir(folder) if os.getsid(int(process)) == _ours else ():
                with contextlib.suppress(OSError):  # it is closed
                    found.add(os.readlink(f"{folder}/{fd}"))
    return found


def _refused(path: Any, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, os.fsdecode(path))


def _check(path: Any) -> None:
    """Raise PermissionError for a file or folder in use, and for a file that may not be written to."""
    own = os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(path))), os.path.basename(os.fsdecode(path)))
    if any(other == own or other.startswith(f"{own}{os.sep}") for other in opened()):
        raise _refused(path, "The process cannot access the file because it is being used by another process")
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IWUSR:
        raise _refused(path, "Access is denied")


def unlink(path: Any, *, dir_fd: Any = None) -> None:
    """os.unlink."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        raise _refused(path, "Access is denied")
    _check(path)
    _unlink(path)


def rename(old: Any, new: Any) -> None:
    """os.rename."""
    _check(old)
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fsdecode(new))
    _rename(old, new)


def replace(old: Any, new: Any) -> None:
    """os.replace."""
    _check(old)
    if os.path.lexists(new):
        if os.path.isdir(new):
            raise _refused(new, "Access is denied")
        _check(new)
    _replace(old, new)


def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
    """os.open."""
    if os.path.isdir(path):
        raise _refused(path, "Permission denied")
    if not flags & O_BINARY and path != os.devnull:
        raise AssertionError(f"{path} is opened as text")
    return _open(path, flags & ~O_BINARY, mode)


def fsync(fd: int) -> None:
    """os.fsync."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _fsync(fd)


def install() -> None:
    """Put these in the place of Linux's own."""
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    tempfile._bin_openflags |= O_BINARY  # type: ignore[attr-defined]
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]
    vars(os).update(O_BINARY=O_BINARY, open=open_, unlink=unlink, remove=unlink, rename=rename, replace=replace)
    vars(os).update(fsync=fsync)
