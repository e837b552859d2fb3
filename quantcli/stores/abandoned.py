"""Hidden files of outputs that a run which was killed has left: a run that lives holds a lock on its own.

A lock ends with its process, however that ends, and is seen by other machines; the number of a process is not.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from quantcli.stores import system

_REST = re.compile(r"\d+-[0-9a-f]{8}\.tmp")
"""What follows in the name of such a file: the number of its process, and what makes it unique."""


def remove(folder: str, start: str) -> None:
    """Remove the hidden files of this folder whose names begin so and that nobody has locked."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(start) and _REST.fullmatch(name, len(start)):
                with contextlib.suppress(OSError):
                    _remove_unlocked(os.path.join(folder, name))


def _remove_unlocked(path: str) -> None:
    """Remove a hidden file. Raises OSError where it is locked, or on Windows open."""
    if not system.HAS_LOCKS:
        if stat.S_ISREG(os.lstat(path).st_mode):
            os.unlink(path)
        return
    fd = os.open(path, system.WRITE)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and system.lock(fd):
            os.unlink(path)
    finally:
        os.close(fd)
