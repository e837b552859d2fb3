"""Super-blocks and blocks: what a type of super-block stores, the stored scales, and where codes lie in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Form(IntEnum):
    """The value of a code e of a super-block with scales d and m, in a sub-block with the whole scale s and minimum t;
    block_weights.h names them the same."""

    AFFINE = 0
    """d s e - m t."""
    SIGNED = 1
    """d s e, e from -2^(b-1) on."""
    TABLE = 2
    """d s level[e], with the levels of ggml's IQ4."""


SUPER = 256
"""Weights of a super-block."""

MOST_FACTORS, MOST_CHOICES = 9, 28
"""Factors of a type of super-block, and pairs of d and m that they make; blocks.h holds the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """A type of super-block and how its scales are searched.

    sub: weights of a sub-block. low, high: limits of its scale; deepest: of its minimum. range_bits: how finely weights
    are rounded for the search. ratios: candidates of a sub-block: of the range, or of either end's distance from the
    mean. factors: candidates of d and m, relative to those that the largest scale and minimum need. refits: of the best
    candidate; rounds: in which the parts of sub-blocks are chosen.
    """

    form: Form
    bits: int
    sub: int
    low: int
    high: int
    deepest: int = 0
    range_bits: int
    ratios: tuple[float, ...]
    factors: tuple[float, ...]
    refits: int = 0
    rounds: int = 2


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The stored scales of super-blocks: float16 bits of d and m (rows, super-blocks), whole scales and minima of
    sub-blocks (rows, groups). m and minima are 0 but for AFFINE."""

    d: NDArray[np.uint16]
    m: NDArray[np.uint16]
    scales: NDArray[np.int8]
    minima: NDArray[np.uint8]

    def cut(self, rows: slice, groups: slice) -> BlockScales:
        """Those of some rows and whole super-blocks, given as a range of groups."""
        each = self.scales.shape[1] // self.d.shape[1]
        own = slice(groups.start // each, -(-groups.stop // each))
        return BlockScales(self.d[rows, own], self.m[rows, own], self.scales[rows, groups], self.minima[rows, groups])


def empty_blocks(rows: int, cols: int, kind: BlockType) -> BlockScales:
    """Room for the scales of a tile, all 0."""
    supers, groups = (rows, cols // SUPER), (rows, cols // kind.sub)
    return BlockScales(
        np.zeros(supers, np.uint16), np.zeros(supers, np.uint16), np.zeros(groups, np.int8), np.zeros(groups, np.uint8)
    )


def joined_blocks(parts: Sequence[BlockScales], join: Callable[[list[Any]], Any]) -> BlockScales | None:
    """The scales of several parts of a tensor, arrays joined by a function; None where there are none."""
    names = ("d", "m", "scales", "minima")
    return BlockScales(*(join([getattr(part, name) for part in parts]) for name in names)) if parts else None


@dataclass(frozen=True, slots=True)
class BlockField:
    """A run of bytes of a block, from byte `at` on: of every code the `bits` bits (1, 2, 4 or 8) above `shift`.

    Those of the first `run` codes (1, or a multiple of 8) are the low bits of `run` bytes, those of the next `run` lie
    above them, until the bytes are full. All bits are flipped that `flip` has.
    """

    at: int
    bits: int
    run: int
    shift: int = 0
    flip: int = 0
