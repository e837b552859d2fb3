"""A tensor as whoever loads the file sees it, whatever layout it is stored in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantcli.dtypes import DTYPES
from quantcli.layouts.native.model import Tensor
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

BLOCK = 1 << 20
"""Weights of a float tensor that are compared at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A tensor as whoever loads the file sees it.

    scheme, bits: how it is stored, None for what is stored as it is. bytes_out: what that takes. sqnr_db: what its
    file says it cost, None where it says nothing. blocks: runs of weights, first and last in C order, that are decoded
    together; read(first, last): any run as float32. parts: the tensors another tool stores it as.
    """

    info: TensorInfo
    scheme: str | None
    bits: int | None
    bytes_out: int
    stored: Tensor | None
    blocks: tuple[tuple[int, int], ...]
    read: Callable[[int, int], Floats]
    parts: tuple[TensorInfo, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it has float values."""
        return self.scheme is not None or DTYPES[self.info.dtype].quantizable


def runs(total: int, step: int) -> tuple[tuple[int, int], ...]:
    """Runs of up to `step` weights, first and last."""
    return tuple((first, min(first + step, total)) for first in range(0, total, step))
