"""Shared by storages of one byte: the list of scales that a byte may be, and the neighbours of one in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels import Choices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats


def neighbours(values: Floats, at: NDArray[np.int32], below: int, above: int) -> Choices:
    """The choices around places in an ascending list: so many below and above each, the ends repeated."""
    padded = np.concatenate([np.repeat(values[:1], below), values, np.repeat(values[-1:], above)])
    return Choices(padded, np.ascontiguousarray(at), below + above + 1, below)
