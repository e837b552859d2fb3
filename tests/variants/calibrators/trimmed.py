"""Trimmed range: a tenth of the range is given up for finer steps.

What `minmax` takes, times 0.9: the largest weights of a group clip to its outermost codes.
"""

from __future__ import annotations

import numpy as np

from quantcli.calibrators import Calibrator, Ideal, Observed
from quantcli.calibrators.searches import ranges
from quantcli.scheme import Scheme

KEPT = 0.9
"""Share of the range that is kept."""


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """Scale, and zero point or offset, that span what is kept of the range."""
    lo, hi = (seen[end].astype(np.float64) * KEPT + 0.0 for end in ("lo", "hi"))
    return ranges.spanning(lo, hi, scheme)


PROVIDES = Calibrator(gather=ranges.GATHER, solve=solve, families=("int", "midrise", "levels"))
