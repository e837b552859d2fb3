"""What the values of a tensor look like: range, moments, outliers and a histogram, in two passes over its tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, to_float32, to_float64
from quantcli.layouts.native.model import Tensor
from quantcli.models import View
from quantcli.passes.tiles import COPY, Visit, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source

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


Block = Callable[[], "NDArray[Any]"]
"""Reads some values of a tensor."""


def measure(source: Source, tensors: Mapping[str, Tensor | View], *, threads: int) -> dict[str, Statistics | None]:
    """Statistics of tensors, decoded where they are quantized; None of types that numbers cannot be read from."""
    found: dict[str, Statistics | None] = {}

    def visit(name: str, tensor: Tensor | View) -> Visit:
        blocks = _blocks(tensor)
        parts = yield [partial(_moments, block) for block in blocks or ()]
        moments = sum(parts, _Moments())
        counts = yield [partial(_histogram, block, moments) for block in blocks or () if moments.count]
        found[name] = _statistics(moments, counts) if blocks is not None else None
        for part in tensor.stored.outputs if isinstance(tensor, Tensor) else ():
            source.passed(part.name, 0, part.nbytes)

    walk((visit(name, t) for name, t in tensors.items()), threads=threads, stopped=source.interrupt)
    return found


def _blocks(tensor: Tensor | View) -> list[Block] | None:
    """What reads the values of a tensor, block by block; None for types that numbers cannot be read from."""
    if isinstance(tensor, View):
        return [partial(tensor.read, first, last) for first, last in tensor.blocks]
    stored = tensor.stored
    if stored.grouping is not None:
        return [partial(tensor.decoded, span) for span in stored.grouping.tiles()]
    dtype, nbytes = DTYPES[stored.info.dtype], stored.info.nbytes
    if not dtype.quantizable and (dtype.numpy is None or dtype.name == "C64"):
        return None

    def read(start: int) -> NDArray[Any]:
        raw = tensor.read_bytes(stored.info.name, start, min(COPY, nbytes - start))
        return raw.view(dtype.numpy) if dtype.numpy else to_float32(raw, dtype.name)

    return [partial(read, start) for start in range(0, nbytes, COPY)]


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of some values: how many are finite and how many are not, mean and sum of squares about it, the range."""

    count: int = 0
    nonfinite: int = 0
    mean: float = 0.0
    spread: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, more: _Moments) -> _Moments:
        if not more.count:
            return replace(self, nonfinite=self.nonfinite + more.nonfinite)
        # Chan, Golub, LeVeque, Updating formulae for sample variances, 1979: no cancellation far from 0.
        step, total = more.mean - self.mean, self.count + more.count
        return _Moments(
            total,
            self.nonfinite + more.nonfinite,
            self.mean + step * more.count / total,
            self.spread + (more.spread + step * step * self.count * more.count / total),
            min(self.low, more.low),
            max(self.high, more.high),
        )


# Near the end of float64 figures overflow; they become None.


def _moments(block: Block) -> _Moments:
    values = to_float64(block().ravel())
    with np.errstate(over="ignore", invalid="ignore"):
        finite = values[np.isfinite(values)]
        if not len(finite):
            return _Moments(nonfinite=len(values))
        mean = float(finite.mean())
        spread = float(np.square(finite - mean).sum())
        low, high = float(finite.min()), float(finite.max())
    return _Moments(len(finite), len(values) - len(finite), mean, spread, low, high)


def _histogram(block: Block, of: _Moments) -> tuple[NDArray[np.int64], int]:
    """Counts in the bins, and of values far from the mean."""
    values, std = to_float64(block().ravel()), math.sqrt(of.spread / of.count)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = values[np.isfinite(values)]
        width = of.high / 2 - of.low / 2  # 0 for the smallest numbers there are
        scaled = (finite / 2 - of.low / 2) / width if width > 0 else np.zeros(len(finite))
        counts = np.bincount(np.minimum((scaled * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        return counts, int(np.count_nonzero(np.abs(finite - of.mean) > OUTLIER_SIGMAS * std))


def _statistics(of: _Moments, counts: Sequence[tuple[NDArray[np.int64], int]]) -> Statistics:
    figures = of.low, of.high, of.mean, math.sqrt(of.spread / of.count) if of.count else math.nan
    low, high, mean, std = (v if of.count and math.isfinite(v) else None for v in figures)
    return Statistics(
        min=low,
        max=high,
        mean=mean,
        std=std,
        outlier_ratio=sum(far for _, far in counts) / of.count if of.count else None,
        histogram=sum((bins for bins, _ in counts), np.zeros(BINS, np.int64)).tolist(),
        nonfinite=of.nonfinite,
    )


def sparkline(histogram: list[int], *, ascii_only: bool) -> str:
    """A histogram in one line; empty bins are blank.

    >>> sparkline([0, 1, 4, 8], ascii_only=True)
    ' .=#'
    """
    marks = ".:-=+*%#" if ascii_only else "▁▂▃▄▅▆▇█"
    top = max(histogram, default=0)
    return "".join(" " if n == 0 else marks[min(7, math.ceil(8 * n / top) - 1)] for n in histogram)
