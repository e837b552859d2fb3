"""Shared by formats with fixed levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quantcli.formats import Format
from quantcli.kernels import LEVELS, CodeGrid, Small

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.scheme import Scheme


def grid(scheme: Scheme) -> CodeGrid:
    """All codes of b bits."""
    return CodeGrid(mode=LEVELS, bits=scheme.bits, umin=0, umax=(1 << scheme.bits) - 1)


def of(
    levels: Callable[[Scheme], NDArray[np.float64]],
    bits: tuple[int, int, int],
    *,
    small: Small | None = None,
) -> Format:
    """A format of fixed levels; the largest weight is scaled to its largest magnitude. small: of small floats, whose
    scales are searched, and which round as a cast does."""

    def reach(scheme: Scheme) -> float:
        return float(np.nanmax(np.abs(levels(scheme))))

    return Format(
        family="levels",
        grid=grid,
        reach=reach,
        levels=levels,
        bits=bits,
        ties_to_even=small is not None,
        small=small,
    )


def minifloat(exponent_bits: int, mantissa_bits: int, bias: int) -> NDArray[np.float64]:
    """Values of all codes of a small float, sign bit first, with no infinity or NaN.

    >>> minifloat(2, 1, 1)[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    code = np.arange(1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = code >> mantissa_bits, (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent > 0, np.ldexp(1 + mantissa, exponent - bias), np.ldexp(mantissa, 1 - bias))
    return np.concatenate([values, -values])
