"""A process that a mutant cannot leave: writes outside its folder are refused by the kernel (Landlock), and it ends by
itself when it has used its processor time, its memory or the size of a file."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_WRITES = sum(1 << bit for bit in (1, *range(4, 15)))
"""Write, remove, make, refer and truncate, as Landlock numbers them; reading and executing are free."""
_IN_FILES = 1 << 1 | 1 << 14
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_LARGEST_FILE, _MEMORY = 1 << 30, 8 << 30


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(number, *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def available() -> bool:
    """Whether this system has Landlock with all that is needed: Linux 6.2 or later."""
    try:
        return _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) >= 3
    except OSError:
        return False


def confine(folder: Path) -> None:
    """Refuse this process, and all it starts, every write outside a folder."""
    handled = ctypes.c_uint64(_WRITES)
    rules = _call(_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    for path, allowed in ((str(folder), _WRITES), (os.devnull, _IN_FILES)):
        parent = os.open(path, os.O_PATH)
        _call(_ADD, rules, 1, ctypes.byref(_Beneath(allowed, parent)), ctypes.c_uint32(0))
        os.close(parent)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # no new privileges: Landlock demands it
        raise OSError(ctypes.get_errno(), "prctl")
    _call(_RESTRICT, rules, ctypes.c_uint32(0))
    os.close(rules)


def limit(seconds: int) -> None:
    """End this process when it has used so many seconds of processor time, and refuse it large files and memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
