"""ModelOpt: 4-bit floats in bytes, and a one-byte scale for every group of a row.

    NVFP4   X           U8        [out, in/2]    E2M1, the first of two in the low half
            X_scale     F8_E4M3   [out, in/16]
            X_scale_2   F32       a number
    MXFP4   X           U8        [out, in/2]    as above
            X_scale     U8        [out, in/32]   E8M0: exponents of 2 with a bias of 127

The weight is float * (scale * scale_2), the inverse sense of compressed-tensors' global scale, here in float32; its
dtype is that of the model by config.json. FP8 and MXFP8 of ModelOpt are stored as by compressed-tensors, and read as
those. A pre_quant_scale stands for inputs that are multiplied before the weight is: such weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import printable
from quantcli.layouts.config import model_dtype
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.small import E2M1, looked_up, scales, table
from quantcli.layouts.stored import floats, matrix, part, wrong
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

GROUPS = {"F8_E4M3": 16, "U8": 32}
"""Columns of a group by the dtype of its scale."""

CHANGING = ("pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b", "weight_zero_point")
"""Tensors beside a weight with which its values are not what its codes and scales say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    group: int
    codes: TensorInfo
    scale: TensorInfo
    overall: TensorInfo | None

    @property
    def cols(self) -> int:
        """Weights of a row."""
        return self.codes.shape[1] * 2


def _stored(infos: Mapping[str, TensorInfo], name: str) -> _Stored:
    codes, scale = part(infos, name, name, ("U8",)), part(infos, f"{name}_scale", name, tuple(GROUPS))
    for other in CHANGING:
        if (beside := f"{module_of(name)}.{other}") in infos:
            raise wrong(name, f"{printable(beside)} beside 4-bit floats is not supported")
    (rows, held), group = matrix(codes, name), GROUPS[scale.dtype]
    if matrix(scale, name) != (rows, held * 2 // group) or held * 2 % group:
        raise wrong(name, f"scales {list(scale.shape)} do not match groups of {group} of {rows} x {held * 2}")
    overall = part(infos, f"{name}_scale_2", name, ("F32",)) if group == 16 else None
    if overall is not None and overall.numel != 1:
        raise wrong(name, f"scale_2 {list(overall.shape)} is not a single number")
    return _Stored(name=name, group=group, codes=codes, scale=scale, overall=overall)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    rows, groups, size = last - first, stored.cols // stored.group, stored.codes.shape[1]
    scale = scales(read, stored.scale, stored.name, first * groups, rows * groups).reshape(rows, groups)
    if stored.overall is not None:
        with np.errstate(over="ignore"):
            scale = scale * floats(read, stored.overall, stored.name, 0, 1)
        if not np.isfinite(scale).all():
            raise wrong(stored.name, "a scale times its scale_2 is not finite")
    raw = read(stored.codes.name, first * size, rows * size)
    levels = table(E2M1 + np.float32(0) if stored.overall is not None else E2M1)  # one has no negative zero
    return looked_up(raw, (rows, stored.cols), scale, stored.group, levels)


def _found(stored: _Stored, dtype: str) -> Found:
    return Found(
        name=stored.name,
        shape=(stored.codes.shape[0], stored.cols),
        scheme="nvfp4" if stored.overall is not None else "mxfp4",
        bits=4,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.overall) if p is not None),
        unit=1,
        decode=partial(_decode, stored),
        dtype=dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as bytes of two floats, with scales of a byte beside them."""
    found, dtype = [], model_dtype(config)
    for name, info in infos.items():
        scale = infos.get(f"{name}_scale")
        if info.dtype != "U8" or scale is None or scale.dtype not in GROUPS or name.endswith("_packed"):
            continue
        fits = len(info.shape) == 2 and scale.shape == (info.shape[0], info.shape[1] // 16) and not info.shape[1] % 16
        if f"{name}_scale_2" in infos or (scale.dtype == "U8" and fits):
            found.append(_found(_stored(infos, name), dtype))
    return found


READS = Reader(summary="ModelOpt: NVFP4 and MXFP4", find=find)
