"""The codes of a quantized tensor, whatever layout holds them, as an audit compares them with what rounding makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import changed
from quantcli.errors import UsageError
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import LEVELS, QuantParams
from quantcli.layouts.held import Moved, offsets_of, scheme_of
from quantcli.layouts.reader import Held
from quantcli.models import View
from quantcli.scheme import Scheme, scale_dtype_of
from quantcli.tensors import packing
from quantcli.tensors.rows import Grouping, TileSpan, grouping_of

if TYPE_CHECKING:
    from quantcli.kernels import Bytes


WEIGHTS = 1 << 18
"""Weights of a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """The codes of a tensor: its scheme and rows, and the parameters and packed codes of runs of whole rows.
    exact_scales: whether scales are stored as floats."""

    scheme: Scheme
    plan: Grouping
    params: Callable[[TileSpan], QuantParams]
    packed: Callable[[TileSpan], Bytes]
    exact_scales: bool = True


def coded(view: View) -> Coded | str:
    """The codes of a tensor; or why they are not compared with others. Raises DataError where they cannot be read."""
    tensor = view.stored
    if tensor is not None and tensor.scheme is not None:
        plan = tensor.stored.grouping
        assert plan is not None
        if plan.shared == "columns" or tensor.scheme.rotation or tensor.scheme.format == "codebook":
            return f"codes of {tensor.scheme.name} are not made again from a sample"
        return Coded(scheme=tensor.scheme, plan=plan, params=tensor.params, packed=tensor.packed)
    held, shape = view.held(), view.info.shape
    if isinstance(held, str):
        return held
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
    stored = _scale_dtype(scheme, held)
    return Coded(scheme=stored, plan=plan, params=params, packed=moved.packed, exact_scales=not nested)


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
        if math.prod(shape) > WEIGHTS:
            return "it has one scale, and a sample of it may lack its largest weight"
        scheme = changed(scheme, granularity="tensor")
        plan = grouping_of(shape, scheme)

    def params(span: TileSpan) -> QuantParams:
        own = slice(span.row * count, (span.row + span.rows) * count, count)
        return QuantParams(np.ascontiguousarray(scale[own]), None if zero is None else np.ascontiguousarray(zero[own]))

    def packed(span: TileSpan) -> Bytes:
        rows = span.rows * count
        parts = held.packed(span.row * count, span.row * count + rows)
        return packing.pack(packing.unpack(parts, rows, shape[-1], held.bits).reshape(span.rows, -1), held.bits)

    return Coded(scheme=_scale_dtype(scheme, held), plan=plan, params=params, packed=packed)


def _scale_dtype(scheme: Scheme, held: Held) -> Scheme:
    """A scheme whose scales are stored as those of a weight are."""
    plain = scheme.storage == "plain" and held.scale_dtype in ("F16", "BF16", "F32")
    return scheme.with_scale_dtype(scale_dtype_of(held.scale_dtype)) if plain else scheme
