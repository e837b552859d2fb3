"""The codes of a quantized tensor, whatever layout holds them, as an audit compares them with what rounding makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import asking
from quantcli.asking import changed
from quantcli.errors import UsageError
from quantcli.formats import code_grid, fixed_codebook, spread_out
from quantcli.kernels import LEVELS, QuantParams
from quantcli.layouts.held import Moved, offsets_of, scheme_of
from quantcli.layouts.reader import Held
from quantcli.layouts.regrouped import Regrouped, Values
from quantcli.models import View
from quantcli.scheme import Scheme, scale_dtype_of
from quantcli.tensors import packing
from quantcli.tensors.rows import Grouping, TileSpan, grouping_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats


WEIGHTS = 1 << 18
"""Weights of a sample."""

MOST_BITS = 8
"""Bits of codes for which scales and search are compared."""

Codes = Callable[[TileSpan, "Floats", QuantParams], "NDArray[np.uint8]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """The codes of a tensor: its scheme and rows, and the parameters and codes of runs of whole rows, of which the
    decoded weights are known. taken: the weights of some rows, where these are not runs of them. exact_scales: whether
    scales are stored as floats; gained: whether columns of rows that are taken are divided by gains of the layout."""

    scheme: Scheme
    plan: Grouping
    params: Callable[[TileSpan], QuantParams]
    codes: Codes
    taken: Callable[[Values, NDArray[np.intp]], Floats] | None = None
    exact_scales: bool = True
    gained: bool = False


def coded(view: View) -> Coded | str:
    """The codes of a tensor; or why they are not compared with others. Raises DataError where they cannot be read."""
    tensor = view.stored
    if tensor is not None and tensor.scheme is not None:
        plan = tensor.stored.grouping
        assert plan is not None
        if plan.shared == "columns" or tensor.scheme.rotation or tensor.scheme.format == "codebook":
            return f"codes of {tensor.scheme.name} are not made again from a sample"
        codes = _unpacked(tensor.packed, tensor.scheme)
        return Coded(scheme=tensor.scheme, plan=plan, params=tensor.params, codes=codes)
    held = view.held()
    found = held if isinstance(held, str) else _as_held(held, view)
    other = view.regrouped() if isinstance(found, str) else None
    if other is not None and other.bits > MOST_BITS:
        return f"codes of {other.bits} bits"
    return found if other is None else _of_other_rows(other)


def _as_held(held: Held, view: View) -> Coded | str:
    """The codes of a tensor in the rows that its layout holds them in; or why they are not compared with others."""
    shape = view.info.shape
    if held.turned:
        return "it is stored transposed"
    settled = held.offsets if held.blocks is not None else offsets_of(held, math.prod(shape[:-1]), shape[-1])
    try:
        scheme = scheme_of(held, settled).of_weights()
        plan = grouping_of(shape, scheme)
    except UsageError as error:
        return error.problem
    if scheme.granularity == "channel" and scheme.family == "int":
        return _of_channels(held, scheme, plan, shape)
    if plan.cols != shape[-1]:
        return f"its codes are in groups of a tensor of {len(shape)} dimensions"
    moved = Moved(held, scheme, plan)

    def params(span: TileSpan) -> QuantParams:
        scale, zero, blocks = *moved.scales(span), None
        if plan.height > 1:
            scale, zero = held.params(span.row, span.row + span.rows)
        elif held.blocks is not None:
            blocks = moved.params(span).blocks
        book = fixed_codebook(scheme) if code_grid(scheme).mode == LEVELS else None
        return QuantParams(np.ascontiguousarray(scale), zero, book, blocks=blocks)

    nested = (view.scheme or "").endswith("-double")  # scales are codes themselves
    stored = _scale_dtype(scheme, held.scale_dtype)
    codes = _unpacked(moved.packed, stored)
    return Coded(scheme=stored, plan=plan, params=params, codes=codes, exact_scales=not nested)


def _unpacked(packed: Callable[[TileSpan], Bytes], scheme: Scheme) -> Codes:
    """Codes that are stored in the rows they are compared in."""
    return lambda span, *_: packing.unpack(packed(span), span.rows, span.cols, scheme.bits)


def _of_other_rows(found: Regrouped) -> Coded | str:
    """The codes of a weight in rows that it is not stored in: they follow from what they are decoded to."""
    rows, cols = found.shape
    where: Any = "tensor" if found.single else "channel" if found.group == cols and not found.levels else "group"
    size = found.group if where == "group" else None
    kind: dict[str, Any] = {"bits": found.bits, "symmetric": found.symmetric}
    if found.levels:
        kind = {"bits": found.bits, "format": "codebook", "codebook": found.levels}
    scheme = _scale_dtype(asking.Scheme(granularity=where, group_size=size, **kind).of_weights(), found.scale_dtype)
    try:
        plan = grouping_of((rows, cols), scheme)
    except UsageError as error:
        return error.problem
    middle, book = 1 << (found.bits - 1), fixed_codebook(scheme) if found.levels else None

    def params(span: TileSpan) -> QuantParams:
        scale, zero = found.params(np.arange(span.row, span.row + span.rows))
        return QuantParams(np.ascontiguousarray(scale), None if zero is None else np.ascontiguousarray(zero), book)

    def codes(span: TileSpan, decoded: Floats, params: QuantParams) -> NDArray[np.uint8]:
        scale = spread_out(params.scale, decoded, found.group)
        steps = np.divide(decoded, scale, out=np.zeros_like(decoded), where=scale != 0)
        if book is not None:
            return np.searchsorted(book.thresholds[0], steps).astype(np.uint8)
        zero = middle if params.zero is None else spread_out(params.zero, decoded, found.group)
        return np.asarray(np.rint(steps) + zero, np.uint8)

    how: dict[str, Any] = {"taken": found.taken, "exact_scales": found.exact_scales, "gained": found.gained}
    return Coded(scheme=scheme, plan=plan, params=params, codes=codes, **how)


def _of_channels(held: Held, scheme: Scheme, plan: Grouping, shape: tuple[int, ...]) -> Coded | str:
    """The codes of a tensor with a scale for each index of the first axis, as of a convolution's output channels, or
    one for all. Files hold them in rows along the last axis."""
    count = plan.cols // shape[-1]
    scale, zero = Moved(held, scheme, grouping_of((plan.rows * count, shape[-1]), scheme)).scales(
        TileSpan(0, plan.rows * count, 0, shape[-1])
    )
    if any(v is not None and (v.reshape(-1, count) != v.reshape(-1, count)[:, :1]).any() for v in (scale, zero)):
        return "its scales are not those of its first axis"
    if len(np.unique(scale)) == 1 < plan.rows:
        scheme = changed(scheme, granularity="tensor")
        plan = grouping_of(shape, scheme)

    def params(span: TileSpan) -> QuantParams:
        own = slice(span.row * count, (span.row + span.rows) * count, count)
        return QuantParams(np.ascontiguousarray(scale[own]), None if zero is None else np.ascontiguousarray(zero[own]))

    def codes(span: TileSpan, *_: object) -> NDArray[np.uint8]:
        rows = span.rows * count
        parts = held.packed(span.row * count, span.row * count + rows)
        return packing.unpack(parts, rows, shape[-1], held.bits).reshape(span.rows, -1)

    return Coded(scheme=_scale_dtype(scheme, held.scale_dtype), plan=plan, params=params, codes=codes)


def _scale_dtype(scheme: Scheme, dtype: str) -> Scheme:
    """A scheme whose scales are stored in a dtype."""
    plain = scheme.storage == "plain" and dtype in ("F16", "BF16", "F32")
    return scheme.with_scale_dtype(scale_dtype_of(dtype)) if plain else scheme
