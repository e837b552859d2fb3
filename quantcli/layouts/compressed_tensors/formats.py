"""How compressed-tensors stores weights of each scheme: the name of the format, its settings, and the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import scales
from quantcli.layouts.native.write import job as native
from quantcli.layouts.pieces import bands, facts, plain, put_columns, words
from quantcli.layouts.writer import Codes, Job, Piece, Weight, Write
from quantcli.scales import Store
from quantcli.scheme import Scheme
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Bytes

PACKED, BYTES, FLOATS = "pack-quantized", "int-quantized", "float-quantized"

_SMALL = {"mxfp4": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized", "nvfp4": "nvfp4-pack-quantized"}
"""Formats of floats with scales of one byte, by the names of their schemes."""

_INPUTS: dict[str, dict[str, Any]] = {
    "int8": {"num_bits": 8, "type": "int", "strategy": "token"},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "token"},
    "fp8-group": {"num_bits": 8, "type": "float", "group_size": 128, "strategy": "group"},
    "mxfp8": {"num_bits": 8, "type": "float", "group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8"},
    "mxfp4": {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8"},
}
"""How inputs of layers are quantized as they come, by `Scheme.activations`."""


def format_of(scheme: Scheme) -> str:
    """The name of the format that stores a scheme."""
    if scheme.family == "int":
        return BYTES if scheme.activations == "int8" else PACKED
    return FLOATS if scheme.storage == "plain" else _SMALL[scheme.name]


def inputs(scheme: Scheme) -> dict[str, Any] | None:
    """The settings of the inputs of a layer; None where they stay floats."""
    if scheme.activations == "none":
        return None
    return {"symmetric": True, "group_size": None, "dynamic": True, **_INPUTS[scheme.activations]}


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
    two = scheme.family != "int" and scheme.bits == 4
    codes = TensorInfo(f"{name}_packed", "U8", (*shape[:-1], shape[-1] // 2)) if two else TensorInfo(
        name, "I8" if form == BYTES else "F8_E4M3", shape)  # fmt: skip
    stored = "U8" if scheme.storage == "e8m0" else tensor.scale_dtype
    outputs = [codes, TensorInfo(f"{name}_scale", stored, (1,) if scheme.granularity == "tensor" else plan.scale_shape)]
    if scheme.storage == "e4m3":
        outputs.append(TensorInfo(f"{name}_global_scale", "F32", (1,)))

    def pieces() -> Iterator[Piece]:
        width = plan.cols + 1 if plan.height > 1 else plan.group
        spans = bands(plan, scheme.bits, width, unit=plan.height)
        return (partial(_piece, scheme, plan, tuple(outputs), span) for span in spans)

    return Job(outputs=tuple(outputs), pieces=pieces)


def _piece(
    scheme: Scheme, plan: Grouping, outputs: tuple[TensorInfo, ...], span: TileSpan, codes: Codes, write: Write
) -> bool:
    """Codes and scales of a piece of a weight."""
    put_columns(write, 0, _codes(scheme, plan, span, codes), _place(span, scheme, outputs[0]), outputs[0].shape[-1])
    store = Store(_dtype(outputs[1], scheme), codes.overall())
    if span.col % plan.group == 0:
        scale = codes.scales(span)[0]
        stored = np.ascontiguousarray(scales.of(scheme).stored(scale, store))
        if scheme.granularity != "tensor":
            at = span.row // plan.height, span.col // plan.group
            put_columns(write, 1, stored, at, plan.groups)
        elif span.row == span.col == 0:
            write(1, 0, stored[:1, :1].copy())
    if len(outputs) > 2 and span.row == span.col == 0:
        write(2, 0, np.array([1 / store.overall], "<f4"))
    return True


def _dtype(output: TensorInfo, scheme: Scheme) -> str:
    """The dtype of the scales of a weight."""
    return "F8_E8M0" if scheme.storage == "e8m0" else output.dtype


def _place(span: TileSpan, scheme: Scheme, output: TensorInfo) -> tuple[int, int]:
    """Row and column of a piece in the tensor of its codes."""
    return span.row, span.col * scheme.bits // 8 if output.dtype == "U8" else span.col


def _codes(scheme: Scheme, plan: Grouping, span: TileSpan, codes: Codes) -> Bytes:
    """The codes of a piece as bytes: two to a byte, floats, or signed integers."""
    packed = words(codes, span, plan, scheme.bits)
    if scheme.family != "int":
        return packed[:, : span.cols * scheme.bits // 8]
    found = packing.unpack(np.ascontiguousarray(packed), span.rows, span.cols, scheme.bits)
    signed: Bytes = found - np.uint8(1 << (scheme.bits - 1))
    return signed
