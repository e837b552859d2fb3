"""Shared by storages of one byte: the list of scales that a byte may be, and the neighbours of one in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels import Choices, ScaleKind, StoredScales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats


def listed(kind: ScaleKind, values: Floats, unit: float, around: tuple[int, int]) -> StoredScales:
    """An ascending list of scales, and how many below and above one are tried, the ends repeated."""
    below, above = around
    padded = np.concatenate([np.repeat(values[:1], below), values, np.repeat(values[-1:], above)])
    return StoredScales(kind, values=padded, unit=unit, below=below, above=above)


def neighbours(scales: StoredScales, at: NDArray[np.int32]) -> Choices:
    """The choices around places in a list."""
    assert scales.values is not None
    return Choices(scales.values, np.ascontiguousarray(at), scales.below + scales.above + 1, scales.below)
