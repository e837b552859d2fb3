"""Second-order rounding of a tensor that holds several experts, whose inputs differ: rows of each by its own moments.

What is factored for an expert is found when its first rows come, by the thread that has them, and held as long as a
thread is at work on it: however many experts there are, no more factors are in memory than threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from quantcli.kernels import QuantParams, joined_blocks
from quantcli.kernels.codebook import joined_codebooks
from quantcli.kernels.feedback import triangle_bytes
from quantcli.tensors import second_order
from quantcli.tensors.rounds import Rounds, finish
from quantcli.tensors.second_order import Degenerate, Output, SecondOrder

if TYPE_CHECKING:
    from quantcli.kernels import Kernels, Tile
    from quantcli.tensors.decided import ByExpert, Columns
    from quantcli.tensors.rows import Grouping, TileSpan

AT_ONCE = 1 << 28
"""Bytes of triangles that are factored at the same time, where more than one fits."""


NO_COST = Output(0.0, 0.0, 0.0)
"""Of an expert whose inputs are not known."""


class _Held:
    """How an expert is rounded, as long as somebody holds it; None for one that no sample reached."""

    def __init__(self, how: SecondOrder | None) -> None:
        self.how = how


class OfExperts:
    """How the experts in a tensor are rounded. Its methods may be called from several threads."""

    def __init__(self, kernels: Kernels, experts: ByExpert, cols: int) -> None:
        self._kernels, self._experts = kernels, experts
        self._known: WeakValueDictionary[int, _Held] = WeakValueDictionary()
        self._locks = [threading.Lock() for _ in experts.counts]
        self._room = threading.Semaphore(max(1, AT_ONCE // triangle_bytes(cols)))
        self._own = threading.local()

    def parts(self, span: TileSpan, plan: Grouping) -> Iterator[tuple[slice, SecondOrder | None]]:
        """The rows of a tile by expert, and how they are rounded; None for an expert that no sample reached. Raises
        DataError for second moments that no inputs have."""
        height = plan.rows // len(self._locks)
        for expert in range(span.row // height, (span.row + span.rows - 1) // height + 1):
            first, last = max(expert * height, span.row), min((expert + 1) * height, span.row + span.rows)
            yield slice(first - span.row, last - span.row), self._of(expert)

    def _of(self, expert: int) -> SecondOrder | None:
        with self._locks[expert]:
            held = self._known.get(expert)
            if held is None:
                self._own.held = None  # of the expert before: gone before there is another one
                held = _Held(self._found(expert))
                self._known[expert] = held
        self._own.held = held
        return held.how

    def _found(self, expert: int) -> SecondOrder | None:
        if not self._experts.counts[expert]:
            return None
        try:
            with self._room:
                found: SecondOrder = finish(second_order.learned(self._kernels, self._experts.of(expert)))
        except Degenerate:
            return None
        return found


def learned(kernels: Kernels, columns: Columns) -> Rounds:
    """How a tensor is rounded, by what is known of its inputs: a SecondOrder, or OfExperts. Raises as
    `second_order.learned` does; of experts the moments of each only when its rows come."""
    if columns.experts is None:
        found: SecondOrder = yield from second_order.learned(kernels, columns)
        return found
    if not second_order.damping_of(columns) > 0:
        raise Degenerate
    return OfExperts(kernels, columns.experts, len(columns.values))


# ---- rows of a tile ---------------------------------------------------------------------------------------------


def rows_of(tile: Tile, rows: slice) -> Tile:
    """Some rows of a tile; the tile itself where they are all."""
    if rows == slice(0, tile.rows):
        return tile
    weights = tile.weights[rows.start * tile.cols : rows.stop * tile.cols]
    return replace(tile, weights=weights, rows=rows.stop - rows.start, seen={})


def params_of(params: QuantParams, rows: slice, tile: Tile) -> QuantParams:
    """The parameters of some rows of a tile; the same ones where rows share them, or they are all."""
    if rows == slice(0, tile.rows) or len(params.scale) != tile.rows:
        return params
    blocks = params.blocks
    return QuantParams(
        params.scale[rows],
        None if params.zero is None else params.zero[rows],
        None if params.codebook is None else params.codebook.rows(rows.start, rows.stop),
        None if blocks is None else blocks.cut(rows, slice(0, params.scale.shape[1])),
    )


def joined(parts: Sequence[QuantParams], rows: int) -> QuantParams:
    """The parameters of all rows from those of parts that follow each other; those of the first where rows share
    them."""
    first = parts[0]
    if len(parts) == 1 or sum(len(part.scale) for part in parts) != rows:
        return first
    books = [part.codebook for part in parts if part.codebook is not None]
    zeros = [part.zero for part in parts if part.zero is not None]
    return QuantParams(
        np.concatenate([part.scale for part in parts]),
        np.concatenate(zeros) if zeros else None,
        joined_codebooks(books, rows) if books else None,
        joined_blocks([part.blocks for part in parts if part.blocks is not None], np.concatenate),
    )
