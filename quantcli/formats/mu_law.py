"""Mu-law: logarithmic levels for audio, mu = 255.

2^b levels, evenly spaced after y = log(1 + mu |x|) / log(1 + mu). Levels and codes (rising with the levels) are those
of the continuous law as audio models use it, both ends of the range among them; 8-bit telephone codes (G.711)
approximate the same curve by straight pieces and are not these bytes. A sample goes to the nearest level.

Reference: ITU-T Recommendation G.711, Pulse code modulation of voice frequencies, 1988; Smith, Instantaneous
Companding of Quantized Signals, 1957.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.formats import _companding

if TYPE_CHECKING:
    from numpy.typing import NDArray

MU = 255.0


def expand(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """|x| of compressed magnitudes in [0, 1].

    >>> expand(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.0588, 1.0]
    """
    magnitude: NDArray[np.float64] = np.expm1(y * np.log1p(MU)) / MU
    return magnitude


PROVIDES = _companding.law(expand)
