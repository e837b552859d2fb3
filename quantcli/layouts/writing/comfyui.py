"""ComfyUI int8: signed bytes with a scale for every row, and a header key that names the layers.

A weight of 8 bits [out, in], symmetric, with a scale per row or for the tensor, becomes

    X.weight         I8    [out, in]   q = u - 128, from -128 to 127
    X.weight_scale   F32   [out, 1]

and the header of every file says in `_quantization_metadata` that X is `int8_tensorwise`. compressed-tensors reads the
same file as int-quantized, so config.json says that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from quantcli.architectures import EXPERTS, Architecture
from quantcli.errors import UsageError
from quantcli.layouts.writing import Accepts, Beside, Codes, Conversion, Export, Job, Piece, Weight, Write
from quantcli.layouts.writing._parts import (
    architecture,
    bands,
    facts,
    ignored,
    modules,
    not_a_matrix,
    not_linear,
    params,
    plain,
    quantized,
    rounded,
    words,
)
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers takes no quantized weight in this place of a model that it has."""
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
        layers = {module_of(n): {"format": "int8_tensorwise"} for n in names if n in set(held)}
        return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}

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


PROVIDES = Export(
    summary="ComfyUI int8_tensorwise: signed bytes and float32 scales, for ComfyUI and compressed-tensors",
    accepts=Accepts(bits=(8,), granularities=("channel", "tensor"), symmetric=(True,)),
    shape=not_a_matrix,
    convert=convert,
    module=module,
    usual={"bits": 8, "granularity": "channel"},
)
