"""Second-order rounding in numpy: factor.h and feedback.h, rows side by side, column by column."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.feedback import PANEL, Costs, Feedback, block_of, blocks_right_of, panels_of
from quantcli.kernels.numpy_packing import pack, unpack
from quantcli.kernels.numpy_tiles import floats_of
from quantcli.kernels.table import QuantParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Coded, CodeGrid, Doubles, Floats, Tile

    Coder = Callable[[NDArray[Any], QuantParams, CodeGrid, NDArray[Any]], Any]
    Losing = Callable[[int, Floats], tuple[Floats, Floats]]

ROWS = 256
"""Rows that are rounded at a time."""


def factor(triangle: Doubles, own: int, step: int, rows: range, least: float, spare: Doubles, pivots: Doubles) -> bool:
    """A step of the factors, as `factor` in feedback.cpp."""
    raw = spare[0]
    diagonal = raw[own]
    if step == 0:
        block, found = triangle[block_of(own, own)], pivots[own * PANEL :]
        for m in reversed(range(PANEL)):
            found[m] = block[m, m]
            if not found[m] > least:
                return False
            diagonal[m, :m] = block[:m, m]
            block[:m, m] = diagonal[m, :m] / found[m]
            block[:m, :m] -= np.triu(block[:m, m, None] * diagonal[m, :m])
        return True
    for row in rows:
        block = triangle[block_of(row, own)]
        if step == 1:
            for m in reversed(range(PANEL)):
                raw[row, m] = block[:, m]
                block[:, m] /= pivots[own * PANEL + m]
                block[:, :m] -= block[:, m, None] * diagonal[m, :m]
        else:
            places = blocks_right_of(row, own)
            part = triangle[places]
            for m in range(PANEL):
                part -= block[:, m, None] * raw[row:own, m, None]
            triangle[places] = part
    return True


def feedback(
    tile: Tile, grid: CodeGrid, how: Feedback, chosen: Coded, given: Coded, coders: tuple[Coder, Coder]
) -> Costs:
    """What errors cost, and their squares; as `feedback` in feedback.cpp. coders: what finds codes, and what their
    values, of weights that share parameters."""
    found = Costs(*np.empty((2, 3, tile.rows)))
    for first in range(0, tile.rows, ROWS):
        last = min(first + ROWS, tile.rows)
        rows = _Rows(tile, grid, first, last, coders)
        weights, lost = rows.weights, rows.errors(given)
        codes = np.zeros(weights.shape, np.uint8 if grid.bits <= 8 else np.uint16)
        kinds: list[tuple[Floats, Losing]] = [
            (weights, rows.choosing(chosen.params, codes, how)),
            *((errors, _losing(errors[:, how.order])) for errors in (lost, weights)),
        ]
        for kind, (base, lose) in enumerate(kinds):
            found.cost[kind, first:last], found.square[kind, first:last] = _walked(base[:, how.order], how, lose)
        pack(codes, grid.bits, chosen.packed.reshape(tile.rows, -1)[first:last])
    return found


def _walked(seen: Floats, how: Feedback, lose: Losing) -> tuple[Doubles, Doubles]:
    """What errors cost, and their squares, of what is in place of columns in the order of rounding (rows, cols), which
    is changed. lose: gives of the k-th column, and what stands for it, how far off that is, and its errors."""
    if how.triangle is None:
        return _summed(seen, how, lose)
    cost, square = np.zeros((2, len(seen)))
    for k in range(seen.shape[1]):
        off, lost = lose(k, seen[:, k])
        row = how.triangle[blocks_right_of(k // PANEL, panels_of(seen.shape[1])), k % PANEL].reshape(-1)
        seen[:, k + 1 :] += lost[:, None] * row[k % PANEL + 1 :][: seen.shape[1] - k - 1]
        off, lost = off.astype(np.float64), lost.astype(np.float64)
        cost += off * off * how.pivots[k]
        square += lost * lost
    return cost, square


def _summed(seen: Floats, how: Feedback, lose: Losing) -> tuple[Doubles, Doubles]:
    """The same for moments of rank one and a diagonal."""
    assert how.mean is not None and how.variance is not None and how.gain is not None
    cost, square, total = np.zeros((3, len(seen)))
    for k in range(seen.shape[1]):
        lost = lose(k, (seen[:, k] + total * how.gain[k]).astype(np.float32))[1].astype(np.float64)
        own = lost * lost
        total += lost * how.mean[k]
        cost += own * how.variance[k]
        square += own
    return cost + total * total, square


def _losing(errors: Floats) -> Losing:
    return lambda k, c: (c, errors[:, k])


class _Rows:
    """Some rows of a tile."""

    def __init__(self, tile: Tile, grid: CodeGrid, first: int, last: int, coders: tuple[Coder, Coder]) -> None:
        self.tile, self.grid, self.first, self.last = tile, grid, first, last
        self.weights: Floats = floats_of(tile, first, last).copy()
        self._code, self._value = coders

    def errors(self, given: Coded) -> Floats:
        """Those of given codes."""
        packed = given.packed.reshape(self.tile.rows, -1)[self.first : self.last]
        codes = unpack(packed, self.tile.cols, self.grid.bits)
        found = np.empty_like(self.weights)
        for begin in range(0, self.tile.cols, self.tile.group):
            own = np.s_[:, begin : begin + self.tile.group]
            part = codes[own].astype(np.float32)[:, None]
            values = np.empty_like(part)
            self._value(part, self._of_group(given.params, begin), self.grid, values)
            found[own] = values[:, 0]
        return self.weights - found

    def choosing(self, params: QuantParams, codes: NDArray[Any], how: Feedback) -> Losing:
        """What chooses the codes of a column, and writes them to `codes`."""

        def lose(k: int, c: Floats) -> tuple[Floats, Floats]:
            column = int(how.order[k])
            own, found = self._of_group(params, column), np.empty((len(c), 1, 1), np.float32)
            self._code(c[:, None, None], own, self.grid, found)
            codes[:, column] = found[:, 0, 0]
            values = np.empty_like(found)
            self._value(found, own, self.grid, values)
            return c - values[:, 0, 0], self.weights[:, column] - values[:, 0, 0]

        return lose

    def _of_group(self, params: QuantParams, column: int) -> QuantParams:
        """The parameters of the group of a column."""
        rows = np.s_[self.first : self.last]
        group = np.s_[:, column // self.tile.group, None, None]
        scale, zero = (None if v is None else v if len(v) == 1 else v[rows] for v in (params.scale, params.zero))
        assert scale is not None
        shared = np.full((1, 1, 1), self.grid.zero, np.float32)
        book = None if params.codebook is None else params.codebook.rows(self.first, self.last)
        return QuantParams(scale[group], shared if zero is None else zero[group], book)
