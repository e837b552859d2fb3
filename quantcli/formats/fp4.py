"""FP4 E2M1: floats of 4 bits, 0 to 6 and their negatives.

0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives times the scale; ties go to the even code. The second zero (code 8) is
never written. With a power of two as scale of every 32 weights (float8_e8m0) they are MXFP4, with an E4M3 scale of
every 16 weights and a float32 one of the tensor (float8_e4m3) NVFP4.

Reference: Rouhani et al., OCP Microscaling Formats (MX) v1.0, 2023, section 5.3.3.
"""

from __future__ import annotations

from quantcli.formats import _levels
from quantcli.kernels import Small

PROVIDES = _levels.of(lambda scheme: _levels.minifloat(2, 1, 1), (4, 4, 4), small=Small(mantissa=1, lowest=0, top=6.0))
