"""Checks on a quantized tensor that need no original, tile by tile.

Each function reports what is wrong to `add` (see findings.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from quantcli.errors import DataError
from quantcli.formats import code_grid, unused_codes
from quantcli.kernels import INTEGER, LEVELS, CodeGrid, Kernels, QuantParams, row_bytes
from quantcli.kernels.codebook import codebook
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.native.parts import parts, zero_shape
from quantcli.tensors import digits
from quantcli.tensors.digits import Digits
from quantcli.tensors.rows import Grouping, TileSpan
from quantcli.tensors.settle import improper, improper_levels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

Add = Callable[..., None]
_ONE = np.ones((1, 1), np.float32)


def whole(add: Add, tensor: Tensor) -> None:
    """What is stored once for a tensor: its shape, the end of its zero points, levels for all of it."""
    stored, plan = tensor.stored, tensor.stored.grouping
    assert stored.scheme is not None and plan is not None
    shape = tensor.read_bytes(stored.output("shape").name, 0, 8 * len(tensor.shape)).view("<i8").tolist()
    if shape != list(tensor.shape):
        add("structure", f"its shape tensor holds {shape}, not {list(tensor.shape)}")
    held = parts(stored.scheme)
    if "zero_point" in held:
        output = stored.output("zero_point")
        spare = output.shape[0] * 32 - zero_shape(plan)[0] * stored.scheme.bits
        width = 4 * output.shape[1]
        last = tensor.read_bytes(output.name, output.nbytes - width, width).view("<u4")
        wrong = (last.astype(np.uint64) >> np.uint64(32 - spare)) != 0
        if wrong.any():
            add("padding", "padding bits after the zero points are not 0", count=int(wrong.sum()))
    if "codebook" in held and len(stored.output("codebook").shape) == 1:
        _levels(add, tensor, TileSpan(0, 1, 0, 1), own=False)


def padding(add: Add, tensor: Tensor, packed: Bytes, span: TileSpan) -> None:
    """Padding bits after the last code of each row of a tile."""
    scheme, plan = tensor.stored.scheme, tensor.stored.grouping
    assert scheme is not None and plan is not None
    if plan.digits is not None:
        _digits(add, tensor, span, plan.digits, last=span.col + span.cols == plan.cols)
        return
    width = row_bytes(span.cols, scheme.bits)
    spare = width * 8 - span.cols * scheme.bits
    if not spare or span.col + span.cols < plan.cols:
        return
    last = packed.reshape(span.rows, width)[:, -4:].copy().view("<u4").ravel()
    wrong = last >> np.uint32(32 - spare) != 0
    if wrong.any():
        row = span.row + int(wrong.argmax())
        add("padding", "padding bits after the codes of a row are not 0", row, int(wrong.sum()), index=[row])


def _digits(add: Add, tensor: Tensor, span: TileSpan, kind: Digits, *, last: bool) -> None:
    """Numbers of a tile that have more digits than codes are stored in one, and digits after the last code of rows."""
    found = digits.numbers(tensor.digits(span), kind)
    wrong = found >= kind.below
    if wrong.any():
        row, at = (int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        index = [span.row + row, span.col // kind.count + at]
        add("ranges", "codes are stored as a number beyond their digits", index[0], int(wrong.sum()), index=index)
    held = (span.col + span.cols) % kind.count
    spare = found[:, -1] // kind.levels**held != 0 if last and held else np.zeros(0, bool)
    if spare.any():
        row = span.row + int(spare.argmax())
        add("padding", "digits after the codes of a row are not 0", row, int(spare.sum()), index=[row])


def params(add: Add, tensor: Tensor, span: TileSpan) -> QuantParams | None:
    """The parameters of a tile, looked at; None where they cannot be used."""
    stored = tensor.stored
    assert stored.scheme is not None
    scheme, plan, held = stored.scheme, stored.grouping, parts(stored.scheme)
    if "scale" in held:
        scale, zero = tensor.scales(span)
        found = improper(scale, zero, scheme, stored.scale_dtype)
        if plan.shared == "tensor":
            first, first_zero = tensor.scales(TileSpan(0, 1, 0, plan.cols))
            found.append(("the rows have different scales", differ(scale, first)))
            if zero is not None and first_zero is not None:
                found.append(("the rows have different zero points", differ(zero, first_zero)))
        for problem, where in found:
            place_in(add, problem, where, span, plan)
    if "codebook" in held and len(stored.output("codebook").shape) > 1:
        _levels(add, tensor, span, own=True)
    try:
        return tensor.params(span)
    except DataError:  # already reported
        return None


def place_in(add: Add, problem: str, where: NDArray[np.bool_], span: TileSpan, plan: Grouping) -> None:
    """Report what is wrong with parameters (rows, groups) of a tile, where anything is."""
    if where.any():
        row, group = (int(i) for i in np.unravel_index(int(where.argmax()), where.shape))
        first = span.row // plan.height
        place = [group] if plan.shared == "columns" else [first + row, span.col // plan.group + group]
        add("scales", problem, place[0] * plan.groups + place[-1], int(where.sum()), index=place)


def differ(some: Floats, others: Floats) -> NDArray[np.bool_]:
    """Where numbers are not the same to the last bit."""
    found: NDArray[np.bool_] = np.ascontiguousarray(some).view(np.uint32) != np.ascontiguousarray(others).view(
        np.uint32
    )
    return found


def _levels(add: Add, tensor: Tensor, span: TileSpan, *, own: bool) -> None:
    assert tensor.scheme is not None
    for problem, where in improper_levels(tensor.levels(span), tensor.scheme):
        row, code = (int(i) for i in np.unravel_index(int(where.argmax()), where.shape))
        row += span.row
        at, index = row * where.shape[1] + code, [row, code] if own else [code]
        add("scales", problem, at, int(where.sum()), index=index)


def codes(add: Add, tensor: Tensor, packed: Bytes, span: TileSpan, found: QuantParams, kernels: Kernels) -> None:
    """Codes of a tile that no weight is quantized to."""
    assert tensor.scheme is not None and tensor.stored.grouping is not None
    grid = code_grid(tensor.scheme)
    if grid.mode == LEVELS:
        assert found.codebook is not None
        unused = unused_codes(found.codebook)
        if (kind := tensor.stored.grouping.digits) is not None:  # its last code stands for those above it
            unused[:, kind.levels - 1] = unused[:, kind.levels - 1 :].all(axis=1)
        if not unused.any():
            return
        marks = QuantParams(_ONE, None, codebook(unused.astype(np.float32)))
        wrong = kernels.decode(packed, (span.rows, span.cols), max(span.cols, 1), marks, grid) != 0
    elif grid.umin > 0 or grid.umax < (1 << grid.bits) - 1:
        values = unpacked(kernels, packed, span, grid.bits)
        wrong = (values < grid.umin) | (values > grid.umax)
    else:
        return
    if wrong.any():
        place = int(wrong.argmax())
        at = flat(place, span, tensor.stored.grouping)
        code = int(unpacked(kernels, packed, span, grid.bits).ravel()[place])
        index = index_of(at, tensor.shape)
        add("ranges", "no weight is quantized to this code", at, int(wrong.sum()), index=index, stored=code)


def unpacked(kernels: Kernels, packed: Bytes, span: TileSpan, bits: int) -> Floats:
    """The codes of a tile, as numbers: codes that stand for themselves, decoded."""
    plain = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1)
    return kernels.decode(packed, (span.rows, span.cols), max(span.cols, 1), QuantParams(_ONE), plain)


def index_of(place: int, shape: tuple[int, ...]) -> list[int]:
    """The index of a flat place in a tensor."""
    return [int(i) for i in np.unravel_index(place, shape)] if shape else []


def flat(place: int, span: TileSpan, plan: Grouping) -> int:
    """The flat place in the tensor of a place in a tile."""
    row, col = divmod(place, span.cols)
    return (span.row + row) * plan.cols + span.col + col
