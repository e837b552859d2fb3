"""Calibrators: weights of a group in, its scale and zero point out. One file each; the file's name is the method's.

A calibrator observes a tile, merges what it saw of groups that go on in the next tile (in file order), and solves
for the parameters in float64. Rounding them to their storage dtype is core.py's part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import Kernels, Tile
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]

Observed = dict[str, Any]
"""What was seen of each group: named arrays of one shape, (rows, groups), (1, 1) or (cols,)."""

Sharing = Literal["tensor", "columns"]


@dataclass(frozen=True, slots=True)
class Ideal:
    """Parameters before rounding, float64. zero: for integer zero points the (not yet rounded) code of value 0, for
    float ones the offset; None when symmetric."""

    scale: Array
    zero: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """A way to find parameters.

    observe(kernels, tile, sharing): what is seen of every group of the tile, of the tile as one ("tensor") or of its
    columns ("columns"); None when a weight is not finite.
    merge(earlier, later): both together. solve(observed, scheme): the parameters.
    grid: the symmetric grid it is for unless told otherwise; binary: whether it is for one symmetric bit;
    affine: whether it knows asymmetric schemes; options: name -> default.
    """

    summary: str
    observe: Callable[[Kernels, Tile, Sharing | None], Observed | None]
    merge: Callable[[Observed, Observed], Observed]
    solve: Callable[[Observed, Scheme], Ideal]
    grid: Literal["restricted", "full"] = "restricted"
    binary: bool = False
    affine: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
