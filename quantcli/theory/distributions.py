"""Model sources: what the best quantizers of normal and Laplace weights cost, in closed form or to full precision.

Errors are squared errors per weight in units of the source's power, rates are in bits. Statements that are often
printed wrongly, as they are used here:

- SQNR = 6.02 b + 4.77 - 20 log10(alpha / sigma) without clipping, so 6.02 b for a full-range uniform source.
- step^2 / 12 is a model: exact only for weights uniform within each cell, and silent about clipping.
- The clipping point of least error for normal weights solves
  phi(c) - c Phi(-c) = c / (6 4^b) (1 - 2 Phi(-c) + c phi(c)); the right side, from the granular error, is not 0.
- D(R) = sigma^2 2^(-2R) is a limit of coding long blocks: at 4 bits sigma^2 / 256, which no scalar quantizer reaches
  (Lloyd-Max stays 3.86 dB above it).
- Lloyd's conditions are necessary, not sufficient; optimal level density goes as p^(1/3), not p.

References: Max, Quantizing for Minimum Distortion, 1960; Lloyd, Least Squares Quantization in PCM, 1982; Panter and
Dite, Quantization Distortion in Pulse-Count Modulation with Nonuniform Spacing of Levels, 1951; Shannon, Coding
Theorems for a Discrete Source with a Fidelity Criterion, 1959; Gish and Pierce, Asymptotically Efficient Quantizing,
1968.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Kind = Literal["gaussian", "laplace"]
Grid = Literal["midrise", "midtread_full", "midtread_restricted"]

ENTROPY_CODED_GAP = 10 * math.log10(math.pi * math.e / 6)
"""dB above the rate-distortion bound of a uniform quantizer with ideal entropy coding, at high rates: 1.53."""


def decibels(ratio: float) -> float:
    """A power ratio in dB."""
    return 10 * math.log10(ratio)


def _moments(kind: Kind, edges: Array) -> tuple[Array, Array, Array]:
    """Probability, first and second moment of every cell between ascending edges, the outermost at infinity."""
    with np.errstate(invalid="ignore"):
        if kind == "gaussian":
            density = np.exp(-edges * edges / 2) / math.sqrt(2 * math.pi)
            upper = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in edges])
            tail = [upper, density, np.where(np.isfinite(edges), edges, 0.0) * density + upper]
        else:
            root = math.sqrt(2)
            size = np.where(np.isfinite(edges), np.abs(edges), 0.0)
            decay = np.where(np.isfinite(edges), np.exp(-root * np.abs(edges)), 0.0) / 2
            first = decay * (size + 1 / root)
            second = decay * (size * size + root * size + 1)
            positive = edges >= 0
            tail = [np.where(positive, decay, 1 - decay), first, np.where(positive, second, 1 - second)]
    # Above 0 tails are subtracted, below 0 their mirror images: no cancellation far out.
    mirrored = _tails_below(kind, edges)
    cells = []
    for above, below, sign in zip(tail, mirrored, (1, -1, 1)):
        right = above[:-1] - above[1:]
        left = sign * (below[1:] - below[:-1])
        cells.append(np.where(edges[:-1] >= 0, right, left))
    return cells[0], cells[1], cells[2]


def _tails_below(kind: Kind, edges: Array) -> list[Array]:
    """Moments of the mirror image beyond -edge: of everything below each edge, first moments by their size."""
    flipped = -edges
    with np.errstate(invalid="ignore"):
        if kind == "gaussian":
            density = np.exp(-flipped * flipped / 2) / math.sqrt(2 * math.pi)
            upper = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in flipped])
            return [upper, density, np.where(np.isfinite(edges), flipped, 0.0) * density + upper]
        root = math.sqrt(2)
        size = np.where(np.isfinite(edges), np.abs(edges), 0.0)
        decay = np.where(np.isfinite(edges), np.exp(-root * np.abs(edges)), 0.0) / 2
        second = decay * (size * size + root * size + 1)
        positive = flipped >= 0
        return [
            np.where(positive, decay, 1 - decay),
            decay * (size + 1 / root),
            np.where(positive, second, 1 - second),
        ]


def distortion(kind: Kind, levels: Array) -> float:
    """Squared error of nearest-level quantization of a model source.

    >>> round(distortion("gaussian", np.array([-0.7978845608, 0.7978845608])), 9)
    0.363380228
    """
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    mass, mean, power = _moments(kind, edges)
    return float(np.sum(power - 2 * levels * mean + levels * levels * mass))


@lru_cache(maxsize=32)
def lloyd_max(kind: Kind, count: int) -> tuple[tuple[float, ...], float]:
    """Levels and squared error of the optimal quantizer of `count` levels, by Newton's method on Lloyd's conditions.

    For these log-concave sources the optimum is unique (Fleischer 1964, Trushkin 1982).
    """
    # Companding by p^(1/3) starts close: for both sources that density is of the same kind, wider.
    share = (np.arange(count) + 0.5) / count
    if kind == "gaussian":
        from statistics import NormalDist

        levels = np.array([NormalDist(0, math.sqrt(3)).inv_cdf(v) for v in share])
    else:
        levels = -np.sign(share - 0.5) * 3 / math.sqrt(2) * np.log(2 * np.minimum(share, 1 - share))
    if count == 2:
        levels = np.array([-0.8, 0.8]) if kind == "gaussian" else np.array([-0.7, 0.7])
    last = math.inf
    for _ in range(200):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        mass, mean, _ = _moments(kind, edges)
        centre = mean / mass
        density = np.where(np.isfinite(edges), _density(kind, edges), 0.0)
        low, high = (
            density[:-1] * (centre - _finite(edges[:-1])) / mass,
            density[1:] * (_finite(edges[1:]) - centre) / mass,
        )
        jacobian = np.diag(1 - (low + high) / 2) - np.diag(low[1:] / 2, -1) - np.diag(high[:-1] / 2, 1)
        step = np.linalg.solve(jacobian, levels - centre)
        # Both sources are even, and for Laplace moving all levels together changes nothing to first order: without
        # this the steps only halve.
        step = (step - step[::-1]) / 2
        levels = levels - step
        size = float(np.abs(step).max())
        if size < 1e-9 and size >= last / 2:  # rounding errors are all that is left
            break
        last = size
    return tuple(levels), distortion(kind, levels)


def _finite(values: Array) -> Array:
    finite: Array = np.where(np.isfinite(values), values, 0.0)
    return finite


def _density(kind: Kind, at: Array) -> Array:
    if kind == "gaussian":
        found: Array = np.exp(-at * at / 2) / math.sqrt(2 * math.pi)
    else:
        found = np.exp(-math.sqrt(2) * np.abs(at)) / math.sqrt(2)
    return found


def grid_levels(grid: Grid, bits: int) -> Array:
    """Levels of a uniform grid in steps."""
    half = 1 << (bits - 1)
    if grid == "midrise":
        levels: Array = np.arange(-half, half).astype(np.float64) + 0.5
    else:
        levels = np.arange(-half + (grid == "midtread_restricted"), half).astype(np.float64)
    return levels


@lru_cache(maxsize=128)
def best_uniform(kind: Kind, grid: Grid, bits: int) -> tuple[float, float]:
    """Step and squared error of the best uniform quantizer of a number of bits.

    >>> tuple(round(v, 7) for v in best_uniform("gaussian", "midrise", 4))
    (0.3352006, 0.0115429)
    """
    unit = grid_levels(grid, bits)
    top = float(unit[-1]) or 1.0
    steps = np.geomspace(0.4, 16, 60) / max(top, 0.5)
    errors = [distortion(kind, unit * s) for s in steps]
    at = int(np.argmin(errors))
    low, high = steps[max(at - 1, 0)], steps[min(at + 1, len(steps) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(90):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if distortion(kind, unit * a) < distortion(kind, unit * b):
            high = b
        else:
            low = a
    step = float((low + high) / 2)
    return step, distortion(kind, unit * step)


def clipping_and_rounding(c: float, bits: int) -> tuple[float, float]:
    """The two parts of the error model of a unit normal source clipped at c: what is cut off, and cells of step^2/12.

    >>> tuple(round(v, 9) for v in clipping_and_rounding(1.0, 4))
    (0.150679567, 0.000888919)
    """
    tail, density = math.erfc(c / math.sqrt(2)) / 2, math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    return 2 * ((1 + c * c) * tail - c * density), c * c / (3 * 4**bits) * (1 - 2 * tail)


def best_clipping(bits: int) -> float:
    """The c for which that model is least: the root of phi(c) - c Phi(-c) = c/(6 4^b) (1 - 2 Phi(-c) + c phi(c))."""
    low, high = 0.1, 12.0
    for _ in range(200):
        c = (low + high) / 2
        tail, density = math.erfc(c / math.sqrt(2)) / 2, math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
        if density - c * tail > c / (6 * 4**bits) * (1 - 2 * tail + c * density):
            low = c
        else:
            high = c
    return (low + high) / 2


@lru_cache(maxsize=256)
def entropy_coded_uniform(kind: Kind, rate: float) -> tuple[float, float]:
    """Step and squared error of endless uniform cells, levels in their middle, whose codes have that entropy (bits).

    Above 7 bits by the high-rate limit, step = 2^(h - R) and step^2/12, which is within 0.001 dB of it there.

    >>> tuple(round(v, 7) for v in entropy_coded_uniform("gaussian", 2.0))
    (1.0824465, 0.0976409)
    """
    if rate > 7:
        h = math.log2(2 * math.pi * math.e) / 2 if kind == "gaussian" else math.log2(math.e * math.sqrt(2))
        step = 2.0 ** (h - rate)
        return step, step * step / 12
    low, high = math.log(1e-3), math.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        if _coded(kind, math.exp(middle))[0] > rate:
            low = middle
        else:
            high = middle
    step = math.exp((low + high) / 2)
    return step, _coded(kind, step)[1]


def _coded(kind: Kind, step: float) -> tuple[float, float]:
    """Entropy of the codes and squared error of endless uniform cells of a step, one around 0."""
    reach = 9.0 if kind == "gaussian" else 30.0  # less than 1e-17 of the weights lie beyond
    codes = np.arange(math.ceil(reach / step) + 1).astype(np.float64)
    edges = np.concatenate([[0.0], (codes + 0.5) * step])
    edges[-1] = np.inf
    mass, mean, power = _moments(kind, edges)  # of one half; the cell around 0 has both
    error = 2 * float(np.sum(power - 2 * step * codes * mean + (step * codes) ** 2 * mass))
    some = np.concatenate([2 * mass[:1], mass[1:], mass[1:]])
    some = some[some > 0]
    return float(-(some * np.log2(some)).sum()), error


def no_clipping_sqnr(bits: float, reach: float) -> float:
    """dB of 2^b equal cells over [-alpha, alpha] when nothing is clipped: 6.02 b + 4.77 - 20 log10(alpha/sigma).

    reach: alpha/sigma; sqrt(3) for a uniform source, for which the offset is 0.
    """
    return decibels(4**bits) + decibels(3) - 20 * math.log10(reach)


def rate_distortion(rate: float) -> float:
    """Least squared error of coding a unit normal source at a rate, in any way: 2^(-2R); 1 at rate 0."""
    return float(2.0 ** (-2 * max(rate, 0.0)))


def shannon_bound(entropy: float, rate: float) -> float:
    """Lower bound on the error of coding a source of that differential entropy (bits): 2^(2h - 2R) / (2 pi e)."""
    return float(2.0 ** (2 * (entropy - rate)) / (2 * math.pi * math.e))
