"""Writing NF4 as bitsandbytes stores it, with the configuration that transformers and diffusers read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from quantcli.architectures import EXPERTS, INITIALIZED, Architecture
from quantcli.dtypes import LONG_NAMES
from quantcli.formats import fixed_codebook
from quantcli.layouts.bnb_nf4.read import STATE
from quantcli.layouts.config import architecture
from quantcli.layouts.loaders import ignored, not_linear, refuse_skipped, skips, unknown
from quantcli.layouts.pieces import (
    bands,
    facts,
    finer,
    not_a_matrix,
    or_copied,
    params,
    quantized,
    repeated,
    rounded,
    words,
)
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Weight, Write
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)

_DTYPES = {short: long for long, short in LONG_NAMES.items() if short != "F64"}


def shape(weight: Weight) -> str | None:
    """Why bitsandbytes cannot store a weight: its blocks must not run from one row into the next."""
    why = not_a_matrix(weight)
    if why is None and finer(facts(weight)[1].group, BLOCKS) is None:
        return f"rows of {facts(weight)[1].cols} are not a multiple of 64"
    return why


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers or diffusers does not load a quantized weight in this module."""
    own = module_of(weight.info.name)
    name, kind = model.module(own), model.holder(own)
    if kind == EXPERTS:
        return "transformers stacks experts while it loads them, which takes floating-point weights"
    if any(skips(model)(kept, name) for kept in model.float32):
        return f"{model.library} never quantizes this layer of such a model"
    return None if kind == INITIALIZED else not_linear(weight, model)


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    name, block = weight.info.name, finer(plan.group, BLOCKS)
    assert block is not None
    state = {
        "quant_type": "nf4",
        "blocksize": block,
        "dtype": _DTYPES.get(weight.info.dtype, "float32"),
        "shape": list(weight.info.shape),
    }
    described = np.frombuffer(json.dumps(state).encode(), np.uint8)
    outputs = (
        TensorInfo(name, "U8", (weight.info.numel // 2, 1)),
        TensorInfo(f"{name}.absmax", "F32", (weight.info.numel // block,)),
        TensorInfo(f"{name}.quant_map", "F32", (16,)),
        TensorInfo(f"{name}{STATE}nf4", "U8", (described.size,)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        packed = words(codes, span, plan, 4)
        at = span.row * plan.cols + span.col
        write(0, at // 2, (packed >> np.uint8(4)) | (packed << np.uint8(4)))
        stored, exact = rounded(params(codes, span, plan, scheme)[0], "F32", name)
        write(1, at // block * 4, np.ascontiguousarray(repeated(stored, span, plan, block)))
        return exact

    def describe(codes: Codes, write: Write) -> bool:
        write(2, 0, np.ascontiguousarray(fixed_codebook(scheme).levels[0], "<f4"))
        write(3, 0, described)
        return True

    def pieces() -> Iterator[Piece]:
        yield describe
        for span in bands(plan, 4, block):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as bitsandbytes stores it."""
    dtypes = {w.info.dtype for w in quantized(tensors)}
    model = architecture(beside)
    kept = ignored(tensors, model, linear=True)
    refuse_skipped(tensors, kept, skips(model))
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": _DTYPES.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": kept,
    }
    return Conversion(
        job=or_copied(_job),
        stem=module_of,
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=[
            "bitsandbytes decodes with its own NF4 levels, whatever quant_map says; they are the native ones",
            *unknown(model),
        ],
    )
