"""bitsandbytes NF4: two codes to a byte, the first in the high bits, and the largest magnitude of every block.

A weight of the format nf4 [out, in] with groups of g along in becomes

    X.weight                                   U8   [out*in/2, 1]   codes in C order, the first of two in the high bits
    X.weight.absmax                            F32  [out*in/g]      the native scales: the largest level is 1
    X.weight.quant_map                         F32  [16]            the levels, which bitsandbytes has its own copy of
    X.weight.quant_state.bitsandbytes__nf4     U8   [length]        JSON: quant_type, blocksize, dtype and shape

Blocks run over the flat weight, and groups that divide a row are such blocks. Codes 0, 15, 7, 8 are the bytes `0f 78`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from quantcli.architectures import EXPERTS, INITIALIZED, Architecture
from quantcli.dtypes import LONG_NAMES
from quantcli.formats import fixed_codebook
from quantcli.layouts.writing import Accepts, Beside, Codes, Conversion, Export, Job, Piece, Weight, Write
from quantcli.layouts.writing._parts import (
    architecture,
    bands,
    facts,
    finer,
    ignored,
    not_a_matrix,
    not_linear,
    params,
    plain,
    quantized,
    refuse_skipped,
    repeated,
    rounded,
    skips_by_name,
    unknown,
    words,
)
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)

_DTYPES = {short: long for long, short in LONG_NAMES.items() if short != "F64"}


def shape(weight: Weight) -> str | None:
    """Why bitsandbytes has no such weight: its blocks must not run from one row into the next."""
    why = not_a_matrix(weight)
    if why is None and finer(facts(weight)[1].group, BLOCKS) is None:
        return f"rows of {facts(weight)[1].cols} are no multiple of 64"
    return why


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers takes no quantized weight in this place."""
    own = module_of(weight.info.name)
    name, kind = model.module(own), model.holder(own)
    if kind == EXPERTS:
        return "transformers stacks experts while it loads them, which takes floating-point weights"
    if any(skips_by_name(kept, name) for kept in model.float32):
        return "transformers never quantizes this layer of such a model"
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
        TensorInfo(f"{name}.quant_state.bitsandbytes__nf4", "U8", (described.size,)),
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
    refuse_skipped(tensors, kept, skips_by_name)
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
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t) for t in tensors},
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=[
            "bitsandbytes decodes with its own NF4 levels, whatever quant_map says; they are the native ones",
            *unknown(model),
        ],
    )


PROVIDES = Export(
    summary="bitsandbytes NF4: packed codes, absmax and quant_state, for transformers and diffusers",
    accepts=Accepts(formats=("nf4",), bits=(4,), groups=(64,)),
    shape=shape,
    convert=convert,
    module=module,
    usual={"format": "nf4", "group_size": 64},
)
