"""The native kernels through ctypes, which drops the GIL while they run."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import CodeGrid, Ranges, Sums, Tile, row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats, Kernels

_LEVELS = {3: "v3", 2: "v2"}
"""CPU level told by the library -> variant of the kernels; the rest of the world runs the baseline variant."""

_TILE = [c_void_p, c_int32, c_int64, c_int64, c_int64]
_PARAMS = [c_void_p, c_void_p, c_int64, c_int32, c_int32]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ranges": (c_int32, [*_TILE, c_void_p, c_void_p, c_void_p]),
    "column_ranges": (c_int32, [c_void_p, c_int32, c_int64, c_int64, c_void_p, c_void_p, c_void_p]),
    "encode": (None, [*_TILE, *_PARAMS, c_float, c_float, c_float, c_void_p, c_void_p, POINTER(c_double)]),
    "measure": (None, [*_TILE, *_PARAMS, c_float, c_float, c_float, c_void_p, c_void_p, POINTER(c_double)]),
    "decode": (None, [c_int64, c_int64, c_int64, *_PARAMS, c_float, c_void_p, c_void_p, c_void_p]),
}


def find() -> Kernels | None:
    """The native table, or None where the library was not built, does not load, or has no variant for this CPU."""
    import quantcli.kernels

    for folder in quantcli.kernels.__path__:
        for name in ("_kernels.so", "_kernels.dylib", "_kernels.dll"):
            path = Path(folder, name)
            if path.is_file():
                try:
                    return NativeKernels(ctypes.CDLL(str(path)))
                except (OSError, AttributeError):  # built for another machine or from another version
                    return None
    return None


def _at(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _params(scale: Floats, zero: Floats | None, rows: int, grid: CodeGrid) -> tuple[Any, ...]:
    stride = scale.shape[1] if scale.shape[0] == rows else 0
    return _at(scale), _at(zero), stride, grid.mode, grid.bits


class NativeKernels:
    """The table of kernels, in C++."""

    def __init__(self, library: ctypes.CDLL) -> None:
        variant = _LEVELS.get(library.qk_cpu_level(), "base")
        self.name = f"native-{variant}"
        for name, (result, arguments) in _SIGNATURES.items():
            function = library[f"qk_{variant}_{name}"]
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self, f"_{name}")(*arguments)

    def ranges(self, tile: Tile) -> Ranges:
        groups = -(-tile.cols // tile.group)
        lo, hi, extreme = (np.empty((tile.rows, groups), np.float32) for _ in range(3))
        finite = self._call(
            "ranges", _at(tile.weights), tile.kind, tile.rows, tile.cols, tile.group, _at(lo), _at(hi), _at(extreme)
        )
        return Ranges(lo, hi, extreme, bool(finite))

    def column_ranges(self, tile: Tile) -> Ranges:
        lo, hi, extreme = (np.empty(tile.cols, np.float32) for _ in range(3))
        finite = self._call(
            "column_ranges", _at(tile.weights), tile.kind, tile.rows, tile.cols, _at(lo), _at(hi), _at(extreme)
        )
        return Ranges(lo, hi, extreme, bool(finite))

    def encode(self, tile: Tile, scale: Floats, zero: Floats | None, grid: CodeGrid, packed: Bytes) -> Sums:
        return self._sums("encode", tile, scale, zero, grid, packed)

    def measure(self, tile: Tile, scale: Floats, zero: Floats | None, grid: CodeGrid, packed: Bytes) -> Sums:
        return self._sums("measure", tile, scale, zero, grid, packed)

    def _sums(self, name: str, tile: Tile, scale: Floats, zero: Floats | None, grid: CodeGrid, packed: Bytes) -> Sums:
        codes = _codes(tile.cols)
        sums = (c_double * 4)()
        self._call(
            name,
            _at(tile.weights),
            tile.kind,
            tile.rows,
            tile.cols,
            tile.group,
            *_params(scale, zero, tile.rows, grid),
            grid.umin,
            grid.umax,
            grid.zero,
            _at(codes),
            _at(packed),
            sums,
        )
        return Sums(sums[0], sums[1], sums[2], int(sums[3]))

    def decode(
        self, packed: Bytes, shape: tuple[int, int], group: int, scale: Floats, zero: Floats | None, grid: CodeGrid
    ) -> Floats:
        rows, cols = shape
        out = np.empty(shape, np.float32)
        assert packed.size >= rows * row_bytes(cols, grid.bits)
        codes = _codes(cols)
        self._call(
            "decode", rows, cols, group, *_params(scale, zero, rows, grid), grid.zero, _at(codes), _at(packed), _at(out)
        )
        return out


def _codes(cols: int) -> NDArray[np.uint16]:
    """Scratch for the codes of one row, with the margin the packing reads and writes."""
    return np.empty(cols + 40, np.uint16)
