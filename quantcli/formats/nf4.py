"""NF4: 16 levels made for normally distributed weights.

From -1 to 1 with an exact 0, times the largest weight of the group.

The figures are the published ones. They are quantiles of the normal distribution, averaged between equal
probabilities on either side and divided by the largest; that is not where the error is least (density to the power
1/3 would be), but the table is the format. Codes rise with the levels.

Reference: Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, appendix E.
"""

from __future__ import annotations

import numpy as np

from quantcli.formats import _levels

LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)

PROVIDES = _levels.of(lambda scheme: LEVELS.copy(), (4, 4, 4))
