"""A quantized tensor beside the weights it is said to be made of: what a sample of its rows says of how it was made.

The sample answers what errors of the whole tensor leave open. Are its codes the nearest ones for its own scales, as
rounding gives them, or not, as GPTQ's error feedback does? Are its scales those of the largest weights? What would
min-max scales and our own search lose on the same rows at the same format? Would the weights fit if rows and columns
were scaled first, as AWQ scales them?
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.asking import changed
from quantcli.errors import DataError, QuantcliError
from quantcli.formats import code_grid, reach, spread_out
from quantcli.kernels import F32, INTEGER, LEVELS, OFFSET, QuantParams, Tile, row_bytes
from quantcli.models import BLOCK, View, runs_of
from quantcli.passes import audit_fits, audit_scales
from quantcli.passes.audit_codes import MOST_BITS, WEIGHTS, Coded, coded
from quantcli.passes.audit_fits import angle, sqnr, won
from quantcli.scheme import Scheme
from quantcli.tensors import packing
from quantcli.tensors.api import quantize
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, CodeGrid, Floats
    from quantcli.layouts.regrouped import Regrouped, Values

MOST, ROWS, PIECES, LEAST_ROWS = 1 << 19, 256, 16, 32
"""Most weights of a sample, and rows, where rows are long, for what is told column by column; runs of rows that it is
taken from; and rows and columns from which gains of them are told."""

GAINED = 2.0
"""dB by which gains of rows and columns must explain a tensor better than the weights as they are, and twice what
they explain of the nearest codes: rows of small weights beside a large scale become 0, as a gain of 0 makes them."""

CHANCE = 1e-3
"""Chance at which a column of nothing but nearest codes proves nothing."""

NEAR, NEAR_FLOATS = 2.0**-9, 2.0**-7
"""How much larger than that of the nearest code an error may be, relative to it and to the weight: tools round weights
and scales to 16 bits on the way to a code. Of floats, whose steps are never less than 2^-4 of the weight, twice what
rounding a quotient to bfloat16 moves it by."""

STRAY = 3
"""Steps from a weight to what it became that no rounding to 16 bits on the way explains: MLX's offsets in bfloat16 make
up to 2 at 8 bits."""

CLIPPED = 0.05
"""Most scales that are larger than the largest weights need where these are clipped, as by a percentile; and how much
smaller than the largest weight the largest one that was stored is then."""

ODD, ODD_CHANCE, ODD_BITS, BEYOND_NEAREST = 0.25, 1e-6, 5, 0.1
"""Least share of codes of a group that are not the nearest ones, for it to stand out; and the chance at which some
group would have as many. Bits up to which offsets and scales that tools round later move no codes so far, and steps
that make an error larger than that of the nearest code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a sample of rows says; figures in dB are those of the sample, None where there are none.

    cosine: of the angle between the weights and what was stored; nearest_cosine, nearest_factor: of the nearest codes
    for the stored scales, which at 2 bits may be mostly 0. top: the largest weight that was stored; step: the largest
    scale; clipped: whether scales are smaller than the largest weights need. gained_db: SQNR after fitting gains of
    rows and columns, where that explains the tensor better than the weights as they are; gains: of the columns then,
    factor: of all weights where one explains as much. scheme: as the codes show it; why: empty, or why there are no
    codes to compare. nearest: share of codes that are the nearest ones for the stored scales; nearest_db: the SQNR that
    these would have. minmax_db, best_db: of min-max scales and of our search at this format. largest: share of groups
    whose scale is that of their largest weight, up to a factor that is the same in all of them; about: of groups whose
    scale is near that; above: of groups whose scale is larger than that; shifted: of groups with a float offset that is
    neither their lowest nor their highest weight; dividing: of groups with the scale of MLX's rule, where that tells.
    used, codes: how many codes occur, and how many there are; wanted: how many would occur if all were the nearest
    ones; reduced: whether those that occur span one bit less than is stored. cleanest: the largest share of nearest
    codes in a column, where chance alone would not give that to any; balanced: share of rows whose errors add up to
    less than a step, as rounding that preserves sums makes them; beyond: share of weights that are more than a step
    from what they became, though not clipped; strays: how many are more than STRAY steps; zeroed: share of those that
    became 0, though nearer to others; odd: how many groups have far fewer nearest codes than the others, as after their
    scales alone were changed.
    """

    sqnr_db: float | None
    cosine: float
    top: float | None = None
    step: float | None = None
    clipped: bool = False
    gained_db: float | None = None
    gains: NDArray[np.float64] | None = None
    factor: float | None = None
    scheme: Scheme | None = None
    why: str = ""
    nearest: float | None = None
    nearest_db: float | None = None
    nearest_cosine: float | None = None
    nearest_factor: float | None = None
    minmax_db: float | None = None
    best_db: float | None = None
    largest: float | None = None
    about: float | None = None
    above: float | None = None
    shifted: float | None = None
    dividing: float | None = None
    cleanest: float | None = None
    balanced: float | None = None
    beyond: float | None = None
    strays: int = 0
    zeroed: float = 0.0
    odd: int = 0
    used: int | None = None
    wanted: int | None = None
    codes: int | None = None
    reduced: bool = False


def spans_of(rows: int, cols: int, height: int) -> list[TileSpan]:
    """Runs of whole rows spread over a tensor, together about as many weights as a sample has; of blocks whole rows of
    these.

    >>> [(span.row, span.rows) for span in spans_of(1600, 1 << 14, 1)][:3]
    [(0, 2), (100, 2), (200, 2)]
    """
    wanted = min(rows, max(min(ROWS, MOST // cols), WEIGHTS // cols, 1))
    pieces = 1 if wanted == rows else min(PIECES, wanted)
    size = -(-max(wanted // pieces, 1) // height) * height
    starts = sorted({i * (rows // pieces) // height * height for i in range(pieces)})
    return [TileSpan(row, min(size, rows - row), 0, cols) for row in starts]


def sampled(before: View, after: View, columns: NDArray[np.float64] | None = None) -> Sampled:
    """What a sample of the rows of a quantized tensor says of how it was made from a float one. columns: gains that its
    columns are known to have; else they are looked for where they explain it much better."""
    try:
        found = coded(after)
    except DataError as error:
        found = error.problem
    shape = after.info.shape or (1,)
    rows, cols, height, in_rows = math.prod(shape[:-1]), shape[-1], 1, None
    wide = after.regrouped() if isinstance(found, str) and (after.bits or 0) > MOST_BITS else None
    if not isinstance(found, str):
        rows, cols, height, in_rows = found.plan.rows, found.plan.cols, found.plan.height, found.taken
    elif wide is not None:
        (rows, cols), in_rows = wide.shape, wide.taken
    spans = spans_of(rows, cols, height)
    read = before.read if after.encoded is not None else before.rounded
    if not isinstance(found, str) and found.scheme.granularity == "tensor":
        spans = _with_extremes(spans, read, (rows, cols))

    def taken(values: Values) -> Floats:
        if in_rows is not None:
            return in_rows(values, _rows_of(spans))
        return np.concatenate([
            values(s.row * cols, (s.row + s.rows) * cols).reshape(s.rows, cols) for s in spans
        ])  # fmt: skip

    x, y = taken(read), taken(after.read)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Sampled(sqnr_db=None, cosine=math.nan, why="it holds NaN or infinity")
    with np.errstate(all="ignore"):
        plain = sqnr(x, y)
        gains, fitted = audit_fits.gained(x, y) if columns is None else (columns, x * columns.astype(np.float32))
        cosine, factor = angle(x, y)
        scaled = columns is not None
        if columns is None and cosine > 0.1 and min(x.shape) >= LEAST_ROWS and (more := won(x, fitted, y)) > GAINED:
            usual = 0.0 if isinstance(found, str) else _won_by_rounding(x, found, spans)
            scaled = more > 2 * usual
        shown = fitted if scaled else x
        about: dict[str, Any] = {
            "sqnr_db": plain,
            "cosine": angle(shown, y)[0],
            "top": float(np.abs(y).max()),
            "factor": None if scaled else factor,
            "gained_db": sqnr(fitted, y) if scaled else None,
            "gains": gains if scaled else None,
        }
        if wide is not None:
            return Sampled(**about, why="", nearest=_nearest_of(x, y, wide, _rows_of(spans)))
        if isinstance(found, str):
            return Sampled(**about, why=found)
        off = audit_scales.BY_GAINS if scaled or found.gained else 0.0
        off += audit_scales.BY_WEIGHTS if before.info.dtype != "BF16" else 0.0
        return Sampled(**about, scheme=found.scheme, **_made(shown, y, found, spans, off))


def _rows_of(spans: list[TileSpan]) -> NDArray[np.intp]:
    """The numbers of rows."""
    return np.concatenate([np.arange(s.row, s.row + s.rows) for s in spans])


def _nearest_of(x: Floats, y: Floats, found: Regrouped, rows: NDArray[np.intp]) -> float:
    """The share of weights that are within half a step of their codes, as of the nearest ones: of codes of many bits,
    whose steps are fine beside the rounding of weights to float32."""
    steps = spread_out(np.abs(found.params(rows)[0]), x, found.group)
    return float(np.mean(np.abs(x - y) <= (0.5 + NEAR) * steps + np.float32(audit_scales.EXACT) * np.abs(x)))


def _with_extremes(spans: list[TileSpan], values: Values, shape: tuple[int, int]) -> list[TileSpan]:
    """Runs of whole rows with the rows of the lowest and the highest weight, by which one scale for all is told."""
    (rows, cols), low, high = shape, (math.inf, 0), (-math.inf, 0)
    if len(spans) == 1 and spans[0].rows == rows:
        return spans
    for first, last in runs_of(rows * cols, BLOCK):
        piece = values(first, last)
        ends = int(piece.argmin()), int(piece.argmax())
        low = min(low, (float(piece[ends[0]]), first + ends[0]))
        high = max(high, (float(piece[ends[1]]), first + ends[1]))
    known = {at // cols for _, at in (low, high)}
    missing = {row for row in known if not any(s.row <= row < s.row + s.rows for s in spans)}
    return sorted([*spans, *(TileSpan(row, 1, 0, cols) for row in missing)], key=lambda s: s.row)


def _won_by_rounding(x: Floats, found: Coded, spans: list[TileSpan]) -> float:
    """By how many dB gains of rows and columns seem to explain the nearest codes of weights that have none."""
    grid, group, rounded, at = code_grid(found.scheme), min(found.plan.group, found.plan.cols), np.empty_like(x), 0
    for span in spans:
        here = slice(at, at + span.rows)
        rounded[here], _ = _nearest(x[here], found.params(span), grid, group)
        at += span.rows
    return won(x, audit_fits.gained(x, rounded)[1], rounded)


def _nearest(x: Floats, params: QuantParams, grid: CodeGrid, group: int) -> tuple[Floats, Bytes]:
    """What weights become by their nearest codes, and these, packed."""
    packed = np.empty(len(x) * row_bytes(x.shape[1], grid.bits), np.uint8)
    kernels.load().encode(_tile(x, group), params, grid, packed)
    return kernels.load().decode(packed, x.shape, group, params, grid).reshape(x.shape), packed


# ---- how it was made ----------------------------------------------------------------------------------------------


def _made(x: Floats, y: Floats, found: Coded, spans: list[TileSpan], off: float) -> dict[str, Any]:
    """How codes and scales of a sample compare with what rounding, min-max and our search make of its weights.
    off: how far scales may be from what weights say, for what the tool rounds first."""
    grid, cols = code_grid(found.scheme), found.plan.cols
    group, at = min(found.plan.group, cols), 0
    occur, wanted = np.zeros((2, 1 << grid.bits), bool)
    rounded, far, near, scales = (
        np.empty_like(x),
        np.zeros(x.shape, bool),
        np.empty(x.shape, bool),
        np.empty((len(x), found.plan.groups), np.float32),
    )
    offsets = np.zeros_like(scales)
    beyond, strays, zeroed, stepped = 0, 0, 0, grid.mode in (INTEGER, OFFSET, LEVELS)
    slack = np.float32(NEAR_FLOATS if grid.mode == LEVELS else NEAR)
    points = set[float]()
    for span in spans:
        here, params = slice(at, at + span.rows), found.params(span)
        before, after = x[here], y[here]
        nearest, again = _nearest(before, params, grid, group)
        codes = found.codes(span, after, params)
        points.update(() if params.zero is None else np.unique(params.zero)[:2].tolist())
        occur[codes.ravel()] = True
        wanted[packing.unpack(again, span.rows, cols, grid.bits).ravel()] = True
        scales[here] = np.abs(params.scale)
        zero: Floats | np.float32 = np.float32(0)
        if grid.mode == OFFSET and params.zero is not None:
            zero, offsets[here] = spread_out(params.zero, before, group), params.zero
        own, least = np.abs(before - after), np.abs(before - nearest)
        near[here] = own <= least + slack * (least + np.abs(after - zero) + np.abs(zero))
        if found.scheme.scale_dtype == "bfloat16" and grid.mode == INTEGER:
            near[here] |= after == audit_scales.in_bfloat16(before, spread_out(params.scale, before, group))
        zeroed += int(np.count_nonzero((after == 0) & (nearest != 0)))
        if stepped:
            steps = _steps(before, spread_out(scales[here], before, group), params)
            inside = least <= 0.55 * steps
            far[here] = own > least + BEYOND_NEAREST * steps
            beyond += int(np.count_nonzero((own > 1.05 * steps) & inside))
            strays += int(np.count_nonzero((own > STRAY * steps) & inside))
        rounded[here], at = nearest, at + span.rows
    reduced = _is_reduced(occur, found.scheme)
    scheme = found.scheme
    if reduced:
        scheme = changed(scheme, bits=scheme.bits - 1, grid=None)
    if len(points) == 1 and grid.mode == INTEGER and scheme.granularity != "tensor":  # symmetric about another code
        scheme = changed(scheme, symmetric=True, grid=None)
    minmax, best = _references(x, y, scheme, group)
    largest, about, above = audit_scales.of_largest(x, scales, found, off)
    nearest_cosine, nearest_factor = angle(x, rounded)
    return {
        "nearest": float(near.mean()),
        "nearest_db": sqnr(x, rounded),
        "nearest_cosine": nearest_cosine,
        "nearest_factor": nearest_factor,
        "minmax_db": minmax,
        "best_db": best,
        "largest": largest,
        "about": about,
        "step": float(scales.max()),
        "clipped": _is_clipped(x, y, above),
        "above": above,
        "shifted": audit_scales.shifted(x, scales, offsets, found) if grid.mode == OFFSET else None,
        "dividing": audit_scales.dividing(x, scales, found) if grid.mode == OFFSET else None,
        "cleanest": _cleanest(near),
        "balanced": float(np.mean(np.abs((y - x).sum(axis=1)) <= scales.mean(axis=1))) if stepped else None,
        "beyond": beyond / near.size if stepped else None,
        "strays": strays,
        "zeroed": zeroed / near.size,
        "odd": _odd(far & ~near, group) if grid.bits <= ODD_BITS and found.exact_scales else 0,
        "used": int(occur.sum()),
        "wanted": int(wanted.sum()),
        "codes": len(occur) >> reduced,
        "reduced": reduced,
    }


def _steps(x: Floats, scale: Floats, params: QuantParams) -> Floats:
    """How far the codes on both sides of every weight are apart; scale: of each."""
    if params.codebook is None:
        return scale
    levels, where = params.codebook.sorted[0], np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    above = np.clip(np.searchsorted(levels, where), 1, len(levels) - 1)
    found: Floats = (levels[above] - levels[above - 1]) * scale
    return found


def _is_clipped(x: Floats, y: Floats, above: float | None) -> bool:
    """Whether scales are smaller than the largest weights need: all of them, or that of the whole tensor."""
    return above <= CLIPPED if above is not None else bool(np.abs(y).max() < (1 - CLIPPED) * np.abs(x).max())


def _is_reduced(occur: NDArray[np.bool_], scheme: Scheme) -> bool:
    """Whether whole numbers of 8 bits use no more of a range than 7 have: onnxruntime's `reduce_range`, whose symmetric
    codes go from -64 to 64."""
    used = np.flatnonzero(occur)
    return scheme.family == "int" and scheme.bits == 8 and len(used) > 1 and bool(used[-1] - used[0] <= 128)


def _cleanest(near: NDArray[np.bool_]) -> float | None:
    """The largest share of nearest codes in a column; None where some column has so many by chance, if all are alike:
    sum over columns of the chance that at most 2 % of its codes are not the nearest."""
    rows, share = len(near), float(near.mean())
    if 0 < share < 1:
        tail = [math.comb(rows, k) * share ** (rows - k) * (1 - share) ** k for k in range(rows // 50 + 1)]
        if near.shape[1] * sum(tail) > CHANCE:
            return None
    return float(near.mean(axis=0).max())


def _odd(far: NDArray[np.bool_], group: int) -> int:
    """How many groups have far more codes clearly beyond the nearest ones than chance gives any."""
    starts = np.arange(0, far.shape[1], group)
    missed = np.add.reduceat(far, starts, axis=1, dtype=np.int64)
    share, least = max(float(far.mean()), 1 / far.size), max(math.ceil(ODD * group), 4)
    if least > group:
        return 0
    ways = math.lgamma(group + 1) - math.lgamma(least + 1) - math.lgamma(group - least + 1)
    chance = ways + least * math.log(share) + math.log(missed.size)  # at most, of so many or more; its logarithm
    return int(np.count_nonzero(missed >= least)) if chance < math.log(ODD_CHANCE) else 0


def _tile(x: Floats, group: int) -> Tile:
    return Tile(np.ascontiguousarray(x).reshape(-1), F32, len(x), x.shape[1], group)


def _references(x: Floats, y: Floats, scheme: Scheme, group: int) -> tuple[float | None, float | None]:
    """The SQNR of min-max scales and of our search on these rows. Of the ranges that tools take for min-max, those of
    the SQNR nearest to what was stored: the largest weight on the last code, half a step or a whole one beyond it."""
    nearest = None if scheme.storage == "super-blocks" else "nearest"
    best = _quantized(x, changed(scheme, calibration=None, options={}, grid=None, rounding=nearest))
    if scheme.storage == "super-blocks":
        return None, best
    found = [_quantized(x, changed(scheme, calibration="minmax", options={}, grid=None, rounding="nearest"))]
    if scheme.family == "int" and scheme.symmetric and scheme.storage == "plain" and scheme.bits > 1:
        found += [_scaled(x, scheme, group, divisor) for divisor in (reach(scheme) + 0.5, -reach(scheme) - 1)]
    stored = sqnr(x, y)
    if stored is None:
        return found[0], best
    return min(filter(None, found), key=lambda db: abs(db - stored), default=None), best


def _quantized(x: Floats, scheme: Scheme) -> float | None:
    try:
        made = quantize(x, scheme)
    except QuantcliError:  # of weights that the scheme cannot hold there is nothing to compare with
        return None
    return sqnr(x, made.dequantize())


def _scaled(x: Floats, scheme: Scheme, group: int, divisor: float) -> float | None:
    """The SQNR of scales that are the largest weight of each group, with its sign, over a divisor."""
    starts = range(0, x.shape[1], group)
    high, low = (f.reduceat(x, starts, axis=1) for f in (np.maximum, np.minimum))
    largest = np.where(high > -low, high, low) if divisor < 0 else np.maximum(high, -low)
    scale = (largest / np.float32(divisor)).astype(np.float32)
    scale[scale == 0] = 1
    grid, params = code_grid(changed(scheme, calibration=None, options={}, grid="full")), QuantParams(scale)
    packed = np.empty(len(x) * row_bytes(x.shape[1], grid.bits), np.uint8)
    kernels.load().encode(_tile(x, group), params, grid, packed)
    return sqnr(x, kernels.load().decode(packed, (len(x), x.shape[1]), group, params, grid))
