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


Kind = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor."""

Endings = tuple[tuple[str, Kind], ...]
"""Tensors whose names begin alike: how each name ends, its dtype and shape. Those of many tensors are the same."""


@lru_cache(maxsize=4096)
def alone(dtype: str, shape: tuple[int, ...]) -> Endings:
    """A single tensor, whose name ends in nothing else."""
    return (("", (dtype, shape)),)


@lru_cache(maxsize=4096)
def bytes_of(endings: Endings) -> int:
    """Bytes of all of these tensors."""
    return sum(_nbytes(*kind) for _, kind in endings)
