"""How compressed-tensors stores weights of each scheme: the name of the format, its settings, and the tensors."""

from __future__ import annotations

from typing import Any

from quantcli.layouts import whole_bytes
from quantcli.layouts.groups import INPUTS
from quantcli.layouts.native.write import job as native
from quantcli.layouts.pieces import facts, plain, with_number
from quantcli.layouts.whole_bytes import Places
from quantcli.layouts.writer import Job, Weight
from quantcli.patterns import module_of
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo

PACKED, BYTES, FLOATS = "pack-quantized", "int-quantized", "float-quantized"

_SMALL = {"mxfp4": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized", "nvfp4": "nvfp4-pack-quantized"}
"""Formats of floats with scales of one byte, by the names of their schemes."""


def format_of(scheme: Scheme) -> str:
    """The name of the format that stores a scheme."""
    if scheme.family == "int":
        return BYTES if scheme.activations == "int8" else PACKED
    return FLOATS if scheme.storage == "plain" else _SMALL[scheme.name]


def inputs(scheme: Scheme) -> dict[str, Any] | None:
    """The settings of the inputs of a layer; None where they stay floats."""
    if scheme.activations == "none":
        return None
    return {"symmetric": True, "group_size": None, "dynamic": True, **INPUTS[scheme.activations]}


def weights(tensor: Weight) -> dict[str, Any]:
    """The settings of the weights of a layer."""
    scheme, plan = facts(tensor)
    found: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if scheme.family == "int" else "float",
        "symmetric": scheme.symmetric,
        "strategy": "channel",
        "group_size": None,
        "dynamic": False,
    }
    if scheme.granularity == "block":
        found |= {"strategy": "block", "block_structure": [scheme.group_size, scheme.group_size]}
    elif scheme.granularity == "group" and plan.group == scheme.group_size:
        found |= {"strategy": "group", "group_size": plan.group}
    elif scheme.granularity == "tensor" and format_of(scheme) != PACKED:
        found["strategy"] = "tensor"
    if scheme.storage == "e8m0":
        found["scale_dtype"] = "torch.uint8"
    elif scheme.storage == "e4m3":
        found |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    return found


def job(tensor: Weight) -> Job:
    """The tensors that store a weight, or that keep it."""
    if tensor.scheme is None:
        return plain(tensor.info)
    scheme, plan = facts(tensor)
    form = format_of(scheme)
    if form == PACKED:
        return native(tensor)
    name, shape = tensor.info.name, tensor.info.shape
    codes = TensorInfo(name, "I8" if form == BYTES else "F8_E4M3", shape)
    if scheme.bits == 4 and form != BYTES:
        codes = TensorInfo(f"{name}_packed", "U8", (*shape[:-1], shape[-1] // 2))
    dtype = "U8" if scheme.storage == "e8m0" else tensor.scale_dtype
    scale = TensorInfo(f"{name}_scale", dtype, (1,) if scheme.granularity == "tensor" else plan.scale_shape)
    overall = TensorInfo(f"{name}_global_scale", "F32", (1,)) if scheme.storage == "e4m3" else None
    places = Places(codes=codes, scale=scale, store=tensor.scale_dtype, overall=overall, inverse=True)
    found = whole_bytes.job(tensor, places)
    if (measured := tensor.input_scale) is None:
        return found
    end, value = ("input_global_scale", 1 / measured) if overall is not None else ("input_scale", measured)
    return with_number(found, TensorInfo(f"{module_of(name)}.{end}", "F32", (1,)), value)  # of NVFP4 the inverse
