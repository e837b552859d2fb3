"""ModelOpt's integers of 4 bits (INT4_BLOCKWISE_WEIGHT_ONLY, INT4_AWQ, W4A8_AWQ), two rows to a row of bytes.

    X                   U8                [.., out/2, in]   q from -8 to 7: row 2i in the low half, row 2i + 1 above it
    X_scale             F32, F16 or BF16  [.., out, in/g]
    M.pre_quant_scale   F32, F16 or BF16  [in]              of AWQ, where no norm or matrix before it took it

The weight is q * scale, and times pre_quant_scale column by column: inputs are multiplied with that first. Here it is
in float32; no function of the library decodes these. M.input_scale and, of W4A8, X_scale_2 are for a runtime that
computes in 8-bit floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.regrouped import Regrouped, Values, plain
from quantcli.layouts.stored import FLOATS, floats, grouping, part, scaled, scheme_name, wrong
from quantcli.patterns import module_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

MIDDLE = 8
"""What is added to q for a code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    rows: int
    codes: TensorInfo
    scale: TensorInfo
    inputs: TensorInfo | None

    @property
    def cols(self) -> int:
        """Weights of a row."""
        return self.codes.shape[-1]

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.scale.shape[-1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.cols // self.groups


def is_int4(infos: Mapping[str, TensorInfo], info: TensorInfo) -> bool:
    """Whether a tensor has two rows of codes in each of its own: twice as many rows of scales stand beside it."""
    scale = infos.get(f"{info.name}_scale")
    if info.dtype != "U8" or scale is None or scale.dtype not in FLOATS or min(len(info.shape), len(scale.shape)) < 2:
        return False
    *lead, half, cols = info.shape
    return scale.shape[:-1] == (*lead, half * 2) and info.numel > 0 and scale.numel > 0 and cols % scale.shape[-1] == 0


def _stored(infos: Mapping[str, TensorInfo], name: str) -> _Stored:
    codes, scale, inputs = infos[name], infos[f"{name}_scale"], f"{module_of(name)}.pre_quant_scale"
    found = part(infos, inputs, name, FLOATS) if inputs in infos else None
    if found is not None and found.shape != codes.shape[-1:]:
        raise wrong(name, f"pre_quant_scale {list(found.shape)} does not match {codes.shape[-1]} columns")
    return _Stored(name=name, rows=math.prod(scale.shape[:-1]), codes=codes, scale=scale, inputs=found)


def _codes(stored: _Stored, read: Read, first: int, last: int) -> NDArray[np.uint8]:
    """Codes q + 8 (last - first, cols) of rows."""
    low, high = first // 2, -(-last // 2)
    raw = read(stored.name, low * stored.cols, (high - low) * stored.cols).reshape(-1, 1, stored.cols)
    halves = ((raw >> np.array([0, 4], np.uint8)[:, None]) & np.uint8(15)).reshape(-1, stored.cols)
    found: NDArray[np.uint8] = halves[first - low * 2 : last - low * 2] ^ np.uint8(MIDDLE)
    return found


def _scales(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """Scales (last - first, groups) of rows."""
    found = floats(read, stored.scale, stored.name, first * stored.groups, (last - first) * stored.groups)
    return found.reshape(last - first, stored.groups)


def _of_inputs(stored: _Stored, read: Read) -> Floats:
    """What columns are multiplied with. Raises DataError where one is not a positive number."""
    assert stored.inputs is not None
    found = floats(read, stored.inputs, stored.name, 0, stored.cols)
    if not (found > 0).all():
        raise wrong(stored.name, "a number of its pre_quant_scale is not positive")
    return found


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    out: Floats = _codes(stored, read, first, last).astype(np.float32) - np.float32(MIDDLE)
    scaled(out, _scales(stored, read, first, last), None, stored.group)
    if stored.inputs is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            out *= _of_inputs(stored, read)
    return out


def _held(stored: _Stored, read: Read) -> Held | str:
    if stored.inputs is not None:
        return "its inputs are multiplied with a pre_quant_scale of ModelOpt"

    def packed(first: int, last: int) -> Bytes:
        return packing.pack(_codes(stored, read, first, last), 4)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        return _scales(stored, read, first, last), None

    group = grouping(None, stored.groups, stored.cols)
    return Held(bits=4, group=group, offsets="", scale_dtype=stored.scale.dtype, packed=packed, params=params)


def _regrouped(stored: _Stored, read: Read) -> Regrouped | None:
    """Rows as they were before pre_quant_scale."""
    if stored.inputs is None:
        return None
    own = _of_inputs(stored, read)

    def taken(values: Values, rows: NDArray[np.intp]) -> Floats:
        return plain(stored.cols, values, rows) / own

    def params(rows: NDArray[np.intp]) -> tuple[Floats, Floats | None]:
        return np.concatenate([_scales(stored, read, row, row + 1) for row in map(int, rows)]), None

    return Regrouped(
        shape=(stored.rows, stored.cols),
        group=stored.group,
        bits=4,
        symmetric=True,
        single=False,
        scale_dtype=stored.scale.dtype,
        params=params,
        taken=taken,
        gained=True,
    )


def found(infos: Mapping[str, TensorInfo], name: str) -> Found:
    """A weight of which `is_int4` holds. Raises DataError where its parts do not match."""
    stored, beside = _stored(infos, name), infos.get(f"{name}_scale_2")
    return Found(
        name=name,
        shape=(*stored.scale.shape[:-1], stored.cols),
        scheme=scheme_name(4, grouping(None, stored.groups, stored.cols)),
        bits=4,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.inputs, beside) if p is not None),
        unused=() if beside is None else (beside,),
        decode=partial(_decode, stored),
        held=partial(_held, stored),
        regrouped=partial(_regrouped, stored),
    )
