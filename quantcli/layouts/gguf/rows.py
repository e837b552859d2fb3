"""The order of rows in which llama.cpp wants fused or rotated matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Order:
    """An order of rows. source(rows, heads, kv_heads): the row of the checkpoint for every row of llama.cpp's; units:
    the number of runs of rows that are best read at a time."""

    source: Callable[[int, int, int], NDArray[np.intp]]
    units: Callable[[int, int], int]


def turned(rows: int, heads: int) -> NDArray[np.intp]:
    """Heads whose halves alternate: llama.cpp rotates neighbours where the checkpoint rotates a row with the one half a
    head later.

    >>> turned(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    order: NDArray[np.intp] = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return order


def apart(rows: int, heads: int, kv_heads: int) -> NDArray[np.intp]:
    """All queries, all keys, all values, where the checkpoint has the queries of a group with its key and its value.

    >>> apart(8, 2, 1).tolist(), apart(6, 2, 2).tolist()
    ([0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 1, 4, 2, 5])
    """
    groups = np.arange(rows).reshape(kv_heads, heads // kv_heads + 2, -1)
    queries, rest = groups[:, :-2], groups[:, -2:]
    order: NDArray[np.intp] = np.concatenate([queries.reshape(-1), rest[:, 0].reshape(-1), rest[:, 1].reshape(-1)])
    return order


QUERIES = Order(lambda rows, heads, kv_heads: turned(rows, heads), lambda heads, kv_heads: heads)
KEYS = Order(lambda rows, heads, kv_heads: turned(rows, kv_heads), lambda heads, kv_heads: kv_heads)
APART = Order(apart, lambda heads, kv_heads: kv_heads)
