"""GGUF blocks made from native codes, without quantizing again.

    scheme, symmetric     4 bits Q4_0, 5 bits Q5_0, 8 bits Q8_0; asymmetric 4 bits Q4_1, 5 bits Q5_1
    iq4                   IQ4_NL
    mxfp4                 MXFP4

A block of 32 weights has its own scale d in float16, so that a scale of a larger group is repeated. Q4_1 and
Q5_1 add a float16 m: -z * d for zero points z, with the rounded d, so that 0 stays as near to 0 as m allows.
The bytes are those in the picture of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError
from quantcli.kernels import SUPER
from quantcli.layouts.gguf.types import WEIGHTS, type_of
from quantcli.scheme import Scheme
from quantcli.tensors.rows import Grouping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

_FIELDS: dict[str, list[Any]] = {
    "Q4_0": [("d", "<u2"), ("qs", "<u8", 2)],
    "Q4_1": [("d", "<u2"), ("m", "<u2"), ("qs", "<u8", 2)],
    "Q5_0": [("d", "<u2"), ("qh", "<u4"), ("qs", "<u8", 2)],
    "Q5_1": [("d", "<u2"), ("m", "<u2"), ("qh", "<u4"), ("qs", "<u8", 2)],
    "Q8_0": [("d", "<u2"), ("qs", "<u8", 4)],
    "IQ4_NL": [("d", "<u2"), ("qs", "<u8", 2)],
    "MXFP4": [("d", "u1"), ("qs", "<u8", 2)],
}
_LOW, _SIGN = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x8080808080808080)


def obstacle(scheme: Scheme, plan: Grouping, shape: tuple[int, ...]) -> str | None:
    """Why the codes of a tensor cannot be stored as blocks, by its scheme and shape; None when they can.

    >>> from quantcli.tensors.rows import grouping_of
    >>> from quantcli import Scheme
    >>> obstacle(Scheme(bits=3), grouping_of((8, 128), Scheme(bits=3)), (8, 128))
    '3 bits in plain groups; GGUF has 3 bits as Q3_K'
    """
    if type_of(scheme) is None:
        return _without_type(scheme)
    if plan.shared == "columns":
        return "one scale per column"
    if not shape or plan.cols != shape[-1]:
        return "its groups would cross row ends"
    if scheme.storage == "super-blocks":
        return f"rows of {plan.cols}; super-blocks are of {SUPER}" if plan.cols % SUPER else None
    if plan.cols % WEIGHTS:
        return f"rows of {plan.cols}; blocks are of {WEIGHTS}"
    if plan.groups > 1 and plan.group % WEIGHTS:
        return f"groups of {plan.group}; blocks are of {WEIGHTS}"
    return None


def _without_type(scheme: Scheme) -> str:
    """Why no type of GGUF has the codes of a scheme."""
    if scheme.format != "int":
        return f"the format {scheme.format}; GGUF takes codes of int, iq4 and mxfp4"
    if scheme.bits in (4, 5, 8):
        return f"{scheme.bits} bits with zero points; GGUF takes them with 4 and 5 bits"
    named = {2: "Q2_K", 3: "Q3_K", 6: "Q6_K"}
    if scheme.bits in named:
        return f"{scheme.bits} bits in plain groups; GGUF has {scheme.bits} bits as {named[scheme.bits]}"
    return f"{scheme.bits} bits; GGUF takes codes of 2 to 6 and of 8 bits"


def block_type(scheme: Scheme) -> str:
    """The block type of a scheme without an obstacle."""
    found = type_of(scheme)
    assert found is not None
    return found


def _float16(values: Floats, bits: int) -> NDArray[np.float16]:
    """Scales in float16. Raises DataError where that moves the outermost of 2^(b-1) steps by more than a quarter of a
    step: smaller scales would change too much, and larger ones become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: NDArray[np.float16] = values.astype(np.float16)
        apart = np.abs(rounded.astype(np.float32) - values) * np.float32(1 << (bits + 1))
    lost = ~(apart <= np.abs(values))
    if lost.any():
        first = float(values.ravel()[int(lost.argmax())])
        raise DataError(f"float16 cannot hold the scale {first:.3g}")
    return rounded


def _offsets(scheme: Scheme, d: NDArray[np.float16], zero: Floats) -> NDArray[np.float16]:
    """m of every group. Raises DataError where float16 cannot hold it."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = zero if scheme.zero_point == "float" else -zero * d.astype(np.float32)
        m: NDArray[np.float16] = exact.astype(np.float16)
        apart = np.abs(m.astype(np.float32) - exact)
    lost = ~(apart <= np.abs(d.astype(np.float32)) / 4)
    if lost.any():
        first = float(exact.ravel()[int(lost.argmax())])
        raise DataError(f"float16 cannot hold the offset {first:.3g} precisely enough")
    m += np.float16(0)  # a negative zero is written as zero
    return m


def exact_params(scheme: Scheme, scale: Floats, zero: Floats | None) -> bool:
    """Whether blocks, whose parameters are float16, decode to exactly the same numbers."""
    if scheme.storage != "plain":
        return True
    d = _float16(scale, scheme.bits)
    if not np.array_equal(d.astype(np.float32), scale):
        return False
    if zero is None:
        return True
    exact = zero if scheme.zero_point == "float" else -zero * scale
    return bool(np.array_equal(_offsets(scheme, d, zero).astype(np.float32), exact))


def _of_blocks(values: NDArray[np.float16], rows: int, cols: int, group: int) -> NDArray[np.uint16]:
    """A parameter of the groups (rows or 1, groups or 1) for every block (rows * cols / 32)."""
    blocks = cols // WEIGHTS
    each = -(-group // WEIGHTS)
    spread = np.repeat(values.view(np.uint16), each, axis=1)[:, :blocks]
    return np.broadcast_to(spread, (rows, blocks)).reshape(-1)


def encode(scheme: Scheme, codes: NDArray[np.uint8], scale: Floats, zero: Floats | None, group: int) -> Bytes:
    """The bytes (rows, cols / 32 * size) of blocks of unsigned codes (rows, cols), a multiple of 32.

    codes: as the native file has them, q + 2^(b-1) of symmetric schemes. scale, zero: of `group` columns each, (rows,
    groups), or (1, 1) for all; zero holds zero points, or offsets for schemes with float offsets. Raises DataError
    where float16 cannot hold a parameter: the codes would decode to other values.
    """
    rows, cols = codes.shape
    kind = block_type(scheme)
    out = np.empty(rows * cols // WEIGHTS, np.dtype(_FIELDS[kind]))
    if scheme.storage == "e8m0":
        out["d"] = np.ascontiguousarray(scale).view(np.uint32).reshape(-1) >> np.uint32(23)
    else:
        d = _float16(scale, scheme.bits)
        out["d"] = _of_blocks(d, rows, cols, group)
    if zero is not None:
        out["m"] = _of_blocks(_offsets(scheme, d, zero), rows, cols, group)
    words = np.ascontiguousarray(codes).view("<u8").reshape(-1, 4)
    if scheme.bits == 8:
        for i in range(4):  # undo the offset of 128: int8 again
            out["qs"][:, i] = words[:, i] ^ _SIGN
        return out.view(np.uint8).reshape(rows, -1)
    if scheme.bits == 5:
        out["qh"] = np.packbits(codes.reshape(-1) & np.uint8(16), bitorder="little").view("<u4")
        words = words & _LOW
    for i in range(2):  # eight bytes at a time: codes below 16 do not reach into the next
        out["qs"][:, i] = words[:, i] | words[:, i + 2] << np.uint64(4)
    return out.view(np.uint8).reshape(rows, -1)
