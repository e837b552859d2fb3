"""Min-max: the whole range is kept, nothing is clipped.

Symmetric: scale = max|w| / (2^(b-1)-1), so the largest weight sits on the outermost code of both grids and
-2^(b-1) is never used. Affine with an integer zero point: the range is widened to contain 0, scale =
(max-min) / (2^b-1), zero = -min/scale rounded. Affine with a float offset: offset = min, 0 need not be representable.
Degenerate groups (all zero; constant under an offset) have scale 1. In other formats the largest weight sits on the
outermost level, or for mid-rise codes on the outer edge of the outermost cell.
"""

from __future__ import annotations

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, Observed
from quantcli.calibrators.searches import ranges
from quantcli.kernels import Finding, Method
from quantcli.scheme import Scheme


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Scale, and zero point or offset, that span the range."""
    lo, hi = (seen[k].astype(np.float64) + 0.0 for k in ("lo", "hi"))
    return ranges.spanning(lo, hi, scheme)


PROVIDES = Calibrator(
    gather=ranges.GATHER,
    solve=solve,
    families=("int", "midrise", "levels"),
    finding=lambda scheme, n: Finding(Method.SPANNING),
)
