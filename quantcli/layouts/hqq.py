"""HQQ: whole numbers with float zero points, packed in parts of the whole weight.

    M.W_q          U8; I32 for 3 bits   [A/n, B]         codes u: n rows of a matrix [A, B] in one, see below
    M.scale        F16, BF16 or F32     [A, 1] or [1, B]
    M.zero         as the scales        as the scales
    M.shape        I64                  [2]              out and in
    M.nbits, M.group_size, M.axis       I32              b, g, and 1 or 0
    M.packing, M.compute_dtype          U8               text, `4bit_u8` and `torch.float16` for two
    M.quant_scale, M.view_as_float, ..  U8               settings of HQQ, 0 or 1

The weight [out, in] is laid out as [out*in/g, g] for axis 1, where groups are rows, or as [g, out*in/g] for axis 0,
where they are columns. Of its rows the first A/n are in the highest bits of W_q, the next in those below, and so on: n
is 8/b, and ten for 3 bits, of which the last rows may be missing. The weight is (u - zero) * scale, each step rounded
to compute_dtype, as in the library. Scales that are quantized themselves are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import LONG_NAMES, rounded
from quantcli.errors import printable
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.stored import FLOATS, floats, matrix, part, scheme_name, wrong
from quantcli.stores.latest import Latest
from quantcli.stores.pages import paged
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
"""Bits of a field, and fields of an element."""

HELD = 1 << 20
"""Groups of a weight whose parameters are kept, where each is needed once for every row of groups: 8 MiB."""

PIECE = 1 << 16
"""Groups whose parameters are read at a time to be kept."""

NUMBERS = ("nbits", "group_size", "axis")
SETTINGS = (
    "view_as_float", "quant_scale", "quant_zero", "offload_meta", "encoded_state_dict", "stores_quant_config",
    "channel_wise", "optimize", "round_zero",
)  # fmt: skip
TEXTS = ("packing", "unpack_view_dtype", "compute_dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    shape: tuple[int, int]
    bits: int
    group: int
    axis: int
    packing: str
    dtype: str
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo

    @property
    def sides(self) -> tuple[int, int]:
        """A and B."""
        groups = self.shape[0] * self.shape[1] // self.group
        return (groups, self.group) if self.axis == 1 else (self.group, groups)


def _number(read: Read, info: TensorInfo) -> int:
    kinds = {"U8": "<u1", "I32": "<i4", "I64": "<i8"}
    if info.dtype not in kinds or info.numel != 1:
        raise wrong(info.name, f"{info.dtype} {list(info.shape)} is not a whole number")
    return int(read(info.name, 0, info.nbytes).view(kinds[info.dtype])[0])


def _text(read: Read, info: TensorInfo) -> str:
    if info.dtype != "U8" or info.numel > 64:
        raise wrong(info.name, f"{info.dtype} of {info.numel} elements is not a text")
    return printable(read(info.name, 0, info.nbytes).tobytes().decode("latin-1"), 64)


def _shape(read: Read, info: TensorInfo) -> tuple[int, int]:
    if info.dtype != "I64" or info.numel != 2:
        raise wrong(info.name, f"{info.dtype} {list(info.shape)} is not a shape of a matrix")
    rows, cols = (int(n) for n in read(info.name, 0, 16).view("<i8"))
    if not (0 < rows < 1 << 40 and 0 < cols < 1 << 40):
        raise wrong(info.name, f"{rows} x {cols} is not a shape of a matrix")
    return rows, cols


def _check_settings(infos: Mapping[str, TensorInfo], module: str, read: Read) -> None:
    name = f"{module}.weight"
    for key in ("quant_scale", "quant_zero", "view_as_float"):
        info = infos.get(f"{module}.{key}")
        if info is not None and _number(read, info):
            raise wrong(name, f"HQQ with {key} is not supported")
    if any(f"{module}.{key}" in infos for key in ("zero_scale", "scale_q", "zero_q", "meta_scale", "meta_zero")):
        raise wrong(name, "HQQ with quantized scales is not supported")


def _stored(infos: Mapping[str, TensorInfo], module: str, read: Read | None) -> _Stored:
    name = f"{module}.weight"
    if read is None:
        raise wrong(name, "its shape is stored in a tensor whose data is not available")
    _check_settings(infos, module, read)
    every = ("U8", "I32", "I64")
    bits, group, axis = (_number(read, part(infos, f"{module}.{key}", name, every)) for key in NUMBERS)
    packing = _text(read, part(infos, f"{module}.packing", name, ("U8",)))
    if packing not in PACKINGS or not 1 <= bits <= PACKINGS[packing][0] or axis not in (0, 1) or group < 1:
        raise wrong(name, f"HQQ of {bits} bits as {packing}, in groups of {group} along {axis}, is not supported")
    shape = _shape(read, part(infos, f"{module}.shape", name, ("I64",)))
    compute = infos.get(f"{module}.compute_dtype")
    long = _text(read, compute).removeprefix("torch.") if compute is not None else "float16"
    dtype = LONG_NAMES.get(long, "")
    if dtype not in FLOATS:
        raise wrong(name, f"HQQ that computes in {long} is not supported")
    codes = part(infos, f"{module}.W_q", name, ("I32",) if packing == "3bit_32" else ("U8",))
    scale, zero = (part(infos, f"{module}.{key}", name, FLOATS) for key in ("scale", "zero"))
    stored = _Stored(name=name, shape=shape, bits=bits, group=group, axis=axis, packing=packing, dtype=dtype,
                     codes=codes, scale=scale, zero=zero)  # fmt: skip
    _check_shapes(stored)
    return stored


def _check_shapes(stored: _Stored) -> None:
    name, (rows, cols), (down, across) = stored.name, stored.shape, stored.sides
    held, groups = PACKINGS[stored.packing][1], (down, 1) if stored.axis == 1 else (1, across)
    fits = down % held == 0 or stored.packing == "3bit_32"
    if rows * cols % stored.group or not fits or matrix(stored.codes, name) != (-(-down // held), across):
        raise wrong(name, f"codes {list(stored.codes.shape)} do not match {rows} x {cols} in groups of {stored.group}")
    if stored.scale.shape != groups or stored.zero.shape != groups:
        shapes = f"{list(stored.scale.shape)} and {list(stored.zero.shape)}"
        raise wrong(name, f"scales and zero points {shapes} do not match {list(groups)}")


def _put_codes(stored: _Stored, read: Read, first: int, out: Floats | Bytes) -> None:
    """Put the codes of a run of weights in C order into `out`, field by field."""
    bits, held = PACKINGS[stored.packing]
    size, kind = (4, "<u4") if stored.packing == "3bit_32" else (1, "<u1")
    field, last = stored.codes.shape[0] * stored.sides[1], first + len(out)
    for number in range(first // field, -(-last // field)):
        start = number * field
        low, high = max(first, start), min(last, start + field)
        raw = read(stored.codes.name, (low - start) * size, (high - low) * size).view(kind)
        codes = raw >> raw.dtype.type(bits * (held - 1 - number))
        codes &= raw.dtype.type((1 << bits) - 1)
        out[low - first : high - first] = codes


def _params(stored: _Stored, info: TensorInfo, read: Read, first: int, last: int) -> Floats:
    """Parameters first to last in the dtype that the library computes in."""
    found = floats(read, info, stored.name, first, last - first)
    return found if info.dtype == stored.dtype else rounded(found, stored.dtype)


def _both(stored: _Stored, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Zero points and scales of groups first to last."""
    return _params(stored, stored.zero, read, first, last), _params(stored, stored.scale, read, first, last)


def _all(stored: _Stored, read: Read) -> tuple[Floats, Floats]:
    """Those of all groups."""
    groups = stored.sides[1]
    zero, scale = (paged(4 * groups).view(np.float32) for _ in range(2))
    for first in range(0, groups, PIECE):
        last = min(first + PIECE, groups)
        zero[first:last], scale[first:last] = _both(stored, read, first, last)
    return zero, scale


def _down(
    stored: _Stored, latest: Latest[tuple[Floats, Floats]], read: Read, first: int, last: int
) -> Iterator[Floats]:
    """Zero points and scales of every weight of a run, where groups go down the columns: the same again in each row of
    the matrix, and therefore kept."""
    groups = stored.sides[1]
    at = first // groups * groups
    if groups <= HELD or last - at > groups:
        held, base = latest.take(stored.name, lambda: _all(stored, read)), 0
    else:
        held, base = _both(stored, read, first - at, last - at), first - at
    for values in held:
        yield (
            values[first - at - base : last - at - base]
            if last - at <= groups
            else values[np.arange(first, last) % groups]
        )


def _decode(stored: _Stored, latest: Latest[tuple[Floats, Floats]], read: Read, first: int, last: int) -> Floats:
    cols, group = stored.shape[1], stored.group if stored.axis == 1 else 1
    begin, end = first * cols, last * cols
    low, high = begin // group, -(-end // group)
    out = np.empty((high - low, group), np.float32)
    _put_codes(stored, read, low * group, out.reshape(-1))
    zero, scale = _both(stored, read, low, high) if stored.axis == 1 else _down(stored, latest, read, low, high)
    out -= zero[:, None]
    out = rounded(out, stored.dtype)
    with np.errstate(over="ignore"):
        out *= scale[:, None]
    return out.reshape(-1)[begin - low * group :][: end - begin].reshape(last - first, cols)


def _held(stored: _Stored, read: Read) -> Held | str:
    """The codes, where groups are runs of columns, with -zero * scale as offsets: exact of parameters of 16 bits."""
    cols, group, bits = stored.shape[1], stored.group, stored.bits
    if stored.axis == 0:
        return "its groups run down the columns (axis 0)"
    if cols % group:
        return f"its groups of {group} go on over the end of its rows"

    def packed(first: int, last: int) -> Bytes:
        codes: Bytes = np.empty((last - first, cols), np.uint8)
        _put_codes(stored, read, first * cols, codes.reshape(-1))
        if codes.size and codes.max() >= 1 << bits:
            raise wrong(stored.name, f"a code does not fit {bits} bits")
        return packing.pack(codes, bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        groups = cols // group
        zero, scale = (v.reshape(-1, groups) for v in _both(stored, read, first * groups, last * groups))
        with np.errstate(over="ignore"):
            return scale, -zero * scale

    return Held(
        bits=bits,
        group=group,
        offsets="float",
        scale_dtype=stored.scale.dtype,
        packed=packed,
        params=params,
        exact=False,
    )


def _found(
    infos: Mapping[str, TensorInfo], stored: _Stored, module: str, latest: Latest[tuple[Floats, Floats]]
) -> Found:
    others = [f"{module}.{key}" for key in ("shape", *NUMBERS, *TEXTS, *SETTINGS)]
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=scheme_name(stored.bits, stored.group, "float") + ("" if stored.axis == 1 else "-axis0"),
        bits=stored.bits,
        parts=(stored.codes, stored.scale, stored.zero, *(infos[n] for n in others if n in infos)),
        decode=partial(_decode, stored, latest),
        dtype=stored.dtype,
        held=partial(_held, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as W_q with the settings of HQQ beside them."""
    modules = [
        name.removesuffix(".W_q")
        for name in infos
        if name.endswith(".W_q") and f"{name.removesuffix('.W_q')}.packing" in infos
    ]
    latest: Latest[tuple[Floats, Floats]] = Latest()
    return [_found(infos, _stored(infos, module, read), module, latest) for module in modules]


READS = Reader(summary="HQQ: W_q, scale and zero, of 1, 2, 3, 4 and 8 bits", find=find)
