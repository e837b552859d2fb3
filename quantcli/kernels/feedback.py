"""What the kernels of second-order rounding take: how the error of a column acts on those after it; see feedback.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

PANEL = 64
"""Rows and columns of a block of the triangle."""

STEP = 1 << 16
"""Numbers that are turned into float32 at a time."""


class Costs(NamedTuple):
    """What errors cost in the output of a layer, and their squares, row by row: float64 (3, rows). The first are of the
    codes that are chosen, the second of those that are given, the last of the weights themselves, which are the errors
    where all is lost."""

    cost: Doubles
    square: Doubles


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """What the errors of columns do to those after them. order: int32, columns as they are rounded; pivots: float64,
    how much the error of each then counts, of a triangle filled up to whole blocks. Either a triangle, float32 in
    blocks (`block_of`), or for moments of rank one and a diagonal `mean`, `variance` and `gain`, float64; all in this
    order."""

    order: NDArray[np.int32]
    pivots: Doubles
    triangle: NDArray[np.float32] | None = None
    mean: Doubles | None = None
    variance: Doubles | None = None
    gain: Doubles | None = None


def panels_of(cols: int) -> int:
    """Columns of blocks that so many columns take.

    >>> panels_of(64), panels_of(65)
    (1, 2)
    """
    return -(-cols // PANEL)


def block_of(row: int, column: int) -> int:
    """The number of a block of the triangle: those on and above the diagonal, one column of blocks after the other.

    >>> [block_of(row, column) for column in range(3) for row in range(column + 1)]
    [0, 1, 2, 3, 4, 5]
    """
    return column * (column + 1) // 2 + row


def blocks_right_of(row: int, panels: int) -> NDArray[np.intp]:
    """The numbers of the blocks of a row, from the diagonal on.

    >>> blocks_right_of(1, 4).tolist()
    [2, 4, 7]
    """
    columns = np.arange(row, panels)
    found: NDArray[np.intp] = columns * (columns + 1) // 2 + row
    return found


def triangle(cols: int) -> Doubles:
    """An empty triangle (blocks, PANEL, PANEL)."""
    return np.zeros((block_of(0, panels_of(cols)), PANEL, PANEL))


def triangle_bytes(cols: int) -> int:
    """Bytes of memory that the second moments of so many inputs take: a triangle of float64, and two columns of blocks
    while it is factored.

    >>> triangle_bytes(4096)
    72351744
    """
    panels = panels_of(cols)
    return 8 * PANEL * PANEL * (block_of(0, panels) + 2 * panels)


def narrowed(wide: Doubles) -> NDArray[np.float32]:
    """A triangle in float32. It takes the first half of the memory of the one given, which is used up by that, and the
    other half is given back: two of 8,192 columns would take 400 MB for a moment."""
    shape, numbers = wide.shape, wide.reshape(-1)
    found = numbers.view(np.float32)
    for first in range(0, numbers.size, STEP):
        part = numbers[first : first + STEP].astype(np.float32)
        found[first : first + part.size] = part
    wide.resize(numbers.size // 2, refcheck=False)
    return wide.view(np.float32).reshape(shape)
