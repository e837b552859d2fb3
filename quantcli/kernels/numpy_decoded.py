"""numpy's reference of decoded.cpp: differences of decoded weights, and their rounding to bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import round_bfloat16
from quantcli.kernels.numpy_sums import folded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles, Floats

LANES = 256
PIECE = 1 << 15


def difference(before: Floats, after: Floats) -> tuple[float, float, float]:
    """Sum of squared errors, that of squared weights, and the largest error."""
    sse, power, worst = np.zeros(LANES), np.zeros(LANES), 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for at in range(0, before.size, PIECE):
            weights = before.reshape(-1)[at : at + PIECE].astype(np.float64)
            error = weights - after.reshape(-1)[at : at + PIECE]
            sse, power = _added(sse, error), _added(power, weights)
            worst = max(worst, float(np.fmax.reduce(np.abs(error))))
    return float(folded(sse)), float(folded(power)), worst


def _added(lanes: Doubles, values: Doubles) -> Doubles:
    """The lanes with the squares of values, each in the lane of its place."""
    rows = np.zeros((1 + -(-values.size // LANES), LANES))
    rows[0] = lanes
    np.multiply(values, values, out=rows.reshape(-1)[LANES : LANES + values.size])
    added: Doubles = np.add.reduce(rows, axis=0)
    return added


def bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16."""
    return round_bfloat16(values)
