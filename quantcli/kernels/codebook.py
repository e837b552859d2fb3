"""Codebooks: levels of any spacing, and the thresholds that map a weight to its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A small float, sign bit first: bits of its mantissa, the exponent of its smallest normal number, and its largest
    number. Its codes are those of its bits; ties go to the even code."""

    mantissa: int
    lowest: int
    top: float


@dataclass(frozen=True, slots=True)
class Codebook:
    """Levels of `tables` codebooks: one shared by all rows, or one per row. A code u stands for levels[u] * scale.

    levels: float32 (tables, 2^b) by code. sorted, order: the `count` levels in use in ascending order and their
    codes, (tables, count). thresholds: float32 (tables, 2^m - 1), between neighbours, filled up with infinity; a
    quotient t = x / scale belongs to the level after all thresholds smaller than t. limits: float32 (tables, 2),
    beyond which a quotient counts as clipped: half a step outside the outermost levels. small: of small floats, whose
    codes need no looking up.
    """

    levels: Floats
    sorted: Floats
    order: NDArray[np.uint16]
    thresholds: Floats
    limits: Floats
    small: Small | None = None

    @property
    def tables(self) -> int:
        """Number of codebooks."""
        return len(self.levels)

    def rows(self, first: int, last: int) -> Codebook:
        """The codebooks of some rows; a shared one is returned as it is."""
        if self.tables == 1:
            return self
        arrays = [getattr(self, name)[first:last] for name in _ARRAYS]
        return Codebook(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4])


_ARRAYS = ("levels", "sorted", "order", "thresholds", "limits")


def codebook(levels: NDArray[Any], *, ties_to_even: bool = False, small: Small | None = None) -> Codebook:
    """The codebook of levels (tables, 2^b) by code; NaN where a code stands for nothing. small: the small float whose
    numbers they are.

    A value halfway between two levels goes to the lower one, or with `ties_to_even` to the one of even code, which is
    how a cast to an 8-bit float rounds. Of equal levels the first code is used (for -0 and 0: that of 0).

    >>> codebook(np.array([[-1.0, 0.0, 0.5, 1.0]])).thresholds.tolist()
    [[-0.5, 0.25, 0.75]]
    """
    levels = np.ascontiguousarray(levels, np.float32)
    count = int(np.isfinite(levels[0]).sum())
    order = np.argsort(levels, axis=1, kind="stable")[:, :count]
    if ties_to_even:  # a sign bit makes a second zero
        order = np.delete(order, np.flatnonzero(np.take_along_axis(levels, order, 1)[0] == 0)[1:], axis=1)
        count = order.shape[1]
    ordered = np.take_along_axis(levels, order, axis=1)
    low, high = ordered[:, :-1].astype(np.float64), ordered[:, 1:].astype(np.float64)
    middle = (low + high) / 2
    thresholds = middle.astype(np.float32)
    thresholds = np.where(thresholds > middle, np.nextafter(thresholds, np.float32(-np.inf)), thresholds)
    if ties_to_even:
        up = order[:, 1:] % 2 == 0
        thresholds = np.where(up, np.nextafter(thresholds, np.float32(-np.inf)), thresholds)
    width = (1 << max(count - 1, 1).bit_length()) - 1
    filled = np.full((levels.shape[0], width), np.inf, np.float32)
    filled[:, : count - 1] = thresholds
    with np.errstate(over="ignore"):  # half a step beyond the largest float32
        limits = _limits(ordered.astype(np.float64)).astype(np.float32)
    return Codebook(levels, ordered, order.astype(np.uint16), filled, limits, small)


def _limits(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half a step outside the outermost levels (tables, 2); levels may repeat at the end."""
    first, last = ordered[:, :1], ordered[:, -1:]
    above = np.where(ordered > first, ordered, np.inf).min(axis=1, keepdims=True)
    below = np.where(ordered < last, ordered, -np.inf).max(axis=1, keepdims=True)
    low = np.where(np.isfinite(above), first - (above - first) / 2, first)
    high = np.where(np.isfinite(below), last + (last - below) / 2, last)
    return np.concatenate([low, high], axis=1)


def joined_codebooks(books: list[Codebook], rows: int) -> Codebook:
    """The codebooks of all rows from those of parts; a shared one is returned as it is."""
    if len(books) == 1 or books[0].small is not None or sum(b.tables for b in books) != rows:
        return books[0]
    levels, ordered, order, thresholds, limits = (np.concatenate([getattr(b, name) for b in books]) for name in _ARRAYS)
    return Codebook(levels, ordered, order, thresholds, limits)
