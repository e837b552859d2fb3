"""Codes of small floats as another layout has them, and the measured scales of the inputs of their layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import Scheme, changed
from quantcli.dtypes import to_float32
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.held import as_rows, spans_of
from quantcli.layouts.reader import Held
from quantcli.layouts.small import MX
from quantcli.layouts.stored import FLOATS
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.stores import Source

MXFP8 = Scheme(format="fp8-e4m3", group_size=MX, scale_dtype="float8_e8m0")

BLOCK = 128
"""Rows and columns of the blocks that a scale of the tensor is repeated for."""


def as_blocks(held: Held, cols: int) -> Held:
    """The codes of a weight that has one scale, with one for every block."""
    across = -(-cols // BLOCK)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = held.params(first, last)
        return np.broadcast_to(scale, (last - first, across)), zero

    return replace(held, group=BLOCK, height=BLOCK, params=params)


def as_mx(held: Held, rows: int, cols: int) -> Held | str:
    """The codes of 8-bit floats as those of MXFP8, which they are where every scale is a power of two; or why not."""
    width = held.group if isinstance(held.group, int) else cols
    if cols % MX or (width % MX and width < cols):
        return f"its blocks are not whole groups of {MX}"

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        each = np.repeat(held.params(first, last)[0], -(-width // MX), axis=1)
        return np.ascontiguousarray(each[:, : cols // MX]), None

    for first, last in spans_of(rows, -(-cols // width)):
        scale, _ = held.params(first, last)
        if not ((np.frexp(scale)[0] == 0.5) & (scale >= 2.0**-127)).all():
            return "its scales are no powers of two"
    return replace(held, group=MX, height=1, scale_dtype="F8_E8M0", params=params)


def stored_by(accepts: Accepts, held: Held, scheme: Scheme, shape: Sequence[int]) -> tuple[Held, Scheme] | str:
    """The codes as a target stores them, and their scheme there, the nearest to what it was first: one scale for the
    tensor may be repeated, what inputs are quantized to left out, and scales that are powers of two be those of MXFP8.
    Where it stores none, why."""
    rows, cols = math.prod(shape[:-1]), shape[-1]
    ways = [(held, scheme)]
    if scheme.granularity == "tensor":
        blocks = changed(scheme, granularity="block", group_size=BLOCK)
        ways += [(as_rows(held), changed(scheme, granularity="channel")), (as_blocks(held, cols), blocks)]
    for kind in dict.fromkeys((scheme.activations, "none")):
        for codes, way in ways:
            own = changed(way, activations=kind)
            if accepts.obstacle(own) is None:
                return codes, own
    why = accepts.obstacle(changed(scheme, activations="none")) or ""
    if scheme.format != MXFP8.format or scheme.storage != "plain" or accepts.obstacle(MXFP8) is not None:
        return why
    found = as_mx(held, rows, cols)
    return f"{why}, and {found}" if isinstance(found, str) else (found, MXFP8)


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
