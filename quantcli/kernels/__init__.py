"""The table of hot loops: native C++ where it could be built and loaded, numpy everywhere else.

All callers get a table from `load()`; both tables give the same bytes and the same sums.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from quantcli.kernels.block_types import SUPER, BlockField, BlockScales, BlockType, Form, joined_blocks
from quantcli.kernels.codebook import Small
from quantcli.kernels.table import (
    BF16,
    BINARY,
    F16,
    F32,
    INTEGER,
    LEVELS,
    OFFSET,
    Choices,
    CodeGrid,
    Finding,
    Grids,
    Kernels,
    Kind,
    Made,
    Method,
    QuantParams,
    Ranges,
    Rule,
    ScaleKind,
    StoredScales,
    Sums,
    Tile,
    row_bytes,
)

if TYPE_CHECKING:
    from quantcli.kernels.table import Bytes, Codes, Counts, Doubles, Floats

__all__ = [
    "BF16",
    "BINARY",
    "F16",
    "F32",
    "INTEGER",
    "LEVELS",
    "OFFSET",
    "SUPER",
    "BlockField",
    "BlockScales",
    "BlockType",
    "Bytes",
    "Choices",
    "CodeGrid",
    "Codes",
    "Counts",
    "Doubles",
    "Finding",
    "Floats",
    "Form",
    "Grids",
    "Kernels",
    "Kind",
    "Method",
    "QuantParams",
    "Made",
    "Ranges",
    "Rule",
    "ScaleKind",
    "Small",
    "StoredScales",
    "Sums",
    "Tile",
    "joined_blocks",
    "load",
    "row_bytes",
]


@lru_cache(maxsize=1)
def load() -> Kernels:
    """The kernels in use; QUANTCLI_KERNELS forces others (see library.py).

    Raises UsageError when the forced one is unknown or not available.
    """
    from quantcli.kernels import native

    table = native.find()
    if table is not None:
        return table
    from quantcli.kernels.numpy_kernels import NumpyKernels  # most machines need none of it

    return NumpyKernels()
