"""Array <-> rows that share parameters: how a tensor of any shape is grouped, and cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import sees_channels_whole
from quantcli.errors import UsageError
from quantcli.kernels import row_bytes
from quantcli.scheme import MAX_GROUP, Scheme
from quantcli.tensors.digits import Digits, digits_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDEST_COLUMNS = 1 << 22
"""Longest row whose columns may have separate parameters: those are vectors as long as the row."""

WIDEST_BLOCKS = 1 << 16
"""Longest row of blocks: a tile holds as many rows as a block has."""

TILE = 1 << 20
"""Weights that are read, quantized and written at a time: 2 MiB of bfloat16 stay in the cache."""


SAMPLE = 1 << 18
"""Weights that levels shared by the groups of a tensor are learned from."""

STRIP = 1 << 21
"""Weights of a strip of channels that are not rows; a single channel may not have more."""


@dataclass(frozen=True, slots=True)
class TileSpan:
    """Rows [row, row + rows) and columns [col, col + cols) of a grouping: one run of weights in the file."""

    row: int
    rows: int
    col: int
    cols: int


@dataclass(frozen=True, slots=True)
class Grouping:
    """A tensor seen as a matrix (rows, cols) whose rows are packed one by one.

    group: columns that share parameters; the last group of a row may be short.
    shared: None when every row has separate parameters, "tensor" when all weights share one set, "columns" when
    the rows share one set per column.
    lead: the leading part of the tensor's shape that the rows stand for.
    scale_shape: shape of the stored scales.
    height: rows that share parameters, of blocks; the last ones may be fewer.
    digits: how codes are stored in the native file where that is not the stream of bits.
    """

    rows: int
    cols: int
    group: int
    shared: str | None
    lead: tuple[int, ...]
    scale_shape: tuple[int, ...]
    height: int = 1
    digits: Digits | None = None

    def __hash__(self) -> int:
        return hash((self.rows, self.cols, self.group))  # see Scheme

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return -(-self.cols // self.group)

    @property
    def short_group(self) -> int:
        """Weights in the short last group of each row; 0 when all groups are whole."""
        return self.cols % self.group

    @property
    def scales(self) -> int:
        """Number of stored scales."""
        return math.prod(self.scale_shape)

    @property
    def sets(self) -> int:
        """Number of sets of weights that share parameters."""
        return 1 if self.shared == "tensor" else self.scales

    def packed_shape(self, bits: int) -> tuple[int, ...]:
        """Shape of the packed codes in 32-bit words; of digits in bytes."""
        if self.digits is not None:
            return (*self.lead, self.digits.row_bytes(self.cols))
        return (*self.lead, row_bytes(self.cols, bits) // 4)

    @property
    def unit(self) -> int:
        """Columns whose codes are stored by themselves: whole words, or whole numbers of digits."""
        return 32 if self.digits is None else 32 * self.digits.count

    @property
    def two_pass(self) -> bool:
        """Whether parameters depend on more than one tile."""
        return self.shared is not None or (self.cols > TILE and self.group >= self.cols)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile; 0 where a tile is a part of a row."""
        if self.cols > TILE and self.shared != "columns":
            return 0
        return max(1, TILE // max(self.cols * self.height, 1)) * self.height

    def strips(self, weights: int = STRIP) -> Iterator[TileSpan]:
        """Runs of whole channels of the columns, all rows of each: how channels of an axis other than the first are
        read one by one. `col` and `cols` count channels here."""
        channels = self.scales
        step = max(1, weights * channels // max(self.rows * self.cols, 1))
        for first in range(0, channels, step):
            yield TileSpan(0, self.rows, first, min(step, channels - first))

    def sample(self, weights: int = SAMPLE, pieces: int = 8) -> Iterator[TileSpan]:
        """A sample of about this many weights, spread evenly over the tensor; all of a small one."""
        if self.rows * self.cols <= 2 * weights:
            yield from self.tiles()
        elif self.cols <= weights // pieces:
            height = weights // pieces // self.cols
            for piece in range(pieces):
                yield TileSpan(piece * (self.rows - height) // (pieces - 1), height, 0, self.cols)
        else:
            unit = math.lcm(32, self.group)
            width = min(max(1, weights // pieces // unit) * unit, self.cols)
            for piece in range(pieces):
                col = piece * (self.cols - width) // (pieces - 1) // unit * unit
                yield TileSpan(piece * (self.rows - 1) // (pieces - 1), 1, col, width)

    def tiles(self) -> Iterator[TileSpan]:
        """The tiles in file order; the cut depends on the grouping alone, never on threads or kernels."""
        if height := self.tile_rows:
            for row in range(0, self.rows, height):
                yield TileSpan(row, min(height, self.rows - row), 0, self.cols)
            return
        unit = self.unit if self.group >= self.cols else math.lcm(self.unit, self.group)
        step = max(1, TILE // unit) * unit
        for row in range(self.rows):
            for col in range(0, self.cols, step):
                yield TileSpan(row, 1, col, min(step, self.cols - col))


@lru_cache(maxsize=4096)
def grouping_of(shape: tuple[int, ...], scheme: Scheme) -> Grouping:
    """The grouping of a tensor of this shape under a scheme.

    Raises UsageError for an axis the tensor does not have, for a group too large to end inside a row, and for learned
    levels by columns.

    >>> from quantcli import Scheme
    >>> grouping_of((64, 16, 3, 3), Scheme(bits=4)).scale_shape
    (64, 2)
    >>> grouping_of((8, 10), Scheme(bits=4, granularity="channel", axis=1)).scale_shape
    (1, 10)
    """
    found = _grouping(shape, scheme)
    if scheme.format != "codebook":
        return found
    return replace(found, digits=digits_of(scheme.level_count, scheme.bits, found.cols))


def _grouping(shape: tuple[int, ...], scheme: Scheme) -> Grouping:
    """The grouping, its codes in a stream of bits."""
    axes = max(len(shape), 1)
    if not -axes <= scheme.axis < axes:
        plural = "s" if len(shape) != 1 else ""
        problem = f"a tensor of {len(shape)} dimension{plural} has no axis {scheme.axis}"
        raise UsageError(problem, hint="use a smaller --axis")
    axis = scheme.axis % axes
    lead: tuple[int, ...]
    if len(shape) < 2:  # a vector is one row
        lead, cols = (1,), math.prod(shape)
    elif scheme.granularity == "block" and len(shape) == 3:
        lead, cols = shape[:2], shape[2]
    elif scheme.granularity == "group":
        split = len(shape) - 1
        while split > 1 and math.prod(shape[split:]) < scheme.group_size:
            split -= 1
        lead, cols = shape[:split], math.prod(shape[split:])
    else:
        lead, cols = shape[:1], math.prod(shape[1:])
    rows = math.prod(lead)
    if scheme.granularity == "tensor":
        return Grouping(rows, cols, max(cols, 1), "tensor", lead, (*lead, 1))
    if scheme.granularity == "channel":
        if axis == 0:
            return Grouping(rows, cols, max(cols, 1), None, lead, (*lead, 1))
        if scheme.family == "learned":
            problem = f"learned levels are not supported for channels of axis {scheme.axis}"
            raise UsageError(problem, hint="use --axis 0 or groups")
        if cols > WIDEST_COLUMNS:
            problem = f"axis {scheme.axis} is not supported with {cols} weights behind axis 0"
            raise UsageError(problem, hint="use --axis 0 or groups")
        if sees_channels_whole(scheme) and rows * cols > STRIP * shape[axis]:
            count = rows * cols // shape[axis]
            raise UsageError(
                f"{scheme.calibration} does not support {count} weights in each channel of axis {scheme.axis}",
                hint=f"use --axis 0 or groups; up to {STRIP} weights a channel are supported",
            )
        scale_shape = tuple(n if a == axis else 1 for a, n in enumerate(shape))
        return Grouping(rows, cols, 1, "columns", lead, scale_shape)
    group = max(1, min(scheme.group_size, cols))
    if scheme.granularity == "block":
        return _blocks(rows, cols, lead, scheme.group_size)
    if MAX_GROUP < group < cols:
        raise UsageError(
            f"groups of {group} do not cover a row of {cols}",
            hint=f"use a group size up to {MAX_GROUP}, or -1 for one scale per row",
        )
    return Grouping(rows, cols, group, None, lead, (*lead, -(-cols // group)))


def _blocks(rows: int, cols: int, lead: tuple[int, ...], side: int) -> Grouping:
    """The grouping of a matrix, or of a stack of them, in blocks of `side` rows and columns."""
    if cols > WIDEST_BLOCKS:
        raise UsageError(f"blocks of {side} rows of {cols} weights are not supported", hint="use groups")
    across = -(-cols // side)
    if len(lead) > 1 and 0 < lead[-1] < side:  # a row of blocks for each matrix, however low
        return Grouping(rows, cols, max(1, min(side, cols)), None, lead, (lead[0], 1, across), lead[-1])
    if len(lead) > 1 and lead[-1] % side:
        hint = "use groups, or a block size that divides it"
        raise UsageError(f"blocks of {side} rows would cross matrices of {lead[-1]} rows", hint=hint)
    shape = (-(-rows // side), across) if len(lead) == 1 else (lead[0], lead[1] // side, across)
    return Grouping(rows, cols, max(1, min(side, cols)), None, lead, shape, side)


def rows_of_inputs(shape: tuple[int, ...], *, stacked: bool) -> Grouping:
    """A tensor as rows (outputs, inputs) of a layer, however its codes are grouped. stacked: whether the first axis
    counts experts, each of which has such rows.

    >>> found = rows_of_inputs((64, 16, 3, 3), stacked=False), rows_of_inputs((8, 64, 32), stacked=True)
    >>> [(grouping.rows, grouping.cols) for grouping in found]
    [(64, 144), (512, 32)]
    """
    split = max(len(shape) - 1, 0) if stacked or len(shape) < 2 else 1
    lead, cols = shape[:split] or (1,), math.prod(shape[split:])
    return Grouping(math.prod(lead), cols, max(cols, 1), None, lead, (*lead, 1))


def column_repeats(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, channels, inner) of the columns of a row: how the channels of `axis` recur along it.

    >>> column_repeats((16, 8, 3, 3), 1)
    (1, 8, 9)
    """
    axis %= len(shape)
    return math.prod(shape[1:axis]), shape[axis], math.prod(shape[axis + 1 :])


def runs(places: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Places that follow each other: the first of them, and which of all they are.

    >>> [(first, which.tolist()) for first, which in runs(np.array([4, 7, 5, 6, 0]))]
    [(0, [4]), (4, [0, 2, 3, 1])]
    """
    order: NDArray[np.intp] = np.argsort(places, kind="stable")
    ordered = places[order]
    ends = [0, *(np.flatnonzero(np.diff(ordered) != 1) + 1).tolist(), len(ordered)]
    for low, high in pairwise(ends):
        yield int(ordered[low]), order[low:high]
