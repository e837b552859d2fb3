"""IQ4: the 16 levels of GGUF's IQ4_NL and IQ4_XS.

Whole numbers from -127 to 113, closer together around 0, which is not one of them. In groups of 32 with a float16 scale
they are IQ4_NL, with scales in super-blocks IQ4_XS.

Reference: the table of ggml, which both types share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantcli.formats import _levels

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)

PROVIDES = replace(_levels.of(lambda scheme: LEVELS.copy(), (4, 4, 4)), calibration="mse")
