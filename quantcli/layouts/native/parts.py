"""The parts of a quantized tensor in a native file, with their dtypes and shapes.

For a tensor X (shape [rows, cols] or more) of b bits the file holds

    X_packed      I32  [rows.., ceil(cols*b/32)]   codes, low one first; u = q + 2^(b-1) when symmetric
                  U8   [rows.., bytes]             codebooks of 3, 5, 6, 7, 9, 12 and other numbers of levels: numbers
                                                   whose digits are codes (tensors/digits.py)
    X_scale       F32, F16, BF16 or F8_E4M3        [rows.., groups]; [rows, 1] per channel and per tensor; of blocks a
                                                   scale for each of them
                  F8_E8M0                          powers of two
    X_global_scale  F32  [1]                       where scales of groups are E4M3 and those of floats: the number they
                                                   are divided by
    X_zero_point  I32  [ceil(rows*b/32), groups]   asymmetric: zero points, the stream running down each column
    X_offset      as X_scale                       asymmetric with a float offset
    X_codebook    F32  [2^b]                       format `codebook`: the levels by code. Learned per channel they are
                                                   [rows.., 2^b] in the scale's dtype; then, and when learned for the
                                                   tensor, there is no X_scale
    X_shape       I64  [dimensions]                the shape of X

Names and bit stream are those of compressed-tensors' `pack-quantized`.
"""

from __future__ import annotations

import math
from functools import lru_cache

from quantcli import scales
from quantcli.kernels import row_bytes
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Decided
from quantcli.tensors.info import Endings, TensorInfo, alone, bytes_of
from quantcli.tensors.rows import Grouping
from quantcli.tensors.settle import levels_dtype

ENDINGS = ("_packed", "_scale", "_global", "_offset", "_zero_point", "_codebook", "_shape")
"""How the name of a tensor ends that another one may be stored under, in this layout."""


def zero_shape(plan: Grouping) -> tuple[int, int]:
    """(rows, groups) of a tensor's zero points as a matrix."""
    if plan.shared == "columns":
        return 1, math.prod(plan.scale_shape)
    return plan.rows, plan.groups


def parts(scheme: Scheme) -> list[str]:
    """The parts of a tensor of this scheme, in file order: the suffixes of their names.

    >>> from quantcli import Scheme
    >>> parts(Scheme(bits=4, symmetric=False))
    ['packed', 'scale', 'zero_point', 'shape']
    """
    found = ["packed"]
    if scheme.family != "learned" or scheme.shares_levels:
        found.append("scale")
    if scales.of(scheme).overall is not None:
        found.append("global_scale")
    if not scheme.symmetric:
        found.append("offset" if scheme.zero_point == "float" else "zero_point")
    if scheme.format == "codebook":
        found.append("codebook")
    return [*found, "shape"]


def outputs(tensor: Decided) -> tuple[TensorInfo, ...]:
    """The tensors that hold a tensor in a native file, in file order."""
    if tensor.scheme is None:
        return (tensor.info,)
    name = tensor.info.name
    return tuple([TensorInfo(name + ending, *kind) for ending, kind in endings(tensor)])


def nbytes(tensor: Decided) -> int:
    """Bytes of all tensors that hold it."""
    return bytes_of(endings(tensor))


def names(tensor: Decided) -> list[str]:
    """The names of the tensors that hold it."""
    return [tensor.info.name + ending for ending, _ in endings(tensor)]


def endings(tensor: Decided) -> Endings:
    """How the names of the tensors that hold it end, with their dtypes and shapes; many tensors have the same."""
    if tensor.scheme is None:
        return alone(tensor.info.dtype, tensor.info.shape)
    return endings_of(len(tensor.info.shape), tensor.scheme, tensor.grouping, tensor.scale_dtype)


@lru_cache(maxsize=4096)
def endings_of(dimensions: int, scheme: Scheme, plan: Grouping, scale_dtype: str) -> Endings:
    """The endings of a quantized tensor of so many dimensions."""
    zero_rows, groups = zero_shape(plan)
    tables = (
        (*plan.lead, 1 << scheme.bits) if scheme.family == "learned" and plan.shared is None else (1 << scheme.bits,)
    )
    own = {
        "packed": ("I32" if plan.digits is None else "U8", plan.packed_shape(scheme.bits)),
        "scale": (scale_dtype, plan.scale_shape),
        "global_scale": ("F32", (1,)),
        "offset": (scale_dtype, plan.scale_shape),
        "zero_point": ("I32", (row_bytes(zero_rows, scheme.bits) // 4, groups)),
        "codebook": (levels_dtype(scheme, scale_dtype), (1 << scheme.bits,) if scheme.shares_levels else tables),
        "shape": ("I64", (dimensions,)),
    }
    return tuple((f"_{part}", own[part]) for part in parts(scheme))
