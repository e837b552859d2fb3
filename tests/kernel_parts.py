"""Both tables of kernels, and tiles for them."""

from __future__ import annotations

import numpy as np
import pytest
from making import BF16 as BFLOAT16

from quantcli import library
from quantcli.kernels import BF16, F16, F32, Choices, Kernels, Tile, native
from quantcli.kernels.codebook import Codebook
from quantcli.kernels.numpy_kernels import NumpyKernels

FOUND = library.find()
NATIVE: Kernels | None = None if FOUND is None else native.NativeKernels(FOUND)
needs_native = pytest.mark.skipif(NATIVE is None, reason="the native kernels are not built (no _kernels library)")
TABLES = [pytest.param(NumpyKernels(), id="numpy"), pytest.param(NATIVE, id="native", marks=needs_native)]
KINDS = [BF16, F16, F32]


def variants() -> list[Kernels]:
    """Every variant of the native kernels this machine can run."""
    assert FOUND is not None
    return [native.NativeKernels(FOUND._replace(variant=name)) for name in library.runnable(FOUND.functions)]


def tile_of(values: np.ndarray, kind: int, group: int) -> Tile:
    """A tile of these weights rounded to a kind."""
    rows, cols = values.shape
    if kind == BF16:
        raw = values.astype(BFLOAT16).view(np.uint16)
    elif kind == F16:
        raw = np.clip(values, -65504, 65504).astype(np.float16).view(np.uint16)
    else:
        raw = values.astype(np.float32)
    return Tile(np.ascontiguousarray(raw).reshape(-1), kind, rows, cols, group)  # type: ignore[arg-type]


def float_of(tile: Tile) -> np.ndarray:
    """The weights of a tile as float32, converted by numpy and ml_dtypes."""
    dtype = {BF16: BFLOAT16, F16: np.float16, F32: np.float32}[tile.kind]
    found: np.ndarray = tile.weights.view(dtype).astype(np.float32).reshape(tile.rows, tile.cols)
    return found


def per_weight(params: np.ndarray, tile: Tile) -> np.ndarray:
    """Parameters of every weight."""
    columns = np.arange(tile.cols) // tile.group
    return np.broadcast_to(params, (tile.rows, params.shape[1]))[:, columns]


def tried(
    table: Kernels, tile: Tile, book: Codebook, trial: np.ndarray, cross: np.ndarray | None, square: np.ndarray | None
) -> np.ndarray:
    """The best of trial scales (rows, groups, trials)."""
    return table.trial_levels(tile, book, Choices(trial, None, trial.shape[2], 0), cross, square)
