"""The writer of the native layout: codes and parameters tile by tile, as `parts` names them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import scales
from quantcli.architectures import Architecture
from quantcli.architectures.experts import FLAT, ONE_BY_ONE, Experts, Naming
from quantcli.dtypes import DTYPES, from_float32
from quantcli.errors import UsageError, printable
from quantcli.kernels import row_bytes
from quantcli.layouts.native.parts import outputs, parts, zero_shape
from quantcli.layouts.pieces import plain
from quantcli.layouts.writer import Alike, Codes, Conversion, Job, Piece, Together, Write
from quantcli.scales import Store
from quantcli.scheme import IN_SUPER_BLOCKS, Scheme
from quantcli.tensors import digits, packing
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.decisions import alike
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes


def check_scheme(scheme: Scheme, place: str = "") -> None:
    """Raise UsageError, with the place, for super-blocks and rotated columns, which native files do not have."""
    where = [printable(place)] if place else []
    if scheme.storage == IN_SUPER_BLOCKS:
        raise UsageError(f"super-blocks ({scheme.name}) are stored in GGUF only", place=where, hint="add --to gguf")
    if scheme.rotation:
        problem = f"rotated columns ({scheme.name}) are stored in ComfyUI's layout only"
        raise UsageError(problem, place=where, hint="add --to comfyui")


def convert(tensors: Sequence[Decided]) -> Conversion:
    """The native writer: every tensor by itself, whatever its scheme. Raises UsageError as `check_scheme` does."""
    for tensor, _ in alike(tensors):
        if tensor.scheme is not None:
            check_scheme(tensor.scheme, tensor.info.name)
    return Conversion(job=job, stem=str)


def experts(layer: Experts, types: Sequence[str], model: Architecture) -> Naming | None:
    """What becomes of the experts of a layer: stacked ones stay as they are unless groups would run along their
    outputs, because they are transposed."""
    if layer.single or not layer.transposed:
        return None
    words = FLAT if layer.prefix.endswith(".mlp") and "dbrx" in types else ONE_BY_ONE
    return Naming(stacked=True, prefix=layer.prefix, words=words)


def job(tensor: Decided) -> Job:
    """The parts of one tensor."""
    if tensor.scheme is None:
        return plain(tensor.info)
    return Job(
        outputs=outputs(tensor),
        pieces=_Tiles(tensor),
        together=_together_of(tensor.scheme, tensor.scale_dtype, tensor.info.shape),
    )


@lru_cache(maxsize=4096)
def _together_of(scheme: Scheme, scale_dtype: str, dims: tuple[int, ...]) -> Together | None:
    """How tensors of a scheme, a dtype of scales and a shape are written at once; None where they are not."""
    if parts(scheme) != ["packed", "scale", "shape"]:
        return None
    store, shape = Store(scale_dtype), np.array(dims, "<i8").view(np.uint8)

    def together(alike: Alike) -> Sequence[NDArray[np.uint8]]:
        """Their packed codes, scales and shapes."""
        stored = np.ascontiguousarray(scales.of(scheme).stored(alike.params.scale, store))
        return (
            alike.packed.reshape(alike.count, -1),
            stored.reshape(-1).view(np.uint8).reshape(alike.count, -1),
            np.broadcast_to(shape, (alike.count, shape.size)),
        )

    return together


class _Tiles:
    """The pieces of a tensor when they are called for, in a third of the memory that functools.partial takes."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Quantized) -> None:
        self._tensor = tensor

    def __call__(self) -> Iterator[Piece]:
        return _pieces(self._tensor)


def _pieces(tensor: Quantized) -> Iterator[Piece]:
    """One piece a tile; the shape with the first."""
    scheme, plan, held = tensor.scheme, tensor.grouping, outputs(tensor)
    place = {part: number for number, part in enumerate(parts(scheme))}
    zeros = _ZeroBands(plan, scheme.bits) if "zero_point" in place else None

    def put(write: Write, part: str, first: int, values: NDArray[Any]) -> None:
        """A write of parameters at element `first` of a part, in its dtype."""
        dtype = held[place[part]].dtype
        write(place[part], first * DTYPES[dtype].bits // 8, np.ascontiguousarray(from_float32(values, dtype)))

    def parameters(span: TileSpan, codes: Codes, write: Write) -> None:
        scale, zero = codes.scales(span)
        row, group = (0, 0) if plan.shared == "columns" else (span.row // plan.height, span.col // plan.group)
        first = row * plan.groups + group
        if "scale" in place:
            store = Store(held[place["scale"]].dtype, codes.overall())
            stored = scales.of(scheme).stored(scale, store)
            write(place["scale"], first * DTYPES[store.dtype].bits // 8, np.ascontiguousarray(stored))
        if zeros is not None and zero is not None:
            zeros.add(zero, row, group, partial(write, place["zero_point"]))
        elif zero is not None:
            put(write, "offset", first, zero)
        if "codebook" in place:
            own_rows = len(held[place["codebook"]].shape) > 1
            if own_rows or span.row == span.col == 0:
                put(write, "codebook", row << scheme.bits if own_rows else 0, codes.levels(span))

    def tile(span: TileSpan, codes: Codes, write: Write) -> bool:
        write(0, *stored_codes(plan, scheme.bits, span, codes.packed(span)))
        begins = span.row == span.col == 0
        if begins:
            write(len(held) - 1, 0, np.array(tensor.info.shape, "<i8"))
            if "global_scale" in place:
                write(place["global_scale"], 0, np.array([1 / codes.overall()], "<f4"))
        if begins if plan.shared == "columns" else span.col % plan.group == 0:
            parameters(span, codes, write)
        return True

    return (partial(tile, span) for span in plan.tiles())


def stored_codes(plan: Grouping, bits: int, span: TileSpan, packed: Bytes) -> tuple[int, Bytes]:
    """The place and bytes of the codes of a tile as they are stored."""
    if plan.digits is None:
        return span.row * row_bytes(plan.cols, bits) + span.col * bits // 8, packed
    found = digits.pack(packing.unpack(packed, span.rows, span.cols, bits), plan.digits).reshape(-1)
    return span.row * plan.digits.row_bytes(plan.cols) + plan.digits.row_bytes(span.col), found


class _ZeroBands:
    """Zero points collected for the stream that runs down 32 rows at a time: b words for each group."""

    def __init__(self, plan: Grouping, bits: int) -> None:
        self.rows, self.groups = zero_shape(plan)
        self.bits = bits
        self._bands: dict[int, NDArray[Any]] = {}
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, zero: NDArray[Any], row: int, group: int, write: Any) -> None:
        """Add zero points (rows, groups) at a place; complete bands are returned, by byte offset."""
        done = []
        with self._lock:
            for first in range(row // 32 * 32, row + zero.shape[0], 32):
                height = min(32, self.rows - first)
                band = self._bands.setdefault(first, np.zeros((height, self.groups), np.uint16))
                lo, hi = max(row, first), min(row + zero.shape[0], first + height)
                band[lo - first : hi - first, group : group + zero.shape[1]] = zero[lo - row : hi - row]
                left = self._left.get(first, height * self.groups) - (hi - lo) * zero.shape[1]
                self._left[first] = left
                if not left:
                    done.append((first, self._bands.pop(first)))
        for first, band in done:
            words = packing.pack_columns(band, self.bits)
            write(first // 32 * self.bits * self.groups * 4, np.ascontiguousarray(words))
