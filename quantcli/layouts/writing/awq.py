"""AWQ, its GEMM layout: 4-bit codes turned, eight outputs to a word in an order of their own.

A weight [out, in], out a multiple of 8, with groups of g becomes

    X.qweight  I32  [in, out/8]     codes u
    X.qzeros   I32  [in/g, out/8]   zero points; 8 where the weight is symmetric
    X.scales   F16  [in/g, out]     repeated where the model has smaller groups than the weight

Nibble j of word c, the lowest first, is that of output 8c + ORDER[j]: outputs 0 to 7 with the codes 0 to 7 are the
word 0x75316420. The size of the groups holds for the whole model; scales of whole rows are repeated where that makes
them groups that every reader knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.writing import Accepts, Beside, Codes, Conversion, Export, Job, Piece, Weight, Write
from quantcli.layouts.writing._parts import (
    architecture,
    bands,
    below,
    facts,
    finer,
    ignored,
    not_a_matrix,
    not_linear,
    one_group,
    params,
    plain,
    put_columns,
    quantized,
    refuse_skipped,
    repeated,
    rounded,
    turned,
    unknown,
    words,
)
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each nibble of a word belongs to."""

GROUPS = (16, 32, 64, 128, 256, 512, 1024)

COMMON = (32, 64, 128)
"""Groups that every reader knows: compressed-tensors' converter takes none of whole rows, and mlx-lm no others."""

_SWAPS = ((16, 4, 0x0000FFFF), (8, 2, 0x00FF00FF), (4, 1, 0x0F0F0F0F))


def shape(weight: Weight) -> str | None:
    """Why AWQ has no such weight: eight outputs fill a word, eight inputs a native one, and a group fits a row."""
    scheme, plan = facts(weight)
    why = not_a_matrix(weight)
    if why is not None:
        return why
    for side, what in zip(weight.info.shape, ("rows", "columns")):
        if side % 8:
            return f"{side} {what} are no multiple of 8"
    if scheme.granularity == "group" and plan.cols < (scheme.group_size or 0):
        return f"rows of {plan.cols}, shorter than a group"
    return None


def interleaved(stream: NDArray[Any], out: NDArray[Any]) -> None:
    """Put native words (outputs, inputs/8) into a matrix (inputs/8, 8, outputs/8): 8 x 8 nibbles are turned at a time,
    by exchanging halves, quarters and eighths of words."""
    rows, width = stream.shape
    slots = np.ascontiguousarray(stream.reshape(rows // 8, 8, width)[:, ORDER].transpose(1, 0, 2))
    spare = np.empty((4, rows // 8, width), np.uint32)
    for shift, step, mask in _SWAPS:
        pairs = slots.reshape(4 // step, 2, step, rows // 8, width)
        low, high = pairs[:, 0], pairs[:, 1]
        exchanged = spare.reshape(low.shape)
        np.right_shift(low, np.uint32(shift), out=exchanged)
        exchanged ^= high
        exchanged &= np.uint32(mask)
        high ^= exchanged
        exchanged <<= np.uint32(shift)
        low ^= exchanged
    for nibble in range(8):
        turned(slots[nibble], out[:, nibble])


def _words_across(zero: NDArray[Any]) -> NDArray[Any]:
    """Words (groups, outputs/8) of zero points (groups, outputs)."""
    nibbles = zero.astype(np.uint32).reshape(len(zero), -1, 8)
    found = np.zeros(nibbles.shape[:2], np.uint32)
    for place, output in enumerate(ORDER):
        found |= nibbles[:, :, output] << np.uint32(4 * place)
    return found


def _job(weight: Weight, group: int) -> Job:
    scheme, plan = facts(weight)
    module, rows = module_of(weight.info.name), plan.rows
    size = plan.cols if group == -1 else group
    groups = plan.cols // size
    outputs = (
        TensorInfo(f"{module}.qweight", "I32", (plan.cols, rows // 8)),
        TensorInfo(f"{module}.qzeros", "I32", (groups, rows // 8)),
        TensorInfo(f"{module}.scales", "F16", (groups, rows)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        slab = np.empty((span.cols // 8, 8, span.rows // 8), np.uint32)
        for part in below(span, 4, 8):
            first = (part.row - span.row) // 8
            interleaved(words(codes, part, plan, 4).view("<u4"), slab[:, :, first : first + part.rows // 8])
        put_columns(write, 0, slab.reshape(span.cols, span.rows // 8), (span.col, span.row // 8), rows // 8)
        scale, zero = params(codes, span, plan, scheme)
        stored, exact = rounded(scale, "F16", weight.info.name)
        at = span.col // size
        put_columns(write, 2, repeated(stored, span, plan, size).T, (at, span.row), rows)
        across = _words_across(repeated(zero, span, plan, size).T)
        put_columns(write, 1, across, (at, span.row // 8), rows // 8)
        return exact

    def pieces() -> Iterator[Piece]:
        for span in bands(plan, 4, size, unit=8, slab=True):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def _group(weights: Sequence[Weight]) -> int:
    """The size of the groups of a model; for whole rows the largest that every reader knows, if there is one."""
    found = one_group(weights, GROUPS)
    if found != -1:
        return found
    return finer(math.gcd(*(facts(w)[1].cols for w in weights)), COMMON) or -1


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as AWQ stores it."""
    group, model = _group(quantized(tensors)), architecture(beside)
    kept = ignored(tensors, model, linear=True)
    refuse_skipped(tensors, kept, lambda name, module: name in module)  # vLLM looks for it anywhere in a name
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept,
    }
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t, group) for t in tensors},
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=["transformers needs GPTQModel to run AWQ; vLLM and mlx-lm load it as it is", *unknown(model)],
    )


PROVIDES = Export(
    summary="AWQ (GEMM): qweight, qzeros and scales of 4 bits, for vLLM, mlx-lm, GPTQModel and transformers",
    accepts=Accepts(bits=(4,), groups=(16,)),
    shape=shape,
    convert=convert,
    module=not_linear,
    mixes=False,
    scale_dtype="float16",
)
