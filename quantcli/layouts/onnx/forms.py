"""The forms in which a graph can have a quantized weight, and the tensors each is stored as.

`blocks` is MatMulNBits', `rows` GatherBlockQuantized's, `both` that of a matrix which is multiplied with and looked up;
`linear` is DequantizeLinear's. All but the last have blocks along the axis that is summed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantcli.asking import changed
from quantcli.layouts.onnx.roles import Role
from quantcli.layouts.pieces import bands, facts, finer, pack_rows, params, put_columns, repeated, rounded, words
from quantcli.layouts.writer import Codes, Job, Piece, Weight, Write
from quantcli.scheme import AUTO, Scheme, scale_dtype_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS = (16, 32, 64, 128, 256)
RAGGED = 128
"""The block size of rows with one scale that none of these divides."""

UINT4, INT4, UINT8, INT8, FLOAT, FLOAT16, BFLOAT16 = 21, 22, 2, 3, 1, 10, 16
"""TensorProto's numbers."""

SCALES = {"F32": FLOAT, "F16": FLOAT16, "BF16": BFLOAT16}
"""Dtypes of weights whose products onnxruntime computes, which their scales have too."""

LINEAR_BITS = (4, 8)

Form = Literal["blocks", "rows", "both", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor of a quantized weight in the file: TensorProto's number of its type, and its shape there."""

    kind: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A quantized weight in its form. shape: that of the weight, with the axis that is summed over last where blocks
    run along it. parts: codes, scales, and zero points where it has some. block: weights that share a scale."""

    form: Form
    shape: tuple[int, ...]
    bits: int
    block: int
    parts: tuple[Part, ...]
    job: Job


def form_of(info: TensorInfo, role: Role) -> Form:
    """The form that suits a tensor of a graph."""
    if len(info.shape) == 2 and role.multiplied and role.rows:
        return "both" if info.shape[1] % min(BLOCKS) == 0 else "linear"
    if len(info.shape) == 2 and (role.multiplied or role.rows):
        return "blocks" if role.multiplied else "rows"
    return "linear"


def obstacle(weight: Weight, role: Role) -> str | None:
    """Why a weight cannot be stored in its form; None when it can."""
    scheme, plan = facts(weight)
    form = form_of(weight.info, role)
    if weight.info.dtype not in SCALES or (form == "linear" and weight.info.dtype == "BF16"):
        operator = "DequantizeLinear" if form == "linear" else "MatMulNBits"
        return f"onnxruntime's {operator} has no {weight.info.dtype}"
    if form == "linear":
        if scheme.bits not in LINEAR_BITS:
            return f"onnxruntime's DequantizeLinear has no {scheme.bits} bits"
        return f"a short last group of {plan.short_group}" if plan.short_group else None
    if plan.short_group and plan.group not in BLOCKS:
        return f"a short last group of {plan.short_group}"
    if form != "blocks" and plan.cols * scheme.bits % 8:
        return f"rows of {plan.cols} do not end between bytes"
    if form == "both" and plan.cols % block_of(plan):
        return f"rows of {plan.cols} do not end between blocks"
    return None


def suited(
    info: TensorInfo, scheme: Scheme, role: Role, *, chosen: bool, in_function: bool = False
) -> tuple[Scheme, str]:
    """The scheme nearest to another one that the form of a tensor can have, and what was changed for it.

    chosen: whether a rule names the scheme, not the default; else what is no matrix gets the bits of onnxruntime's own
    quantizers, which have no convolution of fewer: at 4 the networks of rapidocr read nothing any more. in_function:
    whether it is in a function, where a Constant node holds it, which in most versions has no type of 4 bits.
    """
    form, cols, notes = form_of(info, role), info.shape[-1], list[str]()
    if info.dtype not in SCALES:
        return scheme, ""
    computed = scale_dtype_of(info.dtype)
    if scheme.scale_dtype == AUTO or (scheme.scale_dtype != computed and info.dtype != "F32"):
        notes += [f"scales in {computed}, in which the graph computes"] if scheme.scale_dtype != AUTO else []
        scheme = scheme.with_scale_dtype(computed)
    least = min(LINEAR_BITS) if chosen and not in_function else max(LINEAR_BITS)
    if form == "linear" and scheme.bits < least:
        why = "the fewest there" if chosen else "as onnxruntime's tools give all but matrices"
        notes.append(f"{least} bits instead of {scheme.bits:g}, {why}")
        scheme = changed(scheme, bits=least)
    elif form == "rows" and cols * scheme.bits % 8:
        notes.append(f"8 bits instead of {scheme.bits:g}: rows of {cols} would not end between bytes")
        scheme = changed(scheme, bits=8)
    if scheme.granularity != "group":
        return scheme, "; ".join(notes)
    size = scheme.group_size
    if form == "linear" and len(info.shape) > 1:
        cols = _joined(info.shape, size)
    if size >= cols or cols % size == 0 or (form in ("blocks", "rows") and size in BLOCKS):
        return scheme, "; ".join(notes)
    own = next((b for b in reversed(BLOCKS) if b < size and cols % b == 0), None)
    if own is not None:
        return changed(scheme, group_size=own), "; ".join([*notes, f"groups of {own}, which end with its rows"])
    if form != "linear":
        return scheme, "; ".join(notes)
    alone = changed(scheme, granularity="channel", group_size=None)
    return alone, "; ".join([*notes, f"one scale per channel: no groups end with its rows of {cols}"])


def _joined(shape: Sequence[int], size: int) -> int:
    """Weights of a row, of as many trailing axes as groups of a size need."""
    split, cols = len(shape) - 1, shape[-1]
    while split > 1 and cols < size:
        split -= 1
        cols *= shape[split]
    return cols


def block_of(plan: Grouping) -> int:
    """The block size that stores these groups."""
    return finer(plan.group, BLOCKS) or RAGGED


def stored(weight: Weight, role: Role) -> Stored:
    """A weight in its form. Raises DataError, when it is written, for a scale its dtype does not hold."""
    form = form_of(weight.info, role)
    return _linear(weight) if form == "linear" else _blocks(weight, form)


def _in_graph(job: Job, name: str) -> Job:
    """A job whose outputs have names that no tensor of a graph has; in the file they have others."""
    keys = (name, f"{name}\0scale", f"{name}\0zero point")
    return replace(job, outputs=tuple(replace(o, name=key) for o, key in zip(job.outputs, keys)))


# ---- blocks along the rows --------------------------------------------------------------------------------------


def _blocks(weight: Weight, form: Form) -> Stored:
    _, plan = facts(weight)
    dtype = weight.info.dtype
    block = block_of(plan)
    padded = form != "rows"
    job = _in_graph(block_job(weight, block, dtype, padded=padded), weight.info.name)
    bits = facts(weight)[0].bits
    blocks = -(-plan.cols // block)
    codes = (plan.rows, blocks, block * bits // 8) if padded else (plan.rows, plan.cols * bits // 8)
    parts = [Part(kind=UINT8, shape=codes), Part(kind=SCALES[dtype], shape=(plan.rows, blocks))]
    if len(job.outputs) > len(parts):
        parts.append(Part(kind=UINT8, shape=job.outputs[2].shape))
    return Stored(form=form, shape=weight.info.shape, bits=bits, block=block, parts=tuple(parts), job=job)


def block_job(weight: Weight, block: int, scale_dtype: str, *, padded: bool = True) -> Job:
    """The conversion of a matrix into codes in blocks along its rows, low bits first, scales and packed zero points.
    padded: whether a row fills its last block."""
    scheme, plan = facts(weight)
    name, bits = weight.info.name, scheme.bits
    blocks, held = -(-plan.cols // block), block * bits // 8
    width = blocks * held if padded else plan.cols * bits // 8
    zeros = -(-blocks * bits // 8)
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("U8", (plan.rows, blocks, held) if padded else (plan.rows, width)),
        (scale_dtype, (plan.rows, blocks)),
        *([] if scheme.symmetric else [("U8", (plan.rows, zeros))]),
    ]
    names = (name, f"{name}_scale", f"{name}_zero_point")
    outputs = tuple(TensorInfo(n, d, s) for n, (d, s) in zip(names, shapes))

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        packed = words(codes, span, plan, bits)
        if padded and span.cols == plan.cols and packed.shape[1] != width:
            packed = np.pad(packed, ((0, 0), (0, width - packed.shape[1])))
        elif not padded:
            packed = packed[:, : span.cols * bits // 8]
        put_columns(write, 0, packed, (span.row, span.col * bits // 8), width)
        scale, zero = params(codes, span, plan, scheme)
        exact = _put_scales(write, scale, span, plan, block, scale_dtype, name)
        if not scheme.symmetric:
            across = repeated(zero.astype(np.uint8), span, plan, block)
            packed = pack_rows(across, bits).view(np.uint8)[:, : -(-across.shape[1] * bits // 8)]
            put_columns(write, 2, np.ascontiguousarray(packed), (span.row, span.col // block * bits // 8), zeros)
        return exact

    def pieces() -> Iterator[Piece]:
        unit = block * (1 if scheme.symmetric else 8 // bits)  # a part of a row ends between bytes of its zero points
        indivisible = not scheme.symmetric and unit >= plan.cols
        return (partial(piece, span) for span in bands(plan, bits, plan.cols + 1 if indivisible else unit))

    return Job(outputs=outputs, pieces=pieces)


def _put_scales(
    write: Write, scale: NDArray[Any], span: TileSpan, plan: Grouping, block: int, dtype: str, name: str
) -> bool:
    """Write scales of a piece for each block; whether their dtype holds them exactly."""
    found, exact = rounded(scale, dtype, name)
    put_columns(write, 1, repeated(found, span, plan, block), (span.row, span.col // block), -(-plan.cols // block))
    return exact


# ---- DequantizeLinear -------------------------------------------------------------------------------------------


def _linear(weight: Weight) -> Stored:
    """A weight as rows of one scale each: its own channels, or its groups, which are put together behind."""
    scheme, plan = facts(weight)
    info, dtype = weight.info, weight.info.dtype
    symmetric, bits = scheme.symmetric, scheme.bits
    count = plan.rows * plan.groups
    own = plan.groups == 1 and plan.rows == info.shape[0]
    shape = info.shape if own else (count, plan.group)
    kind = {(8, True): INT8, (8, False): UINT8, (4, True): INT4, (4, False): UINT4}[bits, symmetric]
    parts = [Part(kind=kind, shape=shape), Part(kind=SCALES[dtype], shape=(count,))]
    outputs = [_bytes(info.name, info.numel, bits), TensorInfo(f"{info.name}_scale", dtype, (count,))]
    if not symmetric:
        parts.append(Part(kind=kind, shape=(count,)))
        outputs.append(_bytes(f"{info.name}_zero_point", count, bits))
    job = _in_graph(Job(outputs=tuple(outputs), pieces=partial(_linear_pieces, weight)), info.name)
    return Stored(form="linear", shape=info.shape, bits=bits, block=plan.group, parts=tuple(parts), job=job)


def _bytes(name: str, count: int, bits: int) -> TensorInfo:
    return TensorInfo(name, "U8", (-(-count * bits // 8),))


def _linear_pieces(weight: Weight) -> Iterator[Piece]:
    scheme, plan = facts(weight)
    bits, dtype = scheme.bits, weight.info.dtype
    per = 8 // bits
    # Codes of all rows are one stream, and zero points another: a piece begins between bytes of both.
    whole = bool(plan.cols % per) or (not scheme.symmetric and plan.groups > 1 and bool(plan.groups % per))
    unit = per if plan.cols % per or (not scheme.symmetric and plan.groups % per) else 1
    flip = np.uint8((128 if bits == 8 else 136) if scheme.symmetric else 0)

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        packed = words(codes, span, plan, bits)
        start = span.row * plan.cols * bits // 8
        if plan.cols % per:
            values = packing.unpack(packed, span.rows, span.cols, bits)
            write(0, start, _stream(values, bits) ^ flip)
        else:
            block = packed[:, : span.cols * bits // 8] ^ flip
            put_columns(write, 0, block, (span.row, span.col * bits // 8), plan.cols * bits // 8)
        scale, zero = params(codes, span, plan, scheme)
        exact = _put_scales(write, scale, span, plan, plan.group, dtype, weight.info.name)
        if not scheme.symmetric:
            first = span.row * plan.groups + span.col // plan.group
            own = repeated(zero.astype(np.uint8), span, plan, plan.group)
            write(2, first * bits // 8, _stream(own, bits))
        return exact

    wide = plan.group * per if not scheme.symmetric else plan.group
    step = plan.cols + 1 if whole or wide >= plan.cols else wide
    return (partial(piece, span) for span in bands(plan, bits, step, unit=unit))


def _stream(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes one after another, low bits first, in as many bytes as they fill."""
    flat = np.ascontiguousarray(values, np.uint8).reshape(1, -1)
    return packing.pack(flat, bits).reshape(-1)[: -(-flat.size * bits // 8)]
