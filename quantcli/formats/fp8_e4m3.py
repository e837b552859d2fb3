"""FP8 E4M3: floats of 8 bits up to 448, three mantissa bits.

No infinity; what a cast with saturation gives. Codes are the bytes of the format; NaN (0x7F, 0xFF) and the second zero
(0x80) are never written. Reference: Micikevicius et al., FP8 Formats for Deep Learning, 2022.
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
    values = _levels.minifloat(4, 3, 7)
    values[[0x7F, 0xFF]] = np.nan
    return values


PROVIDES = _levels.of(levels, (8, 8, 8), small=Small(mantissa=3, lowest=-6, top=448.0))
