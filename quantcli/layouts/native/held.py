"""The codes of tensors that quantcli quantized as the writers of other layouts take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.native.model import Tensor
from quantcli.layouts.reader import FLOATING, Held
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Floats


def held(tensor: Tensor) -> Held | str:
    """The codes of a tensor that quantcli quantized, or why they are not put together with others."""
    scheme, plan = tensor.stored.scheme, tensor.stored.grouping
    assert scheme is not None and plan is not None
    floating = scheme.format in FLOATING
    moved = floating or (scheme.family == "int" and not scheme.binary)
    if not moved or plan.cols != tensor.shape[-1] or plan.shared == "columns":
        return f"experts of {scheme.name} are not arranged"
    where: int | str = plan.group if scheme.granularity in ("group", "block") else "channel"

    def rows(first: int, last: int) -> TileSpan:
        return TileSpan(first, last - first, 0, plan.cols)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = tensor.scales(rows(first, last))
        if plan.height > 1:  # of the blocks that these are rows of
            scale = scale[np.arange(first, last) // plan.height - first // plan.height]
        return (np.broadcast_to(scale, (last - first, plan.groups)) if floating else scale), zero

    return Held(
        format=scheme.format,
        bits=scheme.bits,
        group="tensor" if floating and scheme.granularity == "tensor" else where,
        height=plan.height,
        offsets="" if scheme.symmetric else scheme.zero_point,
        scale_dtype=tensor.stored.scale_dtype,
        overall=tensor.overall(),
        activations=scheme.activations,
        packed=lambda first, last: tensor.packed(rows(first, last)),
        params=params,
    )
