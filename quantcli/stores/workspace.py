"""The hidden folder beside a destination in which its parts are written: `.NAME.quantcli-partial`.

In it is `lock`, which the run that writes holds; for an output folder `folder`, which becomes the destination, and
`journal`, the list of its finished files; and the temporary files of a run. It stays behind when a run is killed or
the disk fails; another run on the same destination resumes it, or clears it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from quantcli import interrupts
from quantcli.errors import QuantcliError, os_error
from quantcli.stores import system
from quantcli.stores.files import another_created
from quantcli.stores.places import read_small

_JOURNAL_LIMIT = 1 << 28


def partial_of(path: str) -> str:
    """The hidden folder in which a folder is written."""
    return _hidden(path, "partial")


def parts_of(path: str) -> str:
    """The hidden folder for the parts of an output that several processes make."""
    return _hidden(path, "parts")


def _hidden(path: str, kind: str) -> str:
    """A hidden folder beside an output; a name too long for the file system is cut and its digest added."""
    parent, base = os.path.split(path)
    raw = os.fsencode(base)
    if len(raw) > 200:
        import hashlib  # most of the time OpenSSL is 3 MiB for nothing

        short = raw[:160].decode("utf-8", "ignore")
        base = f"{short}-{hashlib.sha256(raw).hexdigest()[:16]}"
    return os.path.join(parent, f".{base}.quantcli-{kind}")


class Workspace:
    """The hidden folder beside a destination in which its files are written, used by one run at a time.

    folder: its path. found: the journal of an interrupted run, None where there was none. Leaving the context
    removes the folder, unless `keep` is set, which it is at first where there is a journal.
    """

    def __init__(self, path: str, *, force: bool) -> None:
        self.path, self.folder = path, partial_of(path)
        self.journal = os.path.join(self.folder, "journal")
        self.aside = os.path.join(self.folder, "replaced")
        self.found: bytes | None = None
        self.keep = True
        with interrupts.deferred():
            self._lock = _locked(self.folder, path)
            interrupts.remember(self.close)
        try:
            try:
                self._put_back()
            except OSError as error:
                raise os_error(error, path) from None
            self.found = _read_own(self.journal, path)
            self.keep = self.found is not None
            if not force and os.path.lexists(path):  # it was created while we waited for the lock
                raise another_created(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clear(self) -> None:
        """Remove the files that an interrupted run left."""
        self.keep = False
        try:
            for path in self._contents():
                remove(path)
        except OSError as error:
            raise os_error(error, self.path) from None

    def _contents(self) -> list[str]:
        """Paths of everything but the lock, the journal first: what is left without it never counts as finished."""
        names = sorted(set(os.listdir(self.folder)) - {"lock"}, key=lambda name: (name != "journal", name))
        return [os.path.join(self.folder, name) for name in names]

    def close(self) -> None:
        """Release the folder; called again after an interruption, it continues where it stopped."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            self._put_back()
        if not self._worth_keeping():
            if is_at(self._lock, os.path.join(self.folder, "lock")):  # else it belongs to another run already
                with contextlib.suppress(OSError):
                    for path in self._contents():
                        with contextlib.suppress(OSError):
                            remove(path, strict=False)
                with interrupts.deferred(), contextlib.suppress(OSError):
                    if not system.HAS_LOCKS:
                        self._release()  # Windows removes no file that is open
                    os.unlink(os.path.join(self.folder, "lock"))
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)  # which another run may have taken in the meantime
        self._release()
        interrupts.forget(self.close)

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with contextlib.suppress(OSError):  # nothing was written to it
                os.close(lock)

    def _worth_keeping(self) -> bool:
        """Whether it holds finished files, or the folder to be replaced, which could not be restored."""
        return (self.keep and os.path.lexists(self.journal)) or self._is_aside()

    def _is_aside(self) -> bool:
        return os.path.lexists(self.aside) and not os.path.lexists(self.path)

    def _put_back(self) -> None:
        """Restore the name of a folder that was moved aside to be replaced, where the new one did not take it."""
        if self._is_aside():
            os.rename(self.aside, self.path)


def _read_own(path: str, shown: str) -> bytes | None:
    """The content of the journal; None when there is none. Raises QuantcliError when it is not a file of this user: a
    link put there by somebody else must not decide which files count as finished; and when it cannot be read, for then
    what is finished would be thrown away."""
    if not os.path.lexists(path):
        return None
    if not is_own(path, stat.S_ISREG):
        raise QuantcliError("not a file of this user", place=[shown, path], hint="remove it")
    try:
        return read_small(path, _JOURNAL_LIMIT, follow=False)
    except QuantcliError as error:
        raise error.within(shown) from None


def is_own(path: str, kind: Callable[[int], bool]) -> bool:
    """Whether this path exists, has this type, is not a link, and belongs to this user."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return kind(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def remove(path: str, *, strict: bool = True) -> None:
    """Remove a file, a link or a folder with its contents, if it exists; of a folder as much as can be removed."""
    # Where a signal comes within rmtree, or closing fails, it closes a descriptor twice. That error is reported instead
    # of the signal, and even where errors are ignored.
    with interrupts.deferred(), contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            import shutil

            with contextlib.suppress(*(() if strict else (OSError,))):
                shutil.rmtree(path, ignore_errors=not strict)
        else:
            os.unlink(path)


def _locked(folder: str, path: str) -> int:
    """The descriptor of the lock of a hidden folder, which is created if missing; closing it releases the lock.

    Raises QuantcliError when another run holds it, or the folder belongs to somebody else.
    """
    lock = os.path.join(folder, "lock")
    while True:
        try:
            _made(folder, path)
            if os.path.lexists(folder) and not is_own(folder, stat.S_ISDIR):
                raise QuantcliError("not a folder of this user", place=[path, folder], hint="remove it")
            fd = system.open_locked(lock)
        except BlockingIOError:
            raise QuantcliError("another run is writing it", place=[path], hint="wait until it has ended") from None
        except FileNotFoundError as error:
            if not os.path.isdir(os.path.dirname(folder)):
                raise os_error(error, path) from None
            continue  # the run that had it has just ended
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # if nothing is in it
            raise os_error(error, path) from None
        if is_at(fd, lock):
            return fd
        os.close(fd)  # the run that had it removed it as it ended


def _made(folder: str, path: str) -> None:
    """Make a hidden folder if there is none. Raises QuantcliError where none can be made, as in /proc."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise os_error(error, path) from None


def is_held(folder: str) -> bool:
    """Whether a run is writing in a hidden folder."""
    return system.is_locked(os.path.join(folder, "lock"))


def is_at(fd: int, path: str) -> bool:
    """Whether an open file is the one of this name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    return False
