"""Parameters as a file stores them: rounded to their dtype, together with their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import scales
from quantcli.calibrators import Ideal
from quantcli.formats import code_grid, fixed_codebook, padded_codebook
from quantcli.kernels import BINARY, LEVELS, OFFSET, CodeGrid, QuantParams
from quantcli.kernels.codebook import Codebook
from quantcli.scales import Store
from quantcli.scales.plain import LARGEST, next_smaller, rounded
from quantcli.scheme import AUTO, Scheme, scale_dtype_name
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan, column_repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats


def default_scale_dtype(scheme: Scheme, dtype: str) -> str:
    """The safetensors dtype scales are stored in, unless the weights do not fit it.

    Above 8 bits a float16 scale would cost more than the codes gain: half a unit of its last place is 8 steps of a
    16-bit grid.

    >>> from quantcli import Scheme
    >>> default_scale_dtype(Scheme(bits=4), "BF16"), default_scale_dtype(Scheme(bits=4), "F32")
    ('BF16', 'F16')
    """
    if scheme.scale_dtype != AUTO:
        return scale_dtype_name(scheme.scale_dtype)
    if scheme.shares_levels:
        return "F8_E4M3"
    if scheme.bits > 8:
        return "F32"
    return "BF16" if dtype == "BF16" else "F16"


def settle(ideal: Ideal, scheme: Scheme, store: Store) -> QuantParams | None:
    """Parameters of the groups, rounded to what the file stores; None when its dtype does not hold them.

    A scale below the normal range of float32 is raised to it: such groups decode to multiples of 2^-126, most to 0.
    Where the outermost code would decode beyond the scale's dtype (readers multiply in it) the scale is the next
    smaller one.
    """
    if scales.of(scheme).search is not None:
        book = fixed_codebook(scheme) if code_grid(scheme).mode == LEVELS else None
        zero = None if ideal.zero is None else ideal.zero.astype(np.float32)
        return QuantParams(ideal.scale.astype(np.float32), zero, book, ideal.blocks) if ideal.blocks else None
    if scheme.storage != "plain":
        return QuantParams(scales.of(scheme).settle(ideal.scale, scheme, store), None, fixed_codebook(scheme))
    scale_dtype = store.dtype
    book = _codebook(ideal, scheme, scale_dtype)
    if scheme.family == "learned" and not scheme.shares_levels:
        return None if book is None else QuantParams(ideal.scale.astype(np.float32), None, book)
    wanted = _representable(ideal.scale, scheme, scale_dtype)
    zero = _settled_zero(ideal, scheme, scale_dtype)
    if wanted is None or (zero is None and ideal.zero is not None):
        return None
    scale, grid = rounded(wanted, scale_dtype), code_grid(scheme)
    limit = LARGEST["F32" if scheme.shares_levels else scale_dtype]
    top = grid.umax if book is None else float(np.abs(book.sorted).max())
    farthest = float(np.abs(wanted).max()) * top * 1.01 + (float(np.abs(zero).max()) if zero is not None else 0.0)
    if not farthest < limit:
        if (_outermost(wanted, zero, grid, top) > limit * 1.001).any():
            return None
        scale = np.where(_outermost(scale, zero, grid, top) > limit, next_smaller(scale, scale_dtype), scale)
        if not (_outermost(scale, zero, grid, top) <= limit).all():
            return None
    if grid.mode != BINARY and not scheme.shares_levels and not scale.all():
        return None
    return QuantParams(scale, zero, book)


def levels_dtype(scheme: Scheme, scale_dtype: str) -> str:
    """The safetensors dtype of a codebook: that of scales for one per channel; a tensor's only one may be wide."""
    return scale_dtype if scheme.family == "learned" and scheme.granularity == "channel" else "F32"


def _codebook(ideal: Ideal, scheme: Scheme, scale_dtype: str) -> Codebook | None:
    """The levels of the codes, rounded to what the file stores; None for integers, and where they do not fit."""
    if ideal.levels is None:
        return fixed_codebook(scheme) if code_grid(scheme).mode == LEVELS else None
    levels = rounded(ideal.levels, levels_dtype(scheme, scale_dtype))
    if not np.isfinite(levels).all():
        return None
    return padded_codebook(levels, scheme)


def _representable(scale: NDArray[np.float64], scheme: Scheme, scale_dtype: str) -> NDArray[np.float64] | None:
    """Scales raised to the smallest a float32 or bfloat16 is trusted with; None where float16 would lose too much.

    In float16 (multiples of 2^-24) rounding must not move the outermost of 2^(b-1) steps by more than a quarter of
    a step, unless float16 was requested.
    """
    size = np.abs(scale)
    if scheme.shares_levels:  # already chosen among the values of the dtype; 0 for groups of zeros
        return scale
    smallest = smallest_scale(scheme, scale_dtype)
    if float(size.min()) >= smallest:
        return scale
    if scale_dtype == "F16":
        lost = scheme.scale_dtype == AUTO and bool(np.any((size < smallest) & (size > 0)))
        return None if lost else scale
    if code_grid(scheme).mode == BINARY:
        return scale
    return np.where(size < smallest, np.copysign(smallest, scale), scale)


def smallest_scale(scheme: Scheme, scale_dtype: str) -> float:
    """The smallest positive scale of a dtype, unless that dtype was requested."""
    return float(2.0 ** min(scheme.bits - 24, -14) if scale_dtype == "F16" else 2.0**-126)


def improper(scale: Floats, zero: Floats | None, scheme: Scheme, scale_dtype: str) -> list[tuple[str, NDArray[Any]]]:
    """Problems of stored parameters that `settle` cannot have produced, each with the groups concerned.

    scale: as stored, of groups that have one. For levels see `improper_levels`.
    """
    found = [("the scale is not finite", ~np.isfinite(scale))]
    if scheme.storage != "plain":
        found += [("the scale is negative", np.signbit(scale)), ("the scale is 0", scale == 0)]
        return [(what, where) for what, where in found if where.any()]
    grid, limit = code_grid(scheme), LARGEST["F32" if scheme.shares_levels else scale_dtype]
    if zero is not None:
        found.append(("the zero point is not finite", ~np.isfinite(zero)))
    if grid.mode == BINARY or scheme.grid == "restricted" or not scheme.symmetric:
        found.append(("the scale is negative", np.signbit(scale)))
    if grid.mode != BINARY and not scheme.shares_levels:
        found.append(("the scale is 0", scale == 0))
        if scale_dtype != "F16" or scheme.scale_dtype == AUTO:
            small = (scale != 0) & (np.abs(scale) < smallest_scale(scheme, scale_dtype))
            found.append(("the scale is too small", small))
    if grid.mode != LEVELS:
        with np.errstate(all="ignore"):
            far = _outermost(scale, zero, grid, float(grid.umax))
            found.append((f"the outermost code is beyond {scale_dtype}", np.isfinite(scale) & (far > limit)))
    return [(what, where) for what, where in found if where.any()]


def improper_levels(levels: Floats, scheme: Scheme) -> list[tuple[str, NDArray[Any]]]:
    """Problems of stored levels (tables, 2^b) by code, each with the places concerned."""
    if scheme.codebook:
        wanted = fixed_codebook(scheme).levels
        found = [("a level is not the given one", levels.view(np.uint32) != wanted.view(np.uint32))]
    else:
        count = scheme.level_count
        after = np.zeros(levels.shape, bool)
        after[:, 1:count] = ~(levels[:, 1:count] >= levels[:, : count - 1])
        after[:, count:] = levels[:, count:] != levels[:, count - 1 : count]
        found = [("a level is not finite", ~np.isfinite(levels)), ("the levels do not rise", after)]
    return [(what, where) for what, where in found if where.any()]


def _settled_zero(ideal: Ideal, scheme: Scheme, scale_dtype: str) -> Floats | None:
    """Whole zero points, or offsets in the scale's dtype; None when there are none, and where rounding an offset
    would move the whole group by more than a quarter of a step, unless that dtype was asked for."""
    if ideal.zero is None:
        return None
    if scheme.zero_point == "int":
        return np.clip(np.rint(ideal.zero), 0, (1 << scheme.bits) - 1).astype(np.float32)
    zero = rounded(ideal.zero, scale_dtype)
    moved = bool(np.any(np.abs(zero - ideal.zero) > np.abs(ideal.scale) / 4))
    return None if moved and scheme.scale_dtype == AUTO and scale_dtype != "F32" else zero


def _outermost(scale: NDArray[Any], zero: Floats | None, grid: CodeGrid, top: float) -> NDArray[np.float64]:
    """Largest absolute value that occurs when the codes of each group are decoded."""
    far: NDArray[np.float64] = np.abs(scale.astype(np.float64))
    if grid.mode == BINARY:
        return far
    if grid.mode == LEVELS:
        return far * top
    z = np.float64(grid.zero) if zero is None else zero.astype(np.float64)
    if grid.mode == OFFSET:
        far = np.maximum(grid.umax * far, np.maximum(np.abs(z), np.abs(grid.umax * far + z)))
    else:
        far = np.maximum(np.abs(grid.umin - z), np.abs(grid.umax - z)) * far
    return far


def spread(params: QuantParams, info: TensorInfo, scheme: Scheme, plan: Grouping) -> QuantParams:
    """Parameters per channel as the vector (1, cols) the kernels take; others as they are."""
    if plan.shared != "columns":
        return params
    outer, channels, inner = column_repeats(info.shape, scheme.axis)
    shape = (outer, channels, inner)

    def expand(values: Floats) -> Floats:
        per_channel = values.reshape(1, channels, 1)
        return np.ascontiguousarray(np.broadcast_to(per_channel, shape)).reshape(1, plan.cols)

    return QuantParams(expand(params.scale), None if params.zero is None else expand(params.zero), params.codebook)


def stored_params(params: QuantParams, plan: Grouping) -> QuantParams:
    """Parameters as the file stores them: a tensor's one set is repeated for every row, columns stay one row."""
    rows = plan.rows if plan.shared == "tensor" else params.scale.shape[0]

    def repeat(values: Floats) -> Floats:
        flat = values.reshape(1, -1) if plan.shared == "columns" else values
        return np.broadcast_to(flat, (rows, flat.shape[1])) if plan.shared == "tensor" else flat

    return QuantParams(repeat(params.scale), None if params.zero is None else repeat(params.zero), params.codebook)


def part(params: QuantParams, span: TileSpan, plan: Grouping) -> QuantParams:
    """The parameters of one tile out of the whole tensor's."""

    def cut(values: Floats) -> Floats:
        rows = values if values.shape[0] == 1 and plan.shared else values[span.row : span.row + span.rows]
        if values.shape[1] > 1:
            rows = rows[:, span.col // plan.group : -(-(span.col + span.cols) // plan.group)]
        return np.ascontiguousarray(rows)

    book = params.codebook
    if book is not None and not plan.shared:
        book = book.rows(span.row, span.row + span.rows)
    return QuantParams(cut(params.scale), None if params.zero is None else cut(params.zero), book)
