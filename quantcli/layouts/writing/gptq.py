"""GPTQ: the native words turned, zero points along the outputs, a group for every input.

A weight of b bits [out, in] (b is 2, 3, 4 or 8, out and in multiples of 32) with groups of g becomes

    X.qweight  I32  [in*b/32, out]   the native words with rows for columns
    X.qzeros   I32  [in/g, out*b/32]   zero points, the stream running along the outputs
    X.scales   F16  [in/g, out]      repeated where the model has smaller groups than the weight
    X.g_idx    I32  [in]             i // g

Symmetric models are the first version, `gptq`, which stores the zero point 2^(b-1) less one. Loaders add the one back
to whole words, so that a zero point of 0 would carry into its neighbour: models with zero points of their own are
`gptq_v2`, which stores them as they are. Bits, groups and version hold for the whole model; layers that are kept stand
under `dynamic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantcli.architectures import numberless
from quantcli.layouts.writing import Accepts, Beside, Codes, Conversion, Export, Job, Piece, Weight, Write
from quantcli.layouts.writing._parts import (
    architecture,
    bands,
    below,
    facts,
    ignored,
    not_a_matrix,
    not_linear,
    one_group,
    pack_rows,
    params,
    plain,
    put_columns,
    quantized,
    repeated,
    rounded,
    same_bits,
    turned,
    unknown,
    words,
)
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def shape(weight: Weight) -> str | None:
    """Why GPTQ has no such weight: both sides fill whole words of 32 codes."""
    why = not_a_matrix(weight)
    if why is None and (odd := [n for n in weight.info.shape if n % 32]):
        return f"{odd[0]} {'rows' if weight.info.shape[0] % 32 else 'columns'} are no multiple of 32"
    return why


def _job(weight: Weight, group: int, added: int) -> Job:
    """group: of the model, -1 for whole rows. added: what loaders add to a stored zero point."""
    scheme, plan = facts(weight)
    module, bits = module_of(weight.info.name), scheme.bits
    size = min(plan.group if group == -1 else group, plan.cols)
    rows, groups, per_word = plan.rows, plan.cols // size, bits / 32
    outputs = (
        TensorInfo(f"{module}.qweight", "I32", (plan.cols * bits // 32, rows)),
        TensorInfo(f"{module}.qzeros", "I32", (groups, rows * bits // 32)),
        TensorInfo(f"{module}.scales", "F16", (groups, rows)),
        TensorInfo(f"{module}.g_idx", "I32", (plan.cols,)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        slab = np.empty((span.cols * bits // 32, span.rows), np.uint32)
        for part in below(span, bits, 32):
            first = part.row - span.row
            turned(words(codes, part, plan, bits).view("<u4"), slab[:, first : first + part.rows])
        put_columns(write, 0, slab, (span.col * bits // 32, span.row), rows)
        scale, zero = params(codes, span, plan, scheme)
        stored, exact = rounded(scale, "F16", weight.info.name)
        at = span.col // size
        put_columns(write, 2, repeated(stored, span, plan, size).T, (at, span.row), rows)
        stored_zero = (zero.astype(np.int16) - added) & ((1 << bits) - 1)
        packed = pack_rows(repeated(stored_zero, span, plan, size).T, bits)
        put_columns(write, 1, packed, (at, int(span.row * per_word)), rows * bits // 32)
        return exact

    def indices(codes: Codes, write: Write) -> bool:
        write(3, 0, (np.arange(plan.cols) // size).astype("<i4"))
        return True

    def pieces() -> Iterator[Piece]:
        yield indices
        for span in bands(plan, bits, size, unit=32, slab=True):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as GPTQ stores it, of the first version when all weights are symmetric."""
    own = quantized(tensors)
    bits, group = same_bits(own), one_group(own, GROUPS)
    symmetric = all(facts(w)[0].symmetric for w in own)
    model = architecture(beside)
    # Readers quantize every Linear layer of a block that no such expression exempts.
    kept = [name for name in ignored(tensors, model, linear=True) if numberless(name) != name]
    settings: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": any(module_of(w.info.name).endswith("lm_head") for w in own),
        "checkpoint_format": "gptq" if symmetric else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in kept}} if kept else {}),
    }
    notes = ["GPTQModel wants the tokenizer in the folder; mlx-lm does not load it, for its g_idx", *unknown(model)]
    if not symmetric or bits not in (4, 8):
        notes.append("vLLM loads only symmetric weights of 4 or 8 bits")
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t, group, int(symmetric)) for t in tensors},
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=notes,
    )


PROVIDES = Export(
    summary="GPTQ: qweight, qzeros, scales and g_idx, for GPTQModel, transformers and vLLM",
    accepts=Accepts(bits=(2, 3, 4, 8), groups=(16,)),
    shape=shape,
    convert=convert,
    module=not_linear,
    mixes=False,
    scale_dtype="float16",
)
