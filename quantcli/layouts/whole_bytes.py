"""Shared by writers: weights whose codes are bytes, or two to a byte, with a tensor of scales as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli import scales
from quantcli.layouts.pieces import bands, element, facts, put_columns, words
from quantcli.layouts.writer import Codes, Job, Piece, Weight, Write
from quantcli.scales import Store
from quantcli.scheme import Scheme
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Bytes


ROUNDED = 2.0**-50
"""From which on the scale of a tensor is another one in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The tensors a weight is stored as: codes, scales, and where there is one the scale of the tensor. inverse:
    whether that is what scales are divided by. store: the dtype in which scales are stored."""

    codes: TensorInfo
    scale: TensorInfo
    store: str
    overall: TensorInfo | None = None
    inverse: bool = False


def job(tensor: Weight, places: Places) -> Job:
    """The work that stores a weight. Codes are bytes of floats or signed integers; of 4-bit floats two to a byte, the
    first in the low half. Words of four bytes are the same."""
    scheme, plan = facts(tensor)
    outputs = tuple(o for o in (places.codes, places.scale, places.overall) if o is not None)

    def pieces() -> Iterator[Piece]:
        width = plan.cols + 1 if plan.height > 1 else plan.group
        for span in bands(plan, scheme.bits, width, unit=plan.height):
            yield partial(_piece, scheme, plan, places, span)

    return Job(outputs=outputs, pieces=pieces)


def _piece(scheme: Scheme, plan: Grouping, places: Places, span: TileSpan, codes: Codes, write: Write) -> bool:
    """Codes and scales of a piece of a weight."""
    half = places.codes.dtype in ("U8", "U32") and scheme.bits == 4
    at = span.row, span.col // 2 if half else span.col
    put_columns(write, 0, _codes(scheme, plan, span, codes), at, places.codes.shape[-1] * element(places.codes.dtype))
    begins = span.row == span.col == 0
    if span.col % plan.group == 0:
        store = Store(places.store, codes.overall())
        stored = np.ascontiguousarray(scales.of(scheme).stored(codes.scales(span)[0], store))
        if scheme.granularity != "tensor":
            put_columns(write, 1, stored, (span.row // plan.height, span.col // plan.group), plan.groups)
        elif begins:
            write(1, 0, stored[:1, :1].copy())
    exact = True
    if places.overall is not None and begins:
        overall = codes.overall()
        value = np.float32(1 / overall if places.inverse else overall)
        exact = abs(float(value) * (overall if places.inverse else 1 / overall) - 1) < ROUNDED
        write(2, 0, np.array([value], "<f4"))
    return exact


def _codes(scheme: Scheme, plan: Grouping, span: TileSpan, codes: Codes) -> Bytes:
    packed = words(codes, span, plan, scheme.bits)
    if scheme.family != "int":
        return packed[:, : span.cols * scheme.bits // 8]
    found = packing.unpack(np.ascontiguousarray(packed), span.rows, span.cols, scheme.bits)
    signed: Bytes = found - np.uint8(1 << (scheme.bits - 1))
    return signed
