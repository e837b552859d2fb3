"""ComfyUI: signed bytes, 8-bit floats or packed nibbles, and for every module a description that says which.

The description of a module X is JSON, `{"format": "int8_tensorwise"}`, either in a separate tensor, X.comfy_quant
(U8), or in the header of the file under `_quantization_metadata`, `{"layers": {"X": ...}}`.

    int8_tensorwise                X.weight        I8                 [out, in]    q
                                   X.weight_scale  F32                a number for the tensor, or for every row
    float8_e4m3fn, float8_e5m2     X.weight        F8_E4M3, F8_E5M2   [out, in]    q; U8 holds the same bytes
                                   X.weight_scale  as above
    awq_w4a16                      X.weight        I8                 [out, in/2]  codes u, the low half of a byte first
                                   X.weight_scale  F32, F16 or BF16   [in/g, out]
                                   X.weight_zeros  as the scales      [in/g, out]
    nvfp4, mxfp8                   in layouts.swizzled

The weight is q * scale, or (u - 8) * scale + zeros, here in float32; g is in/g's own quotient, which `group_size` must
agree with. Older files hold X.scale_weight (a number) beside an 8-bit float X.weight, and no description.

Reading: a description with any unknown key is refused: `convrot`, for one, stands for weights that were rotated
before they were rounded. So are zeros without a description. Writing: int8_tensorwise with a scale
[out, 1] for every row, q from -128 to 127, and the description in the header. compressed-tensors reads the same file as
int-quantized, so config.json says that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.architectures import EXPERTS, Architecture
from quantcli.errors import UsageError, printable
from quantcli.kernels import QuantParams
from quantcli.layouts import swizzled
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.config import architecture, section, text, whole
from quantcli.layouts.loaders import ignored, modules, not_linear
from quantcli.layouts.pieces import bands, facts, not_a_matrix, params, plain, quantized, rounded, words
from quantcli.layouts.reader import COMFYUI, Found, Read, Reader
from quantcli.layouts.stored import FLOATS, by_group, filled_up, matrix, part, scheme_name, wrong
from quantcli.layouts.transposed import ParamBands, params_of
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Floats

INT8 = "int8_tensorwise"


# ---- reading ---------------------------------------------------------------------------------------------------------


DESCRIPTION = ".comfy_quant"
LIMIT = 1 << 16
"""Limit of the bytes of a description; usual ones have some 30."""

BYTEWISE = {INT8: "I8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""Formats with one byte per weight, and the dtype of the bytes."""

HARMLESS = ("format", "group_size", "orig_dtype", "orig_shape", "per_row", "full_precision_matrix_mult")
"""Keys of a description that do not change how its weights are decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nibbles:
    name: str
    cols: int
    group: int
    codes: TensorInfo
    scale: TensorInfo
    zeros: TensorInfo


def _described(infos: Mapping[str, TensorInfo], path: str, layers: Mapping[str, Any], read: Read | None) -> Any:
    """The description of a module by its own tensor, else by the header; they must not contradict each other."""
    own = infos.get(f"{path}{DESCRIPTION}")
    if own is None:
        return layers[path]
    if own.dtype != "U8" or own.nbytes > LIMIT:
        raise wrong(own.name, f"{own.dtype} of {own.nbytes} bytes is not a description of a module")
    if read is None:
        raise wrong(f"{path}.weight", "its description is in a tensor whose data is not available")
    found = strict_json(read(own.name, 0, own.nbytes).tobytes(), printable(own.name))
    if path in layers and layers[path] != found:
        raise wrong(own.name, f"it contradicts {COMFYUI} in the header")
    return found


def _format(name: str, description: Any) -> str:
    """The format a description names. Raises DataError for an unknown format or further keys."""
    if not isinstance(description, dict):
        raise wrong(name, "its description is not an object")
    more = [key for key, value in description.items() if key not in HARMLESS and value and key != "convrot_groupsize"]
    kind = text(description, "format")
    if kind is None or kind not in (*BYTEWISE, *swizzled.FORMATS, "awq_w4a16"):
        raise wrong(name, f"ComfyUI format {kind} is not supported")
    if more:
        raise wrong(name, f"{kind} with {printable(more[0], 40)} is not supported")
    return kind


def _bytewise(infos: Mapping[str, TensorInfo], name: str, dtype: str, scale_name: str) -> Found:
    codes = part(infos, name, name, (dtype,) if dtype == "I8" else (dtype, "U8"))
    scale = part(infos, scale_name, name, FLOATS)
    rows = codes.shape[0] if codes.shape else 0
    if len(codes.shape) < 2 or (scale.numel != 1 and (scale.shape not in ((rows,), (rows, 1)) or len(codes.shape) > 2)):
        raise wrong(name, f"scales {list(scale.shape)} do not match codes {list(codes.shape)}")
    granularity = "channel" if scale.numel > 1 or len(scale.shape) == 2 else "tensor"
    cols = codes.shape[-1]
    stored = Bytewise(name=name, cols=cols, height=1, width=cols, codes=replace(codes, dtype=dtype), scale=scale)
    return Found(
        name=name,
        shape=codes.shape,
        scheme=scheme_name(8, granularity).replace("w8", CODES[dtype], 1),
        bits=8,
        parts=(codes, scale),
        decode=partial(decode, stored),
        held=partial(held, stored),
    )


def _nibbles(infos: Mapping[str, TensorInfo], name: str, description: Mapping[str, Any], bands: ParamBands) -> Found:
    codes = part(infos, name, name, ("I8", "U8"))
    scale, zeros = (part(infos, f"{name}_{which}", name, FLOATS) for which in ("scale", "zeros"))
    (rows, held), (groups, outputs) = matrix(codes, name), matrix(scale, name)
    if outputs != rows or zeros.shape != scale.shape or held * 2 % groups:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, zeros))
        raise wrong(name, f"codes, scales and zeros do not match: {shapes}")
    cols = held * 2
    if whole(description, "group_size", 1, 1 << 30) not in (None, cols // groups):
        raise wrong(
            name, f"{groups} groups of {cols} columns, but its description says groups of {description['group_size']}"
        )
    stored = _Nibbles(name=name, cols=cols, group=cols // groups, codes=codes, scale=scale, zeros=zeros)
    return Found(
        name=name,
        shape=(rows, cols),
        scheme=scheme_name(4, "channel" if groups == 1 else stored.group, "float"),
        bits=4,
        parts=(codes, scale, zeros),
        decode=partial(_decode_nibbles, stored, bands),
    )


def _decode_nibbles(stored: _Nibbles, bands: ParamBands, read: Read, first: int, last: int) -> Floats:
    shape, held = (last - first, stored.cols), stored.cols // 2
    packed = filled_up(read(stored.codes.name, first * held, shape[0] * held), shape, 4)
    scale, zeros = params_of(bands, read, (stored.scale, stored.zeros), stored.name, first, last)
    out = by_group(packed, shape, 4, QuantParams(scale, np.full_like(scale, 8)), stored.group)
    with np.errstate(over="ignore", invalid="ignore"):
        grouped = out.reshape(shape[0], -1, stored.group)
        grouped += zeros[:, :, None]
    return out


def _found(infos: Mapping[str, TensorInfo], path: str, description: Any, bands: ParamBands) -> Found:
    name = f"{path}.weight"
    kind = _format(name, description)
    if kind in swizzled.FORMATS:
        found = swizzled.find(infos, name, kind, description)
    elif kind == "awq_w4a16":
        found = _nibbles(infos, name, description, bands)
    else:
        found = _bytewise(infos, name, BYTEWISE[kind], f"{name}_scale")
    if f"{path}.pre_quant_scale" in infos:
        raise wrong(name, f"{printable(path)}.pre_quant_scale beside it is not supported")
    own = infos.get(f"{path}{DESCRIPTION}")
    return found if own is None else replace(found, parts=(*found.parts, own))


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that ComfyUI's descriptions name, and 8-bit floats with a scale_weight beside them."""
    layers = section(config, COMFYUI)
    described = [name.removesuffix(DESCRIPTION) for name in infos if name.endswith(DESCRIPTION)]
    paths, bands = list(dict.fromkeys([*described, *layers])), ParamBands()
    found = [_found(infos, path, _described(infos, path, layers, read), bands) for path in paths]
    known = {weight.name for weight in found}
    for name, info in infos.items():
        if name in known or name.removesuffix(".weight") == name:
            continue
        older = f"{name.removesuffix('.weight')}.scale_weight"
        if info.dtype in ("I8", "U8") and f"{name}_zeros" in infos:
            raise wrong(
                name,
                "zeros beside its codes without a description of their format",
                f"the description belongs under {COMFYUI} in the header",
            )
        if info.dtype in ("F8_E4M3", "F8_E5M2") and older in infos:
            if infos[older].numel != 1:
                raise wrong(name, f"scales {list(infos[older].shape)} are not supported")
            found.append(_bytewise(infos, name, info.dtype, older))
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers does not load a quantized weight in this module of a model type that it supports."""
    if not model.takes_packed:
        return "transformers cannot prepare this type of model for such weights"
    if model.holder(module_of(weight.info.name)) == EXPERTS:
        return "transformers stacks experts while it loads them, which takes packed weights"
    return not_linear(weight, model)


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    name = weight.info.name
    outputs = (TensorInfo(name, "I8", weight.info.shape), TensorInfo(f"{name}_scale", "F32", (plan.rows, 1)))

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        signed = words(codes, span, plan, 8)[:, : span.cols] ^ np.uint8(128)
        write(0, span.row * plan.cols + span.col, np.ascontiguousarray(signed))
        stored, exact = rounded(params(codes, span, plan, scheme)[0], "F32", name)
        if span.col == 0:
            write(1, span.row * 4, stored)
        return exact

    def pieces() -> Iterator[Piece]:
        for span in bands(plan, 8, plan.cols):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as ComfyUI stores it. Raises UsageError for a model whose experts stay in floating point beside it."""
    model = architecture(beside)
    if any(model.holder(name) == EXPERTS for name in modules(tensors, quantized=False)):
        problem = "transformers loads no experts in floating point beside int8 weights"
        raise UsageError(problem, hint="use another target")
    names = [w.info.name for w in quantized(tensors)]

    def header(held: Sequence[str]) -> dict[str, str]:
        among = set(held)
        layers = {module_of(n): {"format": INT8} for n in names if n in among}
        return {COMFYUI: json.dumps({"format_version": "1.0", "layers": layers})}

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "format": "int-quantized", "weights": {**weights, "group_size": None}}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ignored(tensors, model),
        "config_groups": {"group_0": {**group, "input_activations": None, "output_activations": None}},
    }
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t) for t in tensors},
        config={"quantization_config": settings},
        header=header,
        notes=[
            "ComfyUI looks for its own names of modules, as in the files it loads in floating point",
            "compressed-tensors loads the same file as int-quantized; vLLM does not without activations in int8",
        ],
    )


# ---- the layout ------------------------------------------------------------------------------------------------------


READS = Reader(summary="ComfyUI: int8_tensorwise, float8, nvfp4, mxfp8 and awq_w4a16", find=find)

WRITES = Writer(
    summary="ComfyUI int8_tensorwise: signed bytes and float32 scales, for ComfyUI and compressed-tensors",
    keeps="all but matrices named *.weight",
    accepts=Accepts(bits=(8,), granularities=("channel", "tensor"), symmetric=(True,)),
    shape=not_a_matrix,
    convert=convert,
    module=module,
    usual={"bits": 8, "granularity": "channel"},
)
