"""Arguments of the native kernels as C has them: structures, field by field, and addresses of arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char, c_double, c_float, c_int32, c_int64, c_void_p, pointer
from typing import TYPE_CHECKING, Any

from quantcli.kernels.block_types import MOST_CHOICES, MOST_FACTORS, BlockField, BlockType, Form
from quantcli.kernels.table import (
    MOST_CANDIDATES,
    MOST_ENDS,
    MOST_TRIALS,
    CodeGrid,
    QuantParams,
    Rule,
    Tile,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook, Small
    from quantcli.kernels.feedback import Feedback


class TileRecord(Structure):
    _fields_ = [
        ("weights", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group", c_int64),
        ("kind", c_int32),
    ]


class GridRecord(Structure):
    _fields_ = [
        ("mode", c_int32),
        ("bits", c_int32),
        ("midrise", c_int32),
        ("umin", c_float),
        ("umax", c_float),
        ("zero", c_float),
    ]


class SmallRecord(Structure):
    _fields_ = [
        ("mantissa", c_int32),
        ("lowest", c_int32),
        ("top", c_float),
    ]


class CodebookRecord(Structure):
    _fields_ = [
        ("levels", c_void_p),
        ("sorted", c_void_p),
        ("thresholds", c_void_p),
        ("limits", c_void_p),
        ("order", c_void_p),
        ("tables", c_int64),
        ("size", c_int32),
        ("count", c_int32),
        ("small", SmallRecord),
    ]


class ParamsRecord(Structure):
    _fields_ = [
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("codebook", POINTER(CodebookRecord)),
        ("stride", c_int64),
    ]


class RuleRecord(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("method", "scale_kind", "affine", "preserve", "grids", "count")),
        ("top", c_double),
        ("smallest", c_double),
        ("multipliers", c_void_p),
        ("codebook", POINTER(CodebookRecord)),
        ("values", c_void_p),
        ("ratios", c_void_p),
        ("unit", c_double),
        *((name, c_int32) for name in ("last", "below", "trials", "height")),
        ("grid", GridRecord),
    ]


class BlockTypeRecord(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("form", "bits", "sub", "low", "high", "deepest", "range_bits")),
        *((name, c_int32) for name in ("refits", "rounds", "ratio_count", "factor_count")),
        ("ratios", POINTER(c_double)),
        ("factors", POINTER(c_double)),
    ]


class BlockFieldRecord(Structure):
    _fields_ = [(name, c_int32) for name in ("at", "bits", "shift", "run", "flip")]


class FeedbackRecord(Structure):
    _fields_ = [(name, c_void_p) for name in ("triangle", "pivots", "mean", "variance", "gain", "order")]


_first_byte: Any = c_char.from_buffer  # whose type does not know that arrays are buffers


def address(array: NDArray[Any] | None) -> int | None:
    if array is None:
        return None
    try:
        return ctypes.addressof(_first_byte(array))  # a third of the time, which counts for small tensors
    except (TypeError, ValueError, BufferError):  # read-only, empty, or not contiguous
        return array.ctypes.data


def tile_record(tile: Tile) -> TileRecord:
    return TileRecord(address(tile.weights), tile.rows, tile.cols, tile.group, tile.kind)


def grid_record(grid: CodeGrid) -> GridRecord:
    return GridRecord(grid.mode, grid.bits, grid.midrise, grid.umin, grid.umax, grid.zero)


def codebook_record(book: Codebook) -> CodebookRecord:
    assert all(getattr(book, n).flags.c_contiguous for n in ("levels", "sorted", "thresholds", "limits", "order"))
    addresses = [address(a) for a in (book.levels, book.sorted, book.thresholds, book.limits, book.order)]
    return CodebookRecord(*addresses, book.tables, book.levels.shape[1], book.sorted.shape[1], small_record(book.small))


def feedback_record(how: Feedback) -> FeedbackRecord:
    arrays = (how.triangle, how.pivots, how.mean, how.variance, how.gain, how.order)
    assert all(a is None or a.flags.c_contiguous for a in arrays)
    return FeedbackRecord(*map(address, arrays))


def small_record(small: Small | None) -> SmallRecord:
    return SmallRecord(-1, 0, 0) if small is None else SmallRecord(small.mantissa, small.lowest, small.top)


def params_record(params: QuantParams, rows: int) -> ParamsRecord:
    scale, book = params.scale, params.codebook
    stride = scale.shape[1] if scale.shape[0] == rows else 0
    found = ParamsRecord(address(scale), address(params.zero), None, stride)
    if book is not None:
        found.codebook = pointer(codebook_record(book))
    return found


def rule_record(rule: Rule) -> RuleRecord:
    finding, scales, book = rule.finding, rule.scales, rule.book
    count = 0 if finding.multipliers is None else finding.multipliers.size
    ends = scales.below + scales.above
    trials = ends + 1 if scales.ratios is None else scales.ratios.size
    last = 0 if scales.values is None else scales.values.size - 1 - ends
    assert count <= MOST_CANDIDATES and trials <= MOST_TRIALS
    return RuleRecord(
        *(finding.method, scales.kind, rule.affine, rule.preserve, finding.grids, count),
        *(rule.top, rule.smallest),
        address(finding.multipliers),
        None if book is None else pointer(codebook_record(book)),
        *(address(scales.values), address(scales.ratios), scales.unit),
        *(last, scales.below, trials, rule.height),
        grid_record(rule.grid),
    )


def block_type_record(kind: BlockType) -> BlockTypeRecord:
    assert len(kind.ratios) <= MOST_ENDS
    whole = (kind.form, kind.bits, kind.sub, kind.low, kind.high, kind.deepest, kind.range_bits)
    counts = (kind.refits, kind.rounds, len(kind.ratios), len(kind.factors))
    choices = len(kind.factors) ** (2 if kind.form == Form.AFFINE else 1)
    assert len(kind.factors) <= MOST_FACTORS and choices <= MOST_CHOICES
    ratios, factors = ((c_double * len(values))(*values) for values in (kind.ratios, kind.factors))
    return BlockTypeRecord(*whole, *counts, ratios, factors)


def block_field_records(fields: Sequence[BlockField]) -> Any:
    """An array of them."""
    return (BlockFieldRecord * len(fields))(*[BlockFieldRecord(f.at, f.bits, f.shift, f.run, f.flip) for f in fields])
