"""Sums over tiles in numpy, in the order that sums.h states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_tiles import scratch
from quantcli.kernels.table import Sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles, Floats

LANES = 16
"""Columns j and j + LANES of a row are summed in the same lane."""

RUN = 128
"""Columns that are added up in float32."""

LEAST_TRUSTED, MOST_TRUSTED = 2.0**-80, 2.0**120
"""Between them all that float32 loses of a sum of squares is less than 2^-40 of it, and nothing has overflowed."""


class Lanes:
    """Sums of squares over the columns of many rows. wide: squares are float64."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._sums = {"sse": np.zeros(LANES), "power": np.zeros(LANES)}

    def add(self, name: str, values: Floats) -> None:
        """Add the squares of rows."""
        if self._wide:
            squares = _padded(values, LANES).astype(np.float64)
            parts = np.multiply(squares, squares, out=squares).reshape(-1, LANES)
        else:
            squared = np.multiply(values, values, out=scratch.take("squares", values.shape, np.float32))
            parts = run_sums(squared).reshape(-1, LANES)
        # The running sums go on top, so that one reduction along axis 0 carries them on.
        stacked = scratch.take("stack", (1 + len(parts), LANES), np.float64)
        stacked[0] = self._sums[name]
        stacked[1:] = parts
        self._sums[name] = np.add.reduce(stacked, axis=0)

    def total(self, name: str) -> float:
        """The sum of all lanes."""
        return float(folded(self._sums[name]))


def run_sums(values: Floats) -> Floats:
    """Sums of the lanes of every run of rows (rows, cols), float32 (rows, runs, LANES)."""
    rows, cols = values.shape
    whole = cols // RUN
    sums = np.empty((rows, -(-cols // RUN), LANES), np.float32)
    for part, into in (
        (values[:, : whole * RUN], sums[:, :whole]),
        (_padded(values[:, whole * RUN :], LANES), sums[:, whole:]),
    ):
        if not into.size:
            continue
        steps = part.reshape(*into.shape[:2], -1, LANES)
        np.copyto(into, steps[:, :, 0])
        for step in range(1, steps.shape[2]):
            np.add(into, steps[:, :, step], out=into)
    return sums


def _padded(values: Floats, unit: int) -> Floats:
    """Rows filled up with zeros to a multiple of `unit` columns."""
    rows, cols = values.shape
    if cols % unit == 0:
        return values
    padded = np.zeros((rows, -(-cols // unit) * unit), np.float32)
    padded[:, :cols] = values
    return padded


def folded(lanes: Doubles) -> NDArray[Any]:
    """Sums of the last axis, a power of two, by halves."""
    half = lanes.shape[-1] // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    found: NDArray[Any] = lanes[..., 0]
    return found


def _trusted(total: float) -> bool:
    return LEAST_TRUSTED <= total <= MOST_TRUSTED


def found(attempt: Callable[[bool], Sums], *, measured: bool) -> Sums:
    """The sums of an attempt, again with squares of float64 where float32 did not do. measured: whether it finds more
    than the squared error."""
    sums = attempt(False)
    exact = measured and sums.max_abs == 0
    if (not exact and not _trusted(sums.sse)) or (measured and not _trusted(sums.power)):
        return attempt(True)
    return sums
