"""Name, dtype and shape of a tensor in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from quantcli.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, safetensors dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return _nbytes(self.dtype, self.shape)


@lru_cache(maxsize=4096)
def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; those of many tensors are the same, and asked for often."""
    return (math.prod(shape) * DTYPES[dtype].bits + 7) // 8
