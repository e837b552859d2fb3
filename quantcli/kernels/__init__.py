"""The table of hot loops: native C++ where it could be built and loaded, numpy everywhere else.

All callers get a table from `load()`; both tables give the same bytes and the same sums.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from quantcli.errors import UsageError
from quantcli.kernels.codebook import Small
from quantcli.kernels.table import (
    BF16,
    BINARY,
    F16,
    F32,
    INTEGER,
    LEVELS,
    OFFSET,
    SUPER,
    BlockScales,
    BlockType,
    Choices,
    CodeGrid,
    Finding,
    Form,
    Grids,
    Kernels,
    Kind,
    Made,
    Method,
    QuantParams,
    Ranges,
    Rule,
    Sums,
    Tile,
    joined_blocks,
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
    "Small",
    "Sums",
    "Tile",
    "joined_blocks",
    "load",
    "row_bytes",
]


@lru_cache(maxsize=1)
def load() -> Kernels:
    """The kernels in use. QUANTCLI_KERNELS forces a table: numpy, native, or a variant of the native kernels.

    Raises UsageError when the forced one is unknown or not available.
    """
    from quantcli.kernels import native

    wanted = os.environ.get("QUANTCLI_KERNELS", "")
    if wanted not in ("", "native", "numpy", *native.VARIANTS):
        hint = f"use native or numpy, or {', '.join(native.VARIANTS)}"
        raise UsageError(f"{wanted!r} is not a set of kernels", place=["QUANTCLI_KERNELS"], hint=hint)
    variant = wanted if wanted in native.VARIANTS else None
    table = None if wanted == "numpy" else native.find(variant)
    if table is None and wanted not in ("", "numpy"):
        raise UsageError(
            f"the {variant or 'native'} kernels are not built for this machine",
            place=["QUANTCLI_KERNELS"],
            hint="install with a C++ compiler available, or use numpy",
        )
    if table is not None:
        return table
    from quantcli.kernels.numpy_kernels import NumpyKernels  # most machines need none of it

    return NumpyKernels()
