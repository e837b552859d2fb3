"""The scale with the least squared error, exactly: a sweep over every scale at which a code changes.

With fixed codes the best scale is a least-squares fit, so the least error over all scales is ||x||^2 less the largest
(sum x q)^2 / sum q^2 over the codes that occur. As the scale falls, the code of weight x goes from k to k+1 at
|x| / (k + 1/2): n K such breakpoints, sorted, lead through all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROOM = 1 << 20
"""Breakpoints that are sorted at a time."""


def exact(weights: Array, low: Array, high: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Scale > 0 and the squared error it takes off, for groups (groups, n) on the signed codes low..high.

    low, high: whole numbers (groups,), low <= 0 <= high. counts: how often each weight occurs (groups, n). The first
    of equal optima, the largest scale, counts. Groups where no code but 0 is possible have scale 1 and gain 0.
    """
    groups, n = weights.shape
    top = int(max(high.max(initial=0), -low.min(initial=0)))
    scale, gain = np.ones(groups), np.zeros(groups)
    step = max(1, ROOM // max(n * top, 1))
    for first in range(0, groups, step):
        part = slice(first, first + step)
        own = None if counts is None else counts[part]
        scale[part], gain[part] = _sweep(weights[part], low[part], high[part], own, top)
    return scale, gain


def _sweep(weights: Array, low: Array, high: Array, counts: Array | None, top: int) -> tuple[Array, Array]:
    size = np.abs(weights)
    steps = np.where(weights > 0, high[:, None], -low[:, None])
    k = np.arange(top)
    live = (k < steps[..., None]) & (size[..., None] > 0)
    at = np.where(live, size[..., None] / (k + 0.5), 0.0).reshape(len(weights), -1)
    order = np.argsort(-at, axis=1, kind="stable")
    times = 1.0 if counts is None else counts[..., None]
    cross = np.where(live, size[..., None] * times, 0.0).reshape(at.shape)
    square = np.where(live, (2 * k + 1) * times, 0.0).reshape(at.shape)
    cross, square = (np.cumsum(np.take_along_axis(v, order, 1), axis=1) for v in (cross, square))
    gain = cross * cross / np.maximum(square, 1.0)
    best = gain.argmax(axis=1)[:, None]
    found = np.take_along_axis(gain, best, 1)[:, 0]
    ratio = np.take_along_axis(cross, best, 1)[:, 0] / np.maximum(np.take_along_axis(square, best, 1)[:, 0], 1.0)
    return np.where(found > 0, ratio, 1.0), found


def both_signs(weights: Array, top: int, counts: Array | None = None) -> tuple[Array, Array]:
    """Scale of either sign and the error it takes off, for groups on the full grid -top-1..top; positive on a tie."""
    low, high = np.full(len(weights), -top - 1.0), np.full(len(weights), float(top))
    plain, flipped = exact(weights, low, high, counts), exact(-weights, low, high, counts)
    negative = flipped[1] > plain[1]
    return np.where(negative, -flipped[0], plain[0]), np.where(negative, flipped[1], plain[1])
