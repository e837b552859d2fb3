"""The bytes of a tensor in a GGUF: blocks of codes, and elements in a dtype that GGUF has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.errors import DataError, printable
from quantcli.layouts.gguf import super_blocks
from quantcli.layouts.gguf.blocks import block_type, encode
from quantcli.layouts.gguf.types import WEIGHTS
from quantcli.layouts.pieces import NO_OTHER_SCALES, bands, below, facts, params, put_columns, stored_blocks, words
from quantcli.layouts.writer import Codes, Job, Piece, Raw, Weight, Write
from quantcli.stores.gguf_types import TYPES
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan, runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes

SIZES = {t.name: t.bytes for t in TYPES.values()}
LENGTHS = {t.name: t.weights for t in TYPES.values()}
"""Bytes of a block, or of an element of the types without blocks, and its weights."""

Made = Callable[[Any, TileSpan], "tuple[Bytes, bool]"]
"""Bytes (rows, width) of a piece as GGUF stores them, and whether they decode to exactly the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a tensor: its name, its type, the row of the source for every row, None where they stay, and how
    many runs of rows are best read at a time; raised: what is added to its elements, which are F32."""

    name: str
    type: str
    order: NDArray[Any] | None = None
    units: int = 1
    raised: float = 0.0


def _blocks(weight: Weight) -> Made:
    scheme, plan = facts(weight)
    kind = block_type(scheme)

    def made(codes: Codes, span: TileSpan) -> tuple[Bytes, bool]:
        packed = words(codes, span, plan, scheme.bits)
        if scheme.storage == "super-blocks":
            return super_blocks.encode(kind, packed, span.cols, stored_blocks(codes, span, plan)), True
        scale, zero = params(codes, span, plan, scheme)
        try:
            return encode(scheme, packed, span.cols, scale, None if scheme.symmetric else zero, plan.group)
        except DataError as error:
            raise DataError(error.problem, place=[printable(weight.info.name)], hint=NO_OTHER_SCALES) from None

    return made


def _elements(info: TensorInfo, plan: Grouping, target: str) -> Made:
    size = DTYPES[info.dtype].bits // 8

    def made(kept: Raw, span: TileSpan) -> tuple[Bytes, bool]:
        runs = [span] if span.cols == plan.cols else [replace(span, row=span.row + n, rows=1) for n in range(span.rows)]
        rows, exact = [], True
        for run in runs:
            raw = kept.read_bytes(info.name, (run.row * plan.cols + run.col) * size, run.rows * run.cols * size)
            found, same = _converted(raw, info, target)
            rows.append(found.reshape(run.rows, -1) if len(runs) == 1 else found.reshape(1, -1).copy())
            exact &= same
        return rows[0] if len(rows) == 1 else np.concatenate(rows), exact

    return made


def _raised(made: Made, by: float) -> Made:
    """The same for F32 elements that are larger by a number."""

    def larger(kept: Raw, span: TileSpan) -> tuple[Bytes, bool]:
        block, exact = made(kept, span)
        found: NDArray[np.float32] = np.ascontiguousarray(block).view("<f4") + np.float32(by)
        return found.view(np.uint8), exact

    return larger


def _converted(raw: Bytes, info: TensorInfo, target: str) -> tuple[Bytes, bool]:
    """Elements in another dtype that holds their values, for F64 except the last bits. Raises DataError where it
    cannot."""
    if info.dtype == target or info.dtype == "BOOL":
        return raw, True
    found: NDArray[Any]
    if not DTYPES[target].is_float:
        found = raw.view(np.dtype(DTYPES[info.dtype].numpy)).astype(DTYPES[target].numpy)
        return found.view(np.uint8), True
    values = to_float32(raw, info.dtype)
    exact = True
    if info.dtype == "F64":
        before = raw.view("<f8")
        if not np.array_equal(np.isfinite(values), np.isfinite(before)):
            raise DataError(f"a weight does not fit {target}", place=[printable(info.name)])
        exact = np.array_equal(values.astype(np.float64), before, equal_nan=True)
    found = np.ascontiguousarray(from_float32(values, target))
    return found.view(np.uint8), exact


def _pieces(
    plan: Grouping, bits: int, place: Place, width: tuple[int, int], made: Made
) -> Callable[[], Iterator[Piece]]:
    """The pieces of a tensor of `bits` for a weight or element. width: bytes of a number of columns. In another order
    of rows a piece is whole units of them, most of which stay together."""
    unit = plan.rows // place.units if place.order is not None else 1
    size, cols = width
    row_size = plan.cols // cols * size
    goes = None if place.order is None else np.argsort(place.order, kind="stable")

    def piece(span: TileSpan, tensor: Codes | Raw, write: Write) -> bool:
        exact = True
        for part in below(span, bits, unit):
            block, same = made(tensor, part)
            for row, rows in _written(block, part.row, goes):
                put_columns(write, 0, rows, (row, part.col // cols * size), row_size)
            exact &= same
        return exact

    return lambda: (partial(piece, span) for span in bands(plan, bits, max(cols, WEIGHTS), unit=unit))


def _written(block: Bytes, first: int, goes: NDArray[Any] | None) -> Iterator[tuple[int, Bytes]]:
    """Rows of the output that follow each other, and the first of them. goes: where each row of the source goes."""
    if goes is None:
        yield first, block
        return
    for row, which in runs(goes[first : first + len(block)]):
        yield row, np.ascontiguousarray(block[which])


def job_of(weight: Weight, place: Place) -> Job:
    """What writes a tensor to its place."""
    info = weight.info
    kind = place.type if place.name == info.name else f"{place.name} {place.type}"
    size = SIZES[place.type]
    if weight.scheme is not None:
        scheme, plan = facts(weight)
        weights = LENGTHS[place.type]
        rows = (*info.shape[:-1], plan.cols // weights * size)
        pieces = _pieces(plan, scheme.bits, place, (size, weights), _blocks(weight))
        return Job(outputs=(TensorInfo(place.name, "U8", rows),), pieces=pieces, kind=kind)
    outputs = (TensorInfo(place.name, place.type, info.shape),)
    if not info.numel:
        return Job(outputs=outputs, pieces=lambda: iter(()), kind=kind)
    rows_in = info.shape[0] if place.order is not None else 1
    cols = info.numel // rows_in
    plan = Grouping(rows_in, cols, cols, None, (rows_in,), (rows_in, 1))
    made = _elements(info, plan, place.type)
    made = _raised(made, place.raised) if place.raised else made
    pieces = _pieces(plan, DTYPES[info.dtype].bits, place, (size, 1), made)
    return Job(outputs=outputs, pieces=pieces, kind=kind)
