"""Weights of compressed-tensors as float32, from the tensors they are stored as."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.kernels import INTEGER, CodeGrid, QuantParams
from quantcli.layouts.reader import Held, Read
from quantcli.layouts.regrouped import Regrouped, by_index
from quantcli.layouts.stored import by_column, floats, wrong
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A weight as a matrix, and its parts. granularity: `tensor`, `channel`, `group` or `block`; group: columns that
    share a scale; height: rows that do. dense: codes cross words. stated: the stored shape; checked: whether it has
    been read, or there is none."""

    name: str
    shape: tuple[int, ...]
    rows: int
    cols: int
    bits: int
    granularity: str
    group: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    index: TensorInfo | None = None
    stated: TensorInfo | None = None
    checked: bool = True
    dense: bool = True
    height: int = 1

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.cols // self.group)


def words_of(cols: int, bits: int, dense: bool) -> int:
    """32-bit words of one row."""
    return -(-cols * bits // 32) if dense else -(-cols // (32 // bits))


def stated_shape(info: TensorInfo, name: str, codes: TensorInfo, read: Read) -> tuple[int, ...]:
    """The stored shape. Raises DataError when it does not match the codes."""
    if info.numel > 64:
        raise wrong(name, f"its shape has {info.numel} dimensions")
    raw = read(info.name, 0, info.nbytes).view("<i8" if info.dtype == "I64" else "<i4")
    shape, lead = tuple(int(n) for n in raw), codes.shape[:-1]
    if len(shape) != len(codes.shape) or shape[:-1] != lead or shape[-1] < 1:
        raise wrong(name, f"its shape {list(shape)[:8]} does not match codes {list(codes.shape)}")
    return shape


def whole_words(words: NDArray[Any], cols: int, bits: int) -> NDArray[np.uint8]:
    """Codes (rows, cols) of words that hold 32 // bits whole codes each."""
    held = 32 // bits
    codes = np.empty((*words.shape, held), np.uint8)
    for i in range(held):
        codes[:, :, i] = (words >> np.uint32(i * bits)) & np.uint32((1 << bits) - 1)
    return codes.reshape(len(words), words.shape[1] * held)[:, :cols]


def _signed_zeros(stored: Stored, zero: TensorInfo, read: Read, first: int, last: int) -> Floats:
    """Zero points stored one to a byte (last - first, groups), or (1, 1) for the tensor."""
    start, end = (0, 1) if stored.granularity == "tensor" else (first, last)
    raw = read(zero.name, start * stored.groups, (end - start) * stored.groups)
    return raw.view(np.int8).astype(np.float32).reshape(-1, stored.groups)


def _packed_zeros(stored: Stored, zero: TensorInfo, read: Read, first: int, last: int) -> Floats:
    """Unsigned zero points (last - first, groups) of streams that run down the columns."""
    groups, bits = stored.groups, stored.bits
    values, words = (32, bits) if stored.dense else (32 // bits, 1)
    start, stop = first // values, -(-last // values)
    begin, end = start * words, min(stop * words, zero.shape[0])
    raw = read(zero.name, begin * groups * 4, (end - begin) * groups * 4)
    columns = np.ascontiguousarray(raw.view("<u4").reshape(-1, groups))
    count = min(stop * values, stored.rows) - start * values
    codes = packing.unpack_columns(columns, count, bits) if stored.dense else whole_words(columns.T, count, bits).T
    return np.array(codes[first - start * values : last - start * values], np.float32, order="C")


def _zeros(stored: Stored, read: Read, first: int, last: int) -> Floats | None:
    """Zero points of unsigned codes."""
    if stored.zero is None:
        return None
    if stored.zero.dtype == "I32":
        return _packed_zeros(stored, stored.zero, read, first, last)
    zeros = _signed_zeros(stored, stored.zero, read, first, last)
    zeros += np.float32(1 << (stored.bits - 1))
    return zeros


def _scales(stored: Stored, read: Read, first: int, last: int) -> Floats:
    """Scales (last - first, groups), or (1, 1) for the tensor."""
    if stored.granularity == "tensor":
        return floats(read, stored.scale, stored.name, 0, 1).reshape(1, 1)
    groups = stored.groups
    return floats(read, stored.scale, stored.name, first * groups, (last - first) * groups).reshape(-1, groups)


def _group_of(stored: Stored, read: Read) -> NDArray[np.intp] | None:
    """The group of every column where groups are not runs of columns."""
    if stored.index is None:
        return None
    raw = read(stored.index.name, 0, stored.index.nbytes)
    found = raw.view("<i4" if stored.index.dtype == "I32" else "<i8").astype(np.intp)
    if (found == -1).any():
        return None
    if found.min() < 0 or found.max() >= stored.groups:
        raise wrong(stored.name, f"g_idx names a group beyond the {stored.groups} there are")
    return found


def _check_shape(stored: Stored, read: Read) -> None:
    """Raise DataError where the stored shape is another one."""
    if not stored.checked and stored.stated is not None:
        shape = stated_shape(stored.stated, stored.name, stored.codes, read)
        if shape != stored.shape:
            raise wrong(stored.name, f"its shape is {list(shape)[:8]}, not {list(stored.shape)}")


def _packed(stored: Stored, read: Read, first: int, last: int) -> Bytes:
    """Codes that cross words."""
    rows, size, bits = last - first, stored.codes.shape[-1] * 4, stored.bits
    packed = read(stored.codes.name, first * size, rows * size)
    if stored.dense:
        return packed
    return packing.pack(whole_words(packed.view("<u4").reshape(rows, size // 4), stored.cols, bits), bits)


def held(stored: Stored, read: Read) -> Held | str:
    """The packed codes; one scale for the tensor becomes one for every row."""
    _check_shape(stored, read)
    if _group_of(stored, read) is not None:
        return "its groups are not runs of columns (g_idx)"

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        shape = last - first, stored.groups
        scale, zero = _scales(stored, read, first, last), _zeros(stored, read, first, last)
        return np.broadcast_to(scale, shape), zero if zero is None else np.broadcast_to(zero, shape)

    return Held(
        bits=stored.bits,
        group=stored.group if stored.granularity == "group" else "channel",
        offsets="" if stored.zero is None else "int",
        scale_dtype=stored.scale.dtype,
        packed=partial(_packed, stored, read),
        params=params,
    )


def regrouped(stored: Stored, read: Read) -> Regrouped | None:
    """How groups lie in it where they are not runs of columns."""
    found, rows = _group_of(stored, read), stored.shape[0]
    if found is None or len(stored.shape) != 2:
        return None
    scale, zero = _scales(stored, read, 0, rows), _zeros(stored, read, 0, rows)
    return by_index((rows, stored.cols), found, scale, zero, stored.bits, stored.scale.dtype)


def decode_packed(stored: Stored, read: Read, first: int, last: int) -> Floats:
    _check_shape(stored, read)
    rows, bits = last - first, stored.bits
    packed = _packed(stored, read, first, last)
    scale, zero = _scales(stored, read, first, last), _zeros(stored, read, first, last)
    group_of = _group_of(stored, read)
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1))
    if group_of is None:
        return kernels.load().decode(packed, (rows, stored.cols), stored.group, QuantParams(scale, zero), grid)
    own = np.full((1, 1), grid.zero, np.float32) if zero is None else zero
    return by_column(
        packing.unpack(packed, rows, stored.cols, bits), scale, np.broadcast_to(own, scale.shape), group_of
    )
