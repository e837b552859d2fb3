"""Codebook: 2 to 256 levels, learned from the weights or given.

Learned ones belong to the tensor, or to each channel (axis 0); with groups, each group has a
scale and the levels are those of the normalised weights. Given ones (a file of numbers) are fixed, times a scale.
"""

from __future__ import annotations

import numpy as np

from quantcli.formats import Format, _levels
from quantcli.scheme import Scheme


def levels(scheme: Scheme) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The given levels, ascending; codes beyond them repeat the largest."""
    found = np.full(1 << scheme.bits, scheme.codebook[-1])
    found[: len(scheme.codebook)] = scheme.codebook
    return found


def reach(scheme: Scheme) -> float:
    """The largest magnitude among the given levels."""
    return max(abs(v) for v in scheme.codebook) if scheme.codebook else 1.0


PROVIDES = Format(
    family="learned",
    grid=_levels.grid,
    reach=reach,
    levels=levels,
    bits=(1, 8, 4),
    calibration="lloyd-max",
)
