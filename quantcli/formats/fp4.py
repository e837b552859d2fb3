"""FP4 E2M1: floats of 4 bits, 0 to 6 and their negatives.

0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives times the scale; ties go to the even code. The second zero (code 8) is
never written. Reference: Rouhani et al., OCP Microscaling Formats (MX) v1.0, 2023, section 5.3.3 (the element format;
scales here are ordinary ones, not powers of two).
"""

from __future__ import annotations

from quantcli.formats import _levels

PROVIDES = _levels.of(lambda scheme: _levels.minifloat(2, 1, 1), (4, 4, 4), ties_to_even=True)
