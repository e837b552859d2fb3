"""The search for the scales of super-blocks in numpy: the whole numbers of block_weights.h, and the order of float64
of blocks.h.

Arrays are (super-blocks, sub-blocks), those of weights (weights, super-blocks, sub-blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.block_types import SUPER, BlockScales, BlockType, Form, empty_blocks
from quantcli.kernels.numpy_tiles import floats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Doubles, Tile

    Flags = NDArray[np.bool_]
    Whole = NDArray[np.int32]

AT_ONCE = 1 << 16
"""Weights that are searched at a time."""

FULL = 256
TINY = 2.0**-24
MAGIC = 6755399441055744.0
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)


def search_blocks(tile: Tile, kind: BlockType, importance: tuple[NDArray[np.int16], Doubles] | None) -> BlockScales:
    """The stored scales of the super-blocks of a tile; see blocks.h."""
    found = empty_blocks(tile.rows, tile.cols, kind)
    across = tile.cols // SUPER
    step = max(1, AT_ONCE // max(tile.cols, 1))
    for first in range(0, tile.rows, step):
        rows = slice(first, min(first + step, tile.rows))
        x = floats_of(tile, rows.start, rows.stop)
        counts = None
        if importance is not None:
            columns, much = importance
            counts = (
                np.tile(columns.reshape(across, SUPER), (len(x), 1)).astype(np.int32),
                np.tile(much.reshape(across, -1), (len(x), 1)),
            )
        with np.errstate(all="ignore"):
            d, m, scales, minima = _Blocks(x.reshape(-1, SUPER), kind, counts).search()
        found.d[rows], found.m[rows] = d.reshape(len(x), -1), m.reshape(len(x), -1)
        found.scales[rows], found.minima[rows] = scales.reshape(len(x), -1), minima.reshape(len(x), -1)
    return found


def _nearest(values: Doubles) -> Doubles:
    return (values + MAGIC) - MAGIC


def _below(values: Doubles) -> Doubles:
    near = _nearest(values)
    return near - (near > values)


def _bounded(values: Any, least: float, most: float) -> Doubles:
    found: Doubles = np.maximum(np.minimum(values, most), least)
    return found


def _half(values: Doubles) -> NDArray[np.float16]:
    return values.astype(np.float32).astype(np.float16)


def _stored(values: Doubles) -> Doubles:
    """Scales as they are stored: not 0 unless they are."""
    half = _half(values).astype(np.float64)
    return np.where((half != 0) | (values == 0), half, np.where(values < 0, -TINY, TINY))


def _total(values: Doubles) -> Doubles:
    """Sums over sub-blocks, one after another."""
    found = np.zeros(len(values))
    for j in range(values.shape[1]):
        found = found + values[:, j]
    return found


def _inverse(values: Doubles) -> Doubles:
    return np.where(values != 0, 1 / np.where(values != 0, values, 1.0), 0.0)[:, None]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over codes, their squares and their products with the weights."""

    code: Doubles
    square: Doubles
    cross: Doubles


@dataclass(frozen=True, slots=True)
class _Best:
    """The best codes so far: the refit to them has the slope cross / square; own: the sum of their squares."""

    gain: Doubles
    cross: Doubles
    square: Doubles
    code: Doubles
    own: Doubles


@dataclass(frozen=True, slots=True)
class _Parts:
    """Stored scales and minima, their errors, and the sums over their codes."""

    scale: Doubles
    minimum: Doubles
    error: Doubles
    sums: _Sums


class _Blocks:
    """Super-blocks of weights (blocks, SUPER), with their importances (blocks, SUPER) and those of sub-blocks."""

    def __init__(self, x: NDArray[Any], kind: BlockType, counts: tuple[Whole, Doubles] | None) -> None:
        self.kind = kind
        self.affine = kind.form == Form.AFFINE
        self.low, self.top, self.range = -(1 << (kind.bits - 1)), (1 << kind.bits) - 1, 2.0**kind.range_bits
        y = x.reshape(len(x), -1, kind.sub)
        lo, hi = y.min(axis=2), y.max(axis=2)
        half = np.float32(0.5)
        centre = lo * half + hi * half if self.affine else np.zeros_like(lo)
        span = hi - lo if self.affine else np.float32(2) * np.maximum(-lo, hi)
        fits = (span >= np.float32(2.0**-100)) & (span <= np.float32(2.0**100))
        times = np.where(fits, np.float32(self.range) / np.where(fits, span, np.float32(1)), np.float32(1))
        whole = np.rint((y - centre[:, :, None]) * times[:, :, None])
        whole = np.where(fits[:, :, None], whole, np.float32(0)).astype(np.int32)
        self.u = np.ascontiguousarray(whole.transpose(2, 0, 1))
        self.w: Whole | None = None
        self.uw = self.u
        self.count = np.full(lo.shape, float(kind.sub))
        self.factor = np.ones(lo.shape)
        if counts is not None:
            self.w = np.ascontiguousarray(counts[0].reshape(y.shape).transpose(2, 0, 1))
            self.uw = (self.u * self.w + FULL // 2) >> 8
            self.count = self.w.sum(axis=0) * (1.0 / FULL)
            self.factor = counts[1]
        self.sum = self.uw.sum(axis=0).astype(np.float64)
        self.power = (self.uw * self.u).sum(axis=0).astype(np.float64)
        self.middle, self.unit = centre.astype(np.float64), times.astype(np.float64)
        self.per = 1 / self.unit

    def sums(self, step: Any, place: Any) -> _Sums:
        """Sums for the codes (u - place) / step."""
        times = _nearest(_bounded(32768.0 / step, -32767.0, 32767.0)).astype(np.int32)
        shifted = self.u - _nearest(place).astype(np.int32) if self.affine else self.u
        c: Whole = ((shifted * times >> 14) + 1) >> 1
        if self.kind.form == Form.TABLE:
            c = LEVELS[np.searchsorted(LEVELS[1:] + LEVELS[:-1], 2 * np.clip(c, -128, 127))]
        else:
            c = np.clip(c, self.low, self.top + self.low)
        cross = np.einsum("ijk,ijk->jk", self.uw, c).astype(np.float64)
        if self.w is None:
            return _Sums(c.sum(axis=0).astype(np.float64), np.einsum("ijk,ijk->jk", c, c).astype(np.float64), cross)
        weighted = self.w * c
        square = np.einsum("ijk,ijk->jk", weighted, c)
        return _Sums(weighted.sum(axis=0) * (1.0 / FULL), square * (1.0 / FULL), cross)

    def judge(self, found: _Sums, best: _Best) -> _Best:
        """The better codes of each sub-block."""
        cross, square = found.cross, found.square
        if self.affine:
            cross = self.count * cross - self.sum * found.code
            square = self.count * square - found.code * found.code
        gain = cross * cross
        better = (square > 0) & (gain * best.square > best.gain * square)
        if self.affine:
            better &= cross > 0
        pairs = (
            (gain, best.gain),
            (cross, best.cross),
            (square, best.square),
            (found.code, best.code),
            (found.square, best.own),
        )
        return _Best(*(np.where(better, new, old) for new, old in pairs))

    def affine_candidates(self, best: _Best) -> _Best:
        half, each = self.range * 0.5, 1.0 / self.top
        mean = self.sum / self.count
        for a in self.kind.ratios:
            begin = mean + (-half - mean) * a
            for b in self.kind.ratios:
                end = mean + (half - mean) * b
                step = (end - begin) * each
                best = self.judge(self.sums(step, begin - self.low * step), best)
        for _ in range(self.kind.refits):
            step = np.where(best.gain > 0, best.cross / best.square, half)
            place = _bounded((self.sum - step * best.code) / self.count, -30000.0, 30000.0)
            best = self.judge(self.sums(step, place), best)
        return best

    def signed_candidates(self, best: _Best) -> _Best:
        reach = 127.0 if self.kind.form == Form.TABLE else float(-self.low)
        for ratio in self.kind.ratios:
            size = self.range * 0.5 * ratio / reach
            for step in (-size, size):
                best = self.judge(self.sums(np.full((1, 1), step), 0.0), best)
        return best

    def alone(self) -> None:
        """Find scale and offset of every sub-block by itself."""
        none = np.zeros(self.sum.shape)
        best = _Best(none, none, none + 1, none, none)
        best = self.affine_candidates(best) if self.affine else self.signed_candidates(best)
        self.scale = best.cross / best.square * self.per
        self.squares, self.offset, self.codes = best.own, none, none
        if self.affine:
            low = float(self.low)
            place = (self.sum * self.per - self.scale * best.code) / self.count
            self.offset = self.middle + place + low * self.scale
            self.codes = best.code - low * self.count
            self.squares = best.own - 2.0 * low * best.code + low * low * self.count

    def wanted(self, moved: Doubles, inverse: Doubles) -> Doubles:
        """The wanted minima under scales that differ from the best by `moved`, in units of -m."""
        return (self.codes / self.count * moved - self.offset) * inverse

    def loss(self, d: Doubles, m: Doubles) -> Doubles:
        """How much more error the codes have with scales that are multiples of d, and minima of m (blocks,)."""
        kind, inverse, other = self.kind, _inverse(d), _inverse(m)
        d, m = d[:, None], m[:, None]
        first = _below(self.scale * inverse) if self.affine else _nearest(self.scale * inverse)
        least = None
        for k in range(2 if self.affine else 1):
            moved = d * _bounded(first + k, kind.low, kind.high) - self.scale
            lost = self.squares * moved * moved
            if self.affine:
                shifted = -m * _bounded(_nearest(self.wanted(moved, other)), 0, kind.deepest) - self.offset
                lost = lost + (2.0 * self.codes * moved * shifted + self.count * shifted * shifted)
            least = lost if least is None else np.minimum(lost, least)
        assert least is not None
        return _total(least * self.factor)

    def first_choice(self) -> tuple[Doubles, Doubles]:
        """d and m near what the largest scale and minimum need, with the least loss."""
        kind, blocks = self.kind, len(self.sum)
        most, deep, steep = np.zeros(blocks), np.zeros(blocks), np.zeros(blocks)
        for j in range(self.sum.shape[1]):
            most = np.where(np.abs(self.scale[:, j]) > np.abs(most), self.scale[:, j], most)
            deep, steep = np.maximum(deep, -self.offset[:, j]), np.maximum(steep, self.offset[:, j])
        base = most / (kind.high if self.affine else kind.low)
        depth = np.where(deep >= steep, deep, -steep) / (kind.deepest if self.affine else 1)
        least, d, m = np.full(blocks, np.inf), np.zeros(blocks), np.zeros(blocks)
        for a in kind.factors:
            for b in kind.factors if self.affine else (1.0,):
                own, minimum = _stored(base * a), _stored(depth * b)
                lost = self.loss(own, minimum)
                better = lost < least
                least, d, m = (np.where(better, x, y) for x, y in ((lost, least), (own, d), (minimum, m)))
        return d, m

    def offer(self, d: Doubles, m: Doubles, own: Doubles, minimum: Doubles, best: _Parts) -> _Parts:
        """The parts with the smaller error of each sub-block."""
        size = d * own * self.unit
        step = np.where(size != 0, size, self.range)
        place = np.zeros(size.shape)
        if self.affine:
            place = (-m * minimum - self.middle) * self.unit - float(self.low) * size
            place = _bounded(place, -30000.0, 30000.0)
        found = self.sums(step, place)
        error = self.power - 2.0 * size * found.cross + size * size * found.square
        if self.affine:
            error = error + (2.0 * place * (size * found.code - self.sum) + self.count * place * place)
        error = error * self.per * self.per * self.factor
        better = error < best.error

        def kept(new: Doubles, old: Doubles) -> Doubles:
            return np.where(better, new, old)

        sums = _Sums(*(kept(getattr(found, n), getattr(best.sums, n)) for n in ("code", "square", "cross")))
        return _Parts(kept(own, best.scale), kept(minimum, best.minimum), kept(error, best.error), sums)

    def parts(self, d: Doubles, m: Doubles) -> _Parts:
        """Scales and minima of sub-blocks around the wanted ones, with the least error of the codes they give."""
        kind, inverse, other = self.kind, _inverse(d), _inverse(m)
        d, m = d[:, None], m[:, None]
        none = np.zeros(self.sum.shape)
        best = _Parts(none, none, none + np.inf, _Sums(none, none, none))
        for k in (0, 1) if self.affine else (0, 1, -1, 2):
            own = _bounded(_below(self.scale * inverse) + k, kind.low, kind.high)
            if not self.affine:
                best = self.offer(d, m, own, none, best)
                continue
            first = _below(self.wanted(d * own - self.scale, other))
            for h in (0, 1):
                best = self.offer(d, m, own, _bounded(first + h, 0, kind.deepest), best)
        return best

    def refit(self, found: _Parts) -> tuple[Doubles, Doubles]:
        """d and m with the least error for the codes of some parts; 0 where there is none."""
        square, mixed, deep, cross, fall = (np.zeros(len(self.sum)) for _ in range(5))
        low = float(self.low)
        for j in range(self.sum.shape[1]):
            s, f, per = found.scale[:, j], self.factor[:, j], self.per[:, j]
            code, own, product = (getattr(found.sums, n)[:, j] for n in ("code", "square", "cross"))
            if not self.affine:
                square = square + f * s * s * own
                cross = cross + f * s * product * per
                continue
            t, n, total, middle = found.minimum[:, j], self.count[:, j], self.sum[:, j], self.middle[:, j]
            own = own - 2 * low * code + low * low * n
            code = code - low * n
            product = (product - low * total) * per + middle * code
            square = square + f * s * s * own
            mixed = mixed - f * s * t * code
            deep = deep + f * t * t * n
            cross = cross + f * s * product
            fall = fall - f * t * (total * per + n * middle)
        if not self.affine:
            return np.where(square > 0, _stored(cross / np.where(square > 0, square, 1.0)), 0.0), np.zeros(
                len(self.sum)
            )
        det = square * deep - mixed * mixed
        good = det > 0
        det = np.where(good, det, 1.0)
        d, m = _stored((cross * deep - fall * mixed) / det), _stored((square * fall - mixed * cross) / det)
        return np.where(good, d, 0.0), np.where(good, m, 0.0)

    def search(self) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int8], NDArray[np.uint8]]:
        """d and m (blocks,), scales and minima (blocks, sub-blocks)."""
        self.alone()
        d, m = self.first_choice()
        best = self.parts(d, m)
        going = np.ones(len(d), bool)
        for _ in range(1, self.kind.rounds):
            next_d, next_m = self.refit(best)
            going &= (next_d != 0) & ~((next_d == d) & (next_m == m))
            other = self.parts(next_d, next_m)
            going &= _total(other.error) < _total(best.error)
            d, m = np.where(going, next_d, d), np.where(going, next_m, m)
            here = going[:, None]
            sums = _Sums(*(np.where(here, getattr(other.sums, n), getattr(best.sums, n)) for n in _Sums.__slots__))
            best = _Parts(
                np.where(here, other.scale, best.scale),
                np.where(here, other.minimum, best.minimum),
                np.where(here, other.error, best.error),
                sums,
            )
        d16, m16 = (_half(v + 0.0).view(np.uint16) for v in (d, m))  # no negative zeros
        return d16, m16, best.scale.astype(np.int8), best.minimum.astype(np.uint8)
