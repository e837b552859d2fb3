"""Statistics of the values of a tensor: range, moments, outliers and a histogram.

Of 16-bit floats all patterns are counted in one pass, which tells everything; other tensors are looked at twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES, to_float32, to_float64
from quantcli.kernels import BF16, F16, Kind, Tile
from quantcli.layouts.native.model import Tensor
from quantcli.models import View
from quantcli.passes.tiles import COPY, Progress, Visit, begun, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo

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

PIECE = 1 << 15
"""Values that are looked at together: of these the float64 stay in the cache."""

COUNTED = 1 << 17
"""Values from which it is faster to count all patterns of 16 bits than to look at every value twice."""


def measure(
    source: Source, tensors: Mapping[str, Tensor | View], *, threads: int, progress: Progress | None = None
) -> dict[str, Statistics | None]:
    """Statistics of tensors, decoded where they are quantized; None for dtypes without numeric values."""
    found: dict[str, Statistics | None] = {}
    advance = begun(progress, sum(_info(tensor).nbytes for tensor in tensors.values()))

    def visit(name: str, tensor: Tensor | View) -> Visit:
        blocks, info = _blocks(tensor), _info(tensor)
        kind = _counted(tensor)
        if blocks is None:
            found[name] = None
        elif kind is not None:
            seen = Counter(kind)
            yield [partial(seen.add, block) for block in blocks]
            found[name] = seen.statistics()
        else:
            moments = sum((yield [partial(_moments, block) for block in blocks]), _Moments())
            counts = yield [partial(_histogram, block, moments) for block in blocks if moments.count]
            found[name] = _statistics(moments, counts)
        for part in tensor.stored.outputs if isinstance(tensor, Tensor) else ():
            source.passed(part.name, 0, part.nbytes)
        advance(info.nbytes)

    walk((visit(name, t) for name, t in tensors.items()), threads=threads, stopped=source.interrupt)
    return found


def _info(tensor: Tensor | View) -> TensorInfo:
    return tensor.info if isinstance(tensor, View) else tensor.stored.info


def _counted(tensor: Tensor | View) -> Kind | None:
    """How the values of a tensor lie in its file, where their patterns are counted; None where they are looked at."""
    if isinstance(tensor, View) or tensor.stored.grouping is not None or tensor.stored.info.numel < COUNTED:
        return None
    return {"BF16": BF16, "F16": F16}.get(tensor.stored.info.dtype)


def _blocks(tensor: Tensor | View) -> list[Block] | None:
    """What reads the values of a tensor, block by block; None for dtypes without numeric values."""
    if isinstance(tensor, View):
        return [partial(tensor.read, first, last) for first, last in tensor.blocks]
    stored = tensor.stored
    if stored.grouping is not None:
        return [partial(tensor.decoded, span) for span in stored.grouping.tiles()]
    dtype, nbytes = DTYPES[stored.info.dtype], stored.info.nbytes
    if not dtype.quantizable and (dtype.numpy is None or dtype.name == "C64"):
        return None
    as_stored = _counted(tensor) is not None

    def read(start: int) -> NDArray[Any]:
        raw = tensor.read_bytes(stored.info.name, start, min(COPY, nbytes - start))
        if as_stored:
            return raw.view("<u2")
        return raw.view(dtype.numpy) if dtype.numpy else to_float32(raw, dtype.name)

    return [partial(read, start) for start in range(0, nbytes, COPY)]


class Counter:
    """How often each pattern of 16 bits occurs in a tensor, which determines its values up to their order. There is a
    histogram for each thread at work on it: counts are whole numbers, so that their order does not matter."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._free: list[NDArray[np.int64]] = []
        self._all: list[NDArray[np.int64]] = []
        self._lock = threading.Lock()

    def add(self, block: Block) -> None:
        """Count the patterns of a block."""
        with self._lock:
            counts = self._free.pop() if self._free else None
            if counts is None:
                counts = np.zeros(1 << 16, np.int64)
                self._all.append(counts)
        weights = block()
        kernels.load().histogram(Tile(weights, self._kind, 1, weights.size, max(weights.size, 1)), counts, None)
        with self._lock:
            self._free.append(counts)

    def statistics(self) -> Statistics:
        """The statistics of all that was counted."""
        counts = sum(self._all, np.zeros(1 << 16, np.int64))
        patterns = np.flatnonzero(counts).astype("<u2")
        values = to_float64(to_float32(patterns.view(np.uint8), "BF16" if self._kind == BF16 else "F16"))
        often, finite = counts[patterns], np.isfinite(values)
        nonfinite = int(often[~finite].sum())
        values, often = values[finite], often[finite]
        if not len(values):
            return _statistics(_Moments(nonfinite=nonfinite), [])
        count = int(often.sum())
        mean = float((values * often).sum() / count)
        spread = float((np.square(values - mean) * often).sum())
        moments = _Moments(count, nonfinite, mean, spread, float(values.min()), float(values.max()))
        bins, far = _places(values, moments)
        found = np.bincount(bins, often, minlength=BINS).astype(np.int64)
        return _statistics(moments, [(found, int(often[far].sum()))])


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of some values: how many are finite and how many are not; mean, sum of squared deviations and range of those
    that are."""

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


# Near the largest float64 the figures overflow; they become None.


def _pieces(block: Block) -> Iterator[NDArray[np.float64]]:
    """The values of a block, piece by piece."""
    values = block().reshape(-1)
    for start in range(0, len(values), PIECE):
        yield to_float64(values[start : start + PIECE])


def _moments(block: Block) -> _Moments:
    found = _Moments()
    with np.errstate(over="ignore", invalid="ignore"):
        for values in _pieces(block):
            total = len(values)
            mean = float(values.mean())
            if not math.isfinite(mean):  # else all of them are
                values = values[np.isfinite(values)]
                mean = float(values.mean()) if len(values) else 0.0
            if not len(values):
                found += _Moments(nonfinite=total)
                continue
            low, high = float(values.min()), float(values.max())
            values -= mean
            found += _Moments(
                len(values), total - len(values), mean, float(np.einsum("i,i->", values, values)), low, high
            )
    return found


def _histogram(block: Block, of: _Moments) -> tuple[NDArray[np.int64], int]:
    """Counts in the bins, and of values far from the mean."""
    counts, distant = np.zeros(BINS, np.int64), 0
    for values in _pieces(block):
        bins, far = _places(values[np.isfinite(values)] if of.nonfinite else values, of)
        counts += np.bincount(bins, minlength=BINS)
        distant += int(np.count_nonzero(far))
    return counts, distant


def _places(values: NDArray[np.float64], of: _Moments) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The bin of each value, and whether it lies far from the mean."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = of.high / 2 - of.low / 2  # 0 for the smallest numbers there are
        scaled = (values / 2 - of.low / 2) / width if width > 0 else np.zeros(len(values))
        far = np.abs(values - of.mean) > OUTLIER_SIGMAS * math.sqrt(of.spread / of.count)
        return np.minimum((scaled * BINS).astype(np.int64), BINS - 1), far


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
