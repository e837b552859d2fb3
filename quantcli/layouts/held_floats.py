"""Codes of small floats as another layout has them, and the measured scales of the inputs of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import Scheme, changed
from quantcli.dtypes import to_float32
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.held import as_rows
from quantcli.layouts.reader import Held
from quantcli.layouts.stored import FLOATS
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.stores import Source

FLOATING = ("fp4", "fp8-e4m3", "fp8-e5m2")
"""Formats of floats that several layouts have."""

BLOCK = 128
"""Rows and columns of the blocks that a scale of the tensor is repeated for."""


def as_blocks(held: Held, cols: int) -> Held:
    """The codes of a weight that has one scale, with one for every block."""
    across = -(-cols // BLOCK)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = held.params(first, last)
        return np.broadcast_to(scale, (last - first, across)), zero

    return replace(held, group=BLOCK, height=BLOCK, params=params)


def stored_by(accepts: Accepts, held: Held, scheme: Scheme, cols: int) -> tuple[list[tuple[Held, Scheme]], str]:
    """The codes as a target stores them, and their scheme there, the nearest to what it was first: one scale for the
    tensor may be repeated, and what inputs are quantized to left out. Where it stores none, why."""
    ways = [(held, scheme)]
    if scheme.granularity == "tensor":
        blocks = changed(scheme, granularity="block", group_size=BLOCK)
        ways += [(as_rows(held), changed(scheme, granularity="channel")), (as_blocks(held, cols), blocks)]
    for kind in dict.fromkeys((scheme.activations, "none")):
        for codes, way in ways:
            own = changed(way, activations=kind)
            if accepts.obstacle(own) is None:
                return [(codes, own)], ""
    return [], accepts.obstacle(changed(scheme, activations="none")) or ""


def input_scale(source: Source, parts: Sequence[TensorInfo], unused: Sequence[str]) -> float | None:
    """The measured scale of the inputs of a layer, which stands beside the codes of its weight; None where there is
    none. unused: the names of parts that decoding does without."""
    for info in parts:
        inverse = info.name.endswith(".input_global_scale")
        if info.name not in unused or not (inverse or info.name.endswith(".input_scale")):
            continue
        if info.numel != 1 or info.dtype not in FLOATS:
            return None
        raw = np.empty(info.nbytes, np.uint8)
        source.read(info.name, 0, raw.data)
        value = float(to_float32(raw, info.dtype)[0])
        return (1 / value if inverse else value) if 1e-30 < value < 1e30 else None
    return None
