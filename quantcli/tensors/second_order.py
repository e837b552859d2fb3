"""Second-order rounding of a tensor, given what is known of its layer's inputs, and what errors cost in the output.

The second moments H of the inputs are damped, H + t I: the fewer samples they are over, the less they are trusted.
Rows are independent. Of each row the rounding that costs less in the output is taken, second-order or that without
statistics, so that no tensor is worse with them than without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError
from quantcli.kernels import F32, INTEGER, BlockScales, CodeGrid, QuantParams, Tile, row_bytes
from quantcli.kernels.feedback import PANEL, Feedback, block_of, blocks_right_of, narrowed, panels_of, triangle
from quantcli.kernels.table import Coded
from quantcli.metrics import decibels
from quantcli.tensors.decided import SLACK, TINY, Factors, beyond_squares, not_symmetric
from quantcli.tensors.rounds import Alone, Rounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Doubles, Floats, Kernels
    from quantcli.kernels.feedback import Costs
    from quantcli.tensors.decided import Columns, SecondMoments
    from quantcli.tensors.rows import Grouping, TileSpan

LEAST_DAMPING, FEW_SAMPLES = 0.01, 0.04
"""What is added to the mean square of every input, relative to the average one: with many samples, and how much more
with only as many as there are inputs."""

TIE = 1e-4
"""How much two roundings of a row must differ in what they cost, damping included and relative to their sum, for the
second-order one to be taken: more than these are off. U and sums over columns are float32 (kernels/feedback.h), each
addition in error by 2^-24 of its sum, so that a cost is by some 2^-24 sqrt(n), 4e-6 for 4,096 inputs, and by more where
terms cancel that are larger than what remains. Of the costs of 60,000 random rows with up to 300 inputs, sizes over
five orders of magnitude and few samples, half were off by less than 3e-7 and the worst, second-order ones, by 4e-5."""

_ONES = CodeGrid(mode=INTEGER, bits=1, umin=0, umax=1)
"""Codes of one bit, which are what they stand for."""

READ = 1 << 17
"""Numbers of a matrix that are read at a time: what is made of them, 4 MiB, stays in the cache."""


class Degenerate(Exception):  # noqa: N818 - a finding, not an error
    """The statistics of a tensor say nothing: no input is ever other than 0."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the errors of a tensor cost in the output of its layer, as the statistics predict it: of the codes that are
    written, of those that there would be without statistics, None where nobody knows; and the power of the output."""

    error: float
    plain: float | None
    power: float

    def __add__(self, other: Output) -> Output:
        plain = None if self.plain is None or other.plain is None else self.plain + other.plain
        return Output(self.error + other.error, plain, self.power + other.power)

    @property
    def sqnr_db(self) -> float | None:
        """Of the codes that are written."""
        return decibels(self.error, self.power)

    @property
    def plain_sqnr_db(self) -> float | None:
        """Of those there would be without statistics."""
        return None if self.plain is None else decibels(self.plain, self.power)


@dataclass(frozen=True, slots=True)
class SecondOrder:
    """How a tensor is rounded, for the moments of its inputs damped by so much."""

    how: Feedback
    damping: float

    @property
    def counts(self) -> Doubles:
        """How much the error of each column counts for its scale: what of it those rounded later cannot make good. With
        the mean squares of columns instead MiniLM's embeddings were 0.9382 / 0.9825 like the original's at 3 / 4 bits
        in groups of 64, with these 0.9405 / 0.9836, and all columns alike 0.9351 / 0.9816."""
        found = np.empty(len(self.how.order))
        found[self.how.order] = self.how.pivots[: len(found)]
        return found

    def parts(self, span: TileSpan, plan: Grouping) -> Iterator[tuple[slice, SecondOrder]]:
        """The rows of a tile, all of which are rounded alike (by_expert.py has those of several experts)."""
        yield slice(0, span.rows), self

    def better(
        self,
        kernels: Kernels,
        tile: Tile,
        grid: CodeGrid,
        params: QuantParams,
        plain: tuple[QuantParams, Bytes],
        packed: Bytes,
    ) -> tuple[QuantParams, Output]:
        """Write the codes of a tile, for each row those that cost less: second-order ones with some parameters, or
        plain ones, which are given with theirs. The parameters of the rows, and what they cost."""
        found = kernels.feedback(tile, grid, self.how, Coded(params, packed), Coded(*plain))
        own, other, power = self._undamped(found)
        worse = own > other - TIE * (found.cost[0] + found.cost[1])
        if worse.any():
            rows = (tile.rows, row_bytes(tile.cols, grid.bits))
            packed.reshape(rows)[worse] = plain[1].reshape(rows)[worse]
            params = mixed(params, plain[0], worse) if params is not plain[0] else params
        return params, Output(*(math.fsum(v.tolist()) for v in (np.where(worse, other, own), other, power)))

    def cost(self, kernels: Kernels, weights: Floats, decoded: Floats) -> Output:
        """What it costs that other weights (rows, cols) are decoded in place of these, however they were stored."""
        rows, cols = weights.shape
        # The kernels take codes: here every weight is a group of its own, whose scale is what was decoded, times 1.
        codes, params = np.full(rows * row_bytes(cols, 1), 0xFF, np.uint8), QuantParams(decoded)
        tile = Tile(weights.reshape(-1), F32, rows, cols, 1)
        found = kernels.feedback(tile, _ONES, self.how, Coded(params, np.empty_like(codes)), Coded(params, codes))
        _, error, power = self._undamped(found)
        return Output(math.fsum(error.tolist()), None, math.fsum(power.tolist()))

    def _undamped(self, found: Costs) -> Doubles:
        """What each kind of errors costs, by row."""
        costs: Doubles = np.maximum(found.cost - self.damping * found.square, 0.0)
        return costs


def mixed(params: QuantParams, others: QuantParams, rows: NDArray[np.bool_]) -> QuantParams:
    """Parameters whose rows have their own, with those of some rows from others."""

    def own(a: Any, b: Any) -> Any:
        if a is None:
            return None
        found = a.copy()
        found[rows] = b[rows]
        return found

    book, blocks = params.codebook, params.blocks
    if book is not None and others.codebook is not None and book.tables > 1:
        names = ("levels", "sorted", "order", "thresholds", "limits")
        book = replace(book, **{name: own(getattr(book, name), getattr(others.codebook, name)) for name in names})
    if blocks is not None and others.blocks is not None:
        blocks = BlockScales(
            *(own(getattr(blocks, name), getattr(others.blocks, name)) for name in ("d", "m", "scales", "minima"))
        )
    return QuantParams(own(params.scale, others.scale), own(params.zero, others.zero), book, blocks)


# ---- from statistics ----------------------------------------------------------------------------------------------


def _again(columns: Columns, blocks: Sequence[tuple[int, int]]) -> Rounds:
    """How a tensor is rounded, if the moments of its inputs are those factored last, to the last bit, as those of q, k
    and v are, and of gate and up; None if they are not. blocks: rows that are read at a time."""
    last = None if columns.factors is None else columns.factors.last
    if last is None or columns.matrix is None or last[0] != columns.digest:
        return None
    digests = yield [partial(_digest_of, columns.matrix, *block) for block in blocks]
    return last[2] if digests == last[1] else None


def _digest_of(matrix: SecondMoments, first: int, last: int) -> str:
    return _digest(matrix.rows(first, last))


def _digest(rows: Doubles) -> str:
    from xxhash import xxh3_128_hexdigest

    return str(xxh3_128_hexdigest(np.ascontiguousarray(rows, "<f8").data))


def damping_of(columns: Columns) -> float:
    """What is added to the mean square of every input.

    >>> from quantcli.tensors.decided import Columns
    >>> round(damping_of(Columns(np.ones(64), "", count=64)), 6)
    0.05
    """
    few = FEW_SAMPLES * len(columns.values) / columns.count if columns.count else 1.0
    return min(LEAST_DAMPING + few, 1.0) * float(columns.values.mean())


def learned(kernels: Kernels, columns: Columns) -> Rounds:
    """How a tensor is rounded, by what is known of its inputs. Raises Degenerate, and DataError for a matrix that is
    not finite, not symmetric, or not positive semi-definite."""
    damping = damping_of(columns)
    if not damping > 0:
        raise Degenerate
    # Columns of large inputs first: their errors have most columns left to be made good in. In file order MiniLM's
    # embeddings were 0.9358 / 0.9801 like the original's at 3 / 4 bits, in this one 0.9382 / 0.9825.
    order = np.argsort(-columns.values, kind="stable").astype(np.int32)
    if columns.matrix is None:
        return SecondOrder(_ranked(columns, order, damping), damping)
    cols = len(order)
    rows = max(1, READ // cols)
    blocks = [(first, min(first + rows, cols)) for first in range(0, cols, rows)]
    same = yield from _again(columns, blocks)
    if same is not None:
        return same
    factors = columns.factors or Factors()
    factors.last = None  # before there is another one
    found, digests = yield from _factored(kernels, columns.matrix, columns.values, order, damping, blocks)
    how = SecondOrder(found, damping)
    factors.last = columns.digest, digests, how
    return how


def _ranked(columns: Columns, order: NDArray[np.int32], damping: float) -> Feedback:
    """Of means and variances, in closed form. With t the sum of m^2 / v over the columns to come, the best they can do
    about an error p of the sum of e m is to bring p^2 down to p^2 / (1 + t)."""
    assert columns.mean is not None
    mean = columns.mean[order]
    variance = np.maximum(columns.values[order] - mean * mean, 0.0) + damping
    parts = np.zeros(len(mean))
    parts[:-1] = np.add.accumulate((mean * mean / variance)[::-1])[-2::-1]
    behind = 1 + parts
    pivots = variance + mean * mean / behind
    return Feedback(order, pivots, None, mean, variance, mean / (variance * behind + mean * mean))


def _factored(
    kernels: Kernels,
    matrix: SecondMoments,
    diagonal: Doubles,
    order: NDArray[np.int32],
    damping: float,
    blocks: Sequence[tuple[int, int]],
) -> Rounds:
    """The factors, and the digests of the rows that were read."""
    cols, panels, least = len(order), panels_of(len(order)), damping / 2
    wide = triangle(cols)
    place = np.empty(cols, np.int64)
    place[order] = np.arange(cols)
    reading = _Reading(matrix, diagonal, order, place, wide)
    found = yield Alone(partial(reading.block, *block) for block in blocks)
    reading.check(found)
    pivots, spare = np.empty(panels * PANEL), np.empty((2, panels, PANEL, PANEL))
    for own in range(panels):
        wide[block_of(own, own), range(PANEL), range(PANEL)] += damping
    for own in reversed(range(panels)):
        step = partial(kernels.factor, wide, own)
        if not step(0, range(0), least, spare, pivots):
            problem = "the second moments are not positive semi-definite: no inputs have them"
            raise DataError(problem, place=matrix.place, hint="they are means of x x^T, in float32 or float64")
        for number, parts in ((1, _parts(own, even=True)), (2, _parts(own, even=False))):
            yield Alone(partial(step, number, part, least, spare, pivots) for part in parts)
    return Feedback(order, pivots, narrowed(wide)), [digest for _, _, digest in found]


def _parts(rows: int, *, even: bool) -> list[range]:
    """Rows of blocks, cut into parts of the same work. even: whether every row has as much, or less the further down it
    is."""
    count = 1 if rows < 8 else 8
    shares = [part / count if even else 1 - math.sqrt(1 - part / count) for part in range(count)]
    ends = [*(round(rows * share) for share in shares), rows]
    return [range(a, b) for a, b in pairwise(ends) if a < b]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The rows of a matrix on their way into the triangle, and what is checked of them."""

    matrix: SecondMoments
    diagonal: Doubles
    order: NDArray[np.int32]
    place: NDArray[np.int64]
    wide: Doubles

    def block(self, first: int, last: int) -> tuple[Doubles, Doubles, str]:
        """Take in rows; their sums, and their part of those of the columns, with signs that are as good as random; and
        their digest."""
        found, cols = self.matrix.rows(first, last), len(self.order)
        scale = 1 / np.sqrt(self.diagonal + TINY * self.diagonal.mean())
        own, share = scale[first:last], found * scale
        beyond = np.maximum(share.max(axis=1), -share.min(axis=1)) * own > 1 + SLACK
        if beyond.any():
            i = int(beyond.argmax())
            j = int(np.abs(share[i]).argmax())
            raise beyond_squares(float(found[i, j]), first + i, j, self.matrix.place)
        panels = panels_of(cols)
        turned = np.zeros(panels * PANEL)
        for row, at in zip(found, self.place[first:last].tolist()):
            top, within = divmod(at, PANEL)
            turned[top * PANEL : cols] = row[self.order[top * PANEL :]]
            self.wide[blocks_right_of(top, panels), within] = turned[top * PANEL :].reshape(-1, PANEL)
        signs = _signs(cols)
        return (share @ signs) * own, (signs[first:last] * own) @ share, _digest(found)

    def check(self, sums: Sequence[tuple[Doubles, Doubles, str]]) -> None:
        """Raise DataError where the sums of rows are not those of columns: the matrix is not symmetric."""
        rows = np.concatenate([own for own, _, _ in sums])
        columns = np.sum([part for _, part, _ in sums], axis=0)
        off = np.abs(rows - columns)
        if (off > SLACK * math.sqrt(len(rows))).any():
            raise not_symmetric(int(off.argmax()), self.matrix.place)


@lru_cache(maxsize=1)
def _signs(count: int) -> Doubles:
    return np.where(np.random.default_rng(1).integers(0, 2, count) > 0, 1.0, -1.0)
