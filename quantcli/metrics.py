"""Error metrics of quantization, from exact sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Sums


DB_PER_BIT = 20 * math.log10(2)
"""dB gained per bit: 6.02."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Errors of decoded weights against the original ones, from exact sums.

    sse: sum of squared errors; power: sum of squared weights; numel: number of weights; max_abs_error: largest
    error; clipped: weights beyond the grid by more than half a step. Ratios are of powers; the mean is not subtracted.
    """

    sse: float
    power: float
    numel: int
    max_abs_error: float
    clipped: int

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.sse / self.numel if self.numel else 0.0

    @property
    def nmse(self) -> float | None:
        """Squared error relative to the power of the weights; None when there is error but no power."""
        if self.sse == 0:
            return 0.0
        return self.sse / self.power if self.power else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-quantization-noise ratio in dB; None when the reconstruction is exact or there is no signal."""
        return decibels(self.sse, self.power)

    @property
    def exact(self) -> bool:
        """Whether every weight is decoded exactly."""
        return self.sse == 0 and self.max_abs_error == 0

    @property
    def clipped_fraction(self) -> float:
        """Share of the weights that were clipped."""
        return self.clipped / self.numel if self.numel else 0.0

    @property
    def contradiction(self) -> str | None:
        """Why these figures contradict each other; None when they do not. Sums may be off in their last digits."""
        if self.clipped > self.numel:
            return f"clipped is {self.clipped}, more than the {self.numel} weights"
        square = self.max_abs_error * self.max_abs_error
        if not square * (1 - 1e-3) <= self.sse <= square * self.numel * (1 + 1e-3):
            return f"{self.numel} errors of up to {self.max_abs_error:g} cannot have the sum of squares {self.sse:g}"
        return None

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            self.sse + other.sse,
            self.power + other.power,
            self.numel + other.numel,
            max(self.max_abs_error, other.max_abs_error),
            self.clipped + other.clipped,
        )


def decibels(sse: float, power: float) -> float | None:
    """The ratio of a power to a squared error in dB; None where one of them is 0 or not finite."""
    if sse == 0 or power == 0 or not math.isfinite(sse) or not math.isfinite(power):
        return None
    return 10 * (math.log10(power) - math.log10(sse))


NOTHING = Metrics(0.0, 0.0, 0, 0.0, 0)


class Sum:
    """Metrics of several tensors, added in their order."""

    __slots__ = ("_clipped", "_numel", "_power", "_sse", "_worst", "count")

    def __init__(self) -> None:
        self._sse = self._power = self._worst = 0.0
        self._numel = self._clipped = self.count = 0

    def add(self, m: Metrics) -> None:
        """Add those of another tensor."""
        self._sse += m.sse
        self._power += m.power
        self._numel += m.numel
        self._worst = max(self._worst, m.max_abs_error)
        self._clipped += m.clipped
        self.count += 1

    @property
    def found(self) -> Metrics:
        """Those of all of them."""
        return Metrics(self._sse, self._power, self._numel, self._worst, self._clipped)


def total(tiles: list[tuple[Sums, int]]) -> Metrics:
    """Metrics of a tensor from the sums and sizes of its tiles, added in file order."""
    metrics = NOTHING
    for sums, numel in tiles:
        metrics += Metrics(sums.sse, sums.power, numel, sums.max_abs, sums.clipped)
    return metrics


def ordered_sum(values: NDArray[Any]) -> NDArray[Any]:
    """Sums over the last axis in float64, by halves: the same on every CPU and numpy version."""
    import numpy as np

    n = values.shape[-1]
    width = 1 << (n - 1).bit_length()
    lanes = np.zeros((*values.shape[:-1], width))
    lanes[..., :n] = values
    while width > 1:
        width //= 2
        lanes[..., :width] += lanes[..., width : 2 * width]
    sums: NDArray[Any] = lanes[..., 0].copy()
    return sums
