"""Companded levels: evenly spaced after a logarithmic law, dense near 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quantcli.formats import Format, _levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.scheme import Scheme

    Expand = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def law(expand: Expand) -> Format:
    """The format whose 2^b levels are the expanded ones of an even spacing of [-1, 1], both ends among them."""

    def levels(scheme: Scheme) -> NDArray[np.float64]:
        even = np.linspace(-1, 1, 1 << scheme.bits)
        return np.sign(even) * expand(np.abs(even))

    return _levels.of(levels, (2, 8, 8))
