"""Tiles of a tensor: read from its bytes, turned, or with their columns rotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES, to_float32
from quantcli.formats import code_grid
from quantcli.kernels import BF16, F16, F32, Kernels, Kind, QuantParams, Sums, Tile, numpy_tiles, row_bytes
from quantcli.metrics import total
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan, column_repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes
    from quantcli.scheme import Scheme

    Read = Callable[[int, NDArray[np.uint8]], None]
    """Fills the array with the bytes of the tensor from a byte offset on."""


class Seen(Protocol):
    """A tensor under a scheme."""

    info: TensorInfo
    scheme: Scheme
    plan: Grouping


def as_tile(raw: NDArray[np.uint8], dtype: str, span: TileSpan, group: int) -> Tile:
    """The bytes of a run of weights as a tile for the kernels."""
    kind: Kind = BF16 if dtype == "BF16" else F16 if dtype == "F16" else F32
    weights = raw.view(np.uint16) if kind != F32 else to_float32(raw, dtype)
    return Tile(weights, kind, span.rows, span.cols, group)


def read_tile(dtype: str, plan: Grouping, span: TileSpan, read: Read, raw: NDArray[np.uint8]) -> Tile:
    """A tile of a tensor; `raw` is filled with its bytes."""
    read((span.row * plan.cols + span.col) * (DTYPES[dtype].bits // 8), raw)
    return as_tile(raw, dtype, span, plan.group)


def read_span(fit: Seen, span: TileSpan, read: Read, raw: NDArray[np.uint8], *, strips: bool) -> Tile:
    """A tile of the tensor, or a strip of its channels turned so that channels are rows; `raw` is filled with its
    bytes."""
    info, plan = fit.info, fit.plan
    size = DTYPES[info.dtype].bits // 8
    if not strips:
        return rotated(read_tile(info.dtype, plan, span, read, raw), fit.scheme)
    outer, channels, inner = column_repeats(info.shape, fit.scheme.axis)
    pieces = raw.reshape(plan.rows * outer, span.cols * inner * size)
    for number, piece in enumerate(pieces):
        row, part_of_row = divmod(number, outer)
        read((row * plan.cols + (part_of_row * channels + span.col) * inner) * size, piece)
    turned = np.ascontiguousarray(pieces.reshape(-1, span.cols, inner * size).swapaxes(0, 1))
    flat = TileSpan(0, span.cols, 0, plan.rows * outer * inner)
    return as_tile(turned.reshape(-1), info.dtype, flat, flat.cols)


def span_bytes(fit: Seen, span: TileSpan, *, strips: bool) -> int:
    """Bytes of the weights of a span."""
    outer, _, inner = column_repeats(fit.info.shape, fit.scheme.axis) if strips else (1, 0, 1)
    return span.rows * span.cols * outer * inner * DTYPES[fit.info.dtype].bits // 8


def rotated(tile: Tile, scheme: Scheme) -> Tile:
    """A tile whose columns are rotated as its scheme says; float32 where they are. Tiles end between rotations."""
    if not scheme.rotation:
        return tile
    values = numpy_tiles.scratch.take("rotated", (tile.rows, tile.cols), np.float32)
    for first, last in numpy_tiles.steps(tile.rows, tile.cols):
        values[first:last] = numpy_tiles.floats_of(tile, first, last)
    with np.errstate(over="ignore", invalid="ignore"):
        kernels.load().rotate(values, scheme.rotation)
    return replace(tile, weights=values.reshape(-1), kind=F32, seen={}, original=tile)


def rotated_back(
    kernels: Kernels, tile: Tile, params: QuantParams, scheme: Scheme, packed: Bytes, clipped: int
) -> Sums:
    """The errors of codes of rotated columns, as a reader decodes them: whole numbers rotated back, times the scale."""
    grid, width, parts = code_grid(scheme), row_bytes(tile.cols, scheme.bits), list[tuple[Sums, int]]()
    for first, last in numpy_tiles.steps(tile.rows, tile.cols):
        own = params.scale if len(params.scale) == 1 else params.scale[first:last]
        one, shape = QuantParams(np.ones_like(own)), (last - first, tile.cols)
        error = kernels.decode(packed[first * width : last * width], shape, tile.group, one, grid)
        kernels.rotate(error, scheme.rotation)
        error *= own
        weights = numpy_tiles.floats_of(tile, first, last)
        np.subtract(weights, error, out=error)
        nothing = np.full((last - first) * width, grid.zero, np.uint8)  # codes that stand for 0
        found, power = (
            kernels.measure(Tile(v.reshape(-1), F32, *shape, tile.group), one, grid, nothing) for v in (error, weights)
        )
        parts.append((replace(found, power=power.power), error.size))
    whole = total(parts)
    return Sums(whole.sse, whole.power, whole.max_abs_error, clipped)
