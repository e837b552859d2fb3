"""Weights of the columns' errors, as the integers the scale search takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels.table import MOST_IMPORTANCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Tile


def counts(tile: Tile) -> NDArray[np.int32] | None:
    """Of every column of a tile (cols,), relative to the most important one of its group; None when all count the
    same. A positive importance gives at least 1; in groups of zero importance all columns count the same.

    >>> from quantcli.kernels import F32, Tile
    >>> importance = np.array([4.0, 1.0, 1e-9, 0.0, 0.0])
    >>> counts(Tile(np.zeros(5, np.float32), F32, 1, 5, 4, importance)).tolist()
    [2047, 512, 1, 0, 1]
    """
    if tile.importance is None:
        return None
    starts = np.arange(0, tile.cols, tile.group)
    most = np.repeat(np.maximum.reduceat(tile.importance, starts), tile.group)[: tile.cols]
    share = tile.importance / np.where(most > 0, most, 1.0)
    found = np.where(share > 0, np.maximum(np.rint(share * MOST_IMPORTANCE), 1), 0)
    return np.where(most > 0, found, 1).astype(np.int32)
