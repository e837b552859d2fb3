"""FP8 E5M2: floats of 8 bits up to 57344, two mantissa bits.

What a cast with saturation gives. Codes are the bytes of the format; infinity, NaN and the second zero (0x80) are never
written. Reference: Micikevicius et al., FP8 Formats for Deep Learning, 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.formats import _levels
from quantcli.kernels import Small

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.scheme import Scheme


def levels(scheme: Scheme) -> NDArray[np.float64]:
    """Values of the 256 codes."""
    values = _levels.minifloat(5, 2, 15)
    values[0x7C:0x80] = values[0xFC:] = np.nan
    return values


PROVIDES = _levels.of(levels, (8, 8, 8), small=Small(mantissa=2, lowest=-14, top=57344.0))
