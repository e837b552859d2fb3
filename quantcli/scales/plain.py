"""Plain: a float for every group.

Scales are float32, float16 or bfloat16, and for codebooks learned for groups E4M3.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import from_float32, round_bfloat16, to_float32
from quantcli.kernels import Choices, ScaleKind, StoredScales
from quantcli.scales import Storage, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]

LARGEST = {"F32": 2.0**128 - 2.0**104, "BF16": 2.0**128 - 2.0**120, "F16": 65504.0, "F8_E4M3": 448.0}
"""The largest number of each dtype."""

TRIALS = {"fast": 4, "default": 8, "best": 24, "exact": 48}
"""How many scales are tried beside the plain one."""


def rounded(values: Array, dtype: str) -> Floats:
    """Values rounded to a storage dtype, as float32; values too large for it become infinite."""
    with np.errstate(over="ignore"):
        if dtype == "F16":
            single: Floats = values.astype(np.float16).astype(np.float32)
        else:
            single = values.astype(np.float32)
    if dtype == "F8_E4M3":
        single = to_float32(from_float32(single, dtype).reshape(-1), dtype).reshape(values.shape)
    if dtype == "BF16":
        single = (round_bfloat16(single).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return single


def next_smaller(scale: Floats, dtype: str) -> Floats:
    """The neighbours towards 0 in a scale dtype; the largest finite value where there is no finite one."""
    finite = np.clip(scale, -LARGEST[dtype], LARGEST[dtype])
    if dtype == "F16":
        smaller: Floats = np.nextafter(finite.astype(np.float16), np.float16(0)).astype(np.float32)
    elif dtype == "BF16":
        smaller = (finite.view(np.uint32) - np.uint32(0x10000)).view(np.float32)
    elif dtype == "F8_E4M3":
        smaller = to_float32(from_float32(finite * np.float32(15 / 16), dtype).view(np.uint8).reshape(-1), dtype)
        smaller = smaller.reshape(finite.shape)
    else:
        smaller = np.nextafter(finite, np.float32(0))
    return smaller


def settle(scale: Array, scheme: Scheme, store: Store) -> Floats:
    """Scales rounded to their dtype."""
    return rounded(scale, store.dtype)


@lru_cache(maxsize=64)
def _ratios(bits: int, effort: str) -> Array:
    """The scales that are tried, relative to the plain one: at most 1.2 times it, down to where clipping stops to pay.

    The error of 8-bit floats recurs with every binade, but for the largest weights and the smallest numbers.
    """
    count, least = TRIALS[effort], 0.72 if bits < 8 else 0.88
    return np.append(1.0, np.geomspace(1.6 if bits == 8 else 1.15, least, count))


def known(scheme: Scheme, store: Store, effort: str | None) -> StoredScales | None:
    """The dtype, and its trials; None for E4M3, which only shared codebooks have."""
    if store.dtype not in ScaleKind.__members__:
        return None
    return StoredScales(ScaleKind[store.dtype], ratios=None if effort is None else _ratios(scheme.bits, effort))


def choices(scale: Array, scheme: Scheme, store: Store, effort: str) -> Choices:
    """The trials as the dtype holds them."""
    ratios = _ratios(scheme.bits, effort)
    values = rounded(scale[..., None] * ratios, store.dtype)
    smallest = np.float32(2.0**-24 if store.dtype == "F16" else 2.0**-126)
    values = np.where(np.isfinite(values) & (values >= smallest), values, np.maximum(values[..., :1], smallest))
    return Choices(np.ascontiguousarray(values, np.float32), None, len(ratios), 0)


def stored(scale: Floats, store: Store) -> NDArray[Any]:
    """Scales in their dtype."""
    return from_float32(scale, store.dtype)


def effective(raw: NDArray[np.uint8], store: Store) -> Floats:
    """Scales of their bytes."""
    return to_float32(raw, store.dtype)


PROVIDES = Storage(settle=settle, choices=choices, stored=stored, effective=effective, known=known)
