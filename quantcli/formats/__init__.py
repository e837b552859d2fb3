"""Number formats: what a code of so many bits stands for. One file each; the file's name is the format's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import CodeGrid
    from quantcli.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number format.

    summary: a line for `--help`. family: what calibrators go by: `int`, `midrise`, `levels` (fixed ones) or `learned`
    (levels are part of what is calibrated). grid(scheme): the codes and their meaning. reach(scheme): what the
    largest weight is divided by to get the scale that clips nothing; for asymmetric schemes the whole range is.
    levels(scheme): for codebooks float64 (2^b,) by code, NaN where a code stands for nothing.
    bits: the least, the most, and the default; ties_to_even: as a cast rounds; zero_points: kinds of asymmetric
    schemes it knows; calibration: the default one.
    """

    summary: str
    family: str
    grid: Callable[[Scheme], CodeGrid]
    reach: Callable[[Scheme], float]
    levels: Callable[[Scheme], NDArray[np.float64]] | None = None
    bits: tuple[int, int, int] = (2, 8, 4)
    ties_to_even: bool = False
    zero_points: tuple[str, ...] = ()
    calibration: str = "minmax"
