"""The native kernels through ctypes, which drops the GIL while they run."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, byref, c_double, c_float, c_int32, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import library
from quantcli.kernels.block_types import SUPER, BlockField, BlockScales, BlockType, empty_blocks
from quantcli.kernels.feedback import Costs
from quantcli.kernels.records import (
    address,
    block_field_records,
    block_type_record,
    codebook_record,
    feedback_record,
    grid_record,
    params_record,
    rule_record,
    small_record,
    tile_record,
)
from quantcli.kernels.table import (
    F32,
    MOST_CANDIDATES,
    MOST_ENDS,
    MOST_TRIALS,
    Choices,
    CodeGrid,
    Grids,
    Made,
    QuantParams,
    Ranges,
    Rule,
    Sums,
    Tile,
    row_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels.codebook import Codebook, Small
    from quantcli.kernels.feedback import Feedback
    from quantcli.kernels.table import Bytes, Coded, Codes, Counts, Doubles, Floats, Kernels
    from quantcli.library import Library


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
    "trial_levels": (None, [_P, _P, _P, _P, c_int32, _P, _P, _P]),
    "trial_floats": (None, [_P, _P, _P, _P, c_int32, c_int32, _P, _P]),
    "encode": (None, [_P, _P, _P, _P, _P, _P, POINTER(c_double)]),
    "quantize": (c_int32, [_P, c_int64, _P, _P, _P, _P, _P, _P]),
    "measure": (None, [_P, _P, _P, _P, _P, POINTER(c_double)]),
    "decode": (None, [c_int64, c_int64, c_int64, _P, _P, _P, _P, _P]),
    "pack": (None, [c_int64, c_int64, c_int32, _P, _P]),
    "unpack": (None, [c_int64, c_int64, c_int32, _P, _P]),
    "fill_blocks": (None, [c_int64, c_int64, c_int32, _P, c_int64, c_int64, _P, c_int32, _P]),
    "factor": (c_int32, [_P, c_int64, c_int32, c_int64, c_int64, c_double, _P, _P]),
    "feedback": (None, [_P] * 9),
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
    except AttributeError:
        raise library.of_another_version() from None


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
        lo, hi, extreme = (np.empty((tile.rows, tile.groups), np.float32) for _ in range(3))
        finite = self._call("ranges", byref(tile_record(tile)), address(lo), address(hi), address(extreme))
        return Ranges(lo, hi, extreme, bool(finite))

    def column_ranges(self, tile: Tile) -> Ranges:
        lo, hi, extreme = (np.empty(tile.cols, np.float32) for _ in range(3))
        finite = self._call("column_ranges", byref(tile_record(tile)), address(lo), address(hi), address(extreme))
        return Ranges(lo, hi, extreme, bool(finite))

    def histogram(self, tile: Tile, counts: Counts, lows: Counts | None) -> bool:
        if tile.kind == F32:
            return bool(self._call("bins", address(tile.weights), tile.weights.size, address(counts), address(lows)))
        return bool(self._call("patterns", address(tile.weights), tile.weights.size, tile.kind, address(counts)))

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
            byref(tile_record(tile)),
            address(reciprocal),
            address(centre),
            address(multipliers),
            multipliers.size,
            top,
            grids,
            address(importance),
            address(scale),
            address(grid),
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
            byref(tile_record(tile)),
            address(middle),
            address(reciprocal),
            address(ratios),
            ratios.size,
            top,
            address(importance),
            address(scale),
            address(offset),
        )
        return scale, offset

    def search_blocks(
        self, tile: Tile, kind: BlockType, importance: tuple[NDArray[np.int16], Doubles] | None = None
    ) -> BlockScales:
        found = empty_blocks(tile.rows, tile.cols, kind)
        columns, much = (None, None) if importance is None else importance
        assert tile.cols % SUPER == 0
        self._call(
            "search_blocks",
            byref(tile_record(tile)),
            byref(block_type_record(kind)),
            address(columns),
            address(much),
            address(found.d),
            address(found.m),
            address(found.scales),
            address(found.minima),
        )
        return found

    def kmeans(self, weight: Doubles, total: Doubles, square: Doubles, k: int) -> NDArray[np.int32]:
        n = len(weight) - 1
        start = np.zeros((k, n + 1), np.int32)
        rows = np.empty(2 * (n + 1))
        self._call("kmeans", address(weight), address(total), address(square), n, k, address(rows), address(start))
        return start

    def trial_levels(
        self, tile: Tile, book: Codebook, choices: Choices, cross: Doubles | None, square: Doubles | None
    ) -> NDArray[np.int32]:
        best = np.zeros((tile.rows, tile.groups), np.int32)
        trial, first = choices.values, choices.first
        assert trial.flags.c_contiguous and (first is None or first.flags.c_contiguous)
        assert choices.count <= MOST_TRIALS
        self._call(
            "trial_levels",
            byref(tile_record(tile)),
            byref(codebook_record(book)),
            address(trial),
            address(first),
            choices.count,
            address(best),
            address(cross),
            address(square),
        )
        return best

    def trial_floats(
        self, tile: Tile, small: Small, choices: Choices, importance: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        best = np.zeros((tile.rows, tile.groups), np.int32)
        trial, first = choices.values, choices.first
        assert trial.flags.c_contiguous and (first is None or first.flags.c_contiguous)
        assert choices.count <= MOST_TRIALS
        self._call(
            "trial_floats",
            byref(tile_record(tile)),
            byref(small_record(small)),
            address(trial),
            address(first),
            choices.count,
            choices.plain,
            address(importance),
            address(best),
        )
        return best

    def encode(
        self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes | None, *, preserve: bool = False
    ) -> Sums:
        codes, sums = _codes(tile.cols), (c_double * 4)()
        scratch = np.empty(tile.cols, np.float32) if preserve else None
        own, what = params_record(params, tile.rows), grid_record(grid)
        self._call(
            "encode",
            byref(tile_record(tile)),
            byref(own),
            byref(what),
            address(codes),
            address(scratch),
            address(packed),
            sums,
        )
        return Sums(sums[0], sums[1], sums[2], int(sums[3]))

    def pack(self, codes: Codes, bits: int, packed: Bytes) -> None:
        whole: Any = np.ascontiguousarray(codes)
        assert whole.itemsize == (1 if bits <= 8 else 2) and packed.flags.c_contiguous
        self._call("pack", *whole.shape, bits, address(whole), address(packed))

    def unpack(self, packed: Bytes, cols: int, bits: int) -> Codes:
        rows, packed = packed.shape[0], np.ascontiguousarray(packed)
        codes: Any = np.empty((rows, cols), np.uint8 if bits <= 8 else np.uint16)
        assert packed.shape[1] == row_bytes(cols, bits)
        self._call("unpack", rows, cols, bits, address(packed), address(codes))
        found: Codes = codes
        return found

    def fill_blocks(self, packed: Bytes, cols: int, bits: int, fields: Sequence[BlockField], blocks: Bytes) -> None:
        rows, packed = len(packed), np.ascontiguousarray(packed)
        count, size = blocks.shape
        weights = rows * cols // max(count, 1)
        assert blocks.flags.c_contiguous and bits <= 8 and weights * count == rows * cols
        assert packed.shape[1] == row_bytes(cols, bits)
        assert all(weights % (f.run * 8 // f.bits if f.run > 1 else 8) == 0 for f in fields)
        assert all(f.at + weights * f.bits // 8 <= size for f in fields)
        self._call(
            "fill_blocks",
            rows,
            cols,
            bits,
            address(packed),
            weights,
            size,
            block_field_records(fields),
            len(fields),
            address(blocks),
        )

    def quantize(self, tile: Tile, rule: Rule, rival: Rule | None, packed: Bytes | None) -> Made | None:
        found = self.quantize_each(tile, 1, rule, rival, packed)
        if found is None:
            return None
        params, sums = found
        sse, power, largest, clipped, other = sums[0].tolist()
        return Made(Sums(sse, power, largest, int(clipped)), params, None if rival is None else other)

    def quantize_each(
        self, tile: Tile, count: int, rule: Rule, rival: Rule | None, packed: Bytes | None
    ) -> tuple[QuantParams, Doubles] | None:
        assert rule.height == 1 or count == 1
        shape = -(-tile.rows // rule.height), tile.groups
        scale, zero = np.empty(shape, np.float32), np.empty(shape, np.float32) if rule.affine else None
        sums = np.empty((count, 5))
        own, other = rule_record(rule), None if rival is None else byref(rule_record(rival))
        done = self._call(
            "quantize",
            byref(tile_record(tile)),
            count,
            byref(own),
            other,
            address(scale),
            address(zero),
            address(packed),
            address(sums),
        )
        return (QuantParams(scale, zero, rule.book), sums) if done else None

    def measure(self, tile: Tile, params: QuantParams, grid: CodeGrid, packed: Bytes) -> Sums:
        codes, sums = _codes(tile.cols), (c_double * 4)()
        own, what = params_record(params, tile.rows), grid_record(grid)
        self._call("measure", byref(tile_record(tile)), byref(own), byref(what), address(codes), address(packed), sums)
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
            byref(params_record(params, rows)),
            byref(grid_record(grid)),
            address(codes),
            address(packed),
            address(out),
        )
        return out

    def factor(
        self, triangle: Doubles, own: int, step: int, rows: range, least: float, spare: Doubles, pivots: Doubles
    ) -> bool:
        assert all(v.flags.c_contiguous and v.dtype == np.float64 for v in (triangle, spare, pivots))
        named = (address(triangle), own, step, rows.start, rows.stop, least, address(spare), address(pivots))
        return bool(self._call("factor", *named))

    def feedback(self, tile: Tile, grid: CodeGrid, how: Feedback, chosen: Coded, given: Coded) -> Costs:
        cost, square = np.empty((2, 3, tile.rows))
        codes = [v for c in (chosen, given) for v in (byref(params_record(c.params, tile.rows)), address(c.packed))]
        named = (byref(tile_record(tile)), byref(grid_record(grid)), byref(feedback_record(how)), *codes)
        self._call("feedback", *named, address(cost), address(square))
        return Costs(cost, square)

    def rotate(self, values: Floats, size: int) -> None:
        assert values.flags.c_contiguous and values.dtype == np.float32 and values.size % size == 0
        self._call("rotate", address(values), values.size, size)

    def difference(self, before: Floats, after: Floats) -> tuple[float, float, float]:
        assert before.size == after.size and before.flags.c_contiguous and after.flags.c_contiguous
        found = (c_double * 3)()
        self._call("difference", address(before), address(after), before.size, found)
        return found[0], found[1], found[2]

    def bfloat16(self, values: Floats) -> NDArray[np.uint16]:
        assert values.flags.c_contiguous
        out = np.empty(values.shape, np.uint16)
        self._call("bfloat16", address(values), values.size, address(out))
        return out


def _codes(cols: int) -> NDArray[np.uint16]:
    """Scratch for the codes of one row, with the margin the packing reads and writes."""
    return np.empty(cols + 40, np.uint16)
