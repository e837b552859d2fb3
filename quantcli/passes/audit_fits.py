"""How near weights are to what they became, as they are and with gains of all, of rows and of columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels
from quantcli.metrics import decibels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats


def sqnr(x: Floats, y: Floats) -> float | None:
    """SQNR of some weights that became others."""
    sse, power, _ = kernels.load().difference(np.ascontiguousarray(x.ravel()), np.ascontiguousarray(y.ravel()))
    return decibels(sse, power)


def angle(x: Floats, y: Floats) -> tuple[float, float]:
    """The cosine of the angle between weights as one vector, and by what factor the first are nearest to the second; 1
    and 1 for nothing but zeros on both sides."""
    powers = tuple(float(np.square(v).sum(dtype=np.float64)) for v in (x, y))
    product = float((x * y).sum(dtype=np.float64))
    if not all(powers):
        return (1.0, 1.0) if powers == (0.0, 0.0) else (0.0, 1.0)
    return product / math.sqrt(powers[0] * powers[1]), product / powers[0]


def won(x: Floats, fitted: Floats, y: Floats) -> float:
    """By how many dB weights with gains explain others better than the weights times one factor; 0
    where they have no SQNR."""
    gained, even = sqnr(fitted, y), sqnr(x * np.float32(angle(x, y)[1]), y)
    return gained - even if gained is not None and even is not None else 0.0


def gained(x: Floats, y: Floats) -> tuple[NDArray[np.float64], Floats]:
    """The gains of columns by which weights became others, and the weights with those of columns and rows."""
    fitted, columns = x.copy(), np.ones(x.shape[1])
    for _ in range(4):
        for axis in (0, 1):
            power = np.square(fitted).sum(axis=axis, dtype=np.float64)
            product = (fitted * y).sum(axis=axis, dtype=np.float64)
            gain = np.divide(product, power, out=np.ones_like(power), where=power > 0)
            fitted *= (gain if axis == 0 else gain[:, None]).astype(np.float32)
            columns *= gain if axis == 0 else 1
    return columns, fitted
