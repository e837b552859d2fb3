"""Blocks of rows and columns that share a scale: laid out as rows that calibrators take, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.tensors.rows import Grouping


def as_rows(tile: Tile, height: int) -> Iterator[Tile]:
    """The weights of a tile whose rows start a block, with every block as one group: a tile of the whole rows of
    blocks, and one of the last blocks where these have fewer rows."""
    whole = tile.rows // height * height
    for first, last, high in ((0, whole, height), (whole, tile.rows, tile.rows - whole)):
        if first < last:
            yield _rows(tile, first, last, high)


def _rows(tile: Tile, first: int, last: int, height: int) -> Tile:
    weights = tile.weights.reshape(tile.rows, tile.cols)[first:last]
    down, side = (last - first) // height, tile.group
    cut = tile.cols // side * side
    out = np.empty((down, tile.cols * height), weights.dtype)
    stacked = weights.reshape(down, height, tile.cols)
    laid = stacked[:, :, :cut].reshape(down, height, cut // side, side)
    out[:, : cut * height].reshape(down, cut // side, height, side)[...] = laid.transpose(0, 2, 1, 3)
    out[:, cut * height :].reshape(down, height, tile.cols - cut)[...] = stacked[:, :, cut:]
    return replace(
        tile,
        weights=out.reshape(-1),
        rows=down,
        cols=tile.cols * height,
        group=side * height,
        importance=None if tile.importance is None else _counts(tile.importance, side, height),
        seen={},
    )


def _counts(importance: NDArray[Any], side: int, height: int) -> NDArray[Any]:
    """The importance of the columns, in the order of the weights of blocks."""
    return np.concatenate([np.tile(importance[at : at + side], height) for at in range(0, len(importance), side)])


def by_rows(values: Floats, plan: Grouping, row: int, rows: int) -> Floats:
    """Parameters (rows, groups) of the rows from `row` on, of those of the blocks they are in; others as they are."""
    if plan.height == 1:
        return values
    skipped = row % plan.height
    return np.repeat(values, plan.height, axis=0)[skipped : skipped + rows]
