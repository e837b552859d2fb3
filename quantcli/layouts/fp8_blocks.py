"""8-bit floats in blocks: transformers' `fp8` and DeepSeek.

    X             F8_E4M3            [.., out, in]
    X_scale_inv   F32, F16 or BF16   [.., ceil(out/h), ceil(in/w)]   or one number for the tensor

The weight is float * scale, whatever `inv` may suggest, here in float32. `weight_block_size` of config.json's
quantization_config is h and w; without it they are the quotients of the shapes, which must be whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import to_float32
from quantcli.errors import DataError
from quantcli.layouts.config import CONFIG_HINT, model_dtype, section
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.stored import FLOATS, floats, part, wrong
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    codes: TensorInfo
    scale: TensorInfo
    height: int
    width: int


def _stated(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The blocks config.json states."""
    value = section(config, "quantization_config").get("weight_block_size")
    if value is None:
        return None
    if not isinstance(value, list) or [type(n) for n in value] != [int, int] or min(value) < 1:
        raise DataError("it is not a height and a width", place=["config.json", "weight_block_size"])
    return value[0], value[1]


def _stored(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> _Stored:
    codes, scale = part(infos, name, name, ("F8_E4M3",)), part(infos, f"{name}_scale_inv", name, FLOATS)
    if len(codes.shape) < 2:
        raise wrong(name, "codes have 1 dimension" if codes.shape else "it is a single number")
    rows, cols = codes.shape[-2:]
    if scale.numel == 1 and len(scale.shape) < 2:
        return _Stored(name=name, codes=codes, scale=scale, height=rows, width=cols)
    if len(scale.shape) != len(codes.shape) or scale.shape[:-2] != codes.shape[:-2]:
        raise wrong(name, f"scales {list(scale.shape)} do not match {list(codes.shape)}")
    down, across = scale.shape[-2:]
    if (stated := _stated(config)) is None:
        if rows % down or cols % across:
            raise wrong(name, f"{down} x {across} blocks of {rows} x {cols} differ in size", CONFIG_HINT)
        stated = rows // down, cols // across
    height, width = stated
    if (down, across) != (-(-rows // height), -(-cols // width)):
        raise wrong(name, f"scales {list(scale.shape)} do not match blocks of {height} x {width}")
    return _Stored(name=name, codes=codes, scale=scale, height=height, width=width)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    rows, cols = stored.codes.shape[-2:]
    out = to_float32(read(stored.codes.name, first * cols, (last - first) * cols), "F8_E4M3").reshape(-1, cols)
    down, across = -(-rows // stored.height), -(-cols // stored.width)
    at = np.arange(first, last)
    own = np.zeros_like(at) if stored.scale.numel == 1 else at // rows * down + at % rows // stored.height
    low, count = int(own.min()), int(own.max()) + 1 - int(own.min())
    scale = floats(read, stored.scale, stored.name, low * across, count * across).reshape(count, across)[own - low]
    with np.errstate(over="ignore"):
        for block in range(across):
            out[:, block * stored.width : (block + 1) * stored.width] *= scale[:, block : block + 1]
    return out


def _found(stored: _Stored, dtype: str) -> Found:
    whole = stored.scale.numel == 1 and len(stored.scale.shape) < 2
    return Found(
        name=stored.name,
        shape=stored.codes.shape,
        scheme="fp8-e4m3" + ("t" if whole else f"b{stored.height}x{stored.width}"),
        bits=8,
        parts=(stored.codes, stored.scale),
        unit=1,
        decode=partial(_decode, stored),
        dtype=dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as 8-bit floats with a scale_inv beside them."""
    names = [n for n, info in infos.items() if info.dtype == "F8_E4M3" and f"{n}_scale_inv" in infos]
    return [_found(_stored(infos, name, config), model_dtype(config)) for name in names if math.prod(infos[name].shape)]


READS = Reader(summary="8-bit floats in blocks: transformers' fp8 and DeepSeek", find=find)
