"""Theory for a tensor: the best quantizers and bounds for its weights, and the sources of the measured error.

SQNR is 10 log10(power / error) in dB. These figures are reported beside measured ones; no stored byte depends on them.

SQNR is a ratio of powers. A mean adds power that costs one number to code, so bounds, which know only the spread, move
up by power / variance; without that a tensor near 1 would seem to beat the rate-distortion bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.calibrators.searches import breakpoints, kmeans
from quantcli.theory.distributions import (
    Grid,
    best_uniform,
    decibels,
    entropy_coded_uniform,
    lloyd_max,
    rate_distortion,
    shannon_bound,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def differential_entropy(values: Array, counts: Array) -> float | None:
    """Bits of the density of weights given as ascending distinct values and how often each occurs.

    Estimated from cells of about equal mass, 64 to 1,024 of them, each between the middles of neighbouring values: far
    outliers widen one cell, not all. Within 0.15 dB (0.025 bits) on normal weights. None where that is unreliable:
    fewer than 4,096 weights, fewer than 256 different values, or a tenth of the weights in one value (zeros of a pruned
    tensor).

    Reference: Vasicek, A Test for Normality Based on Sample Entropy, 1976; here for ties, with the bias of small cells
    taken off to first order.
    """
    total = float(counts.sum())
    if total < 4096 or len(values) < 256 or counts.max() > total / 10:
        return None
    ends = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]])
    upto = np.cumsum(counts)
    cells = min(max(int(total) // 64, 64), 1024)
    inner = np.searchsorted(upto, total * np.arange(1, cells) / cells) + 1
    cuts = np.unique(np.concatenate([[0], inner, [len(values)]]))
    mass = np.diff(np.append(0.0, upto)[cuts])
    share = mass / total
    spare = float((share / (2 * mass)).sum()) / math.log(2)
    return float((share * np.log2(np.diff(ends[cuts]) / share)).sum()) + spare


MOST_BREAKPOINTS = 1 << 20
"""Sorted at once to find the best uniform quantizer exactly: about 0.3 s and 50 MB."""


def own_uniform(values: Array, counts: Array, bits: int) -> float:
    """Squared error (sum) of the best uniform quantizer with one scale for these weights, of either sign.

    The full grid -2^(b-1)..2^(b-1)-1, at one bit a level on either side of 0. Exact up to a million breakpoints
    (values x half the codes), from trial scales beyond: within 0.005 dB on normal, Laplace and Student-t weights.
    """
    if bits == 1:
        return float((counts * (np.abs(values) - float((counts * np.abs(values)).sum() / counts.sum())) ** 2).sum())
    half = 1 << (bits - 1)
    if len(values) * half <= MOST_BREAKPOINTS:
        scale = float(breakpoints.both_signs(values[None], half - 1, counts[None])[0][0])
    else:
        up, down = _by_trials(values, counts, half), _by_trials(-values[::-1], counts[::-1], half)
        scale = up[0] if up[1] >= down[1] else -down[0]
    codes = np.clip(np.rint(values / scale), -half, half - 1)
    return float((counts * (values - codes * scale) ** 2).sum())


def _by_trials(values: Array, counts: Array, half: int) -> tuple[float, float]:
    """Scale > 0 on the codes -half..half-1 and the squared error it takes off, from trials 12 octaves down."""
    weight, total = np.append(0.0, np.cumsum(counts)), np.append(0.0, np.cumsum(counts * values))
    codes = np.arange(-half, half).astype(np.float64)

    def best(scales: Array) -> tuple[float, float, float]:
        found = (0.0, 0.0, 1.0)  # gain, trial, its scale refit by least squares
        for scale in scales:
            ends = np.concatenate([[0], np.searchsorted(values, (codes[1:] - 0.5) * scale), [len(values)]])
            cross = float((codes * np.diff(total[ends])).sum())
            square = float((codes * codes * np.diff(weight[ends])).sum())
            if cross > 0 and cross * cross / square > found[0]:
                found = cross * cross / square, float(scale), cross / square
        return found

    number = min(480, max(64, (1 << 23) // (2 * half)))
    ratio = 2.0 ** (-12 / number)
    top = max(abs(float(values[0])), abs(float(values[-1]))) / (half - 0.5)
    gain, trial, scale = best(top * ratio ** np.arange(number))
    finer = best(trial * ratio ** np.linspace(-1, 1, 41))
    return (finer[2], finer[0]) if finer[0] >= gain else (scale, gain)


def own_lloyd_max(values: Array, counts: Array, bits: int) -> float:
    """Squared error (sum) of the best levels for these weights, one set for the tensor."""
    levels = np.unique(kmeans.optimal(values, counts, 1 << bits))
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return float((counts * (values - nearest) ** 2).sum())


def entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of codes with these counts, in bits.

    >>> entropy(np.array([2, 1, 1, 0]))
    1.5
    """
    some = counts[counts > 0] / counts.sum()
    return float(-(some * np.log2(some)).sum()) + 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Squared error of some weights taken apart; parts of tiles add up to those of the tensor.

    clipping: measured, of weights beyond the grid. rounding: measured, of all others. predicted: of those others by
    the model, the sum of step^2/12.
    """

    clipping: float = 0.0
    rounding: float = 0.0
    predicted: float = 0.0

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            clipping=self.clipping + other.clipping,
            rounding=self.rounding + other.rounding,
            predicted=self.predicted + other.predicted,
        )


def split(weights: NDArray[Any], decoded: NDArray[Any], beyond: NDArray[np.bool_], steps: NDArray[Any]) -> Parts:
    """The parts of the squared error of weights; all arguments have one shape.

    beyond: which weights lie outside the grid. steps: width of the cell each weight is in. Zeros that decode to zero
    have no error to predict: pruned weights, and groups of nothing but zeros, whose scale is 1 whatever the tensor's.
    Elsewhere step^2/12 is within 1 % for normal weights down to steps of two sigma, and far too much beyond: a group
    that one outlier stretches so far that all its other weights become 0 loses their power, not step^2/12 each.

    >>> split(np.array([0.0, 0.4, 3.0]), np.array([0.0, 0.0, 2.0]), np.array([False, False, True]), np.ones(3))
    Parts(clipping=1.0, rounding=0.16000000000000003, predicted=0.08333333333333333)
    """
    error = np.square(weights.astype(np.float64) - decoded)
    known = beyond | ((weights == 0) & (decoded == 0))
    return Parts(
        clipping=float(error[beyond].sum()),
        rounding=float(error[~beyond].sum()),
        predicted=float(np.square(np.where(known, 0.0, steps)).sum()) / 12,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Theory:
    """Theory beside the measured SQNR of one tensor; all in dB except where noted, None where undefined.

    predicted_sqnr_db: from step^2/12 for what is not clipped, and what clipping cuts off. clipping_share: of the
    measured squared error. uniform, lloyd_max: the best quantizers with one scale (one set of levels) for the tensor's
    own weights, and for a Gaussian of the tensor's mean and variance (the uniform one, which cannot follow a mean,
    None where the mean holds more than 2 % of the power). shannon_db: an upper bound on any coding, at the stored rate,
    of independent weights of the tensor's own distribution; group scales that follow rows of unlike size may in
    principle pass it. rate_distortion_db: that bound for a Gaussian, the hardest source of its variance, so weights of
    any other kind may pass it. entropy_coded_db: a uniform quantizer of a Gaussian with ideal entropy coding at that
    rate. gaps: the measured SQNR below each. code_entropy: bits per code; saving_bytes: what an ideal lossless coder of
    the codes would save.
    """

    measured_sqnr_db: float | None
    predicted_sqnr_db: float | None
    rounding_sse: float
    clipping_sse: float
    clipping_share: float
    uniform_sqnr_db: float | None
    lloyd_max_sqnr_db: float | None
    gaussian_uniform_sqnr_db: float | None
    gaussian_lloyd_max_sqnr_db: float | None
    rate: float
    rate_distortion_db: float | None
    entropy_coded_db: float | None
    shannon_db: float | None
    gaps_db: dict[str, float | None]
    code_entropy: float
    saving_bytes: int


def predict(
    *,
    bits: int,
    rate: float,
    power: float,
    sse: float,
    parts: Parts,
    codes: NDArray[np.int64],
    values: Array,
    counts: Array,
) -> Theory:
    """Theory for a tensor from its exact sums, the histogram of its codes and the histogram of its weights.

    rate: bits per weight as stored, everything counted. sse, power: as measured; of parts only the clipping and the
    prediction are used, so that rounding and clipping add up to sse.
    """
    n = float(counts.sum())
    mean = float((counts * values).sum()) / n
    spread = float((counts * (values - mean) ** 2).sum()) if len(values) > 1 else 0.0

    def sqnr(error: float) -> float | None:
        return decibels(power) - decibels(error) if error > 0 and power > 0 else None

    def gaussian(error: float) -> float | None:
        return sqnr(spread * error)

    measured = sqnr(sse)
    bound = gaussian(rate_distortion(rate))
    h = differential_entropy(values, counts)
    grid: Grid = "midtread_full" if bits > 1 else "midrise"
    centred = spread > 0.98 * power > 0
    limits = {
        "predicted": sqnr(parts.predicted + parts.clipping),
        "uniform": sqnr(own_uniform(values, counts, bits)) if power > 0 else None,
        "lloyd_max": sqnr(own_lloyd_max(values, counts, bits)) if power > 0 and bits <= 8 else None,
        "gaussian_uniform": decibels(1 / best_uniform("gaussian", grid, bits)[1]) if centred and bits <= 10 else None,
        "gaussian_lloyd_max": gaussian(lloyd_max("gaussian", 1 << bits)[1]) if bits <= 8 else None,
        "rate_distortion": bound,
        "shannon": sqnr(n * shannon_bound(h, rate)) if h is not None else None,
    }
    coded = entropy(codes)
    return Theory(
        measured_sqnr_db=measured,
        predicted_sqnr_db=limits["predicted"],
        rounding_sse=max(sse - parts.clipping, 0.0),
        clipping_sse=parts.clipping,
        clipping_share=parts.clipping / sse if sse else 0.0,
        uniform_sqnr_db=limits["uniform"],
        lloyd_max_sqnr_db=limits["lloyd_max"],
        gaussian_uniform_sqnr_db=limits["gaussian_uniform"],
        gaussian_lloyd_max_sqnr_db=limits["gaussian_lloyd_max"],
        rate=rate,
        rate_distortion_db=bound,
        entropy_coded_db=gaussian(entropy_coded_uniform("gaussian", rate)[1]),
        shannon_db=limits["shannon"],
        gaps_db={
            name: limit - measured if limit is not None and measured is not None else None
            for name, limit in limits.items()
        },
        code_entropy=coded,
        saving_bytes=max(0, round((bits - coded) * n / 8)),
    )
