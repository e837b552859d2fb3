"""Number formats: what a code of b bits stands for. One file each; the file's name is the format's.

Shared by all formats: their codes on a grid, and the levels of codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantcli import registry
from quantcli.kernels import BINARY, LEVELS, OFFSET, CodeGrid, QuantParams, Small
from quantcli.kernels.codebook import Codebook
from quantcli.kernels.codebook import codebook as sorted_levels
from quantcli.scheme import Family, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Format:
    """A number format.

    family: the kind of codes, which calibrators depend on: `int`, `midrise`, `levels` (fixed ones) or `learned`
    (levels are part of what is calibrated). grid(scheme): the codes and their meaning. reach(scheme): what the
    largest weight is divided by to get the scale that clips nothing; for asymmetric schemes the whole range is.
    levels(scheme): for codebooks float64 (2^b,) by code, NaN where a code stands for nothing.
    bits: the least, the most, and the default; ties_to_even: as a cast rounds; zero_points: kinds of asymmetric
    schemes it supports; calibration: the default one. small: of small floats, how their codes are made.
    """

    family: Family
    grid: Callable[[Scheme], CodeGrid]
    reach: Callable[[Scheme], float]
    levels: Callable[[Scheme], NDArray[np.float64]] | None = None
    bits: tuple[int, int, int] = (2, 8, 4)
    ties_to_even: bool = False
    zero_points: tuple[str, ...] = ()
    calibration: str = "minmax"
    small: Small | None = None


def _format(scheme: Scheme) -> Format:
    return cast(Format, registry.get("formats", scheme.format))


def code_grid(scheme: Scheme) -> CodeGrid:
    """The codes of a scheme."""
    return _format(scheme).grid(scheme)


@lru_cache(maxsize=64)
def reach(scheme: Scheme) -> float:
    """The divisor of the largest weight, or for asymmetric schemes of the range, for a scale that clips nothing.

    >>> from quantcli import Scheme
    >>> reach(Scheme(bits=4)), reach(Scheme(bits=4, symmetric=False)), reach(Scheme(format="fp8-e4m3"))
    (7, 15, 448.0)
    """
    return _format(scheme).reach(scheme)


@lru_cache(maxsize=64)
def fixed_codebook(scheme: Scheme) -> Codebook:
    """The codebook of a format whose levels are not learned."""
    form = _format(scheme)
    assert form.levels is not None
    return sorted_levels(form.levels(scheme)[None], ties_to_even=form.ties_to_even, small=form.small)


def padded_codebook(levels: Floats, scheme: Scheme) -> Codebook:
    """The codebook of learned levels (tables, count), ascending; codes beyond them repeat the largest."""
    missing = (1 << scheme.bits) - levels.shape[1]
    return sorted_levels(np.concatenate([levels, np.repeat(levels[:, -1:], missing, axis=1)], axis=1))


def unused_codes(book: Codebook) -> NDArray[np.bool_]:
    """Which codes (tables, 2^b) are never written: they stand for nothing or for the same level as another code."""
    tables, size = book.levels.shape
    count = book.sorted.shape[1]
    ends = np.full((tables, count + 1), np.inf, np.float32)
    ends[:, 0] = -np.inf
    ends[:, 1:count] = book.thresholds[:, : count - 1]
    unused = np.ones((tables, size), bool)
    np.put_along_axis(unused, book.order.astype(np.intp), ~(ends[:, :-1] < ends[:, 1:]), axis=1)
    return unused


def clipped(x: NDArray[Any], params: QuantParams, grid: CodeGrid, group: int) -> NDArray[np.bool_]:
    """Which weights (rows, cols) lie beyond the outermost code by more than half a step: those whose rounded code is
    not on the grid. For one bit, and for mid-rise cells, beyond the outermost cell."""
    scale = spread_out(params.scale, x, group)
    if grid.mode == BINARY:
        return np.zeros(x.shape, bool)
    if grid.mode == LEVELS:
        assert params.codebook is not None
        quotients = x / np.where(scale == 0, np.float32(1), scale)
        limits = params.codebook.limits
        outside: NDArray[np.bool_] = (quotients < limits[:, :1]) | (quotients > limits[:, 1:])
        return outside
    zero = np.float32(grid.zero) if params.zero is None else spread_out(params.zero, x, group)
    turn = np.floor if grid.midrise else np.rint
    codes = turn((x - zero) / scale) if grid.mode == OFFSET else turn(x / scale) + zero
    beyond: NDArray[np.bool_] = (codes < grid.umin) | (codes > grid.umax)
    return beyond


def spread_out(values: Floats, x: NDArray[Any], group: int) -> Floats:
    """Parameters of every weight, from (rows, groups) or (1, groups) ones."""
    if values.shape[1] == 1:
        return values
    return np.repeat(values, group, axis=1)[:, : x.shape[1]] if group > 1 else values
