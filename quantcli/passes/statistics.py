"""What the values of a tensor look like: range, moments, outliers and a histogram, in two passes over its tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, to_float32, to_float64
from quantcli.layouts.native.model import Tensor
from quantcli.models import View
from quantcli.passes.tiles import COPY

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 16
OUTLIER_SIGMAS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of the finite values: smallest, largest, mean, standard deviation, share farther than 4 standard deviations
    from the mean, and counts in 16 equal bins of the range. `nonfinite` counts NaN and infinity. None: no values."""

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    outlier_ratio: float | None
    histogram: list[int]
    nonfinite: int


def _blocks(tensor: Tensor) -> Iterator[NDArray[np.float64]]:
    stored = tensor.stored
    if stored.layout is not None:
        for span in stored.layout.tiles():
            yield to_float64(tensor.decoded(span).ravel())
        return
    dtype = DTYPES[stored.info.dtype]
    for start in range(0, stored.info.nbytes, COPY):
        raw = tensor.read_bytes(stored.info.name, start, min(COPY, stored.info.nbytes - start))
        values: NDArray[Any] = raw.view(dtype.numpy) if dtype.numpy else to_float32(raw, dtype.name)
        yield to_float64(values)


def of(tensor: Tensor) -> Statistics | None:
    """Statistics of a tensor (decoded, if it is quantized); None for types that numbers cannot be read from."""
    dtype = DTYPES[tensor.stored.info.dtype]
    if tensor.stored.layout is None and not dtype.quantizable and (dtype.numpy is None or dtype.name == "C64"):
        return None
    return _of(partial(_blocks, tensor))


def of_view(view: View) -> Statistics:
    """Statistics of a tensor as whoever loads the file sees it."""
    return _of(lambda: (to_float64(view.read(first, last)) for first, last in view.blocks))


@np.errstate(over="ignore", invalid="ignore")  # near the end of float64, where the figures become None
def _of(blocks: Callable[[], Iterator[NDArray[np.float64]]]) -> Statistics:
    """Statistics of values that can be gone through twice."""
    count, mean, spread, nonfinite = 0, 0.0, 0.0, 0
    low, high = math.inf, -math.inf
    for block in blocks():
        finite = block[np.isfinite(block)]
        nonfinite += len(block) - len(finite)
        if not len(finite):
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        # Chan, Golub, LeVeque, Updating formulae for sample variances, 1979: no cancellation far from 0.
        part = float(finite.mean())
        step, total = part - mean, count + len(finite)
        spread += float(np.square(finite - part).sum()) + step * step * count * len(finite) / total
        mean += step * len(finite) / total
        count = total
    if not count:
        return Statistics(
            min=None, max=None, mean=None, std=None, outlier_ratio=None, histogram=[0] * BINS, nonfinite=nonfinite
        )
    std = math.sqrt(spread / count)
    histogram, far = np.zeros(BINS, np.int64), 0
    for block in blocks():
        finite = block[np.isfinite(block)]
        width = high / 2 - low / 2  # 0 for the smallest numbers there are
        scaled = (finite / 2 - low / 2) / width if width > 0 else np.zeros(len(finite))
        histogram += np.bincount(np.minimum((scaled * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        far += int(np.count_nonzero(np.abs(finite - mean) > OUTLIER_SIGMAS * std))
    finite_or_none = [v if math.isfinite(v) else None for v in (low, high, mean, std)]
    return Statistics(
        min=finite_or_none[0],
        max=finite_or_none[1],
        mean=finite_or_none[2],
        std=finite_or_none[3],
        outlier_ratio=far / count,
        histogram=histogram.tolist(),
        nonfinite=nonfinite,
    )


def sparkline(histogram: list[int], *, ascii_only: bool) -> str:
    """A histogram in one line; empty bins are blank.

    >>> sparkline([0, 1, 4, 8], ascii_only=True)
    ' .=#'
    """
    marks = ".:-=+*%#" if ascii_only else "▁▂▃▄▅▆▇█"
    top = max(histogram, default=0)
    return "".join(" " if n == 0 else marks[min(7, math.ceil(8 * n / top) - 1)] for n in histogram)
