"""GGUF blocks made from native codes, without quantizing again.

    scheme, symmetric     4 bits Q4_0, 5 bits Q5_0, 8 bits Q8_0; asymmetric 4 bits Q4_1, 5 bits Q5_1
    iq4                   IQ4_NL
    mxfp4                 MXFP4

A block of 32 weights has its own scale d in float16, so that a scale of a larger group is repeated. Q4_1 and
Q5_1 add a float16 m: -z * d for zero points z, with the rounded d, so that 0 stays as near to 0 as m allows.
The bytes are those in the picture of the package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError
from quantcli.kernels import SUPER, BlockField
from quantcli.layouts.gguf.super_blocks import put_numbers
from quantcli.layouts.gguf.types import WEIGHTS, type_of
from quantcli.scheme import Scheme
from quantcli.tensors.rows import Grouping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

_FIELDS = {
    4: [BlockField(0, 4, 16)],
    5: [BlockField(0, 1, 1, shift=4), BlockField(4, 4, 16)],
    8: [BlockField(0, 8, 32, flip=128)],
}
"""The fields of the codes of a block by their bits, behind its parameters; those of 8 bits are signed."""


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


def _float16(values: Floats, bits: int) -> tuple[NDArray[np.float16], bool]:
    """Scales in float16, and whether they are the same. Raises DataError where that moves the outermost of 2^(b-1)
    steps by more than a quarter of a step: smaller scales would change too much, and larger ones become infinite."""
    found = _normal(values)
    if found is not None:
        return found, True
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: NDArray[np.float16] = values.astype(np.float16)
        back = rounded.astype(np.float32)
        apart = np.abs(back - values) * np.float32(1 << (bits + 1))
    lost = ~(apart <= np.abs(values))
    if lost.any():
        first = float(values.ravel()[int(lost.argmax())])
        raise DataError(f"float16 cannot hold the scale {first:.3g}")
    return rounded, np.array_equal(back, values)


def _normal(values: Floats) -> NDArray[np.float16] | None:
    """Numbers in float16, by their bits, where all are normal numbers of float16 already: numpy converts one by one."""
    raw = np.ascontiguousarray(values).view(np.uint32)
    size = raw & np.uint32(0x7FFFFFFF)
    if (raw & np.uint32(0x1FFF)).any() or size.min() < 0x38800000 or size.max() >= 0x47800000:
        return None
    size >>= np.uint32(13)
    size -= np.uint32(112 << 10)  # the bias of exponents is smaller
    size |= raw >> np.uint32(16) & np.uint32(0x8000)
    found: NDArray[np.float16] = size.astype(np.uint16).view(np.float16)
    return found


def _offsets(scheme: Scheme, d: NDArray[np.float16], zero: Floats) -> tuple[NDArray[np.float16], Floats]:
    """m of every group, and what is rounded to it. Raises DataError where float16 cannot hold that."""
    exact: Floats
    with np.errstate(over="ignore", invalid="ignore"):
        exact = zero if scheme.zero_point == "float" else -zero * d.astype(np.float32)
        m: NDArray[np.float16] = exact.astype(np.float16)
        apart = np.abs(m.astype(np.float32) - exact)
    lost = ~(apart <= np.abs(d.astype(np.float32)) / 4)
    if lost.any():
        first = float(exact.ravel()[int(lost.argmax())])
        raise DataError(f"float16 cannot hold the offset {first:.3g} precisely enough")
    m += np.float16(0)  # a negative zero is written as zero
    return m, exact


def _of_blocks(values: NDArray[np.float16], rows: int, cols: int, group: int) -> NDArray[np.uint16]:
    """A parameter of the groups (rows or 1, groups or 1) for every block (rows * cols / 32)."""
    blocks = cols // WEIGHTS
    each = -(-group // WEIGHTS)
    spread = values.view(np.uint16)
    if each > 1:
        spread = np.repeat(spread, each, axis=1)[:, :blocks]
    return np.broadcast_to(spread, (rows, blocks)).reshape(-1)


def encode(
    scheme: Scheme, packed: Bytes, cols: int, scale: Floats, zero: Floats | None, group: int
) -> tuple[Bytes, bool]:
    """The bytes (rows, cols / 32 * size) of blocks of packed codes, and whether they decode to exactly the same.

    packed: unsigned codes as the native file has them, q + 2^(b-1) of symmetric schemes, in rows of whole words.
    scale, zero: of `group` columns each, (rows, groups), or (1, 1) for all; zero holds zero points, or offsets for
    schemes with float offsets. Raises DataError where float16 cannot hold a parameter: the codes would decode to other
    values.
    """
    rows = len(packed)
    exact, parameters = True, []
    if scheme.storage == "e8m0":
        parameters.append((np.ascontiguousarray(scale).view(np.uint32).reshape(-1) >> np.uint32(23)).astype(np.uint8))
    else:
        d, exact = _float16(scale, scheme.bits)
        parameters.append(_of_blocks(d, rows, cols, group))
    if zero is not None:
        m, wanted = _offsets(scheme, d, zero)
        exact = exact and np.array_equal(m.astype(np.float32), wanted)
        parameters.append(_of_blocks(m, rows, cols, group))
    begin = sum(values.itemsize for values in parameters)
    blocks = np.empty((rows * cols // WEIGHTS, begin + WEIGHTS * scheme.bits // 8), np.uint8)
    for number, values in enumerate(parameters):
        put_numbers(blocks, number * values.itemsize, values)
    fields = [replace(field, at=begin + field.at) for field in _FIELDS[scheme.bits]]
    kernels.load().fill_blocks(packed, cols, scheme.bits, fields, blocks)
    return blocks.reshape(rows, -1), exact
