"""The scales and offsets of a quantized tensor beside those that rules of tools make of the weights it should be of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantcli import dtypes
from quantcli.formats import reach
from quantcli.passes.audit_codes import Coded

if TYPE_CHECKING:
    from quantcli.kernels import Floats

SAME_SCALE, BY_SCALES, BY_WEIGHTS, BY_GAINS = 0.001, 0.004, 0.003, 0.006
"""How far a scale may be from that of the largest weight, relative to it; and how much further where scales are
bfloat16, which rounds by up to 2^-8, where tools may have rounded weights of the base to that first, and where they
multiplied columns with gains, which they round as they do the products."""

SHIFTED = 0.05
"""Steps by which an offset must be away from the ends of a group's range to be told from them."""

EXACT = 2.0**-20
"""How far scales in float32 may be from a rule that they follow, relative to it."""

TINY = 1e-300
"""In place of the range of weights that are all alike, beside an offset that makes up for it."""


def _of_groups(x: Floats, found: Coded) -> tuple[Floats, Floats]:
    """The highest and the lowest weight of every group."""
    starts = range(0, found.plan.cols, min(found.plan.group, found.plan.cols))
    high, low = (f.reduceat(x, starts, axis=1) for f in (np.maximum, np.minimum))
    return high, low


def shifted(x: Floats, scales: Floats, offsets: Floats, found: Coded) -> float:
    """The share of groups whose offset is neither their lowest nor their highest weight, by more than its dtype
    explains."""
    away = [np.abs(offsets - end) for end in _of_groups(x, found)]
    digits = {"bfloat16": 8, "float16": 11}.get(found.scheme.scale_dtype, 24)
    return float(np.mean(np.minimum(*away) > SHIFTED * scales + np.abs(offsets) * 2.0**-digits))


def dividing(x: Floats, scales: Floats, found: Coded) -> float | None:
    """The share of groups that have the scale of MLX's affine rule (`mlx.core.quantize`): the range by the steps of the
    codes, and then what divides the largest weight by a whole number, so that 0 is a code; scales have the dtype of the
    weights. Counted where that is not the scale of the range itself, None where it is so everywhere."""
    if found.scheme.storage != "plain" or not found.exact_scales:
        return None
    dtype = dtypes.LONG_NAMES.get(found.scheme.scale_dtype, "F32")
    weights = dtypes.rounded(x.copy(), dtype)
    high, low = _of_groups(weights, found)
    ranges = (high - low) / np.float32((1 << found.scheme.bits) - 1)
    largest = np.maximum(high, -low)
    with np.errstate(all="ignore"):
        divided = dtypes.rounded(largest / np.rint(largest / ranges), dtype)
    telling = np.isfinite(divided) & (np.abs(divided - dtypes.rounded(ranges, dtype)) > EXACT * divided)
    if not telling.any():
        return None
    return float(np.mean((np.abs(scales - divided) <= EXACT * divided)[telling]))


def of_largest(x: Floats, scales: Floats, found: Coded, off: float) -> tuple[float | None, ...]:
    """The share of groups whose scale is that of their largest weight, or their range, up to one factor for all, of
    those within four times what rounding explains, and of those whose scale is larger than their largest weight needs,
    which scales that clip never are; None where scales are rounded too coarsely to tell. off: how far a
    scale may be from what the weight says, relative to it, for what was rounded before."""
    if found.plan.height > 1 or found.scheme.granularity == "tensor" or not found.exact_scales:
        return None, None, None
    high, low = _of_groups(x, found)
    largest = np.maximum(high, -low)
    known = (largest > 0) & (scales > 0)
    if not known.any():
        return None, None, None
    if found.scheme.storage == "e8m0":
        return _powers(largest[known], scales[known], found), None, None
    if found.scheme.storage != "plain":
        return None, None, None
    slack = off + SAME_SCALE + BY_SCALES * _of_16_bits(scales, found)

    def shares(whole: Floats, divisors: Sequence[float]) -> tuple[float, float, float]:
        ratios = scales[known] / np.maximum(whole[known].astype(np.float64), TINY)
        away = np.abs(ratios / np.median(ratios) - 1)
        middle = float(np.median(ratios))
        divisor = min(divisors, key=lambda steps: abs(middle * steps - 1))
        above = np.mean(ratios * divisor > 1 + slack)
        return float(np.mean(away <= slack)), float(np.mean(away <= 4 * slack)), float(above)

    top = float(reach(found.scheme))
    ranges = [(whole, [(1 << found.scheme.bits) - 1.0]) for whole in _ranges(high, low, found)]
    tops = [top] if found.scheme.grid == "restricted" else [top, top + 0.5, top + 1]
    return max(shares(*one) for one in [(largest, tops), *ranges])


def in_bfloat16(x: Floats, scales: Floats) -> Floats:
    """What weights become where a tool divides them by their scales in bfloat16, whose quotients beyond 64 are halves:
    llm-compressor and optimum-quanto do, and a tenth of their codes of 8 bits are not the nearest ones."""
    quotients = np.divide(x, scales, out=np.zeros_like(x), where=scales != 0)
    found: Floats = np.rint(dtypes.rounded(quotients, "BF16")) * scales
    return found


def _of_16_bits(scales: Floats, found: Coded) -> bool:
    """Whether scales have been rounded to 16 bits; torchao stores such as float32."""
    return found.scheme.scale_dtype != "float32" or not (scales.view(np.uint32) & 0xFFFF).any()


def _ranges(high: Floats, low: Floats, found: Coded) -> list[Floats]:
    """What codes that are not symmetric span; also rounded to the dtype of 16 bits in which optimum-quanto and torchao
    compute it, before it is divided and rounded once more."""
    if found.scheme.symmetric:  # some tools give symmetric codes a zero point other than the middle
        return []
    inner = found.scheme.zero_point == "float"
    whole = high - low if inner else np.maximum(high, 0) - np.minimum(low, 0)
    kinds = {dtypes.LONG_NAMES.get(found.scheme.scale_dtype, "F32"), "BF16"} - {"F32"}
    return [whole, *(dtypes.rounded(whole.copy(), kind) for kind in sorted(kinds))]


def _powers(largest: Floats, scales: Floats, found: Coded) -> float:
    """The share of scales that are the power of two which a rule makes of the largest weight, whichever rule has most:
    the exponent of that weight less that of the largest number of the format (OCP), the same after rounding the weight
    to the format's mantissa (compressed-tensors), or the least power that clips nothing (MLX, ModelOpt)."""
    top, mantissa = reach(found.scheme), 1 if found.scheme.bits == 4 else 3
    weights, powers = largest.astype(np.float64), np.log2(scales.astype(np.float64))
    exponents = np.floor(np.log2(weights))
    near = exponents + (np.floor(weights / 2.0 ** (exponents - mantissa) + 0.5) >= 2 << mantissa)
    below = math.floor(math.log2(top))
    rules = exponents - below, near - below, np.ceil(np.log2(weights / top))
    return max(float(np.mean(powers == rule)) for rule in rules)
