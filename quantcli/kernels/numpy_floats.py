"""Scales for small floats in numpy: the sums of trials.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels.numpy_levels import BLOCK, WIDTH, fold, tried
from quantcli.kernels.numpy_search import parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Small
    from quantcli.kernels.table import Choices, Floats, Tile


def trial_floats(tile: Tile, small: Small, choices: Choices, importance: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """The best choice of every group (rows, groups); see trials.h."""
    plain = choices.plain
    best = np.zeros((tile.rows, tile.groups), np.int32)
    for rows, groups, weights, counts in parts(tile, importance):
        own = tried(choices, rows, groups)
        errors = np.square(own.astype(np.float64)) * _sums(np.abs(weights), small, own, counts)
        found = errors.argmin(axis=1)
        found[errors[np.arange(len(errors)), found] == errors[:, plain]] = plain
        best[rows, groups] = found.reshape(best[rows, groups].shape)
    return best


def _sums(weights: NDArray[Any], small: Small, trial: Floats, counts: NDArray[np.int32] | None) -> NDArray[np.float64]:
    """Squared errors in steps of each trial (groups, trials), of magnitudes (groups, n)."""
    sums = np.zeros(trial.shape)
    columns = np.ascontiguousarray(weights.T)
    often = None if counts is None else np.ascontiguousarray(counts.T).astype(np.float32)
    for k in range(trial.shape[1]):
        reciprocal = np.float32(1) / trial[:, k]
        for begin in range(0, len(columns), BLOCK):
            size = columns[begin : begin + BLOCK] * reciprocal
            error = size - rounded(np.minimum(size, np.float32(small.top)), small)
            square = error * error
            if often is not None:
                square *= often[begin : begin + BLOCK]
            whole = len(square) // WIDTH * WIDTH
            sums[:, k] += fold(square[:whole])
            for row in square[whole:]:
                sums[:, k] += row
    return sums


def rounded(values: Floats, small: Small) -> Floats:
    """Numbers from 0 to the largest one, rounded to small floats."""
    exponents = np.frexp(values)[1] - 1
    step = np.ldexp(np.float32(1), np.maximum(exponents, small.lowest) - small.mantissa)
    found: Floats = (np.rint(values / step) * step).astype(np.float32)
    return found
