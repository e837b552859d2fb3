"""E4M3: an 8-bit float for every group, times a float32 scale of the tensor, as in NVFP4.

The scale of the tensor is a power of two, chosen by the largest weight: then scales of groups times it are exact, and
so is the inverse that compressed-tensors stores, and nothing is lost between tools. The largest scale of a group
becomes a number from 128 to 256, which leaves room to search above it, and below it 14 binades of full precision.

Reference: NVIDIA, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference, 2025 (which divides the largest
weight by 6 * 448 for the scale of the tensor).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import from_float32, to_float32
from quantcli.formats import reach
from quantcli.kernels import ScaleKind, StoredScales
from quantcli.scales import Storage, Store
from quantcli.scales._bytes import listed, neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Choices, Floats
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]

TOP = 256.0
"""The most that the scale of the group with the largest weight becomes."""

AROUND = {"fast": (1, 5), "default": (3, 6), "best": (6, 8), "exact": (10, 10)}
"""How many smaller and larger neighbours are tried: there are eight to a binade."""


def overall(largest: float, scheme: Scheme) -> float:
    """The scale of a tensor with this largest magnitude."""
    if not largest:
        return 1.0
    return float(2.0 ** np.clip(np.ceil(np.log2(largest / (reach(scheme) * TOP))), -117, 117))


def _codes(scale: Array, store: Store) -> NDArray[np.uint8]:
    """The codes of scales, from the smallest positive one on."""
    inside = np.minimum(scale / store.overall, 448.0).astype(np.float32)
    found: NDArray[np.uint8] = np.maximum(from_float32(inside, "F8_E4M3"), np.uint8(1))
    return found


@lru_cache(maxsize=64)
def _values(overall: float) -> Floats:
    """The effective scales of all positive codes, ascending."""
    found: Floats = to_float32(np.arange(1, 127, dtype=np.uint8), "F8_E4M3") * np.float32(overall)
    return found


def settle(scale: Array, scheme: Scheme, store: Store) -> Floats:
    """Scales rounded to E4M3 times the scale of the tensor."""
    found: Floats = _values(store.overall)[_codes(scale, store) - np.uint8(1)]
    return found


@lru_cache(maxsize=64)
def _listed(overall: float, around: tuple[int, int]) -> StoredScales:
    return listed(ScaleKind.E4M3, _values(overall), 1 / overall, around)


def known(scheme: Scheme, store: Store, effort: str | None) -> StoredScales:
    """The scales there are."""
    return _listed(store.overall, (0, 0) if effort is None else AROUND[effort])


def choices(scale: Array, scheme: Scheme, store: Store, effort: str) -> Choices:
    """The neighbours of scales in E4M3."""
    return neighbours(known(scheme, store, effort), _codes(scale, store).astype(np.int32) - np.int32(1))


def stored(scale: Floats, store: Store) -> NDArray[Any]:
    """The codes of effective scales."""
    return from_float32(scale / np.float32(store.overall), "F8_E4M3")


def effective(raw: NDArray[np.uint8], store: Store) -> Floats:
    """Effective scales of their codes."""
    found: Floats = to_float32(raw, "F8_E4M3") * np.float32(store.overall)
    return found


PROVIDES = Storage(settle=settle, choices=choices, stored=stored, effective=effective, overall=overall, known=known)
