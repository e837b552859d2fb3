"""What the kernels of second-order rounding take: how the error of a column acts on those after it; see feedback.h."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

PANEL = 64
"""Rows of a panel of the triangle."""


class Done(IntEnum):
    """What is done with the rows of a tile; feedback.h names them the same."""

    CHOSEN = 0
    """Their codes are chosen."""
    GIVEN = 1
    """Their codes are given."""
    ALL_LOST = 2
    """The weights themselves stand for errors."""


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """What the errors of columns do to those after them. order: int32, columns as they are rounded; pivots: how much
    the error of each then counts. Either a triangle, panel by panel, or for moments of rank one and a diagonal `mean`
    and `gain`; all float64 in this order."""

    order: NDArray[np.int32]
    pivots: Doubles
    triangle: Doubles | None = None
    mean: Doubles | None = None
    gain: Doubles | None = None


def triangle_size(cols: int) -> int:
    """Numbers of a triangle.

    >>> triangle_size(64), triangle_size(65)
    (4096, 4161)
    """
    return sum(min(PANEL, cols - first) * (cols - first) for first in range(0, cols, PANEL))


def triangle_bytes(cols: int) -> int:
    """Bytes of memory that the second moments of so many inputs take while a layer is rounded: a triangle of float64,
    and a block of rows.

    >>> triangle_bytes(4096)
    70254592
    """
    return 8 * (triangle_size(cols) + PANEL * cols)


def panel_of(triangle: Doubles, cols: int, first: int) -> Doubles:
    """The panel that begins with a row: a view (rows, cols - first)."""
    at = first * cols - first * (first - PANEL) // 2
    rows, width = min(PANEL, cols - first), cols - first
    return triangle[at : at + rows * width].reshape(rows, width)
