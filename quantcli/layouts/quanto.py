"""optimum-quanto: a byte for each weight.

    X._data    I8, F8_E4M3 or F8_E5M2   [out, ..]          q
    X._scale   F32, F16 or BF16         [out, 1, ..], or a number

The weight X is q * scale in the dtype of the scales, here in float32. M.input_scale and M.output_scale of the module
are scales of activations. Weights of 4 and 2 bits (X._data._data) are not supported: no tensor has their shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.stored import FLOATS, part, wrong
from quantcli.tensors.info import TensorInfo


def _stored(infos: Mapping[str, TensorInfo], name: str) -> Bytewise:
    codes, scale = part(infos, f"{name}._data", name, tuple(CODES)), part(infos, f"{name}._scale", name, FLOATS)
    shape = codes.shape
    if f"{name}._shift" in infos or len(shape) < 2:
        raise wrong(name, "this is not how optimum-quanto stores bytes")
    if scale.numel != 1 and scale.shape != (shape[0], *(1 for _ in shape[1:])):
        raise wrong(name, f"scales {list(scale.shape)} do not match codes {list(shape)}")
    rows = math.prod(shape[:-1])
    height = rows if scale.numel == 1 else rows // shape[0]
    return Bytewise(name=name, cols=shape[-1], height=height, width=shape[-1], codes=codes, scale=scale)


def _found(stored: Bytewise) -> Found:
    return Found(
        name=stored.name,
        shape=stored.codes.shape,
        scheme=CODES[stored.codes.dtype] + ("t" if stored.scale.numel == 1 else "c"),
        bits=8,
        parts=(stored.codes, stored.scale),
        decode=partial(decode, stored),
        held=partial(held, stored),
        dtype=stored.scale.dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as bytes under the names of optimum-quanto."""
    names = [
        name.removesuffix("._data")
        for name, info in infos.items()
        if name.endswith("._data") and info.dtype in CODES and f"{name.removesuffix('._data')}._scale" in infos
    ]
    return [_found(_stored(infos, name)) for name in names]


READS = Reader(summary="optimum-quanto: int8 and float8, a byte for each weight", find=find)
