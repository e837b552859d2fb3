"""torchao: a byte for each weight, or two to a byte, as its tensors are flattened for safetensors.

    M._weight_qdata        I8, F8_E4M3 or F8_E5M2   [out, in]        q
    M._weight_scale        F32, F16 or BF16         [out/h, in/w]    or one number for the tensor
    M._weight_zero_point   I8                       as the scales    signed zero points of integers

The weight M.weight is (q - zero point) * scale, here in float32. Scales of 16 bits have the dtype of the weight;
float32 ones leave it to config.json. That a byte holds fewer bits (IntxUnpackedToInt8Tensor) is told only by the
weight's record in the header; it is decoded the same.

Int4Tensor, in G groups of inputs, whose scales and zero points are stored transposed:

    M._weight_qdata        I8                       [out, in/2]      q from -8 to 7, the first of two in the low half
    M._weight_scale        F32, F16 or BF16         [G, out]
    M._weight_zero_point   as the scales            [G, out]         what q = 0 stands for

The weight is q * scale + zero point, here in float32; torchao itself only multiplies with it. Tensors in the order of a
processor's own kernels (tiles, or 32-bit words) and those with more parts than these are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import printable
from quantcli.kernels import INTEGER, CodeGrid, QuantParams
from quantcli.layouts import transposed
from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.config import model_dtype, section, whole
from quantcli.layouts.reader import TORCHAO, Found, Held, Read, Reader
from quantcli.layouts.stored import FLOATS, filled_up, matrix, part, scheme_name, wrong
from quantcli.layouts.transposed import ParamBands
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

PREFIX = "._weight_"
PARTS = ("qdata", "scale", "zero_point")


def _check_parts(module: str, ends: Sequence[str]) -> None:
    """Raise DataError where a weight has more parts than are read. ends: of the names of its parts."""
    more = next((end for end in ends if end not in PARTS), None)
    if more is not None:
        problem = f"{printable(f'{module}{PREFIX}{more}')} beside the codes of torchao is not supported"
        raise wrong(f"{module}.weight", problem)


def _stored(infos: Mapping[str, TensorInfo], module: str, widths: Mapping[str, Any]) -> Bytewise:
    name, own = f"{module}.weight", f"{module}{PREFIX}"
    codes, scale = part(infos, f"{own}qdata", name, tuple(CODES)), part(infos, f"{own}scale", name, FLOATS)
    zero = part(infos, f"{own}zero_point", name, ("I8",)) if f"{own}zero_point" in infos else None
    rows, cols = matrix(codes, name)
    down, across = (1, 1) if scale.numel == 1 else matrix(scale, name)
    if rows % down or cols % across:
        raise wrong(name, f"scales {list(scale.shape)} do not divide {rows} x {cols} codes")
    if zero is not None and (zero.shape != scale.shape or codes.dtype != "I8" or down not in (1, rows)):
        raise wrong(name, f"zero points {list(zero.shape)} beside {codes.dtype} codes are not supported")
    bits = (whole(widths, name, 2, 8) if codes.dtype == "I8" else None) or 8
    return Bytewise(
        name=name, cols=cols, height=rows // down, width=cols // across, codes=codes, scale=scale, zero=zero, bits=bits
    )


def _found(stored: Bytewise, config: Mapping[str, Any]) -> Found:
    dtype = stored.scale.dtype
    return Found(
        name=stored.name,
        shape=stored.codes.shape,
        scheme=stored.scheme,
        bits=stored.bits,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        decode=partial(decode, stored),
        held=partial(held, stored),
        dtype=model_dtype(config, "F32") if dtype == "F32" else dtype,
    )


# ---- Int4Tensor -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    name: str
    rows: int
    cols: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo

    @property
    def group(self) -> int:
        """Columns of a group."""
        return self.cols // self.scale.shape[0]


def _has_codes(infos: Mapping[str, TensorInfo], module: str) -> bool:
    """Whether a weight has codes that may be read; those with scales in bytes (MXFP8, NVFP4) are in another order."""
    scale = infos.get(f"{module}{PREFIX}scale")
    return infos[f"{module}{PREFIX}qdata"].dtype in CODES and (scale is None or not scale.dtype.startswith("F8_"))


def _is_packed(infos: Mapping[str, TensorInfo], module: str) -> bool:
    """Whether codes have zero points that are floats, as only those of Int4Tensor do."""
    zero = infos.get(f"{module}{PREFIX}zero_point")
    return zero is not None and zero.dtype in FLOATS and infos[f"{module}{PREFIX}qdata"].dtype == "I8"


def _packed(infos: Mapping[str, TensorInfo], module: str) -> _Packed:
    name, own = f"{module}.weight", f"{module}{PREFIX}"
    codes, scale = part(infos, f"{own}qdata", name, ("I8",)), part(infos, f"{own}scale", name, FLOATS)
    zero = part(infos, f"{own}zero_point", name, (scale.dtype,))
    (rows, half), (groups, outputs) = matrix(codes, name), matrix(scale, name)
    if outputs != rows or zero.shape != scale.shape or half * 2 % groups or half * 2 // groups % 2:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, zero))
        raise wrong(name, f"codes, scales and zero points do not match: {shapes}")
    return _Packed(name=name, rows=rows, cols=half * 2, codes=codes, scale=scale, zero=zero)


def _unsigned(stored: _Packed, read: Read, first: int, last: int) -> Bytes:
    """Codes q + 8 in rows of 32-bit words."""
    size = stored.cols // 2
    raw = read(stored.codes.name, first * size, (last - first) * size)
    return filled_up(raw ^ np.uint8(0x88), (last - first, stored.cols), 4)


def _params(stored: _Packed, bands: ParamBands, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and zero points (last - first, groups)."""
    return transposed.params_of(bands, read, (stored.scale, stored.zero), stored.name, first, last)


def _offsets(stored: _Packed, bands: ParamBands, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales, and what q = -8 stands for (last - first, groups)."""
    scale, zero = _params(stored, bands, read, first, last)
    return scale, zero - np.float32(8) * scale


def _decode_packed(stored: _Packed, bands: ParamBands, read: Read, first: int, last: int) -> Floats:
    scale, zero = _params(stored, bands, read, first, last)
    grid = CodeGrid(mode=INTEGER, bits=4, umin=0, umax=15, zero=8)
    codes, shape = _unsigned(stored, read, first, last), (last - first, stored.cols)
    params = QuantParams(np.ascontiguousarray(scale), None)
    out = kernels.load().decode(codes, shape, stored.group, params, grid).reshape(*scale.shape, stored.group)
    out += zero[:, :, None]
    return out.reshape(shape)


def _held_packed(stored: _Packed, bands: ParamBands, read: Read) -> Held:
    return Held(
        bits=4,
        group=stored.group,
        offsets="float",
        scale_dtype=stored.scale.dtype,
        packed=partial(_unsigned, stored, read),
        params=partial(_offsets, stored, bands, read),
        exact=False,
    )


def _found_packed(stored: _Packed, bands: ParamBands) -> Found:
    return Found(
        name=stored.name,
        shape=(stored.rows, stored.cols),
        scheme=scheme_name(4, stored.group, "float"),
        bits=4,
        parts=(stored.codes, stored.scale, stored.zero),
        decode=partial(_decode_packed, stored, bands),
        held=partial(_held_packed, stored, bands),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored under the names of torchao."""
    parts: dict[str, list[str]] = {}
    for name in infos:
        module, prefix, end = name.rpartition(PREFIX)
        if prefix:
            parts.setdefault(module, []).append(end)
    modules = [m for m, ends in parts.items() if "qdata" in ends and _has_codes(infos, m)]
    bands, found, widths = ParamBands(), list[Found](), section(config, TORCHAO)
    for module in modules:
        _check_parts(module, parts[module])
        if _is_packed(infos, module):
            found.append(_found_packed(_packed(infos, module), bands))
        else:
            found.append(_found(_stored(infos, module, widths), config))
    return found


READS = Reader(summary="torchao: int8, float8 and Int4Tensor", find=find)
