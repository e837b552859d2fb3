"""Arrays in memory of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.stores import system

if TYPE_CHECKING:
    from numpy.typing import NDArray


def paged(size: int) -> NDArray[np.uint8]:
    """So many bytes, zeros, whose memory the system has back as soon as nothing refers to them."""
    return np.frombuffer(system.pages(size), np.uint8) if size else np.empty(0, np.uint8)
