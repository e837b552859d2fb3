"""Files that are put together from others: what one of them holds already is not copied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from quantcli import interrupts
from quantcli.stores import destinations, places, system
from quantcli.stores.destinations import OutputFile as Destination
from quantcli.stores.files import InputFile, OutputFile

Run = tuple[int, int, int]
"""Bytes to copy: their place there, their place here, and how many."""


def begin(path: str, size: int, *, within: str | None, runs: Mapping[str, Sequence[Run]]) -> Destination:
    """A file at `path` that has these runs of other files, by their paths, and is still to be completed. within: as of
    destinations.file.

    Of files that have their bytes where they will be, and the same size, the one that has most of them is the same file
    from now on, where the file system has links.
    """
    if places.is_url(path):
        return _begun_remote(path, size, within, runs)
    alike = [p for p, own in runs.items() if os.path.getsize(p) == size and all(a == b for a, b, _ in own)]
    base = max(alike, key=lambda p: sum(nbytes for *_, nbytes in runs[p]), default=None)
    out = OutputFile(path, size, force=True, within=within, sparse=base is not None)
    try:
        if base is not None and not _linked(out, base):
            copy(out, base, runs[base])
        for other, own in runs.items():
            if other != base:
                copy(out, other, own)
    except BaseException:
        out.discard()
        raise
    return out


def _linked(out: OutputFile, base: str) -> bool:
    """Have an output be the same file as another one; whether the file system can do that."""
    with interrupts.deferred():
        linked = f"{out.temp}.link"
        try:
            system.link(base, linked)
            os.replace(linked, out.temp)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(linked)
            return False
        out.reopen()
        return True


def _begun_remote(path: str, size: int, within: str | None, runs: Mapping[str, Sequence[Run]]) -> Destination:
    """A file behind a URL, filled from its beginning to its end: whatever is begun is in memory until it is full."""
    out = destinations.file(path, size, force=True, within=within, joined=True)
    try:
        with contextlib.ExitStack() as stack:
            opened = {p: stack.enter_context(contextlib.closing(places.opened(p))) for p in runs}
            joined = [(at, start, nbytes, p) for p, own in runs.items() for start, at, nbytes in _joined(own)]
            for at, start, nbytes, p in sorted(joined):
                out.copy(opened[p], start, at, nbytes)
    except BaseException:
        out.discard()
        raise
    return out


def copy(out: OutputFile, path: str, runs: Sequence[Run]) -> None:
    """Copy runs of bytes of a file into another one. Raises DataError where they are not there."""
    with contextlib.closing(InputFile(path, follow=False)) as file:
        for start, at, size in _joined(runs):
            out.copy(file, start, at, size)


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Runs that follow each other, on both sides, as one."""
    found = list[Run]()
    for start, at, size in sorted(runs):
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (start, at):
            found[-1] = found[-1][0], found[-1][1], found[-1][2] + size
        elif size:
            found.append((start, at, size))
    return found
