"""Calibrators: weights of a group in, its scale and zero point out. One file each; the file's name is the method's.

A calibrator finds the parameters of the groups of a tile (`local`). Where weights that share parameters lie in several
tiles, something is gathered from each of them (`gather`: ranges, a histogram), merged, and solved for the parameters.
All of it in float64; tensors/settle.py rounds parameters to their storage dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from quantcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import BlockScales, Finding, Kernels, Tile
    from quantcli.scales import Store
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]

Observed = dict[str, Any]
"""Gathered statistics: named arrays of one shape, (rows, groups), (1, 1) or (cols,), or a histogram."""

Sharing = Literal["tensor", "columns"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ideal:
    """Parameters before rounding, float64. zero: for integer zero points the (not yet rounded) code of value 0, for
    float ones the offset; None for symmetric codes. levels: (tables, count) ascending, for learned codebooks. blocks:
    the stored parts of scales that are rounded already, because they are stored together."""

    scale: Array
    zero: Array | None = None
    levels: Array | None = None
    blocks: BlockScales | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Shared:
    """Levels (count,) shared by the groups of a tensor, each of which has a separate scale; `step` counts the passes so
    far, and `done` marks the levels as final."""

    levels: Array
    factor: float
    step: int
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Gather:
    """A way to gather statistics of weights that lie in several tiles.

    observe(kernels, tile, sharing, into): statistics of every group of the tile, of the tile as one ("tensor") or
    of its columns ("columns"); None when a weight is not finite. merge(earlier, later): the statistics of both.
    ordered: merging must follow the file. Otherwise any order gives the same, and `observe` adds to `into`, what was
    seen of other tiles (None for the first). columns: whether it supports statistics of columns.
    """

    observe: Callable[[Kernels, Tile, Sharing | None, Observed | None], Observed | None]
    merge: Callable[[Observed, Observed], Observed]
    ordered: bool = True
    columns: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LevelSearch:
    """How levels that groups share are learned: observe(kernels, tile, scheme, shared) in as many passes as it takes,
    each merged in file order and solved for better levels; then local(..., shared, scale_dtype) for the scales."""

    observe: Callable[[Kernels, Tile, Scheme, Shared | None, str], Observed | None]
    merge: Callable[[Observed, Observed], Observed]
    solve: Callable[[Observed, Scheme, Shared | None], Shared]
    local: Callable[[Kernels, Tile, Scheme, Shared, str], Ideal | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Option:
    """An option of a calibrator: its default, and the numbers or words it may be."""

    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise UsageError for a value that is not allowed."""
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"{value!r} is not one of {', '.join(self.choices)}", place=[name])
        elif type(value) not in (int, float) or not self.low <= value <= self.high:
            shown = f"{value:g}" if type(value) is float else repr(value)
            raise UsageError(f"{shown} is not a number from {self.low:g} to {self.high:g}", place=[name])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Calibrator:
    """A way to find parameters.

    gather: how statistics of weights in several tiles are gathered. solve(observed, scheme): their parameters.
    local(kernels, tile, scheme, store): parameters (rows, groups) of a tile; None when a weight is not finite. store:
    how its scales will be stored, where it chooses among those. Without one, the statistics that `gather` takes of the
    tile are solved. families: families of formats it supports (see formats).
    grid: its default symmetric grid, and any_grid: whether another one may be requested. binary: whether it is for one
    symmetric bit; affine: whether it supports asymmetric schemes. auto: whether `--calibration auto` tries it. shared:
    for learned levels shared by groups. caution(scheme, n): why it is doubtful for groups of n weights, if it is.
    obstacle(scheme): why it cannot do what its options request. weighs: whether `local` depends on the importance of
    columns. finding(scheme, n): how the kernels find the same parameters for groups of n weights by themselves, None
    where they do not.
    """

    gather: Gather
    solve: Callable[[Observed, Scheme], Ideal]
    local: Callable[[Kernels, Tile, Scheme, Store], Ideal | None] | None = None
    families: tuple[str, ...] = ("int",)
    grid: Literal["restricted", "full"] = "restricted"
    any_grid: bool = True
    binary: bool = False
    affine: bool = True
    auto: bool = True
    options: Mapping[str, Option] = field(default_factory=dict)
    shared: LevelSearch | None = None
    caution: Callable[[Scheme, int], str | None] | None = None
    obstacle: Callable[[Scheme], str | None] | None = None
    weighs: bool = False
    finding: Callable[[Scheme, int], Finding | None] | None = None
