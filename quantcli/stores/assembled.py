"""Files that are put together from others: what one of them holds already is not copied."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from quantcli import interrupts
from quantcli.errors import DataError, os_error
from quantcli.stores import system
from quantcli.stores.files import InputFile, OutputFile

_COPY = 1 << 23
"""Bytes that are copied at a time where the system does not do it by itself."""

Run = tuple[int, int, int]
"""Bytes to copy: their place there, their place here, and how many."""

_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)


def begin(path: str, size: int, *, within: str | None, base: str | None, runs: Sequence[Run]) -> OutputFile:
    """A file to complete at `path`. base: a file of the same size that has some of its bytes in place, in these runs;
    it is the same file from now on where the file system has links, else they are copied. within: as of OutputFile."""
    out = OutputFile(path, size, force=True, within=within, sparse=base is not None)
    if base is None:
        return out
    try:
        with interrupts.deferred():
            linked = f"{out.temp}.link"
            try:
                system.link(base, linked)
                os.replace(linked, out.temp)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(linked)
                copy(out, base, runs)
            else:
                out.reopen()
    except BaseException:
        out.discard()
        raise
    return out


def copy(out: OutputFile, path: str, runs: Sequence[Run]) -> None:
    """Copy runs of bytes of a file into another one. Raises DataError where they are not there."""
    with contextlib.closing(InputFile(path, follow=False)) as file:
        for start, at, size in _joined(runs):
            done = _by_system(out, file, start, at, size)
            while done < size:
                step = min(_COPY, size - done)
                out.write(at + done, file.read(start + done, step))
                done += step


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Runs that follow each other, on both sides, as one."""
    found = list[Run]()
    for start, at, size in sorted(runs):
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (start, at):
            found[-1] = found[-1][0], found[-1][1], found[-1][2] + size
        elif size:
            found.append((start, at, size))
    return found


def _by_system(out: OutputFile, file: InputFile, start: int, at: int, size: int) -> int:
    """Have the system copy, which some file systems do without moving a byte; how many it has copied."""
    done = 0
    with file.descriptor() as source:
        while done < size:
            try:
                got = out.copy_range(source, start + done, at + done, size - done)
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return done
                raise os_error(error, out.path) from None
            if not got:
                raise DataError("the file is cut short", place=[file.path])
            done += got
    return done
