"""What a long run asks of the allocator of the C library."""

from __future__ import annotations

import contextlib

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
