"""Name, dtype and shape of a tensor in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        return (math.prod(self.shape) * DTYPES[self.dtype].bits + 7) // 8
