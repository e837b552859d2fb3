"""E8M0: a power of two for every group, as in MXFP4 and MXFP8.

The byte is the exponent plus 127. A scale that a largest weight gives is rounded by the rule of the OCP: the exponent
of that weight less that of the largest number of the format, so that weights up to a third beyond it are clipped.

Reference: Rouhani et al., OCP Microscaling Formats (MX) v1.0, 2023, section 6.3.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.formats import reach
from quantcli.kernels import ScaleKind, StoredScales
from quantcli.scales import Storage, Store
from quantcli.scales._bytes import listed, neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Choices, Floats
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]

BIAS = 127
LEAST = 1
"""The smallest byte of a scale: that of the smallest normal number of float32."""

AROUND = {"fast": (0, 1), "default": (1, 1), "best": (2, 1), "exact": (3, 2)}
"""How many smaller and larger powers are tried."""


def _bytes(scale: Array, scheme: Scheme) -> NDArray[np.int32]:
    """The bytes of scales, by the rule of the OCP."""
    top = reach(scheme)
    mantissa, exponent = np.frexp(scale * _unit(top))
    found: NDArray[np.int32] = np.clip(exponent - 1 + BIAS, LEAST, _most(top)).astype(np.int32)
    return np.where(mantissa > 0, found, BIAS).astype(np.int32)


def _unit(top: float) -> float:
    """What a scale is multiplied by to get a number whose exponent is that of the rule."""
    return top / 2.0 ** math.floor(math.log2(top))


def _most(top: float) -> int:
    """The largest byte: the largest number of the format times its scale is finite in bfloat16."""
    return 255 - math.ceil(math.log2(top)) + (BIAS - 127)


@cache
def _values(top: float) -> Floats:
    """The scale of every byte from LEAST on."""
    found: Floats = np.ldexp(np.float32(1), np.arange(LEAST, _most(top) + 1) - BIAS).astype(np.float32)
    return found


def settle(scale: Array, scheme: Scheme, store: Store) -> Floats:
    """Powers of two."""
    found: Floats = _values(reach(scheme))[_bytes(scale, scheme) - LEAST]
    return found


@cache
def _listed(top: float, around: tuple[int, int]) -> StoredScales:
    return listed(ScaleKind.E8M0, _values(top), _unit(top), around)


def known(scheme: Scheme, store: Store, effort: str | None) -> StoredScales:
    """The scales there are."""
    return _listed(reach(scheme), (0, 0) if effort is None else AROUND[effort])


def choices(scale: Array, scheme: Scheme, store: Store, effort: str) -> Choices:
    """The powers of two around those of the rule."""
    return neighbours(known(scheme, store, effort), _bytes(scale, scheme) - np.int32(LEAST))


def stored(scale: Floats, store: Store) -> NDArray[Any]:
    """The bytes of powers of two."""
    found: NDArray[np.uint8] = (np.ascontiguousarray(scale, np.float32).view(np.uint32) >> 23).astype(np.uint8)
    return found


def effective(raw: NDArray[np.uint8], store: Store) -> Floats:
    """Powers of two of their bytes; 255 is NaN, and 0 the smallest."""
    exponents = raw.astype(np.uint32) << np.uint32(23)
    exponents[raw == 0] = 1 << 22
    exponents[raw == 255] = 0x7FC00000
    found: Floats = exponents.view(np.float32)
    return found


PROVIDES = Storage(settle=settle, choices=choices, stored=stored, effective=effective, known=known)
