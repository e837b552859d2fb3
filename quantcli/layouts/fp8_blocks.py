"""Small floats in blocks: transformers' `fp8`, DeepSeek, Kimi and Mistral.

    X                F8_E4M3               [.., out, in]
    X_scale_inv      F32, F16, BF16        [.., ceil(out/h), ceil(in/w)]   or one number for the tensor
                     U8 or F8_E8M0         as above                        exponents of 2 with a bias of 127
    M.scale, M.qscale_weight               the same of X = M.weight: DeepSeek from V4 on, Mistral
    X                I8                    [.., out, in/2]                 with exponents alone: E2M1, the first of two
                                                                           in the low half, as DeepSeek V4 has experts

The weight is float * scale, whatever `inv` may suggest, here in float32, and of the dtype the model computes in by
config.json. `weight_block_size` of config.json's quantization_config is h and w; where the scales do not fit it they
have rows of 32, as those of 4-bit floats do; without config.json h and w are the quotients of the shapes, which must be
whole. Scales of activations beside a weight (`activation_scale` and others) belong to it and are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.architectures import EXPERTS, Architecture
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts import small, whole_bytes
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.config import CONFIG_HINT, architecture, model_dtype, section, text
from quantcli.layouts.joined import unjoined
from quantcli.layouts.loaders import (
    ignored,
    loads_experts,
    modules,
    not_linear,
    one_by_one,
    refuse_skipped,
    skips,
    unknown,
)
from quantcli.layouts.pieces import facts, not_a_matrix, or_copied
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.small import E8M0, scales, small_floats
from quantcli.layouts.stored import FLOATS, part, wrong
from quantcli.layouts.whole_bytes import Places
from quantcli.layouts.writer import Beside, Conversion, Job, Runtime, Weight, Writer
from quantcli.patterns import module_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

SIDE = 128
"""Rows and columns of a block that kernels of FP8 have."""

MX = (1, 32)
"""Height and width of the blocks of scales that are exponents, where they are not those of config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    shape: tuple[int, ...]
    dtype: str
    codes: TensorInfo
    scale: TensorInfo
    height: int
    width: int

    @property
    def whole(self) -> bool:
        """Whether one scale is that of the tensor."""
        return self.scale.numel == 1 and len(self.scale.shape) < 2

    @property
    def is_mx(self) -> bool:
        """Whether its scales are exponents of groups of a row, as in MXFP4 and MXFP8."""
        return (self.height, self.width) == MX and self.scale.dtype in E8M0


def _stated(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The blocks config.json states."""
    value = section(config, "quantization_config").get("weight_block_size")
    if value is None:
        return None
    if not isinstance(value, list) or [type(n) for n in value] != [int, int] or min(value) < 1:
        raise DataError("it is not a height and a width", place=["config.json", "weight_block_size"])
    return value[0], value[1]


def _scale_name(infos: Mapping[str, TensorInfo], name: str) -> str | None:
    """The name of the scales of a weight; None where there are none under a name of this layout."""
    module = name.removesuffix(".weight")
    names = [f"{name}_scale_inv", *([f"{module}.scale", f"{module}.qscale_weight"] if module != name else [])]
    held = [n for n in names if n in infos]
    if len(held) > 1:
        raise wrong(name, f"it has scales under two names, {printable(held[0])} and {printable(held[1])}")
    return held[0] if held else None


def _fits(shape: tuple[int, ...], scale: TensorInfo, block: tuple[int, int]) -> bool:
    return scale.shape[-2:] == (-(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def _block(
    name: str, shape: tuple[int, ...], dtype: str, scale: TensorInfo, config: Mapping[str, Any]
) -> tuple[int, int]:
    """Height and width of the blocks."""
    rows, cols = shape[-2:]
    if dtype != "F4" and scale.numel == 1 and len(scale.shape) < 2:
        return rows, cols
    if len(scale.shape) != len(shape) or scale.shape[:-2] != shape[:-2]:
        raise wrong(name, f"scales {list(scale.shape)} do not match {list(shape)}")
    stated = _stated(config)
    if stated is not None and dtype != "F4" and _fits(shape, scale, stated):
        return stated
    if scale.dtype in E8M0 and cols % MX[1] == 0 and _fits(shape, scale, MX):
        return MX
    if stated is not None or dtype == "F4":
        block = " x ".join(map(str, MX if stated is None or dtype == "F4" else stated))
        raise wrong(name, f"scales {list(scale.shape)} do not match blocks of {block}")
    down, across = scale.shape[-2:]
    if rows % down or cols % across:
        raise wrong(name, f"{down} x {across} blocks of {rows} x {cols} differ in size", CONFIG_HINT)
    return rows // down, cols // across


def _stored(infos: Mapping[str, TensorInfo], name: str, scale_name: str, config: Mapping[str, Any]) -> _Stored:
    codes, scale = part(infos, name, name, ("F8_E4M3", "I8")), part(infos, scale_name, name, (*FLOATS, *E8M0))
    if len(codes.shape) < 2:
        raise wrong(name, "codes have 1 dimension" if codes.shape else "it is a single number")
    if f"{name}_zero_point" in infos:
        raise wrong(name, "zero points beside small floats are not supported")
    dtype = "F4" if codes.dtype == "I8" else codes.dtype
    shape = (*codes.shape[:-1], codes.shape[-1] * 2) if dtype == "F4" else codes.shape
    height, width = _block(name, shape, dtype, scale, config)
    return _Stored(name=name, shape=shape, dtype=dtype, codes=codes, scale=scale, height=height, width=width)


def _scales(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """The scales of some rows (rows, blocks across)."""
    rows, cols = stored.shape[-2:]
    down, across = -(-rows // stored.height), -(-cols // stored.width)
    at = np.arange(first, last)
    own = np.zeros_like(at) if stored.scale.numel == 1 else at // rows * down + at % rows // stored.height
    low, count = int(own.min()), int(own.max()) + 1 - int(own.min())
    found = scales(read, stored.scale, stored.name, low * across, count * across).reshape(count, across)
    return found[own - low]


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    scale, held = _scales(stored, read, first, last), stored.codes.shape[-1]
    raw = read(stored.codes.name, first * held, (last - first) * held)
    return small_floats(raw, (last - first, stored.shape[-1]), scale, stored.width, stored.dtype)


def _held(stored: _Stored, activations: str, read: Read) -> Held | str:
    """The codes; scales of blocks that are exponents are floats elsewhere."""
    rows, cols = stored.shape[-2:]
    if stored.is_mx:
        bits = 4 if stored.dtype == "F4" else 8
        return small.held(read, stored.codes, stored.scale, stored.name, cols, bits=bits)
    if stored.dtype == "F4" or (not stored.whole and rows % stored.height and len(stored.shape) > 2):
        return "its blocks are not those of other layouts"

    def packed(first: int, last: int) -> Bytes:
        return packing.pack(read(stored.codes.name, first * cols, (last - first) * cols).reshape(-1, cols), 8)

    return Held(
        format="fp8-e4m3",
        bits=8,
        group="tensor" if stored.whole else stored.width,
        height=1 if stored.whole else stored.height,
        offsets="",
        scale_dtype="F32" if stored.scale.dtype in E8M0 else stored.scale.dtype,
        activations=activations,
        packed=packed,
        params=lambda first, last: (_scales(stored, read, first, last), None),
    )


def _inputs(stored: _Stored, config: Mapping[str, Any]) -> str:
    """How config.json says that inputs are quantized, as in `Scheme`."""
    stated = section(config, "quantization_config")
    if (text(stated, "quant_method"), text(stated, "activation_scheme")) != ("fp8", "dynamic"):
        return "none"
    return "fp8-group" if (stored.height, stored.width) == (SIDE, SIDE) else "fp8"


def _scheme(stored: _Stored) -> str:
    kind = "fp8-e4m3" if stored.dtype != "F4" else "fp4"
    if stored.is_mx:
        return f"mx{kind[:3]}"
    return kind + ("t" if stored.whole else f"b{stored.height}x{stored.width}")


def _found(stored: _Stored, dtype: str, config: Mapping[str, Any]) -> Found:
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=_scheme(stored),
        bits=4 if stored.dtype == "F4" else 8,
        parts=(stored.codes, stored.scale),
        decode=partial(_decode, stored),
        dtype=dtype,
        held=partial(_held, stored, _inputs(stored, config)),
    )


def _is_weight(info: TensorInfo, scale: TensorInfo) -> bool:
    """Whether codes with these scales are in this layout; integers of 8 bits with float scales are not."""
    exponents = scale.dtype in E8M0 and (info.dtype != "I8" or scale.numel > 1)
    return info.numel > 0 and (info.dtype == "F8_E4M3" or (info.dtype == "I8" and exponents))


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as small floats with the scales of blocks beside them."""
    found, dtype = [], model_dtype(config)
    for name, info in infos.items():
        if info.dtype not in ("F8_E4M3", "I8") or not math.prod(info.shape):
            continue
        scale = _scale_name(infos, name)
        if scale is not None and _is_weight(info, infos[scale]):
            found.append(_found(_stored(infos, name, scale, config), dtype, config))
    return found


READS = Reader(summary="small floats in blocks: transformers' fp8, DeepSeek, Kimi and Mistral", find=find)


# ---- writing ---------------------------------------------------------------------------------------------------------


def shape(weight: Weight) -> str | None:
    """Why a weight cannot be stored: transformers divides its rows and columns evenly among the scales."""
    rows, cols = weight.info.shape[-2:] if len(weight.info.shape) > 1 else (1, 1)
    if any(n > SIDE and n % SIDE for n in (rows, cols)):
        return f"{rows} x {cols} is not a whole number of blocks of {SIDE} x {SIDE}"
    return not_a_matrix(weight)


def module(weight: Weight, model: Architecture) -> str | None:
    """Why its loaders do not take a quantized weight in this module."""
    if model.holder(module_of(weight.info.name)) == EXPERTS:
        return None
    return not_linear(weight, model)


def _job(weight: Weight) -> Job:
    plan = facts(weight)[1]
    codes = TensorInfo(weight.info.name, "F8_E4M3", weight.info.shape)
    scale = TensorInfo(f"{weight.info.name}_scale_inv", "F32", plan.scale_shape)
    return whole_bytes.job(weight, Places(codes=codes, scale=scale, store="F32"))


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as transformers' fp8 stores it. Raises UsageError for kept weights whose names hide quantized ones."""
    model = architecture(beside)
    kept = ignored(tensors, model)
    refuse_skipped(tensors, kept, skips(model))
    if any(model.holder(name) == EXPERTS for name in modules(tensors, quantized=False)) and any(
        model.holder(name) == EXPERTS for name in modules(tensors, quantized=True)
    ):
        raise UsageError("some experts are kept, but loaders need all of them in 8 bits or none", hint="keep all")
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [SIDE, SIDE],
        "modules_to_not_convert": kept,
    }
    return Conversion(
        job=or_copied(_job),
        stem=module_of,
        config={"quantization_config": settings},
        notes=[*unknown(model), *loads_experts(tensors, model), *_renamed(model), *unjoined(tensors)],
    )


RENAMED = ("llama", "mistral")
"""Types of models for which SGLang 0.5.23 calls weight_scale_inv weight_scale, which it then finds no place for."""


def _renamed(model: Architecture) -> list[str]:
    """The note on a model whose scales a runtime would drop."""
    if model.model_type not in RENAMED:
        return []
    return [
        f"SGLang 0.5.23 does not load the scales of {model.model_type} in this layout; it does with --scheme FP8_BLOCK"
    ]


WRITES = Writer(
    summary="FP8 in blocks: 8-bit floats and a scale for 128 x 128 of them, for transformers, vLLM and SGLang",
    keeps="all but matrices named *.weight of whole blocks",
    accepts=Accepts(
        formats=("fp8-e4m3",),
        bits=(8,),
        groups=(SIDE,),
        granularities=("block",),
        symmetric=(True,),
        activations=("none", "fp8-group"),
    ),
    shape=shape,
    convert=convert,
    module=module,
    experts=one_by_one,
    joins=True,
    scale_dtype="float32",
    usual={"format": "fp8-e4m3", "granularity": "block", "calibration": "mse", "activations": "fp8-group"},
    runtimes=(
        Runtime(
            name="transformers, vLLM, SGLang",
            command="quantize MODEL --to fp8-blocks",
            limits="transformers ran it, the other loaders were read; SGLang takes no Llama, no Mistral",
        ),
    ),
    menu=({"format": "fp8-e4m3", "granularity": "block", "activations": "fp8-group"},),
)
