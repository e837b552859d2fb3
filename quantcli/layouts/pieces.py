"""Shared by the writers of layouts: pieces of a weight, parameters in other dtypes, and transposed matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.each import Remade
from quantcli.errors import DataError, UsageError, printable
from quantcli.kernels import BlockScales, joined_blocks, row_bytes
from quantcli.layouts.writer import Codes, Job, Piece, Raw, Weight, Write
from quantcli.scheme import Scheme
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

BAND = 1 << 20
"""Bytes of codes that are written at a time: four tiles of 4 bits."""

SLAB = 1 << 21
"""Bytes of codes that are transposed before they are written: each line of the transposed matrix is a separate write
where a slab is narrower than the matrix. As large as 64 MiB allow with two threads and groups of 32."""

COPY = 1 << 22
"""Bytes of a kept tensor that are copied at a time."""

NO_OTHER_SCALES = "this target stores no other scales; quantize again with --scale-dtype float16, or keep the tensor"
"""The hint where a scale does not fit."""


def facts(weight: Weight) -> tuple[Scheme, Grouping]:
    """Scheme and layout of a quantized weight."""
    assert weight.scheme is not None and weight.grouping is not None
    return weight.scheme, weight.grouping


def not_a_matrix(weight: Weight, *, least: int = 2, most: int = 2, short: bool = False) -> str | None:
    """Why a weight is not the `.weight` of a module, a matrix whose groups end inside its rows; None when it is.
    short: whether the last group of a row may be short."""
    scheme, plan = facts(weight)
    shape = weight.info.shape
    if not least <= len(shape) <= most:
        dimensions = f"it has {len(shape)} dimension{'s' if len(shape) != 1 else ''}"
        return dimensions if most > 2 else f"{dimensions}, and the target has matrices only"
    if not weight.info.name.endswith(".weight") or weight.info.name == ".weight":
        return "its name does not end in .weight"
    if plan.cols != shape[-1]:
        return "its rows run over several axes"
    if plan.short_group and not short:
        return f"a short last group of {plan.short_group}"
    if scheme.storage != "plain" and scheme.granularity == "group" and plan.group < scheme.group_size:
        return f"rows of {plan.cols}, shorter than a group of {scheme.group_size}"
    return None


def finer(group: int, sizes: Sequence[int]) -> int | None:
    """The largest of some group sizes that divides a group: its parameters are repeated then."""
    return max((s for s in sizes if group % s == 0), default=None)


def plain(info: TensorInfo) -> Job:
    """A plain copy of a tensor."""

    def copy(start: int, kept: Raw, write: Write) -> bool:
        write(0, start, kept.read_bytes(info.name, start, min(COPY, info.nbytes - start)))
        return True

    return Job(outputs=(info,), pieces=lambda: (partial(copy, start) for start in range(0, info.nbytes, COPY)))


def or_copied(job: Callable[[Weight], Job]) -> Callable[[Weight], Job]:
    """The work on any tensor, given that on a quantized one: one that is kept is copied."""
    return lambda tensor: plain(tensor.info) if tensor.scheme is None else job(tensor)


def with_bytes(job: Job, info: TensorInfo, raw: bytes) -> Job:
    """The work that stores a weight and a small tensor beside it, whose bytes are known."""
    number = len(job.outputs)

    def piece(codes: Codes, write: Write) -> bool:
        write(number, 0, raw)
        return True

    def pieces() -> Iterator[Piece]:
        yield piece
        yield from job.pieces()

    return replace(job, outputs=(*job.outputs, info), pieces=pieces)


def with_number(job: Job, info: TensorInfo, value: float) -> Job:
    """The same for a tensor of one number in float32, such as the scale of the inputs of a layer."""
    return with_bytes(job, info, np.array([value], "<f4").tobytes())


def bands(plan: Grouping, bits: int, size: int, *, unit: int = 1, slab: bool = False) -> Iterator[TileSpan]:
    """Pieces of about BAND bytes (SLAB when they are to be transposed) in file order: whole rows, multiples of `unit`
    of them, or where not even so many are that small, parts of such rows that end between words, native groups and the
    target's groups of `size`; a size above that of a row keeps rows whole. Pieces end between tiles where whole units
    do: a tile that two pieces share is made twice."""
    limit = SLAB if slab else BAND
    width = row_bytes(plan.cols, bits)
    height = limit // (width * unit) * unit or (unit if size > plan.cols else 0)
    if height:
        tile = math.lcm(plan.tile_rows, unit)
        if 0 < tile * width <= 2 * limit:
            height = max(height // tile, 1) * tile
        for row in range(0, plan.rows, height):
            yield TileSpan(row, min(height, plan.rows - row), 0, plan.cols)
        return
    step = math.lcm(32, *(g for g in (size, plan.group) if g < plan.cols))
    width = max(1, limit * 8 // (bits * unit * step)) * step
    for row in range(0, plan.rows, unit):
        for col in range(0, plan.cols, width):
            yield TileSpan(row, min(unit, plan.rows - row), col, min(width, plan.cols - col))


def words(codes: Codes, span: TileSpan, plan: Grouping, bits: int) -> Bytes:
    """Codes of a piece, (rows, bytes). The array may be used until the next call in the same thread."""
    width = row_bytes(span.cols, bits)
    if span.cols == plan.cols or span.rows == 1:
        return codes.packed(span).reshape(span.rows, width)
    found = np.empty((span.rows, width), np.uint8)
    for number, row in enumerate(_rows(span)):
        found[number] = codes.packed(row)
    return found


def params(codes: Codes, span: TileSpan, plan: Grouping, scheme: Scheme) -> tuple[Floats, Floats]:
    """Scales and zero points (or float offsets) of a piece, both (rows, groups); for symmetric codes the middle
    code."""
    parts = [codes.params(s) for s in ([span] if span.cols == plan.cols or span.rows == 1 else _rows(span))]
    scale = np.concatenate([p.scale for p in parts])
    if scheme.symmetric:
        return scale, np.full_like(scale, 1 << (scheme.bits - 1))
    return scale, np.concatenate([p.zero for p in parts if p.zero is not None])


def stored_blocks(codes: Codes, span: TileSpan, plan: Grouping) -> BlockScales:
    """The stored scales of the super-blocks of a piece."""
    spans = [span] if span.cols == plan.cols or span.rows == 1 else _rows(span)
    found = joined_blocks([b for s in spans if (b := codes.params(s).blocks) is not None], np.concatenate)
    assert found is not None
    return found


def _rows(span: TileSpan) -> list[TileSpan]:
    return [TileSpan(row, 1, span.col, span.cols) for row in range(span.row, span.row + span.rows)]


def rounded(values: Floats, dtype: str, name: str, *, zeros: bool = False) -> tuple[NDArray[Any], bool]:
    """Values in another dtype, and whether that was exact. Raises DataError when one becomes infinite, or with
    zeros=False zero."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(from_float32(values, dtype))
    back = to_float32(found.view(np.uint8).reshape(-1), dtype).reshape(values.shape)
    if not np.isfinite(back).all() or (not zeros and bool(((back == 0) & (values != 0)).any())):
        raise DataError(
            f"a scale does not fit {dtype}",
            place=[printable(name)],
            hint=NO_OTHER_SCALES,
        )
    return found, bool(np.array_equal(back, values))


def products_fit(scale: Floats, bits: int) -> bool:
    """Whether float32 holds u * scale for every code u of so many bits, so that adding an offset rounds once: scales of
    16 bits do, those of float32 need as many zero bits at their end."""
    low = np.uint32((1 << min(bits, 23)) - 1)
    narrow = not (np.ascontiguousarray(scale, np.float32).view(np.uint32) & low).any()
    return narrow and bool((np.abs(scale) < 2.0 ** (127 - bits)).all())


def repeated(values: NDArray[Any], span: TileSpan, plan: Grouping, size: int) -> NDArray[Any]:
    """Parameters (rows, groups) of a piece, repeated for every one of the target's groups of `size` in it."""
    count = -(-span.cols // size)
    if values.shape[1] == count:
        return values
    return np.repeat(values, count if plan.groups == 1 else plan.group // size, axis=1)[:, :count]


def turned(matrix: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the transpose of a matrix into another one. In strips of 16 rows, one cache line of the result, it
    runs at 7 to 12 GB/s where one call takes 1 to 4."""
    for row in range(0, len(matrix), 16):
        out[:, row : row + 16] = matrix[row : row + 16].T


def below(span: TileSpan, bits: int, unit: int) -> Iterator[TileSpan]:
    """A slab in pieces that stay in the cache, multiples of `unit` rows."""
    height = max(1, (1 << 19) // (row_bytes(span.cols, bits) * unit)) * unit
    for row in range(span.row, span.row + span.rows, height):
        yield TileSpan(row, min(height, span.row + span.rows - row), span.col, span.cols)


def put_columns(write: Write, output: int, block: NDArray[Any], at: tuple[int, int], width: int) -> None:
    """Write a block at (row, column) of a matrix that is `width` wide; in one go where the block is as wide."""
    block = np.ascontiguousarray(block)
    row, col = at
    size = block.itemsize
    if block.shape[1] == width:
        write(output, row * width * size, block)
        return
    for i in range(block.shape[0]):
        write(output, ((row + i) * width + col) * size, block[i])


def pack_rows(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """32-bit words of integers (rows, count), a separate stream for each row."""
    return packing.pack(np.ascontiguousarray(values), bits).view("<u4")


def one_group(weights: Iterable[Weight], sizes: Sequence[int]) -> int:
    """The size of the groups all weights can be stored in, -1 for whole rows: a common divisor of their own sizes that
    rows longer than it are multiples of. Raises UsageError when the target supports none."""
    own, rows = dict[int, str](), set[int]()
    for weight in weights:
        scheme, plan = facts(weight)
        rows.add(plan.cols)
        if scheme.granularity == "group":
            own[scheme.group_size or plan.group] = weight.info.name
    if not own:
        return -1
    size = math.gcd(*own)
    while uneven := [cols for cols in rows if cols > size and cols % size]:
        size = math.gcd(size, *uneven)
    found = finer(size, sizes)
    if found is None:
        groups = " and ".join(f"{g} ({printable(name, 80)})" for g, name in list(own.items())[:3])
        hint = "give all weights groups of one size, or --to compressed-tensors, which has several"
        raise UsageError(f"groups of {groups} have no common size that it supports", hint=hint)
    return found


def same_bits(weights: Iterable[Weight]) -> int:
    """The bits of all weights. Raises UsageError when they have several."""
    found = {facts(w)[0].bits: w.info.name for w in weights}
    if len(found) > 1:
        shown = " and ".join(f"{b} bits ({printable(name, 80)})" for b, name in list(found.items())[:3])
        hint = "give all weights the same bits, or --to compressed-tensors, which has several"
        raise UsageError(f"{shown} in one model, but its configuration allows one bit width", hint=hint)
    return next(iter(found))


def quantized(tensors: Sequence[Weight]) -> Iterable[Weight]:
    """The quantized tensors among these, each time that they are gone through."""
    return Remade(lambda: (t for t in tensors if t.scheme is not None))


def element(dtype: str) -> int:
    """Bytes of an element."""
    return DTYPES[dtype].bits // 8
