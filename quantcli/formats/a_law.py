"""A-law: logarithmic levels for audio, A = 87.6.

2^b levels, evenly spaced after a law that is linear below 1/A and logarithmic above. The continuous law, both ends of
the range among the levels; see mu_law.py for how that differs from telephone codes.

Reference: ITU-T Recommendation G.711, Pulse code modulation of voice frequencies, 1988.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.formats import _companding

if TYPE_CHECKING:
    from numpy.typing import NDArray

A = 87.6


def expand(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """|x| of compressed magnitudes in [0, 1].

    >>> expand(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.0648, 1.0]
    """
    whole = 1 + np.log(A)
    magnitude: NDArray[np.float64] = np.where(y < 1 / whole, y * whole / A, np.exp(y * whole - 1) / A)
    return magnitude


PROVIDES = _companding.law(expand)
