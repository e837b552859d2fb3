"""Where in a quantized tensor weights were changed: runs of weights whose errors lie far beyond those of the others.

Every layout's errors follow the scales: those of a tensor, a row, a group or a block, or, for floats, the weights
themselves. So the error of each run is divided by each of these in turn, and a run stands out that is much worse than
usual beside all of them, and far beyond the spread beside the one that explains the others best.

Where most weights are much smaller than a step, rounding leaves a run of larger ones, or of those that share a scale
with a large one, more error than the others. A run whose error may be of rounding alone does not stand out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from quantcli.models import PIECE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

RUN, MOST_RUNS, FEWEST_RUNS = 256, 1 << 17, 8
"""Weights of a run, as many as the largest blocks that share a scale; runs of a tensor at most, which are longer in
large ones; and at least, for some to stand out."""

GROUP = 32
"""Weights of the smallest groups that scales are told of."""

WORSE_DB, BEYOND, LEAST_SPREAD = 6.0, 4.5, 0.03
"""dB, and robust standard deviations of the logarithm, by which the error of a run must be larger than usual, and what
this deviation is at least. Of 95 files that 14 tools made, no run reaches 5.1 dB."""

PER_BIT, ROUGHLY = 6.02, 10.0
"""dB that a bit of codes brings, and how much more than those of all bits no method leaves of weights that lie anyhow.
Of a base that is on a grid already the rounding of scales is left, which is no error of codes."""

TINY = 1e-8
"""What counts as error anyway, as a share of the power of an average run: runs may have none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The runs of a tensor that stand out. changed: how many, of count with size weights each; first: the index of the
    first weight of the first one; worst_db: by how much the worst one's error is larger than that of the others."""

    changed: int
    count: int
    size: int
    first: tuple[int, ...]
    worst_db: float

    def __str__(self) -> str:
        runs = f"{self.changed:,} of {self.count:,} runs of {self.size:,} weights, from {list(self.first)} on"
        verb = "is" if self.changed == 1 else "are up to"
        return f"{runs}, {verb} {self.worst_db:.1f} dB farther from the base than the others: they were changed"


Sums = tuple["NDArray[np.float64]", ...]
"""Of every run: its weights; sums of squares of the base, of what it became, of their product and of their difference;
of the largest weights of its groups and of its blocks, for each of their weights; and its largest weight, squared."""


def run_of(numel: int) -> int:
    """Weights of a run in a tensor."""
    size = RUN
    while numel // size > MOST_RUNS:
        size *= 2
    return size


def sums_of(x: Floats, y: Floats, size: int) -> list[Sums]:
    """What runs of some weights add up to, in pieces; the last run has what is left too."""
    cuts = [*range(0, max(len(x) - size + 1, 1), max(size, PIECE)), len(x)]
    return [_added_up(x[first:last], y[first:last], size) for first, last in pairwise(cuts)]


def _added_up(x: Floats, y: Floats, size: int) -> Sums:
    """What the runs of a piece add up to."""
    starts = np.arange(0, len(x), size)[: max(len(x) // size, 1)]
    counts, largest = np.diff(starts, append=len(x)).astype(np.float64), np.abs(x)

    def added(values: Floats) -> NDArray[np.float64]:
        return np.add.reduceat(values, starts, dtype=np.float64)

    def tops(group: int) -> NDArray[np.float64]:
        top = np.maximum.reduceat(largest, np.arange(0, len(x), group)).astype(np.float64)
        return np.add.reduceat(np.square(top), starts // group) * group

    highest = np.square(np.maximum.reduceat(largest, starts).astype(np.float64))
    return counts, added(x * x), added(y * y), added(x * y), added(np.square(x - y)), tops(GROUP), tops(RUN), highest


def most_db(bits: int) -> float:
    """The highest SQNR that codes of so many bits leave of weights that lie anywhere."""
    return PER_BIT * bits + ROUGHLY


def places_of(
    pieces: Sequence[Sums],
    shape: tuple[int, ...],
    *,
    bits: int,
    scaled: bool,
    top: float | None = None,
    step: float = 0.0,
) -> Places | None:
    """The runs that stand out in a tensor of a shape, given what its pieces add up to, in order; None where none does.
    bits: of its codes; scaled: whether rows have gains of their own, which are no errors. top: of one scale for all,
    the largest weight that it stores, beyond which weights were clipped; step: how far a code may be from the weight.
    """
    if sum(len(piece[0]) for piece in pieces) < FEWEST_RUNS:
        return None
    counts, x, y, product, errors, groups, blocks, highest = (np.concatenate(part) for part in zip(*pieces))
    if not (x.any() and np.isfinite(x + y + product).all()):
        return None
    if scaled:
        gain = np.divide(product, x, out=np.zeros_like(x), where=x > 0)
        errors = np.divide(y - gain * product, gain * gain, out=2 * x, where=gain > 0)
    starts = np.cumsum(counts).astype(np.int64) - counts.astype(np.int64)
    floor = 10 ** (-most_db(bits) / 10) * x
    on_grid = np.median(errors) <= np.median(floor)
    rounded = 0.0 if on_grid else np.minimum(_of_rounding(highest, counts, bits), x)
    if top is not None:
        rounded = np.maximum(rounded, counts * np.square(np.maximum(np.sqrt(highest) - top, 0)))
        rounded = np.maximum(rounded, counts * step**2)
    rows = (counts * _of_rows(highest, starts, row) for row in {shape[-1], int(np.prod(shape[1:]))})
    errors = np.maximum(errors, 0) + floor + TINY * x.mean()
    ratios = [np.log(errors / (usual + TINY * usual.mean())) for usual in (counts, x, groups, blocks, *rows)]
    ratios = [ratio - np.median(ratio) for ratio in ratios]
    spreads = [max(1.4826 * float(np.median(np.abs(ratio))), LEAST_SPREAD) for ratio in ratios]
    closest = int(np.argmin(spreads))
    decibels = np.min(ratios, axis=0) * 10 / np.log(10)
    far = (decibels > WORSE_DB) & (ratios[closest] > BEYOND * spreads[closest])
    [changed] = np.nonzero(far & (errors > rounded))
    if not len(changed):
        return None
    first = tuple(map(int, np.unravel_index(starts[changed[0]], shape)))
    size, worst = int(counts[0]), float(decibels[changed].max())
    return Places(changed=len(changed), count=len(counts), size=size, first=first, worst_db=worst)


def _of_rounding(highest: NDArray[np.float64], counts: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """The squared error that rounding may leave of runs: half a step of every weight, where the largest weight of the
    run and of the two beside it has the largest code. Groups of 256 and fewer end within these."""
    around = np.pad(highest, 1)
    found: NDArray[np.float64] = counts * np.maximum(highest, np.maximum(around[:-2], around[2:])) / (2**bits - 1) ** 2
    return found


def _of_rows(highest: NDArray[np.float64], starts: NDArray[np.int64], row: int) -> NDArray[np.float64]:
    """The largest squares of rows of so many weights, for every run that begins in one."""
    first = np.unique(starts // row, return_index=True)[1]
    return np.repeat(np.maximum.reduceat(highest, first), np.diff(first, append=len(starts)))
