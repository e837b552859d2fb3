"""Arrays in memory of their own."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def paged(size: int) -> NDArray[np.uint8]:
    """So many bytes, zeros, whose memory the system has back as soon as nothing refers to them.

    What malloc keeps of arrays of some MiB, in an arena for each thread, is more than the arrays that are in use.
    """
    return np.frombuffer(mmap.mmap(-1, size), np.uint8) if size else np.empty(0, np.uint8)
