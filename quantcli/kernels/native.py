"""The native kernels through ctypes, which drops the GIL while they run."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_double, c_float, c_int32, c_int64, c_void_p, pointer
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import library
from quantcli.kernels.table import (
    F32,
    MOST_CANDIDATES,
    MOST_ENDS,
    MOST_TRIALS,
    SUPER,
    BlockScales,
    BlockType,
    Choices,
    CodeGrid,
    Grids,
    Made,
    QuantParams,
    Ranges,
    Rule,
    Sums,
    Tile,
    empty_blocks,
    row_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook, Small
    from quantcli.kernels.table import Bytes, Codes, Counts, Doubles, Floats, Kernels
    from quantcli.library import Library


class _Tile(Structure):
    _fields_ = [
        ("weights", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group", c_int64),
        ("kind", c_int32),
    ]


class _Grid(Structure):
    _fields_ = [
        ("mode", c_int32),
        ("bits", c_int32),
        ("midrise", c_int32),
        ("umin", c_float),
        ("umax", c_float),
        ("zero", c_float),
    ]


class _Small(Structure):
    _fields_ = [
        ("mantissa", c_int32),
        ("lowest", c_int32),
        ("top", c_float),
    ]


class _Codebook(Structure):
    _fields_ = [
        ("levels", c_void_p),
        ("sorted", c_void_p),
        ("thresholds", c_void_p),
        ("limits", c_void_p),
        ("order", c_void_p),
        ("tables", c_int64),
        ("size", c_int32),
        ("count", c_int32),
        ("small", _Small),
    ]


class _Params(Structure):
    _fields_ = [
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("codebook", POINTER(_Codebook)),
        ("stride", c_int64),
    ]


class _Rule(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("method", "scale_kind", "affine", "preserve", "grids", "count")),
        ("top", c_float),
        ("smallest", c_float),
        ("multipliers", c_void_p),
        ("grid", _Grid),
    ]


class _BlockType(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("form", "bits", "sub", "low", "high", "deepest", "range_bits")),
        *((name, c_int32) for name in ("refits", "rounds", "ratio_count", "factor_count")),
        ("ratios", POINTER(c_double)),
        ("factors", POINTER(c_double)),
    ]


_P = c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ranges": (c_int32, [_P, _P, _P, _P]),
    "column_ranges": (c_int32, [_P, _P, _P, _P]),
    "patterns": (c_int32, [_P, c_int64, c_int32, _P]),
    "bins": (c_int32, [_P, c_int64, _P, _P]),
    "search": (None, [_P, _P, _P, _P, c_int32, c_float, c_int32, _P, _P, _P]),
    "search_offsets": (None, [_P, _P, _P, _P, c_int32, c_int32, _P, _P, _P]),
    "search_blocks": (None, [_P, _P, _P, _P, _P, _P, _P, _P]),
    "kmeans": (None, [_P, _P, _P, c_int64, c_int32, _P, _P]),
    "trial_levels": (None, [_P, _P, _P, c_int32, _P, _P, _P]),
    "trial_floats": (None, [_P, _P, _P, _P, _P, c_int32, c_int32, _P, _P]),
    "encode": (None, [_P, _P, _P, _P, _P, _P, POINTER(c_double)]),
    "quantize": (c_int32, [_P, _P, _P, _P, _P, _P, POINTER(c_double)]),
    "quantize_each": (c_int32, [_P, c_int64, _P, _P, _P, _P, _P, _P]),
    "measure": (None, [_P, _P, _P, _P, _P, POINTER(c_double)]),
    "decode": (None, [c_int64, c_int64, c_int64, _P, _P, _P, _P, _P]),
    "pack": (None, [c_int64, c_int64, c_int32, _P, _P]),
    "unpack": (None, [c_int64, c_int64, c_int32, _P, _P]),
    "rotate": (None, [_P, c_int64, c_int64]),
    "difference": (None, [_P, _P, c_int64, POINTER(c_double)]),
    "bfloat16": (None, [_P, c_int64, _P]),
}
"""The functions of the library; structures are passed by address."""


def find() -> Kernels | None:
    """The native table, or None where numpy does its work. Raises UsageError as `library.find` does."""
    found = library.find()
    try:
        return None if found is None else NativeKernels(found)
    except AttributeError:  # built from another version
        return None


_first_byte: Any = c_char.from_buffer  # whose type does not know that arrays are buffers


def _at(array: NDArray[Any] | None) -> int | None:
    if array is None:
        return None
    try:
        return ctypes.addressof(_first_byte(array))  # a third of the time, which counts for small tensors
    except (TypeError, ValueError, BufferError):  # read-only, empty, or not contiguous
        return array.ctypes.data


def _tile(tile: Tile) -> _Tile:
    return _Tile(_at(tile.weights), tile.rows, tile.cols, tile.group, tile.kind)


def _grid(grid: CodeGrid) -> _Grid:
    return _Grid(grid.mode, grid.bits, grid.midrise, grid.umin, grid.umax, grid.zero)


def _codebook(book: Codebook) -> _Codebook:
    assert all(getattr(book, n).flags.c_contiguous for n in ("levels", "sorted", "thresholds", "limits", "order"))
    addresses = [_at(a) for a in (book.levels, book.sorted, book.thresholds, book.limits, book.order)]
    return _Codebook(*addresses, book.tables, book.levels.shape[1], book.sorted.shape[1], _small(book.small))


def _small(small: Small | None) -> _Small:
    return _Small(-1, 0, 0) if small is None else _Small(small.mantissa, small.lowest, small.top)


def _params(params: QuantParams, rows: int) -> _Params:
    scale, book = params.scale, params.codebook
    stride = scale.shape[1] if scale.shape[0] == rows else 0
    found = _Params(_at(scale), _at(params.zero), None, stride)
    if book is not None:
        found.codebook = pointer(_codebook(book))
    return found


def _rule(rule: Rule) -> _Rule:
    finding, grid = rule.finding, rule.grid
    top = float(grid.umax if rule.affine else (1 << (grid.bits - 1)) - 1)
    values = finding.multipliers
    count = 0 if values is None else values.size
    assert count <= MOST_CANDIDATES
    flags = (finding.method, rule.scale, rule.affine, rule.preserve, finding.grids, count)
    return _Rule(*flags, top, rule.smallest, _at(values), _grid(grid))


def _block_type(kind: BlockType) -> _BlockType:
    assert len(kind.ratios) <= MOST_ENDS
    whole = (kind.form, kind.bits, kind.sub, kind.low, kind.high, kind.deepest, kind.range_bits)
    counts = (kind.refits, kind.rounds, len(kind.ratios), len(kind.factors))
    ratios, factors = ((c_double * len(values))(*values) for values in (kind.ratios, kind.factors))
    return _BlockType(*whole, *counts, ratios, factors)


class NativeKernels:
    """The kernels in C++."""

    def __init__(self, library: Library) -> None:
        self.name = f"native-{library.variant}"
        for name, (result, arguments) in _SIGNATURES.items():
            function = library.functions[f"qk_{library.variant}_{name}"]
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self, f"_{name}")(*arguments)

    def ranges(self, tile: Tile) -> Ranges:
        groups = -(-tile.cols // tile.group)
        lo, hi, extreme = (np.empty((tile.rows, groups), np.float32) for _ in range(3))
        finite = self._call("ranges", byref(_tile(tile)), _at(lo), _at(hi), _at(extreme))
        return Ranges(lo, hi, extreme, bool(finite))

    def column_ranges(self, tile: Tile) -> Ranges:
        lo, hi, extreme = (np.empty(tile.cols, np.float32) for _ in range(3))
        finite = self._call("column_ranges", byref(_tile(tile)), _at(lo), _at(hi), _at(extreme))
        return Ranges(lo, hi, extreme, bool(finite))

    def histogram(self, tile: Tile, counts: Counts, lows: Counts | None) -> bool:
        if tile.kind == F32:
            return bool(self._call("bins", _at(tile.weights), tile.weights.size, _at(counts), _at(lows)))
        return bool(self._call("patterns", _at(tile.weights), tile.weights.size, tile.kind, _at(counts)))

    def search(
        self,
        tile: Tile,
        reciprocal: Floats,
        centre: Floats | None,
        multipliers: Floats,
        top: float,
        grids: Grids,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        scale = np.empty(reciprocal.shape)
        grid = np.empty(reciprocal.shape, np.int32)
        assert multipliers.size <= MOST_CANDIDATES
        self._call(
            "search",
            byref(_tile(tile)),
            _at(reciprocal),
            _at(centre),
            _at(multipliers),
            multipliers.size,
            top,
            grids,
            _at(importance),
            _at(scale),
            _at(grid),
        )
        return scale, grid

    def search_offsets(
        self,
        tile: Tile,
        middle: Floats,
        reciprocal: Floats,
        start: tuple[Doubles, Doubles],
        ratios: Doubles,
        top: int,
        importance: NDArray[np.int32] | None = None,
    ) -> tuple[Doubles, Doubles]:
        scale, offset = (np.array(v, np.float64, order="C") for v in start)
        assert ratios.size <= MOST_ENDS and ratios.flags.c_contiguous
        self._call(
            "search_offsets",
            byref(_tile(tile)),
            _at(middle),
            _at(reciprocal),
            _at(ratios),
            ratios.size,
            top,
            _at(importance),
            _at(scale),
            _at(offset),
        )
        return scale, offset

    def search_blocks(
        self, tile: Tile, kind: BlockType, importance: tuple[NDArray[np.int16], Doubles] | None = None
    ) -> BlockScales:
        found = empty_blocks(tile, kind)
        columns, much = (None, None) if importance is None else importance
        assert tile.cols % SUPER == 0
        self._call(
            "search_blocks",
            byref(_tile(tile)),
            byref(_block_type(kind)),
            _at(columns),
            _at(much),
            _at(found.d),
            _at(found.m),
            _at(found.scales),
            _at(found.minima),
        )
        return found

    def kmeans(self, weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
        n = len(weight) - 1
        start = np.zeros((k, n + 1), np.int32)
        rows = np.empty(2 * (n + 1))
        self._call("kmeans", _at(weight), _at(total), _at(square), n, k, _at(rows), _at(start))
        return start

    def trial_levels(
        self, tile: Tile, book: Codebook, trial: Floats, cross: Doubles | None, square: Doubles | None
    ) -> NDArray[np.int32]:
        best = np.zeros(trial.shape[:2], np.int32)
        assert trial.shape[2] <= MOST_TRIALS and trial.flags.c_contiguous
        self._call(
            "trial_levels",
            byref(_tile(tile)),
            byref(_codebook(book)),
            _at(trial),
            trial.shape[2],
            _at(best),
            _at(cross),
            _at(square),
        )
        return best

    def trial_floats(
        self, tile: Tile, small: Small, choices: Choices, importance: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        best = np.zeros((tile.rows, -(-tile.cols // tile.group)), np.int32)
        trial, first = choices.values, choices.first
        assert trial.flags.c_contiguous and (first is None or first.flags.c_contiguous)
        assert choices.count <= MOST_TRIALS
        reciprocal = np.float32(1) / trial
        self._call(
            "trial_floats",
            byref(_tile(tile)),
            byref(_small(small)),
            _at(trial),
            _at(reciprocal),
            _at(first),
            choices.count,
            choices.plain,
            _at(importance),
            _at(best),
        )
        return best

    def encode(
        self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes | None, *, preserve: bool = False
    ) -> Sums:
        codes, sums = _codes(tile.cols), (c_double * 4)()
        scratch = np.empty(tile.cols, np.float32) if preserve else None
        own, what = _params(params, tile.rows), _grid(grid)
        self._call("encode", byref(_tile(tile)), byref(own), byref(what), _at(codes), _at(scratch), _at(packed), sums)
        return Sums(sums[0], sums[1], sums[2], int(sums[3]))

    def pack(self, codes: Codes, bits: int, packed: Bytes) -> None:
        whole: Any = np.ascontiguousarray(codes)
        assert whole.itemsize == (1 if bits <= 8 else 2) and packed.flags.c_contiguous
        self._call("pack", *whole.shape, bits, _at(whole), _at(packed))

    def unpack(self, packed: Bytes, cols: int, bits: int) -> Codes:
        rows, packed = packed.shape[0], np.ascontiguousarray(packed)
        codes: Any = np.empty((rows, cols), np.uint8 if bits <= 8 else np.uint16)
        assert packed.shape[1] == row_bytes(cols, bits)
        self._call("unpack", rows, cols, bits, _at(packed), _at(codes))
        found: Codes = codes
        return found

    def quantize(self, tile: Tile, rule: Rule, rival: Rule | None, packed: Bytes | None) -> Made | None:
        shape = tile.rows, -(-tile.cols // tile.group)
        scale, zero = np.empty(shape, np.float32), np.empty(shape, np.float32) if rule.affine else None
        sums = (c_double * 5)()
        own, other = _rule(rule), None if rival is None else byref(_rule(rival))
        done = self._call("quantize", byref(_tile(tile)), byref(own), other, _at(scale), _at(zero), _at(packed), sums)
        if not done:
            return None
        found = Sums(sums[0], sums[1], sums[2], int(sums[3]))
        return Made(found, QuantParams(scale, zero), None if rival is None else sums[4])

    def quantize_each(
        self, tile: Tile, count: int, rule: Rule, rival: Rule | None, packed: Bytes
    ) -> tuple[QuantParams, Doubles] | None:
        shape = tile.rows, -(-tile.cols // tile.group)
        scale, zero = np.empty(shape, np.float32), np.empty(shape, np.float32) if rule.affine else None
        sums = np.empty((count, 5))
        own, other = _rule(rule), None if rival is None else byref(_rule(rival))
        done = self._call(
            "quantize_each",
            byref(_tile(tile)),
            count,
            byref(own),
            other,
            _at(scale),
            _at(zero),
            _at(packed),
            _at(sums),
        )
        return (QuantParams(scale, zero), sums) if done else None

    def measure(self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes) -> Sums:
        codes, sums = _codes(tile.cols), (c_double * 4)()
        own, what = _params(params, tile.rows), _grid(grid)
        self._call("measure", byref(_tile(tile)), byref(own), byref(what), _at(codes), _at(packed), sums)
        return Sums(sums[0], sums[1], sums[2], int(sums[3]))

    def decode(self, packed: Bytes, shape: tuple[int, int], group: int, params: QuantParams, grid: CodeGrid) -> Floats:
        rows, cols = shape
        out = np.empty(shape, np.float32)
        assert packed.size >= rows * row_bytes(cols, grid.bits)
        codes = _codes(cols)
        self._call(
            "decode",
            rows,
            cols,
            group,
            byref(_params(params, rows)),
            byref(_grid(grid)),
            _at(codes),
            _at(packed),
            _at(out),
        )
        return out

    def rotate(self, values: Floats, size: int) -> None:
        assert values.flags.c_contiguous and values.dtype == np.float32 and values.size % size == 0
        self._call("rotate", _at(values), values.size, size)

    def difference(self, before: Floats, after: Floats) -> tuple[float, float, float]:
        assert before.size == after.size and before.flags.c_contiguous and after.flags.c_contiguous
        found = (c_double * 3)()
        self._call("difference", _at(before), _at(after), before.size, found)
        return found[0], found[1], found[2]

    def bfloat16(self, values: Floats) -> NDArray[np.uint16]:
        assert values.flags.c_contiguous
        out = np.empty(values.shape, np.uint16)
        self._call("bfloat16", _at(values), values.size, _at(out))
        return out


def _codes(cols: int) -> NDArray[np.uint16]:
    """Scratch for the codes of one row, with the margin the packing reads and writes."""
    return np.empty(cols + 40, np.uint16)
