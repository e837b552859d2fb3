"""MXFP4 as NVFP4: the same codes, every scale for two groups of 16, times a scale of the tensor.

A scale of MXFP4 is any power of two; E4M3 has those from 2^-9, its smallest number, to 2^8. The scale of the tensor is
the power of two that makes the largest scale 2^8, so that all are exact unless one is less than 2^-17 of the largest.
Groups of zeros may have any scale.

NVFP4 of MLX has no scale of the tensor. Codes of NVFP4 are the same there where every scale times that of the tensor is
a number of E4M3 itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import from_float32, to_float32
from quantcli.errors import DataError
from quantcli.layouts.held import spans_of
from quantcli.layouts.reader import Held

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

GROUP = 16
LEAST, MOST = -9, 8
"""Exponents of the powers of two that E4M3 has."""

SMALLEST = -126
"""The exponent of the smallest scale of a tensor, whose inverse must be a float32 too."""


def _not_zero(held: Held, first: int, last: int, groups: int) -> NDArray[np.bool_]:
    """Which groups of some rows have a code that is not zero."""
    codes = held.packed(first, last).reshape(last - first, groups, -1)
    found: NDArray[np.bool_] = (codes & np.uint8(0x77)).any(axis=2)
    return found


def _exponents(held: Held, rows: int, groups: int, *, zeros: bool) -> list[int]:
    """The exponents of the smallest and the largest scale of a weight. zeros: whether scales of groups of zeros count;
    without them it may have none."""
    found = list[int]()
    for first, last in spans_of(rows, groups):
        scale, _ = held.params(first, last)
        own = scale if zeros else scale[_not_zero(held, first, last, groups)]
        if own.size:
            found += [int(np.frexp(end)[1]) - 1 for end in (own.min(), own.max())]
    return found


def tensor_scale(weights: Sequence[tuple[Held, int, int]]) -> float | str:
    """The scale of the tensor with which all scales of some weights of MXFP4, each with its rows and columns, are those
    of NVFP4; or why there is none."""
    for zeros in (True, False):
        found = [e for held, rows, cols in weights for e in _exponents(held, rows, cols // (2 * GROUP), zeros=zeros)]
        low, high = min(found, default=0), max(found, default=0)
        if high - low <= MOST - LEAST:
            return float(2.0 ** max(high - MOST, SMALLEST))
    return f"its scales go from 2^{low} to 2^{high}, and E4M3 has only {MOST - LEAST + 1} powers of two"


def nvfp4(held: Held, overall: float) -> Held:
    """The codes of MXFP4 with the scales of NVFP4, for a scale of the tensor."""
    least, most = np.float32(overall * 2.0**LEAST), np.float32(overall * 2.0**MOST)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, _ = held.params(first, last)
        inside = np.clip(scale, least, most)
        others = inside != scale
        if others.any() and (others & _not_zero(held, first, last, scale.shape[1])).any():
            raise DataError("its scales are others than they were before; was the file changed?")
        return np.repeat(inside, 2, axis=1), None

    return replace(held, group=GROUP, scale_dtype="F8_E4M3", overall=overall, params=params)


def alone(held: Held, rows: int, cols: int) -> Held | str:
    """The codes of NVFP4 with scales that are E4M3 alone; or why they have none."""
    groups, lost = cols // GROUP, 0

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, _ = held.params(first, last)
        return to_float32(_e4m3(scale), "F8_E4M3").reshape(scale.shape), None

    for first, last in spans_of(rows, groups):
        scale, _ = held.params(first, last)
        others = params(first, last)[0] != scale
        lost += int((others & _not_zero(held, first, last, groups)).sum()) if others.any() else 0
    if lost:
        return f"{lost} of {rows * groups} scales are none of E4M3 without the scale of the tensor"
    return replace(held, overall=1.0, params=params)


def _e4m3(scale: Floats) -> NDArray[np.uint8]:
    """The codes of positive scales in E4M3, of those it does not have the nearest."""
    found: NDArray[np.uint8] = from_float32(np.minimum(scale, np.float32(448)), "F8_E4M3").view(np.uint8)
    positive: NDArray[np.uint8] = np.maximum(found, np.uint8(1)).reshape(-1)
    return positive
