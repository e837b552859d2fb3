"""Smallest, largest and most extreme value: the statistics of range-based calibrators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.calibrators import Gather, Ideal, Observed, Sharing
from quantcli.formats import reach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.calibrators import Array
    from quantcli.kernels import Kernels, Tile
    from quantcli.scheme import Scheme


def observe(kernels: Kernels, tile: Tile, sharing: Sharing | None, into: Observed | None = None) -> Observed | None:
    """lo, hi and extreme of the groups, the tile or its columns."""
    if sharing == "tensor":
        tile = replace(tile, group=max(tile.cols, 1), seen={})
    ranges = kernels.column_ranges(tile) if sharing == "columns" else tile.ranges(kernels)
    if not ranges.finite:
        return None
    seen: Observed = {"lo": ranges.lo, "hi": ranges.hi, "extreme": ranges.extreme}
    return fold(seen, (0, 1)) if sharing == "tensor" else seen


def merge(earlier: Observed, later: Observed) -> Observed:
    """The ranges of both; of two equal extremes the earlier one is kept."""
    further = np.abs(later["extreme"]) > np.abs(earlier["extreme"])
    return {
        "lo": np.minimum(earlier["lo"], later["lo"]),
        "hi": np.maximum(earlier["hi"], later["hi"]),
        "extreme": np.where(further, later["extreme"], earlier["extreme"]),
    }


def fold(seen: Observed, axes: tuple[int, ...]) -> Observed:
    """The ranges merged along `axes`, which stay with length 1."""
    extreme: NDArray[Any] = np.moveaxis(seen["extreme"], axes, range(-len(axes), 0))
    kept = extreme.shape[: extreme.ndim - len(axes)]
    flat = extreme.reshape(*kept, -1)
    first = np.take_along_axis(flat, np.abs(flat).argmax(axis=-1)[..., None], axis=-1)
    shape = tuple(1 if a in axes else n for a, n in enumerate(seen["lo"].shape))
    return {
        "lo": seen["lo"].min(axis=axes, keepdims=True),
        "hi": seen["hi"].max(axis=axes, keepdims=True),
        "extreme": first.reshape(shape),
    }


def spanning(lo: Array, hi: Array, scheme: Scheme) -> Ideal:
    """Parameters whose codes span the ranges [lo, hi]; scale 1 where a range is empty."""
    if scheme.symmetric:
        alpha = np.maximum(-lo, hi)
        return Ideal(np.where(alpha > 0, alpha / reach(scheme), 1.0))
    steps = reach(scheme)
    if scheme.zero_point == "float":
        return Ideal(np.where(hi > lo, (hi - lo) / steps, 1.0), lo)
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    scale = np.where(hi > lo, (hi - lo) / steps, 1.0)
    return Ideal(scale, 0.0 - lo / scale)


GATHER = Gather(observe=observe, merge=merge)
