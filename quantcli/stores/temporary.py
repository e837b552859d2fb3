"""Temporary folders that are removed however a run ends: after a kill the next run on this machine removes them.

A folder is locked as long as its run lives. Its name has that of the machine, because some file systems that several
machines share keep locks on each alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile

from quantcli import interrupts
from quantcli.errors import os_error
from quantcli.stores import system, workspace

_SUFFIX = ".temporary"


class TemporaryFolder:
    """A folder at `path`, which is removed at the end of the context, or by `close`."""

    def __init__(self) -> None:
        with interrupts.deferred():
            self.path, self._lock = _made()
            interrupts.remember(self.close)

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it; called again after an interruption, it continues where it stopped."""
        workspace.remove(self.path, strict=False)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
        interrupts.forget(self.close)


def _made() -> tuple[str, int]:
    """A new folder and the descriptor that locks it, -1 where folders cannot be locked. Raises QuantcliError."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename)[:64] if hasattr(os, "uname") else "here"
    prefix = f"quantcli-{host}-"
    try:
        _tidy(tempfile.gettempdir(), prefix)
        while True:
            path = tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX)
            try:
                lock = _locked(path)
            except (BlockingIOError, FileNotFoundError):
                continue  # another run saw it before it was locked, and removes it
            if lock < 0 or workspace.is_at(lock, path):
                return path, lock
            os.close(lock)
    except OSError as error:
        raise os_error(error, error.filename or "temporary folder") from None


def _locked(path: str) -> int:
    """The descriptor that locks a folder until it is closed; -1 where folders cannot be locked. Raises OSError for one
    that is gone, or locked by another run."""
    if not system.HAS_LOCKS:
        return -1
    fd = os.open(path, system.READ | system.NO_LINK)
    try:
        if system.lock(fd):
            return fd
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        pass  # NFS locks only what is open for writing
    os.close(fd)
    return -1


def _tidy(place: str, prefix: str) -> None:
    """Remove the folders of runs that were killed, as far as that is possible."""
    named = re.compile(f"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
    with contextlib.suppress(OSError):
        for path in (os.path.join(place, name) for name in os.listdir(place) if named.fullmatch(name)):
            with contextlib.suppress(OSError):
                if workspace.is_own(path, stat.S_ISDIR) and (lock := _locked(path)) >= 0:
                    if workspace.is_at(lock, path):
                        workspace.remove(path, strict=False)
                    os.close(lock)
