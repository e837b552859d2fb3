"""Exact histograms: the statistics of weights that lie in several tiles.

16-bit weights have 65,536 patterns: their histogram determines the tensor up to order. float32 weights are counted in
2^20 bins by their upper 20 bits (sign, exponent, 11 bits of the mantissa), each with the exact sum of the lower 12
bits, so that a bin stands for its mean, within 2^-12 of every weight in it. All sums are integers: the order does not
matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.calibrators import Gather, Observed, Sharing
from quantcli.kernels import BF16, F16, F32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Kernels, Tile

    Array = NDArray[np.float64]


def observe(kernels: Kernels, tile: Tile, sharing: Sharing | None, into: Observed | None) -> Observed | None:
    """The histogram of a tile, added to the given one."""
    if into is None:
        size = 1 << (20 if tile.kind == F32 else 16)
        into = {"counts": np.zeros(size, np.int64), "kind": tile.kind}
        if tile.kind == F32:
            into["lows"] = np.zeros(size, np.int64)
    return into if kernels.histogram(tile, into["counts"], into.get("lows")) else None


def merge(earlier: Observed, later: Observed) -> Observed:
    """The sum of both."""
    return {k: earlier[k] if k == "kind" else earlier[k] + later[k] for k in earlier}


GATHER = Gather(observe=observe, merge=merge, ordered=False, columns=False)


def distinct(seen: Observed) -> tuple[Array, Array]:
    """The weights that occur, ascending, and how often each does, both float64 (n,)."""
    counts: NDArray[np.int64] = seen["counts"]
    patterns = np.flatnonzero(counts)
    if seen["kind"] == BF16:
        values = (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    elif seen["kind"] == F16:
        values = patterns.astype(np.uint16).view(np.float16).astype(np.float64)
    else:
        base = (patterns.astype(np.uint32) << np.uint32(12)).view(np.float32).astype(np.float64)
        step = np.ldexp(1.0, np.maximum(patterns >> 11 & 0xFF, 1) - 150)
        values = base + np.copysign(step * (seen["lows"][patterns] / counts[patterns]), base)
    values = values + 0.0  # -0 is 0
    order = np.argsort(values, kind="stable")
    values, often = values[order], counts[patterns][order].astype(np.float64)
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return values[first], np.add.reduceat(often, first)


def places(n: float, share: float) -> tuple[int, float]:
    """The lower of the two order statistics around a quantile, and the fraction of the way to the upper one."""
    at = (n - 1) * share
    lower = int(np.floor(at))
    return lower, at - lower


def quantile(values: Array, counts: Array, share: float) -> float:
    """Quantile (type 7) of ascending values with their counts."""
    upto = np.cumsum(counts)
    lower, part = places(upto[-1], share)
    low, high = values[np.searchsorted(upto, [lower, min(lower + 1, upto[-1] - 1)], side="right")]
    return float(low + part * (high - low))
