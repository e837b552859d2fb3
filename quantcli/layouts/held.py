"""Codes that were found in one layout as the writers of others take them.

A layout states what its codes stand for in general: MLX has a bias for every group, AWQ a zero point. Of one model it
may be less: where every bias is -8 * scale, the codes are those of a symmetric scheme, which more targets store.
`offsets_of` reads the parameters to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import scheme as record
from quantcli.asking import Scheme
from quantcli.errors import DataError, UsageError
from quantcli.kernels import BlockScales, QuantParams, row_bytes
from quantcli.layouts.pieces import products_fit
from quantcli.layouts.reader import Held
from quantcli.scheme import scale_dtype_of
from quantcli.tensors.rows import Grouping, TileSpan, runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

SEEN = 1 << 18
"""Parameters that are looked at together."""

SMALL = ("F8_E4M3", "F8_E8M0")
"""Dtypes of scales of one byte."""

TOGETHER = "its scales are stored together, in super-blocks, which only GGUF has"
"""Why rows of a weight are not put beside those of others."""

BLOCK_PARTS = ("d", "m", "scales", "minima")
"""What super-blocks have as their scales."""

OFFSETS = ("", "int", "float")
"""What codes may have as offsets, each a case of the next."""


def spans_of(rows: int, groups: int) -> Iterator[tuple[int, int]]:
    """Runs of rows, first and last, whose parameters are looked at together; groups: of a row."""
    step = max(1, SEEN // max(groups, 1))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


# ---- schemes ----------------------------------------------------------------------------------------------------


def scheme_of(held: Held, offsets: str) -> Scheme:
    """The scheme of some codes, with zero points as `offsets` says. Raises UsageError where there is none."""
    size = held.group if isinstance(held.group, int) else None
    if held.blocks is not None:
        return Scheme(
            format=held.format,
            bits=held.bits,
            group_size=size,
            symmetric=not held.offsets,
            zero_point="float" if held.offsets else "int",
            scale_dtype=held.scale_dtype,
        )
    if held.format != "int":
        if held.height not in (1, size):
            raise UsageError(f"blocks of {held.height} x {held.group} are not square")
        where: Any = held.group if size is None else "block" if held.height > 1 else "group"
        return Scheme(
            format=held.format,
            granularity=where,
            group_size=size,
            scale_dtype=scale_dtype_of(held.scale_dtype) if held.scale_dtype in SMALL else None,
            activations=held.activations,
        )
    return Scheme(
        bits=held.bits,
        granularity="channel" if size is None else "group",
        group_size=size,
        activations=held.activations,
        symmetric=not offsets,
        zero_point="float" if offsets == "float" else "int",
    )


def _whole(scale: Floats, zero: Floats, bits: int) -> Floats | None:
    """The zero points z of u * scale + zero where (u - z) * scale is the same number in float32 for every code; None
    where it is not."""
    wide = scale.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.where(zero == 0, 0.0, np.rint(-zero / wide))
    exact = np.array_equal(-points * wide, zero) and bool(((points >= 0) & (points < 1 << bits)).all())
    return points.astype(np.float32) if exact and products_fit(scale, bits) else None


def _offsets(held: Held, first: int, last: int) -> str:
    """What the codes of some rows have as offsets."""
    scale, zero = held.params(first, last)
    if zero is None:
        return ""
    points = zero if held.offsets == "int" else _whole(scale, zero, held.bits)
    if points is None:
        return "float"
    # The middle is any code where a scale is 0, which has no zero point of its own.
    return "" if ((points == 1 << (held.bits - 1)) | ((scale == 0) & (held.offsets == "float"))).all() else "int"


def offsets_of(held: Held, rows: int, cols: int, known: str = "") -> str:
    """What the codes of a weight have as offsets, `known` at least; reading ends when they have what their layout
    has."""
    group = held.group if isinstance(held.group, int) else cols
    for first, last in spans_of(rows, cols // group):
        if known == held.offsets:
            break
        known = max(known, _offsets(held, first, last), key=OFFSETS.index)
    return known


# ---- codes as writers take them ---------------------------------------------------------------------------------


class Moved:
    """The codes of a weight."""

    def __init__(self, held: Held, scheme: record.Scheme, plan: Grouping) -> None:
        self.held, self._scheme, self._plan = held, scheme, plan

    def packed(self, span: TileSpan) -> Bytes:
        """The codes of a tile, rows of 32-bit words."""
        rows = self.held.packed(span.row, span.row + span.rows).reshape(span.rows, -1)
        if span.cols != self._plan.cols:
            at = span.col * self.held.bits // 8
            rows = rows[:, at : at + row_bytes(span.cols, self.held.bits)]
        return np.ascontiguousarray(rows).reshape(-1)

    def scales(self, span: TileSpan) -> tuple[Floats, Floats | None]:
        """Scales and zero points of a tile (rows, groups)."""
        scale, zero = self.held.params(span.row, span.row + span.rows)
        group = self._plan.group
        part = slice(span.col // group, -(-(span.col + span.cols) // group))
        scale, zero = scale[:: self._plan.height, part], None if zero is None else zero[:, part]
        if self._scheme.symmetric:
            return scale, None
        assert zero is not None
        if self._scheme.zero_point == "int" and self.held.offsets == "float":
            zero = _whole(scale, zero, self.held.bits)
            if zero is None:
                raise DataError("its zero points are others than they were before; was the file changed?")
        return scale, zero

    def params(self, span: TileSpan) -> QuantParams:
        """The same, of every row."""
        assert self._plan.height == 1, "no layout asks for the scales of every row of a block"
        return QuantParams(*self.scales(span), blocks=self._blocks(span))

    def _blocks(self, span: TileSpan) -> BlockScales | None:
        """Scales that are stored together, as they are."""
        if self.held.blocks is None:
            return None
        found, group = self.held.blocks(span.row, span.row + span.rows), self._plan.group
        return found.cut(slice(0, span.rows), slice(span.col // group, (span.col + span.cols) // group))

    @property
    def exact(self) -> bool:
        """Whether what codes and parameters say is what the library of their layout decodes them to."""
        return self.held.exact or (self.held.offsets == "float" and self._scheme.zero_point == "int")

    def overall(self) -> float:
        """The scale of the tensor."""
        return self.held.overall

    def levels(self, span: TileSpan) -> Floats:
        """None: codes are not those of a codebook."""
        raise AssertionError("only codes of a codebook have levels of their own")


# ---- other rows -------------------------------------------------------------------------------------------------


def as_rows(held: Held) -> Held:
    """The codes of a weight that has one scale, with one for every row."""
    return held if held.group != "tensor" else replace(held, group="channel")


def joined(parts: Sequence[tuple[Held, int, int]]) -> Held:
    """Rows of several weights of one scheme, one after another: each with its first row and how many of them."""
    parts = [(as_rows(held), row, rows) for held, row, rows in parts]
    starts = np.cumsum([0, *(rows for _, _, rows in parts)])

    def among(first: int, last: int) -> Iterator[tuple[Held, int, int]]:
        for (held, row, rows), start in zip(parts, starts):
            low, high = max(first - int(start), 0), min(last - int(start), rows)
            if low < high:
                yield held, row + low, row + high

    def packed(first: int, last: int) -> Bytes:
        found = [held.packed(low, high).reshape(high - low, -1) for held, low, high in among(first, last)]
        return np.concatenate(found)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        found = [held.params(low, high) for held, low, high in among(first, last)]
        zeros = [zero for _, zero in found if zero is not None]
        return np.concatenate([scale for scale, _ in found]), np.concatenate(zeros) if zeros else None

    return replace(parts[0][0], packed=packed, params=params)


def every(held: Held, start: int, step: int) -> Held:
    """The rows of a weight from one on, every so many."""

    def span(first: int, last: int) -> tuple[int, int]:
        return start + first * step, start + (last - 1) * step + 1

    def packed(first: int, last: int) -> Bytes:
        low, high = span(first, last)
        return held.packed(low, high).reshape(high - low, -1)[::step]

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = held.params(*span(first, last))
        return scale[::step], None if zero is None else zero[::step]

    return replace(held, packed=packed, params=params)


def in_order(held: Held, places: NDArray[np.intp], unit: int) -> Held:
    """The rows of a weight in another order. places: the row that stands at each place; unit: as many places at a time
    are best read together."""

    def rows(first: int, last: int, read: Callable[[int, int], NDArray[Any]]) -> NDArray[Any]:
        low, high = first // unit * unit, min(-(-last // unit) * unit, len(places))
        found = [(which, read(row, row + len(which))) for row, which in runs(places[low:high])]
        out = np.empty((high - low, found[0][1].shape[-1]), found[0][1].dtype)
        for which, part in found:
            out[which] = part
        return out[first - low : last - low]

    def packed(first: int, last: int) -> Bytes:
        return rows(first, last, lambda low, high: held.packed(low, high).reshape(high - low, -1))

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        both = rows(first, last, lambda low, high: _side_by_side(*held.params(low, high)))
        groups = held.params(0, 1)[0].shape[-1]
        scale, zero = np.ascontiguousarray(both[:, :groups]), both[:, groups:]  # kernels read them row after row
        return scale, np.ascontiguousarray(zero) if zero.size else None

    def blocks(first: int, last: int) -> BlockScales:
        def part(name: str, low: int, high: int) -> NDArray[Any]:
            assert held.blocks is not None
            return np.asarray(getattr(held.blocks(low, high), name))

        return BlockScales(*(np.ascontiguousarray(rows(first, last, partial(part, name))) for name in BLOCK_PARTS))

    return replace(held, packed=packed, params=params, blocks=blocks if held.blocks is not None else None)


def _side_by_side(scale: Floats, zero: Floats | None) -> Floats:
    """Scales and, where there are any, zero points of rows, in one matrix."""
    return scale if zero is None else np.concatenate([scale, zero], axis=1)
