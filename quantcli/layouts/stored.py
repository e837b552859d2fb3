"""Shared by the readers of layouts: parts by name, their values as float32, and columns of large matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.asking import Scheme
from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError, printable
from quantcli.kernels import INTEGER, CodeGrid, QuantParams, row_bytes
from quantcli.layouts.config import whole
from quantcli.layouts.reader import Read
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

    Indices = NDArray[np.intp]

GAP, PIECE = 1 << 13, 1 << 19
"""Bytes that cost less to read and drop than one more run does, and bytes read at once where rows are stored as
columns."""

FLOATS = ("F32", "F16", "BF16")
"""Dtypes of scales."""


def wrong(name: str, problem: str, hint: str | None = None) -> DataError:
    """The error for a problem with a tensor."""
    return DataError(problem, place=[printable(name)], hint=hint)


def part(infos: Mapping[str, TensorInfo], name: str, whose: str, dtypes: tuple[str, ...]) -> TensorInfo:
    """A part by name. Raises DataError when it is missing, empty or of another dtype."""
    if name not in infos:
        raise wrong(whose, f"{printable(name)} is missing")
    info = infos[name]
    if info.dtype not in dtypes:
        raise wrong(whose, f"{printable(name)} is {info.dtype}, which is not supported")
    if info.numel == 0:
        raise wrong(whose, f"{printable(name)} is empty")
    return info


def matrix(info: TensorInfo, whose: str) -> tuple[int, int]:
    """The two dimensions of a part."""
    if len(info.shape) != 2:
        raise wrong(whose, f"{printable(info.name)} has {len(info.shape)} dimensions instead of 2")
    return info.shape[0], info.shape[1]


def scheme_name(bits: int, group: int | str, kind: str = "") -> str:
    """The name of an integer scheme: `group` is a size, `channel` or `tensor`; kind is empty when symmetric, else
    `int` or `float` for what its offsets are.

    >>> scheme_name(4, 128), scheme_name(8, "channel", "int")
    ('w4g128', 'w8c-asym')
    """
    where: dict[str, Any] = (
        {"granularity": group} if isinstance(group, str) else {"granularity": "group", "group_size": group}
    )
    offset: dict[str, Any] = {"symmetric": False, "zero_point": kind} if kind else {}
    return Scheme(bits=bits, **where, **offset).name


def grouping(group_size: int | None, groups: int, cols: int) -> int | str:
    """The group argument of `scheme_name`: the size in config.json (-1 for whole rows), or the one from the shapes."""
    if group_size == -1 or (group_size is None and groups == 1):
        return "channel"
    return -(-cols // groups) if group_size is None else group_size


def group_size(settings: Mapping[str, Any], name: str, groups: int, cols: int) -> int | None:
    """The size of the groups config.json states, -1 for whole rows; None when it does not. Raises DataError when it
    does not match the number of groups."""
    size = whole(settings, "group_size", -1, 1 << 30)
    if size is not None and (size == 0 or groups != -(-cols // (cols if size == -1 else size))):
        raise wrong(name, f"{groups} groups of {cols} columns, but config.json says groups of {size}")
    return size


def qweights(infos: Mapping[str, TensorInfo]) -> list[str]:
    """The weights that GPTQ or AWQ stores, by their names before .qweight: others call whole numbers so too, but not
    words of 32 bits, nor have they qzeros beside them."""
    stems = [name.removesuffix(".qweight") for name in infos if name.endswith(".qweight")]
    return [s for s in stems if infos[f"{s}.qweight"].dtype == "I32" or f"{s}.qzeros" in infos]


def across_outputs(infos: Mapping[str, TensorInfo], stem: str, method: str | None) -> bool:
    """Whether a qweight holds several outputs to a word, as in AWQ, rather than several inputs, as in GPTQ: by
    config.json, or else by the shapes."""
    if method in ("awq", "gptq"):
        return method == "awq"
    codes, scales = infos[f"{stem}.qweight"].shape, infos.get(f"{stem}.scales", infos[f"{stem}.qweight"]).shape
    return len(codes) == len(scales) == 2 and codes[1] * 8 == scales[1]


def floats(read: Read, info: TensorInfo, whose: str, first: int, count: int) -> Floats:
    """Parameters as float32, from the first-th on. Raises DataError when one is not finite."""
    size = DTYPES[info.dtype].bits // 8
    return finite(to_float32(read(info.name, first * size, count * size), info.dtype), info, whose)


def finite(values: Floats, info: TensorInfo, whose: str) -> Floats:
    """The values of a part. Raises DataError when one is not finite."""
    if not np.isfinite(values).all():
        raise wrong(whose, f"a number of {printable(info.name)} is not finite")
    return values


def small_float_weight(infos: Mapping[str, TensorInfo], full: str) -> str | None:
    """The name of the weight whose codes a tensor holds, where these are floats and their scales bytes: two floats to a
    byte under X_packed, or 8-bit floats under X; None for any other tensor."""
    info, name = infos[full], full.removesuffix("_packed")
    scale = infos.get(f"{name}_scale")
    if scale is None:
        return None
    packed = info.dtype == "U8" and name != full and scale.dtype in ("U8", "F8_E4M3")
    return name if packed or (info.dtype == "F8_E4M3" and name == full and scale.dtype == "U8") else None


def columns(read: Read, info: TensorInfo, first: int, last: int, among: tuple[int, int] | None = None) -> NDArray[Any]:
    """Columns first to last of a matrix, as unsigned integers of the elements' size; among: of which rows.

    Only these are read where they are far apart; nearer ones cost more so than all that is between them, and are read
    with it, in small pieces.
    """
    cols, size = info.shape[1], DTYPES[info.dtype].bits // 8
    begin, end = among or (0, info.shape[0])
    if (cols - (last - first)) * size > GAP:
        raw = read(info.name, (begin * cols + first) * size, (last - first) * size, end - begin, cols * size)
        return raw.view(f"<u{size}").reshape(end - begin, last - first)
    found, height = np.empty((end - begin, last - first), f"<u{size}"), max(PIECE // (cols * size), 1)
    for row in range(begin, end, height):
        count, at = min(height, end - row), row - begin
        piece = read(info.name, row * cols * size, count * cols * size).view(f"<u{size}")
        found[at : at + count] = piece.reshape(count, cols)[:, first:last]
    return found


def float_columns(read: Read, info: TensorInfo, whose: str, first: int, last: int) -> Floats:
    """Columns first to last of a matrix of parameters, transposed: (last - first, rows) float32."""
    raw = np.ascontiguousarray(columns(read, info, first, last).T)
    values = to_float32(raw.view(np.uint8).ravel(), info.dtype).reshape(raw.shape)
    return finite(values, info, whose)


def by_group(codes: Bytes, shape: tuple[int, int], bits: int, params: QuantParams, group_of: int | Indices) -> Floats:
    """(code - zero) * scale of rows of packed codes; parameters are (rows, groups). group_of: the size of groups, or
    the group of every column."""
    if not isinstance(group_of, int):
        assert params.zero is not None
        return by_column(packing.unpack(codes, *shape, bits), params.scale, params.zero, group_of)
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1)
    with np.errstate(over="ignore"):
        return kernels.load().decode(codes, shape, group_of, params, grid)


def filled_up(raw: Bytes, shape: tuple[int, int], bits: int) -> Bytes:
    """Rows of packed codes, each filled up to whole 32-bit words."""
    rows, cols = shape
    held, width = cols * bits // 8, row_bytes(cols, bits)
    if width == held:
        return raw
    found = np.zeros((rows, width), np.uint8)
    found[:, :held] = raw.reshape(rows, held)
    return found


def by_column(codes: NDArray[Any], scale: Floats, zero: Floats, group_of: Indices) -> Floats:
    """(code - zero) * scale of codes (rows, cols) where each column has a group; parameters are (rows, groups), or of
    one row for all."""
    out: Floats = codes.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        out -= np.take(zero, group_of, axis=1)
        out *= np.take(scale, group_of, axis=1)
    return out


def scaled(out: Floats, scale: Floats, zero: Floats | None, group: int) -> Floats:
    """(code - zero) * scale in place of codes (rows, cols); parameters are (rows, groups) or (1, 1)."""
    rows, cols = out.shape
    grouped = out.reshape(rows, cols // group, group)
    with np.errstate(over="ignore", invalid="ignore"):
        if zero is not None:
            grouped -= zero[:, :, None]
        grouped *= scale[:, :, None]
    return out
