"""How much memory there is, and what a long run asks of the allocator of the C library."""

from __future__ import annotations

import contextlib
import os
import re

TRIM, MAP = -1, -3
"""Numbers of the settings in glibc's malloc.h: how much free memory is kept, and what is taken from the system."""


def keep_freed() -> None:
    """Freed memory stays with the process: arrays of one tile take the pages that those of the one before had.

    Without it, pages of arrays of a few MiB go back to the system and come again filled with zeros, which was more than
    half of the time of `compare`. How much is kept is bounded by what was in use. Does nothing where the C library has
    no such settings.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library of the process itself
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM, 1 << 28)
        mallopt(MAP, 1 << 25)


def text(path: str) -> str:
    """A small file of the system; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def of_machine() -> tuple[int | None, int | None]:
    """Bytes of memory of the machine, and how many a process can still take."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text("/proc/meminfo"), re.MULTILINE))
    total = int(found["MemTotal"]) * 1024 if "MemTotal" in found else None
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, int(found["MemAvailable"]) * 1024 if "MemAvailable" in found else None


def of_container() -> int | None:
    """Bytes of memory that a container may have."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        found = text(path).strip()
        if found.isdigit() and int(found) < 1 << 60:
            return int(found)
    return None


def _of_process() -> int | None:
    """Bytes that `ulimit -v` allows this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def available() -> int | None:
    """The most bytes that this process could take; None where the system does not tell."""
    known = [size for size in (of_machine()[1], of_container(), _of_process()) if size is not None]
    return min(known, default=None)
