"""Arguments and results of the kernels, and the protocol `Kernels` of every table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from quantcli.library import LIMITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.block_types import BlockField, BlockScales, BlockType
    from quantcli.kernels.codebook import Codebook, Small
    from quantcli.kernels.feedback import Costs, Feedback

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Doubles = NDArray[np.float64]
    Counts = NDArray[np.int64]
    Codes = NDArray[np.uint8] | NDArray[np.uint16]

T = TypeVar("T")

Kind = Literal[0, 1, 2]
"""How weights lie in memory: 0 bfloat16 bits, 1 float16 bits, 2 float32."""

BF16: Kind = 0
F16: Kind = 1
F32: Kind = 2

INTEGER, OFFSET, BINARY, LEVELS = 0, 1, 2, 3
"""The value of a code u: (u - zero) * scale; u * scale + offset; -scale or +scale; levels[u] * scale."""


MOST_CANDIDATES, MOST_ENDS, MOST_TRIALS, MOST_IMPORTANCE = LIMITS
"""Candidate scales, places of an end of the range, trial scales, and how much a column may count."""


class Grids(IntEnum):
    """The grids of signed codes that `search` tries, `top` the highest code; common.h names them the same."""

    TURNED = 0
    """-top..top+1 alone, for weights turned so that the largest is positive."""
    RESTRICTED = 1
    """-top..top."""
    BOTH_SIGNS = 2
    """-top-1..top and -top..top+1."""
    THREE_ZEROS = 3
    """-z..top-z for three zero points z around the one that is handed over."""
    FIVE_ZEROS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeGrid:
    """The unsigned codes [umin, umax] of b bits and what they stand for.

    `zero` is the zero point every group shares when no array of zero points is given. `midrise`: codes are found by
    floor instead of rounding and stand for the middle of their cell, u + 1/2.
    """

    mode: int
    bits: int
    umin: int
    umax: int
    zero: int = 0
    midrise: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantParams:
    """Parameters of every group: scale, zero point or offset (None when there is none), the codebook, and the stored
    parts of scales in super-blocks.

    Arrays of float32, (rows, groups) or (1, groups) where all rows share them. Zero points are whole numbers in
    0 .. 2^b-1. The scale has already been rounded to its storage dtype.
    """

    scale: Floats
    zero: Floats | None = None
    codebook: Codebook | None = None
    blocks: BlockScales | None = None


class Method(IntEnum):
    """How `quantize` finds the parameters of groups; settle.h names them the same."""

    SPANNING = 0
    """Those that span the range."""
    EXTREME = 1
    """The weight of largest magnitude on the lowest code."""
    SEARCH = 2
    """Those of `search`, around those that span the range."""
    TRIALS = 3
    """Of the stored scales around those that span the range the best, as `trial_floats` finds it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How parameters are found, by a method that the kernels know. multipliers, grids: of a search, as `search` takes
    them."""

    method: Method
    multipliers: Floats | None = None
    grids: Grids = Grids.RESTRICTED


class ScaleKind(IntEnum):
    """How scales are stored; the first are the kinds of weights, and settle.h names the others the same."""

    BF16 = 0
    F16 = 1
    F32 = 2
    E8M0 = 3
    E4M3 = 4


@dataclass(frozen=True, slots=True, eq=False)
class StoredScales:
    """How `quantize` rounds scales to what is stored, and which stored ones are tried around a plain one.

    ratios: float64, the trials of floats relative to the plain one, which is the first. values: of the other kinds,
    which are listed, all scales there are, ascending, the ends repeated for trials beyond them; times `unit` each is a
    number whose exponent (E8M0) or E4M3 code tells its place. below, above: how many smaller and larger ones are tried.
    """

    kind: ScaleKind
    ratios: Doubles | None = None
    values: Floats | None = None
    unit: float = 1.0
    below: int = 0
    above: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What `quantize` does with groups of integers or levels: how parameters are found, the grid and whether it is
    affine, with whole zero points, how scales are stored and the smallest that this does well, and whether sums are
    preserved. top: what the largest weight is divided by for the scale that clips nothing. book: of levels. height:
    rows of a block, whose scales are (rows of blocks, groups)."""

    finding: Finding
    grid: CodeGrid
    affine: bool
    scales: StoredScales
    smallest: float
    preserve: bool
    top: float
    book: Codebook | None = None
    height: int = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Made:
    """What `quantize` made: sums as of `encode`, parameters, and the squared error of the rival. output: what the
    errors cost in the output of the layer, where that is known."""

    sums: Sums
    params: QuantParams
    rival: float | None
    output: Any = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Squared error, power (both float64 sums), largest error and number of clipped weights of one tile."""

    sse: float
    power: float
    max_abs: float
    clipped: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ranges:
    """Smallest value, largest value and signed value of largest magnitude (first one wins), float32 arrays of one
    shape; `finite` is False when a weight was NaN or infinite and the arrays mean nothing."""

    lo: Floats
    hi: Floats
    extreme: Floats
    finite: bool


@dataclass(frozen=True, slots=True)
class Tile:
    """Weights (rows, cols) as they lie in memory, in groups of `group` columns that share parameters.

    `weights` is one-dimensional: uint16 for BF16 and F16, float32 for F32. The last group of a row may be short.
    importance: how much the error of each column counts, float64 (cols,); None when all count the same. original: the
    tile before its columns were rotated, if they were.
    """

    weights: NDArray[Any]
    kind: Kind
    rows: int
    cols: int
    group: int
    importance: Doubles | None = None
    original: Tile | None = None
    seen: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.cols // self.group)

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What was found of a tile under a name: several calibrators, and passes, may look at the same one."""
        if name not in self.seen:
            self.seen[name] = find()
        found: T = self.seen[name]
        return found

    def ranges(self, kernels: Kernels) -> Ranges:
        """Ranges of every group."""
        return self.once("ranges", lambda: kernels.ranges(self))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choices:
    """Stored scales to try for every group: `count` of (rows, groups, count), or of a list from the group's `first`
    (rows, groups) on; `plain` is the place of the one that a largest weight gives."""

    values: Floats
    first: NDArray[np.int32] | None
    count: int
    plain: int


class Coded(NamedTuple):
    """Codes of a tile, packed, and the parameters that they are made with."""

    params: QuantParams
    packed: Bytes


class Kernels(Protocol):
    """The interface of both tables. Packed codes are rows of whole 32-bit words, low code first."""

    name: str

    def ranges(self, tile: Tile) -> Ranges:
        """Ranges of every group, arrays (rows, groups)."""

    def column_ranges(self, tile: Tile) -> Ranges:
        """Ranges of every column over the rows, arrays (cols,)."""

    def histogram(self, tile: Tile, counts: Counts, lows: Counts | None) -> bool:
        """Add the weights of a tile to a histogram of their patterns (see histogram.py); whether all are finite."""

    def search(
        self,
        tile: Tile,
        reciprocal: Floats,
        centre: Floats | None,
        multipliers: Floats,
        top: float,
        grids: Grids,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[Doubles, NDArray[np.int32]]:
        """Scale with the least squared error and the grid it is for, of every group (rows, groups); see search.h.
        importance: how much the error of each of the tile's columns counts, 0 to MOST_IMPORTANCE."""

    def search_offsets(
        self,
        tile: Tile,
        middle: Floats,
        reciprocal: Floats,
        start: tuple[Doubles, Doubles],
        ratios: Doubles,
        top: int,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[Doubles, Doubles]:
        """Scale and offset with the least squared error of every group (rows, groups), never worse than the start; see
        offsets.h. Offsets are relative to `middle`."""

    def search_blocks(
        self, tile: Tile, kind: BlockType, importance: tuple[NDArray[np.int16], Doubles] | None = None
    ) -> BlockScales:
        """The stored scales of super-blocks with the least squared error; see blocks.h. importance: of every column of
        the tile, 0 to 256 in its sub-block, and how much each sub-block counts."""

    def kmeans(self, weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
        """Starts (k, n + 1) of the cells of optimal 1-D k-means, from sums over the values before each place (n + 1);
        see kmeans.h."""

    def trial_levels(
        self, tile: Tile, book: Codebook, choices: Choices, cross: Doubles | None, square: Doubles | None
    ) -> NDArray[np.int32]:
        """Which of the choices of every group (rows, groups) leaves the least error with the levels of a shared
        codebook, the first of equal ones; for every level sums of scale * x and scale^2 are added to `cross` and
        `square`."""

    def trial_floats(
        self, tile: Tile, small: Small, choices: Choices, importance: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Which of the choices of every group (rows, groups) leaves the least error when its weights are small floats.
        Of equal ones it is the plain one, else the first; see trials.h."""

    def encode(
        self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes | None, *, preserve: bool = False
    ) -> Sums:
        """Write the codes of a tile to `packed` and sum up the errors of the decoded values. Without `packed` only the
        squared error is.

        preserve: sum-preserving rounding (see rounding.h) instead of rounding to nearest."""

    def pack(self, codes: Codes, bits: int, packed: Bytes) -> None:
        """Write codes (rows, cols), uint8 up to 8 bits and uint16 above, to rows of whole words (rows, row_bytes)."""

    def unpack(self, packed: Bytes, cols: int, bits: int) -> Codes:
        """The codes (rows, cols) of rows of whole words."""

    def fill_blocks(self, packed: Bytes, cols: int, bits: int, fields: Sequence[BlockField], blocks: Bytes) -> None:
        """Write the fields of blocks (blocks, bytes), one row of them after another, from the codes of rows of whole
        words (rows, row_bytes). The other bytes of blocks stay as they are."""

    def quantize(self, tile: Tile, rule: Rule, rival: Rule | None, packed: Bytes | None) -> Made | None:
        """Find parameters, settle them as they are stored, and encode: all in one call. None where a separate look is
        due, because something is out of the ordinary, or where the table has no such call. rival: a rule whose error
        is measured beside it. Without `packed` only squared errors are found."""

    def quantize_each(
        self, tile: Tile, count: int, rule: Rule, rival: Rule | None, packed: Bytes | None
    ) -> tuple[QuantParams, Doubles] | None:
        """The parameters and codes that `quantize` gives for each of `count` tensors of one shape that the tile holds
        one after another; for each squared error, power, largest error, number of clipped weights and squared error of
        the rival. None where it gives none for one of them."""

    def measure(self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes) -> Sums:
        """The sums `encode` gave, from the stored codes."""

    def decode(self, packed: Bytes, shape: tuple[int, int], group: int, params: QuantParams, grid: CodeGrid) -> Floats:
        """Weights (rows, cols) from stored codes."""

    def factor(
        self, triangle: Doubles, own: int, step: int, rows: range, least: float, spare: Doubles, pivots: Doubles
    ) -> bool:
        """A step of the factors of second moments for a column of blocks, in place; see feedback.cpp. Whether all
        pivots are above `least`. spare: (2, columns of blocks, PANEL, PANEL), handed from one step to the next."""

    def feedback(self, tile: Tile, grid: CodeGrid, how: Feedback, chosen: Coded, given: Coded) -> Costs:
        """Choose the codes of a tile for the least error in the output of a layer, and write them to `chosen.packed`;
        what errors cost: those of these codes, of those that are given, and of the weights themselves."""

    def rotate(self, values: Floats, size: int) -> None:
        """Multiply runs of `size` numbers by a regular Hadamard matrix, in place; see rotation.h. Doing it twice undoes
        it."""

    def difference(self, before: Floats, after: Floats) -> tuple[float, float, float]:
        """Of a run of weights and what became of them: the sum of squared errors, that of squared weights, and the
        largest error. Weights that are not finite make one of them so."""

    def bfloat16(self, values: Floats) -> NDArray[np.uint16]:
        """Bits of the nearest bfloat16 of finite values, ties to even."""


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of one packed row: whole 32-bit words.

    >>> row_bytes(10, 4)
    8
    """
    return (cols * bits + 31) // 32 * 4
