"""Second-order rounding in numpy: feedback.h, rows side by side, column by column."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.feedback import PANEL, Done, Feedback, panel_of
from quantcli.kernels.numpy_packing import pack, unpack
from quantcli.kernels.numpy_tiles import floats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.table import Bytes, CodeGrid, Doubles, QuantParams, Tile

    Coder = Callable[[NDArray[Any], QuantParams, CodeGrid, NDArray[Any]], Any]

ROWS = 256
"""Rows that are rounded at a time."""


def factor(
    triangle: Doubles, cols: int, first: int, step: int, rows: range, least: float, raw: Doubles, pivots: Doubles
) -> bool:
    """A step of the factors, as `factor` in feedback.cpp."""
    last = min(first + PANEL, cols)
    if step == 0:
        own = panel_of(triangle, cols, first)
        for m in range(last - 1, first - 1, -1):
            pivots[m] = own[m - first, m - first]
            if not pivots[m] > least:
                return False
            raw[m - first, first:m] = own[: m - first, m - first]
            found = raw[m - first, first:m] / pivots[m]
            own[: m - first, m - first] = found
            left = np.triu(found[:, None] * raw[m - first, first:m])
            own[: m - first, : m - first] -= left
        return True
    for top in range(rows.start // PANEL * PANEL, rows.stop, PANEL):
        begin, end = max(rows.start, top), min(rows.stop, top + PANEL)
        part = panel_of(triangle, cols, top)[begin - top : end - top]
        for m in range(last - 1, first - 1, -1):
            if step == 1:
                raw[m - first, begin:end] = part[:, m - top]
                part[:, m - top] /= pivots[m]
                part[:, first - top : m - top] -= part[:, m - top, None] * raw[m - first, first:m]
            else:
                part[:, : first - top] -= part[:, m - top, None] * raw[m - first, top:first]
    return True


def feedback(
    tile: Tile,
    params: QuantParams | None,
    grid: CodeGrid,
    how: Feedback,
    done: Done,
    packed: Bytes | None,
    coders: tuple[Coder, Coder],
) -> tuple[Doubles, Doubles]:
    """What the errors of every row cost, and their squares; as `feedback` in feedback.cpp. coders: what finds codes,
    and what their values, of weights that share parameters."""
    cost, square = np.zeros(tile.rows), np.zeros(tile.rows)
    for first in range(0, tile.rows, ROWS):
        last = min(first + ROWS, tile.rows)
        part = None if packed is None else packed.reshape(tile.rows, -1)[first:last]
        own = None if params is None else _part(params, first, last)
        found = _Rows(tile, own, grid, how, done, coders)
        cost[first:last], square[first:last] = found.run(first, last, part)
    return cost, square


def _part(params: QuantParams, first: int, last: int) -> QuantParams:
    from quantcli.kernels.table import QuantParams as Record

    scale, zero = (None if v is None else v if len(v) == 1 else v[first:last] for v in (params.scale, params.zero))
    assert scale is not None
    return Record(scale, zero, None if params.codebook is None else params.codebook.rows(first, last))


class _Rows:
    """Some rows of a tile."""

    def __init__(
        self,
        tile: Tile,
        params: QuantParams | None,
        grid: CodeGrid,
        how: Feedback,
        done: Done,
        coders: tuple[Coder, Coder],
    ) -> None:
        self.tile, self.params, self.grid, self.how, self.done = tile, params, grid, how, done
        self._code, self._value = coders

    def run(self, first: int, last: int, packed: Bytes | None) -> tuple[Doubles, Doubles]:
        """What their errors cost, and their squares."""
        cols, how = self.tile.cols, self.how
        weights = floats_of(self.tile, first, last).astype(np.float64)
        codes = np.zeros(weights.shape, np.uint8 if self.grid.bits <= 8 else np.uint16)
        if self.done == Done.GIVEN and packed is not None:
            codes[:] = unpack(packed, cols, self.grid.bits)
        cost, square, total = (np.zeros(last - first) for _ in range(3))
        seen = weights[:, how.order]
        for k in range(cols):
            column = int(how.order[k])
            c = seen[:, k]
            if how.mean is not None and how.gain is not None:
                c = c + total * how.gain[k]
            value = self._decided(c, codes, column)
            off, error = c - value, weights[:, column] - value
            cost += off * off * how.pivots[k]
            square += error * error
            if how.mean is not None:
                total += error * how.mean[k]
            elif how.triangle is not None:
                top = k // PANEL * PANEL
                row = panel_of(how.triangle, cols, top)[k - top, k + 1 - top :]
                seen[:, k + 1 :] += error[:, None] * row
        if self.done == Done.CHOSEN and packed is not None:
            pack(codes, self.grid.bits, packed)
        return cost, square

    def _decided(self, c: Doubles, codes: NDArray[Any], column: int) -> Doubles:
        """The values of a column that stands for c; its codes are written where they are chosen."""
        if self.params is None:
            return np.zeros(len(c))
        from quantcli.kernels.table import QuantParams as Record

        at = np.s_[:, column // self.tile.group, None, None]
        shared = np.full((1, 1, 1), self.grid.zero, np.float32)
        zero = shared if self.params.zero is None else self.params.zero[at]
        own = Record(self.params.scale[at], zero, self.params.codebook)
        found = np.empty((len(c), 1, 1), np.float32)
        if self.done == Done.CHOSEN:
            self._code(c.astype(np.float32)[:, None, None], own, self.grid, found)
            codes[:, column] = found[:, 0, 0]
        found[:, 0, 0] = codes[:, column]
        values = np.empty_like(found)
        self._value(found, own, self.grid, values)
        return values[:, 0, 0].astype(np.float64)
