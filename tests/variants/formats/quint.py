"""Quint: five levels, -1, -0.4, 0, 0.4 and 1, in three bits.

They lie closer near 0, where most weights are. Codes rise with the levels; the last three stand for nothing.
"""

from __future__ import annotations

import numpy as np

from quantcli.formats import _levels

LEVELS = np.array([-1.0, -0.4, 0.0, 0.4, 1.0, np.nan, np.nan, np.nan])

PROVIDES = _levels.of(lambda scheme: LEVELS.copy(), (3, 3, 3))
