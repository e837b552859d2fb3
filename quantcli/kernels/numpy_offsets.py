"""The search for scales and float offsets in numpy: the whole numbers and the order of sums of offsets.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_search import PIECE, fraction_bits, parts, pieces_of
from quantcli.kernels.table import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles, Floats

STEPS = 6
"""Refits of the best candidate at most, each to the codes of the one before."""

WIDTH = 8
"""Lanes of the sums in float64."""

MAGIC = 6755399441055744.0
"""1.5 * 2^52: adding it rounds to a whole number."""


def search_offsets(
    tile: Tile,
    middle: Floats,
    reciprocal: Floats,
    start: tuple[Doubles, Doubles],
    ratios: Doubles,
    top: int,
    importance: NDArray[np.int32] | None = None,
) -> tuple[Doubles, Doubles]:
    """Scale and offset of every group (rows, groups); see offsets.h."""
    scale, offset = (np.array(v, np.float64) for v in start)
    for rows, groups, weights, counts in parts(tile, importance):
        shape = scale[rows, groups].shape
        centre, unit = (v[rows, groups].reshape(-1) for v in (middle, reciprocal))
        begin = scale[rows, groups].reshape(-1), offset[rows, groups].reshape(-1)
        found = _groups(weights, counts, centre, unit, begin, ratios, top)
        scale[rows, groups], offset[rows, groups] = (f.reshape(shape) for f in found)
    return scale, offset


@dataclass(frozen=True, slots=True)
class _Line:
    """The statistics of every group (groups,) for a refit; see Line in offsets.h."""

    cross: Doubles
    square: Doubles
    total: Doubles
    gain: Doubles

    def where(self, taken: NDArray[np.bool_], other: _Line) -> _Line:
        """These values for some groups, those of the other for the rest."""
        names = ("cross", "square", "total", "gain")
        return _Line(*(np.where(taken, getattr(self, n), getattr(other, n)) for n in names))


@dataclass(frozen=True, slots=True)
class _Moments:
    """How much the weights of every group count, and their sums."""

    count: Doubles
    sum: Doubles

    def line(self, total: Doubles, square: Doubles, cross: Doubles) -> _Line:
        cross = self.count * cross - self.sum * total
        square = self.count * square - total * total
        good = (cross > 0) & (square > 0)
        gain = np.where(good, cross * cross / np.where(good, square, 1.0), -1.0)
        return _Line(cross, square, total, gain)

    def offset(self, slope: Doubles, line: _Line) -> Doubles:
        return (self.sum - slope * line.total) / self.count


def _groups(
    weights: NDArray[Any],
    counts: NDArray[np.int32] | None,
    middle: Floats,
    unit: Floats,
    start: tuple[Doubles, Doubles],
    ratios: Doubles,
    top: int,
) -> tuple[Doubles, Doubles]:
    """Scale and offset of groups of weights (groups, n)."""
    exact = _Exact(weights, counts, middle, top)
    scale, offset = start
    found = exact.refit(scale, offset)
    step, zero = _whole(weights - middle[:, None], counts, unit, ratios, top)
    good = (unit != 0) & (step > 0)
    per = np.where(good, unit, np.float32(1)).astype(np.float64)
    step = np.where(good, step / per, scale)
    line = exact.refit(step, np.where(good, zero / per + -((top + 1) // 2) * step, offset))
    found = line.where(good & (line.gain > found.gain), found)
    better = found.gain > 0
    slope = found.cross / np.where(better, found.square, 1.0)
    offset = np.where(better, exact.moments.offset(slope, found), offset)
    return np.where(better, slope, scale), offset


class _Exact:
    """The weights themselves, for refits in float64."""

    def __init__(self, weights: NDArray[Any], counts: NDArray[np.int32] | None, middle: Floats, top: int) -> None:
        groups, n = weights.shape
        self.top = float(top)
        self.values = np.zeros((-(-n // WIDTH) * WIDTH, groups))
        np.subtract(weights.T, middle.astype(np.float64), out=self.values[:n])
        self.times = np.zeros(self.values.shape)
        self.times[:n] = 1.0 if counts is None else counts.T
        self.parts = self.values if counts is None else self.values * self.times
        self.moments = _Moments(_lanes(self.times), _lanes(self.parts))

    def refit(self, step: Doubles, offset: Doubles) -> _Line:
        """The refit to the codes that these lines give."""
        codes = np.clip((self.values - offset) * (1 / step), 0.0, self.top)
        codes = (codes + MAGIC) - MAGIC
        square = _lanes(codes * codes * self.times)
        return self.moments.line(_lanes(codes * self.times), square, _lanes(self.parts * codes))


def _lanes(values: Doubles) -> Doubles:
    """Sums over the first axis, lane by lane and then by halves."""
    lanes = np.add.reduce(values.reshape(-1, WIDTH, values.shape[1]), axis=0)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    folded: Doubles = lanes[0]
    return folded


def _whole(
    weights: NDArray[Any], counts: NDArray[np.int32] | None, unit: Floats, ratios: Doubles, top: int
) -> tuple[Doubles, Doubles]:
    """Step and place of code 0 of the best candidate, refined, in lengths of the range; a step of 0 for none."""
    whole = _Whole(weights, counts, unit, ratios, top)
    moments, half, low = whole.moments, whole.factor / 2, whole.low
    mean = moments.sum / moments.count
    zeros = np.zeros(len(unit))
    found = _Line(zeros, zeros + 1, zeros, zeros - 1)
    for below in ratios:
        for above in ratios:
            begin, end = mean + (-half - mean) * below, mean + (half - mean) * above
            step = (end - begin) * (1.0 / top)
            line = whole.line(step, begin - low * step)
            found = line.where(line.gain > found.gain, found)
    some = going = found.gain >= 0
    for k in range(STEPS + 1):
        slope = found.cross / np.where(some, found.square, 1.0)
        place = moments.offset(slope, found)
        going = going & ~(np.abs(place) > whole.factor)
        if k < STEPS:
            line = whole.line(np.where(going, slope, 1.0), np.where(going, place, 0.0))
            going = going & (line.gain > found.gain)
            found = line.where(going, found)
    return np.where(some, slope / whole.factor, 0.0), np.where(some, place / whole.factor, 0.0)


class _Whole:
    """Weights as whole numbers, in floats that are wide enough."""

    def __init__(
        self, weights: NDArray[Any], counts: NDArray[np.int32] | None, unit: Floats, ratios: Doubles, top: int
    ) -> None:
        weighted, wide = counts is not None, top > 255
        fraction = fraction_bits(float(np.float32(top / ratios.min())), wide=wide or weighted, weighted=weighted)
        self.factor = 2.0**fraction
        self.shift = 28 if weighted else 32 if wide else 15
        self.most = 2.0**28 if weighted or wide else 2.0**15 - 1
        self.low = -((top + 1) // 2)
        self.high = top + self.low
        u = pieces_of(weights, unit, np.float32(self.factor))
        self.reach = float(np.abs(u).max(initial=0))
        self.wide = weighted or fraction + (top + 1).bit_length() + PIECE.bit_length() > 25
        self.u = u.astype(np.float64) if self.wide else u
        self.groups, self.pieces = len(unit), u.shape[1] // len(unit)
        self.pads = u.shape[0] * self.pieces - weights.shape[1]
        self.times = None
        if counts is not None:
            self.times = pieces_of(counts, np.ones(len(counts), np.float32), np.float32(1)).astype(np.float64)
        count = self._total(self.times) if self.times is not None else np.full(self.groups, float(weights.shape[1]))
        self.moments = _Moments(count, self._total(self.u if self.times is None else self.u * self.times))

    def _total(self, values: NDArray[Any]) -> Doubles:
        return self._joined(np.add.reduce(values, axis=0, dtype=np.float64))

    def line(self, step: Doubles, zero: Doubles) -> _Line:
        """The refit to the codes of a candidate of every group."""
        factor = np.rint(np.minimum(2.0**self.shift / step, self.most))
        zero = np.rint(zero)
        fits = (self.reach + np.abs(zero).max()) * factor.max() < 2**24
        dtype = np.float32 if fits and not self.wide else np.float64
        q = self._codes(self.u, np.repeat(factor, self.pieces), np.repeat(zero, self.pieces), dtype)
        if self.times is None:
            sums = [self._total(q), self._dot(q, q), self._dot(self.u, q)]
            pad = self._codes(np.zeros(1), factor, zero, np.float64).astype(np.float64)
            sums[0] -= self.pads * pad
            sums[1] -= self.pads * (pad * pad)
        else:
            weighted = q * self.times
            sums = [self._total(weighted), self._dot(weighted, q), self._dot(self.u, weighted)]
        return self.moments.line(*sums)

    def _codes(self, u: NDArray[Any], factor: Doubles, zero: Doubles, dtype: Any) -> NDArray[Any]:
        q: NDArray[Any] = np.subtract(u, zero.astype(dtype), dtype=dtype)
        np.multiply(q, (factor * 2.0**-self.shift).astype(dtype), out=q)
        np.add(q, dtype(0.5), out=q)
        np.floor(q, out=q)
        np.clip(q, dtype(self.low), dtype(self.high), out=q)
        return q.astype(self.u.dtype, copy=False)

    def _dot(self, a: NDArray[Any], b: NDArray[Any]) -> Doubles:
        return self._joined(np.einsum("ij,ij->j", a, b))

    def _joined(self, sums: NDArray[Any]) -> Doubles:
        """Sums of groups from those of their pieces."""
        whole: NDArray[np.int64] = sums.reshape(self.groups, self.pieces).astype(np.int64).sum(axis=1)
        return whole.astype(np.float64)
