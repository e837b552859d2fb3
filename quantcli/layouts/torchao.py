"""torchao: a byte for each weight, as its tensors are flattened for safetensors.

    M._weight_qdata        I8, F8_E4M3 or F8_E5M2   [out, in]        q
    M._weight_scale        F32, F16 or BF16         [out/h, in/w]    or one number for the tensor
    M._weight_zero_point   I8                       as the scales    signed zero points of integers

The weight M.weight is (q - zero point) * scale, here in float32. Scales of 16 bits have the dtype of the weight;
float32 ones leave it to config.json. What a byte holds of fewer bits (IntxUnpackedToInt8Tensor) is told only by the
header, and decoded the same. Packed tensors, and those with more parts than these, are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from quantcli.errors import printable
from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.config import model_dtype
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.stored import FLOATS, matrix, part, wrong
from quantcli.tensors.info import TensorInfo

PREFIX = "._weight_"
PARTS = ("qdata", "scale", "zero_point")


def _stored(infos: Mapping[str, TensorInfo], module: str, parts: Sequence[str]) -> Bytewise:
    """parts: what there is of the weight, by the ends of the names."""
    name, own = f"{module}.weight", f"{module}{PREFIX}"
    more = next((end for end in parts if end not in PARTS), None)
    if more is not None:
        raise wrong(name, f"{printable(own + more)} beside the codes of torchao is not supported")
    codes, scale = part(infos, f"{own}qdata", name, tuple(CODES)), part(infos, f"{own}scale", name, FLOATS)
    zero = part(infos, f"{own}zero_point", name, ("I8",)) if f"{own}zero_point" in infos else None
    rows, cols = matrix(codes, name)
    down, across = (1, 1) if scale.numel == 1 else matrix(scale, name)
    if rows % down or cols % across:
        raise wrong(name, f"scales {list(scale.shape)} do not divide {rows} x {cols} codes")
    if zero is not None and (zero.shape != scale.shape or codes.dtype != "I8" or down not in (1, rows)):
        raise wrong(name, f"zero points {list(zero.shape)} beside {codes.dtype} codes are not supported")
    return Bytewise(
        name=name, cols=cols, height=rows // down, width=cols // across, codes=codes, scale=scale, zero=zero
    )


def _found(stored: Bytewise, config: Mapping[str, Any]) -> Found:
    dtype = stored.scale.dtype
    return Found(
        name=stored.name,
        shape=stored.codes.shape,
        scheme=stored.scheme,
        bits=8,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.zero) if p is not None),
        decode=partial(decode, stored),
        held=partial(held, stored),
        dtype=model_dtype(config, "F32") if dtype == "F32" else dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as bytes under the names of torchao."""
    parts: dict[str, list[str]] = {}
    for name in infos:
        module, prefix, end = name.rpartition(PREFIX)
        if prefix:
            parts.setdefault(module, []).append(end)
    modules = [m for m, ends in parts.items() if "qdata" in ends and infos[f"{m}{PREFIX}qdata"].dtype in CODES]
    return [_found(_stored(infos, module, parts[module]), config) for module in modules]


READS = Reader(summary="torchao: int8 and float8, a byte for each weight", find=find)
