"""Min-max: the whole range is kept, nothing is clipped.

Symmetric: scale = max|w| / (2^(b-1)-1), so the largest weight sits on the outermost code of both grids and
-2^(b-1) is never used. Affine with an integer zero point: the range is widened to contain 0, scale =
(max-min) / (2^b-1), zero = -min/scale rounded. Affine with a float offset: offset = min, 0 need not be representable.
Degenerate groups (all zero; constant under an offset) have scale 1.
"""

from __future__ import annotations

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, Observed, _ranges
from quantcli.scheme import Scheme


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Scale, and zero point or offset, that span the range."""
    lo, hi = (seen[k].astype(np.float64) + 0.0 for k in ("lo", "hi"))
    if scheme.symmetric:
        alpha = np.maximum(-lo, hi)
        return Ideal(np.where(alpha > 0, alpha / ((1 << (scheme.bits - 1)) - 1), 1.0))
    steps = (1 << scheme.bits) - 1
    if scheme.zero_point == "float":
        return Ideal(np.where(hi > lo, (hi - lo) / steps, 1.0), lo)
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    scale = np.where(hi > lo, (hi - lo) / steps, 1.0)
    return Ideal(scale, 0.0 - lo / scale)


PROVIDES = Calibrator(
    summary="the whole range, nothing clipped", observe=_ranges.observe, merge=_ranges.merge, solve=solve
)
