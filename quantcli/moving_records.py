"""Tensors on their way into another layout, and the codes of those that quantcli quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.held_floats import FLOATING
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.reader import Held
from quantcli.layouts.writer import Codes, Raw
from quantcli.models import View
from quantcli.tensors.decided import Decided
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.metrics import Metrics
    from quantcli.stores import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """A tensor on its way into another layout.

    decided: what it is there, of a weight whose codes cannot be moved what is nearest to it. codes: what a writer
    takes. view: the tensor as floats. scheme: as its file has it, None for floats. obstacle: why no layout can have its
    codes. metrics: what its file says the codes cost.
    """

    decided: Decided
    codes: Codes | Raw
    view: View
    scheme: str | None
    bytes_in: int
    obstacle: str = ""
    metrics: Metrics | None = None


class Movable(Mapping[str, Moving]):
    """The tensors of a model by the names they are moved under. source: where they are; notes: what there is to say of
    them, for people."""

    def __init__(self, source: Source, tensors: Mapping[str, Moving], notes: tuple[str, ...] = ()) -> None:
        self.source, self._tensors, self.notes = source, tensors, notes

    def __getitem__(self, name: str) -> Moving:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def of_native(tensor: Tensor) -> Held | str:
    """The codes of a tensor that quantcli quantized."""
    scheme, plan = tensor.stored.scheme, tensor.stored.grouping
    assert scheme is not None and plan is not None
    moved = (scheme.family == "int" and not scheme.binary) or scheme.format in FLOATING
    if not moved or plan.cols != tensor.shape[-1] or plan.shared == "columns":
        return f"experts of {scheme.name} are not arranged"
    floating = scheme.format in FLOATING
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
