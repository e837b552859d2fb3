"""compressed-tensors' small floats: 4 or 8 bits, and a one-byte scale for every group of a row.

    nvfp4-pack-quantized   X_packed        U8        [out, in/2]    E2M1, the first of two in the low half
                           X_scale         F8_E4M3   [out, in/16]
                           X_global_scale  F32       [1]
    mxfp4-pack-quantized   X_packed        U8        [out, in/2]    as above
                           X_scale         U8        [out, in/32]   E8M0
    mxfp8-quantized        X               F8_E4M3   [out, in]
                           X_scale         U8        [out, in/32]   E8M0

The weight is float * scale, of nvfp4 float * (scale / global scale), here in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.small import held, scales, small_floats
from quantcli.layouts.stored import floats, matrix, part, small_float_weight, wrong
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    bits: int
    cols: int
    group: int
    codes: TensorInfo
    scale: TensorInfo
    overall: TensorInfo | None


def _stored(infos: Mapping[str, TensorInfo], name: str, codes: TensorInfo) -> _Stored:
    bits = 4 if codes.dtype == "U8" else 8
    scale = part(infos, f"{name}_scale", name, ("U8", "F8_E4M3"))
    (rows, held), (outputs, groups) = matrix(codes, name), matrix(scale, name)
    cols, group = held * 8 // bits, 32 if scale.dtype == "U8" else 16
    if outputs != rows or groups * group != cols:
        six = bits == 4 and held * 4 == groups * 32 * 3
        what = "6-bit floats (MXFP6) are not supported" if six else (
            f"scales {list(scale.shape)} do not match groups of {group} of {rows} x {cols}")  # fmt: skip
        raise wrong(name, what)
    if f"{name}_zero_point" in infos:
        raise wrong(name, "zero points beside small floats are not supported")
    overall = part(infos, f"{name}_global_scale", name, ("F32",)) if group == 16 else None
    if (overall is not None and overall.numel != 1) or (overall is None and f"{name}_global_scale" in infos):
        raise wrong(name, "its global_scale is not supported")
    return _Stored(name=name, bits=bits, cols=cols, group=group, codes=codes, scale=scale, overall=overall)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    rows, groups, size = last - first, stored.cols // stored.group, stored.codes.shape[1]
    scale = scales(read, stored.scale, stored.name, first * groups, rows * groups).reshape(rows, groups)
    if stored.overall is not None:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scale = scale / floats(read, stored.overall, stored.name, 0, 1)
        if not np.isfinite(scale).all():
            raise wrong(stored.name, "a scale over its global_scale is not finite")
    raw, dtype = read(stored.codes.name, first * size, rows * size), "F4" if stored.bits == 4 else "F8_E4M3"
    return small_floats(raw, (rows, stored.cols), scale, stored.group, dtype)


def _held(stored: _Stored, read: Read) -> Held | str:
    """The codes; a scale of the tensor that is divided by must have an inverse."""
    divisor = 1.0 if stored.overall is None else float(floats(read, stored.overall, stored.name, 0, 1)[0])
    if divisor <= 0 or math.frexp(divisor)[0] != 0.5:
        return "its global_scale is not a power of two, so other layouts have no scale of the tensor for it"
    return held(read, stored.codes, stored.scale, stored.name, stored.cols, bits=stored.bits, overall=1 / divisor)


def _found(stored: _Stored) -> Found:
    kind = "mxfp" if stored.overall is None else "nvfp"
    return Found(
        name=stored.name,
        shape=(stored.codes.shape[0], stored.cols),
        scheme=f"{kind}{stored.bits}",
        bits=stored.bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.overall) if p is not None),
        decode=partial(_decode, stored),
        dtype="BF16",
        held=partial(_held, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as small floats with one-byte scales."""
    named = [(small_float_weight(infos, full), info) for full, info in infos.items()]
    return [_found(_stored(infos, name, info)) for name, info in named if name is not None]


READS = Reader(summary="compressed-tensors: nvfp4-, mxfp4-pack-quantized and mxfp8-quantized", find=find)
