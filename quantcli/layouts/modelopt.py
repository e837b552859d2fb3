"""ModelOpt: 4-bit floats in bytes, and a one-byte scale for every group of a row.

    NVFP4   X           U8        [out, in/2]    E2M1, the first of two in the low half
            X_scale     F8_E4M3   [out, in/16]
            X_scale_2   F32       a number
    MXFP4   X           U8        [out, in/2]    as above
            X_scale     U8        [out, in/32]   E8M0: exponents of 2 with a bias of 127

The weight is float * (scale * scale_2), the inverse sense of compressed-tensors' global scale, here in float32; its
dtype is that of the model by config.json. Groups of NVFP4 are of 16, or of 32 as some recipes of ModelOpt have them.
Its FP8, MXFP8 and int8 are stored as by compressed-tensors, and read as those; modelopt_int4 reads its integers of 4
bits.
A pre_quant_scale stands for inputs that are multiplied before the weight is: beside floats it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import __version__
from quantcli.architectures import EXPERTS, Architecture
from quantcli.errors import UsageError, printable
from quantcli.layouts import modelopt_int4, whole_bytes
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.config import architecture, model_dtype
from quantcli.layouts.loaders import ignored, not_linear, refuse_skipped, unknown
from quantcli.layouts.pieces import facts, not_a_matrix, or_copied, quantized, with_number
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.small import E2M1, NV, held, looked_up, scales, table
from quantcli.layouts.stored import floats, matrix, part, wrong
from quantcli.layouts.whole_bytes import Places
from quantcli.layouts.writer import Beside, Conversion, Job, Runtime, Weight, Writer
from quantcli.patterns import module_of
from quantcli.scheme import STATIC
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

GROUPS = {"F8_E4M3": (16, 32), "U8": (32,)}
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
    (rows, held), sizes, shape = matrix(codes, name), GROUPS[scale.dtype], matrix(scale, name)
    group = next((size for size in sizes if held * 2 % size == 0 and shape == (rows, held * 2 // size)), None)
    if group is None:
        shown = " or ".join(map(str, sizes))
        raise wrong(name, f"scales {list(scale.shape)} do not match groups of {shown} of {rows} x {held * 2}")
    overall = part(infos, f"{name}_scale_2", name, ("F32",)) if scale.dtype == "F8_E4M3" else None
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


def _held(stored: _Stored, read: Read) -> Held:
    overall = 1.0 if stored.overall is None else float(floats(read, stored.overall, stored.name, 0, 1)[0])
    return held(read, stored.codes, stored.scale, stored.name, stored.cols, group=stored.group, overall=overall)


def _found(stored: _Stored, dtype: str) -> Found:
    return Found(
        name=stored.name,
        shape=(stored.codes.shape[0], stored.cols),
        scheme="mxfp4" if stored.overall is None else "nvfp4" if stored.group == NV else f"fp4g{stored.group}-e4m3",
        bits=4,
        parts=tuple(p for p in (stored.codes, stored.scale, stored.overall) if p is not None),
        decode=partial(_decode, stored),
        dtype=dtype,
        held=partial(_held, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as bytes of two codes: floats with scales of a byte beside them, or integers."""
    found, dtype = [], model_dtype(config)
    for name, info in infos.items():
        if modelopt_int4.is_int4(infos, info):
            found.append(modelopt_int4.found(infos, name))
            continue
        scale = infos.get(f"{name}_scale")
        if info.dtype != "U8" or scale is None or scale.dtype not in GROUPS or name.endswith("_packed"):
            continue
        fits = len(info.shape) == 2 and scale.shape == (info.shape[0], info.shape[1] // 16) and not info.shape[1] % 16
        if f"{name}_scale_2" in infos or (scale.dtype == "U8" and fits):
            found.append(_found(_stored(infos, name), dtype))
    return found


READS = Reader(summary="ModelOpt: NVFP4, MXFP4, and int4 with or without AWQ's scales of inputs", find=find)


# ---- writing ---------------------------------------------------------------------------------------------------------

ALGORITHMS = {
    ("nvfp4", "none"): "W4A16_NVFP4",
    ("nvfp4", "nvfp4"): "NVFP4",
    ("mxfp8", "none"): "MXFP8",
    ("mxfp8", "mxfp8"): "MXFP8",
    ("fp8-e4m3c", "none"): "FP8_PER_CHANNEL_PER_TOKEN",
    ("fp8-e4m3c", "fp8"): "FP8_PER_CHANNEL_PER_TOKEN",
    ("fp8-e4m3t", "fp8-static"): "FP8",
}
"""What ModelOpt calls schemes, by their names and how inputs are quantized."""


def module(weight: Weight, model: Architecture) -> str | None:
    """Why its loaders do not take a quantized weight in this module."""
    if model.holder(module_of(weight.info.name)) == EXPERTS:
        if facts(weight)[0].activations not in STATIC:
            return "vLLM loads experts of ModelOpt only with measured scales of their inputs"
        return None
    return not_linear(weight, model)


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    name, lead, cols = weight.info.name, weight.info.shape[:-1], weight.info.shape[-1]
    four = scheme.bits == 4
    codes = TensorInfo(name, "U8", (*lead, cols // 2)) if four else TensorInfo(name, "F8_E4M3", weight.info.shape)
    dtype = {"e4m3": "F8_E4M3", "e8m0": "U8", "plain": "F32"}[scheme.storage]
    shape = () if scheme.granularity == "tensor" else lead if scheme.storage == "plain" else plan.scale_shape
    scale = TensorInfo(f"{name}_scale", dtype, shape)
    overall = TensorInfo(f"{name}_scale_2", "F32", ()) if scheme.storage == "e4m3" else None
    job = whole_bytes.job(weight, Places(codes=codes, scale=scale, store=dtype, overall=overall))
    if (measured := weight.input_scale) is None:
        return job
    return with_number(job, TensorInfo(f"{module_of(name)}.input_scale", "F32", ()), measured)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as ModelOpt stores it. Raises UsageError for several schemes, and for kept weights whose names hide
    quantized ones."""
    model = architecture(beside)
    schemes = {(s.name, s.activations): w.info.name for w in quantized(tensors) for s in (facts(w)[0],)}
    if len(schemes) > 1:
        shown = " and ".join(f"{scheme} ({printable(name, 80)})" for (scheme, _), name in list(schemes.items())[:2])
        raise UsageError(f"{shown} in one model, but its configuration names one for all", hint="use one scheme")
    kept = ignored(tensors, model)
    refuse_skipped(tensors, kept, lambda name, module: name in module)
    algorithm = ALGORITHMS[next(iter(schemes))]
    size = {} if algorithm.startswith("FP8") else {"group_size": facts(next(iter(quantized(tensors))))[0].group_size}
    producer = {"name": "quantcli", "version": __version__}
    own = {"quant_algo": algorithm, "kv_cache_quant_algo": None, **size, "exclude_modules": kept}
    settings = {"quant_method": "modelopt", "quant_algo": algorithm, **size, "ignore": kept, "producer": producer}
    document = json.dumps({"producer": producer, "quantization": own}, indent=2) + "\n"
    return Conversion(
        job=or_copied(_job),
        stem=module_of,
        config={"quantization_config": settings},
        beside={"hf_quant_config.json": document.encode()},
        notes=[
            "transformers does not load models of ModelOpt, which are for vLLM, SGLang and TensorRT-LLM",
            *unknown(model),
        ],
    )


_FP8 = Accepts(
    formats=("fp8-e4m3",), bits=(8,), granularities=("channel",), symmetric=(True,), activations=("none", "fp8")
)
_STATIC = replace(_FP8, granularities=("tensor",), activations=("fp8-static",))
_MXFP8 = replace(_FP8, granularities=("group",), groups=(32,), storage="e8m0", activations=("none", "mxfp8"))
_NVFP4 = replace(_MXFP8, formats=("fp4",), bits=(4,), groups=(16,), storage="e4m3", activations=("none", "nvfp4"))

WRITES = Writer(
    summary="ModelOpt: NVFP4, MXFP8 and FP8 per channel with hf_quant_config.json, for vLLM, SGLang and TensorRT-LLM",
    keeps="rows that are not a multiple of 16 or 32, experts, all but matrices named *.weight",
    accepts=replace(_NVFP4, others=(_MXFP8, _FP8, _STATIC)),
    shape=not_a_matrix,
    convert=convert,
    module=module,
    scale_dtype="float32",
    usual={
        "format": "fp4",
        "group_size": 16,
        "scale_dtype": "float8_e4m3",
        "calibration": "mse",
    },
    menu=(
        {"format": "fp4", "group_size": 16, "scale_dtype": "float8_e4m3"},
        {"format": "fp8-e4m3", "group_size": 32, "scale_dtype": "float8_e8m0"},
    ),
    mixes=False,
    runtimes=(
        Runtime(
            name="TensorRT-LLM, vLLM, SGLang",
            command="quantize MODEL --to modelopt",
            others=("--scheme FP8_DYNAMIC", "MXFP8"),
            limits="NVFP4 of weights; its loaders were read, not run. Experts stay",
        ),
    ),
    joins=True,
)
