"""The one table of tensor dtypes, and their conversion to and from float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DType:
    """A safetensors dtype: its name, bits per element and numpy's (little-endian) name where numpy has one."""

    name: str
    bits: int
    numpy: str | None
    is_float: bool = False
    quantizable: bool = False

    def nbytes(self, elements: int) -> int:
        """Bytes of a number of elements; half bytes are rounded up."""
        return (elements * self.bits + 7) // 8


_TABLE = [
    DType("BOOL", 8, "|b1"),
    DType("U8", 8, "|u1"),
    DType("I8", 8, "|i1"),
    DType("U16", 16, "<u2"),
    DType("I16", 16, "<i2"),
    DType("U32", 32, "<u4"),
    DType("I32", 32, "<i4"),
    DType("U64", 64, "<u8"),
    DType("I64", 64, "<i8"),
    DType("C64", 64, "<c8"),
    DType("F16", 16, "<f2", is_float=True, quantizable=True),
    DType("BF16", 16, None, is_float=True, quantizable=True),
    DType("F32", 32, "<f4", is_float=True, quantizable=True),
    DType("F64", 64, "<f8", is_float=True, quantizable=True),
    DType("F8_E4M3", 8, None, is_float=True, quantizable=True),
    DType("F8_E5M2", 8, None, is_float=True, quantizable=True),
    DType("F8_E4M3FNUZ", 8, None, is_float=True),
    DType("F8_E5M2FNUZ", 8, None, is_float=True),
    DType("F8_E8M0", 8, None, is_float=True),
    DType("F4", 4, None, is_float=True),
    DType("F6_E2M3", 6, None, is_float=True),
    DType("F6_E3M2", 6, None, is_float=True),
]
DTYPES = {d.name: d for d in _TABLE}
"""Every dtype of safetensors 0.8 by name."""

FROM_NUMPY = {d.numpy[1:]: d for d in _TABLE if d.numpy}
"""The same dtypes by numpy's kind and size, such as `f4`."""

LONG_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""Names of the float dtypes on the command line and in a scheme."""


@lru_cache(maxsize=2)
def _float8_values(name: str) -> NDArray[np.float32]:
    """The 256 values of an 8-bit float; NaN and infinity where the format has them.

    References: Micikevicius et al., FP8 Formats for Deep Learning, 2022. E4M3 has no infinity: only S.1111.111 is NaN.
    """
    import numpy as np

    mantissa_bits, bias = (3, 7) if name == "F8_E4M3" else (2, 15)
    code = np.arange(256)
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - bias), mantissa * 2.0 ** (1 - bias))
    if name == "F8_E4M3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        value[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    values: NDArray[np.float32] = np.where(code & 0x80, -value, value).astype(np.float32)
    return values


def to_float32(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The float32 values of the bytes of a float tensor: one-dimensional, exact except for F64.

    `raw` is a one-dimensional uint8 array; F64 is rounded to nearest, and values beyond float32 become infinite.
    """
    import numpy as np

    values: NDArray[np.float32]
    if dtype == "F32":
        values = raw.view("<f4")
    elif dtype == "BF16":
        bits = raw.view("<u2").astype(np.uint32)
        bits <<= np.uint32(16)
        values = bits.view(np.float32)
    elif dtype in ("F16", "F64"):
        with np.errstate(over="ignore", invalid="ignore"):
            values = raw.view("<f2" if dtype == "F16" else "<f8").astype(np.float32)
    else:
        values = _float8_values(dtype)[raw]
    return values


def to_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """A copy of numbers as float64. NaN, signalling ones included, stays NaN without a warning."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def floats(raw: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Stored numbers of a float dtype as float64; those of F64 as they are."""
    return to_float64(raw.view("<f8") if dtype == "F64" else to_float32(raw, dtype))


_PIECE = 1 << 16
"""Numbers that are rounded at a time, so that those on the way stay in the cache."""


def round_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16 of finite float32 values, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(values, np.float32).view("<u4").reshape(-1)
    found = np.empty(bits.size, np.uint16)
    for at in range(0, bits.size, _PIECE):
        piece = bits[at : at + _PIECE]
        rounded = piece >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += piece
        found[at : at + _PIECE] = rounded.view("<u2")[1::2]
    return found.reshape(values.shape)


_FLOAT8 = {"F8_E4M3": (7, 3, 126), "F8_E5M2": (15, 2, 123)}
"""Exponent bias, bits of the mantissa, code of the largest finite value."""


def _round_float8(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Codes of the nearest 8-bit floats, ties to even; beyond the largest finite value the largest is kept."""
    import numpy as np

    bias, mantissa, largest = _FLOAT8[name]
    magnitude = np.abs(np.ascontiguousarray(values, np.float32))
    spare = np.uint32(23 - mantissa)
    bits = magnitude.view(np.uint32)
    code = bits >> spare
    code &= np.uint32(1)
    code += bits
    code += np.uint32((1 << (22 - mantissa)) - 1)
    code >>= spare
    code -= np.uint32((127 - bias) << mantissa)  # wraps around for the small ones
    small = magnitude < np.float32(2.0 ** (1 - bias))
    if small.any():
        code[small] = np.rint(magnitude[small] * np.float32(2.0 ** (bias - 1 + mantissa)))
    np.minimum(code, np.uint32(largest), out=code)
    signed: NDArray[np.uint8] = code.astype(np.uint8)
    signed |= np.signbit(values).view(np.uint8) << np.uint8(7)
    return signed


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Finite float32 values rounded to nearest in a float dtype, as an array whose bytes a file can hold.

    >>> import numpy as np
    >>> from_float32(np.array([1.0, 1.00390625], np.float32), "BF16").tolist()  # 1 + 2^-8 is a tie
    [16256, 16256]
    """
    import numpy as np

    if dtype == "BF16":
        return round_bfloat16(values)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _round_float8(values, dtype)
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype].numpy)


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Finite float32 values rounded to nearest in F32, F16 or BF16, as float32 again. They may be rounded in place.

    >>> import numpy as np
    >>> rounded(np.array([1.0, 1.00390625, 1.01171875], np.float32), "BF16").tolist()
    [1.0, 1.0, 1.015625]
    """
    import numpy as np

    if dtype == "BF16":
        bits = values.view(np.uint32)
        odd = bits >> np.uint32(16)
        odd &= np.uint32(1)
        odd += np.uint32(0x7FFF)
        bits += odd
        bits &= np.uint32(0xFFFF0000)
        return values
    return _rounded_to_half(values) if dtype == "F16" else values


def _rounded_to_half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite values rounded to float16, in place where all are in its range: numpy's own conversions there and back
    take five times as long."""
    import numpy as np

    bits = np.ascontiguousarray(values).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude.size and magnitude.max() >= 0x477FE000:  # 65504
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    magnitude -= np.uint32(1)  # so that 0, which stays, is not among the small ones
    small = magnitude < np.uint32(0x38800000 - 1)  # 2^-14
    few = values[small].astype(np.float16).astype(np.float32) if small.any() else None
    odd = bits >> np.uint32(13)
    odd &= np.uint32(1)
    odd += np.uint32(0xFFF)
    bits += odd
    bits &= np.uint32(0xFFFFE000)
    found: NDArray[np.float32] = bits.view(np.float32)
    if few is not None:
        found[small] = few
    return found
