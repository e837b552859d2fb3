"""AWQ, its GEMM layout: 4-bit codes of the transposed weight, eight output columns to a word, in an interleaved order.

A weight [out, in] with groups of g along in, where 8 divides out, is stored transposed, as

    X.qweight  I32                [in, out/8]     codes u from 0 to 15
    X.qzeros   I32                [in/g, out/8]   zero points z from 0 to 15
    X.scales   F16, BF16 or F32   [in/g, out]

and is (u - z) * scale, here in float32. Nibble j of word c, the lowest first, belongs to output 8c + ORDER[j]: outputs
0 to 7 with the codes 0 to 7 are the word 0x75316420. `quantization_config` of config.json says quant_method awq, 4
bits, the size of the groups (-1 for whole rows), and the version gemm.

Writing: scales are F16, and the zero point of a symmetric
weight is 8. The size of the groups holds for the whole model: parameters are repeated where it has smaller groups than
the weight, and scales of whole rows where that gives groups that every reader supports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import row_bytes
from quantcli.layouts import transposed
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.config import architecture, section, text, whole
from quantcli.layouts.loaders import ignored, loads_experts, not_linear, one_by_one, refuse_skipped, unknown
from quantcli.layouts.pieces import (
    bands,
    below,
    facts,
    finer,
    not_a_matrix,
    one_group,
    or_copied,
    params,
    put_columns,
    quantized,
    repeated,
    rounded,
    turned,
    words,
)
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.stored import (
    FLOATS,
    across_outputs,
    columns,
    float_columns,
    group_size,
    grouping,
    matrix,
    part,
    qweights,
    scheme_name,
    wrong,
)
from quantcli.layouts.transposed import Bands, Rows, strips
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Runtime, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.stores.pages import paged
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output, of eight, that each nibble of a word belongs to."""


# ---- reading ---------------------------------------------------------------------------------------------------------


SHIFTS = np.array([4 * ORDER.index(output) for output in range(8)], np.uint32)
"""Bit positions of the nibbles of outputs 0 to 7."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    rows: int
    cols: int
    group: int
    label: int | str
    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo


def _check_variant(name: str, settings: Mapping[str, Any]) -> None:
    if text(settings, "quant_method") != "awq":
        return
    version = text(settings, "version") or text(settings, "checkpoint_format") or "gemm"
    if version != "gemm":
        raise wrong(name, f"AWQ version {version} is not supported")
    bits = whole(settings, "bits", 1, 16)
    if bits not in (None, 4):
        raise wrong(name, f"AWQ of {bits} bits is not supported")


def _stored(infos: Mapping[str, TensorInfo], name: str, settings: Mapping[str, Any]) -> _Stored:
    stem = name.removesuffix(".weight")
    _check_variant(name, settings)
    codes = part(infos, f"{stem}.qweight", name, ("I32",))
    zeros = part(infos, f"{stem}.qzeros", name, ("I32",))
    scales = part(infos, f"{stem}.scales", name, FLOATS)
    (cols, width), (groups, rows) = matrix(codes, name), matrix(scales, name)
    if width * 8 != rows or matrix(zeros, name) != (groups, width) or cols % groups:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, zeros, scales))
        raise wrong(name, f"codes, zero points and scales do not match: {shapes}")
    label = grouping(group_size(settings, name, groups, cols), groups, cols)
    return _Stored(name, rows, cols, cols // groups, label, codes, zeros, scales)


def _outputs(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Codes (8 * width, rows) by output of words (rows, width)."""
    turned = np.ascontiguousarray(words.T)
    found, spare = np.empty((words.shape[1], 8, len(words)), np.uint8), np.empty_like(turned)
    for output, shift in enumerate(SHIFTS):
        np.right_shift(turned, shift, out=spare)
        found[:, output] = spare.view(np.uint8)[:, ::4]
    found &= np.uint8(15)
    return found.reshape(-1, len(words))


def _params(stored: _Stored, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and zero points of outputs first to last (last - first, groups)."""
    start = first // 8
    zero = _outputs(columns(read, stored.zeros, start, -(-last // 8)))[first - start * 8 : last - start * 8]
    return float_columns(read, stored.scales, stored.name, first, last), zero.astype(np.float32)


def _rows(stored: _Stored, read: Read, first: int, last: int) -> Rows:
    """Outputs first to last, the first of which is a multiple of 8."""
    start, end, count = first // 8, -(-last // 8), last - first
    codes = paged(count * row_bytes(stored.cols, 4)).reshape(count, -1)
    for row, strip in strips(read, stored.codes, start, end):
        codes[:, row // 2 : row // 2 + row_bytes(len(strip), 4)] = packing.pack(_outputs(strip)[:count], 4)
    scale, zero = _params(stored, read, first, last)
    return Rows(codes=codes, scale=scale, zero=zero, group_of=stored.group)


def _decode(stored: _Stored, bands: Bands, read: Read, first: int, last: int) -> Floats:
    shape = stored.rows, stored.cols
    return transposed.decode(bands, stored.name, (first, last), shape, 4, partial(_rows, stored, read))


def _held(stored: _Stored, bands: Bands, read: Read) -> Held:
    """The codes and parameters by output."""
    return transposed.held(
        bands,
        stored.name,
        (stored.rows, stored.cols),
        4,
        partial(_rows, stored, read),
        partial(_params, stored, read),
        group=stored.label,
        scale_dtype=stored.scales.dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that are stored as eight output columns to a word."""
    settings = section(config, "quantization_config")
    method, bands, found = text(settings, "quant_method"), Bands(), []
    for stem in qweights(infos):
        if not across_outputs(infos, stem, method):
            continue
        stored = _stored(infos, f"{stem}.weight", settings)
        found.append(
            Found(
                name=stored.name,
                shape=(stored.rows, stored.cols),
                scheme=scheme_name(4, stored.label, "" if settings.get("zero_point") is False else "int"),
                bits=4,
                parts=(stored.codes, stored.zeros, stored.scales),
                decode=partial(_decode, stored, bands),
                dtype=stored.scales.dtype,
                held=partial(_held, stored, bands),
            )
        )
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


GROUPS = (16, 32, 64, 128, 256, 512, 1024)

COMMON = (32, 64, 128)
"""Groups that every reader supports: compressed-tensors' converter does not support whole rows, and mlx-lm no other
sizes."""

_SWAPS = ((16, 4, 0x0000FFFF), (8, 2, 0x00FF00FF), (4, 1, 0x0F0F0F0F))


def shape(weight: Weight) -> str | None:
    """Why AWQ cannot store a weight: eight outputs fill a word, eight inputs a native one, and a group fits a row."""
    scheme, plan = facts(weight)
    why = not_a_matrix(weight)
    if why is not None:
        return why
    for side, what in zip(weight.info.shape, ("rows", "columns")):
        if side % 8:
            return f"{side} {what} are not a multiple of 8"
    if scheme.granularity == "group" and plan.cols < (scheme.group_size or 0):
        return f"rows of {plan.cols} are shorter than a group"
    return None


def interleaved(stream: NDArray[Any], out: NDArray[Any]) -> None:
    """Put native words (outputs, inputs/8) into a matrix (inputs/8, 8, outputs/8): 8 x 8 nibbles are transposed at a
    time, by exchanging halves, quarters and eighths of words."""
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
        for strip in below(span, 4, 8):
            first = (strip.row - span.row) // 8
            interleaved(words(codes, strip, plan, 4).view("<u4"), slab[:, :, first : first + strip.rows // 8])
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


def _group(weights: Iterable[Weight]) -> int:
    """The size of the groups of a model; for whole rows the largest that every reader supports, if there is one."""
    found = one_group(weights, GROUPS)
    if found != -1:
        return found
    return finer(math.gcd(*{facts(w)[1].cols for w in weights}), COMMON) or -1


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as AWQ stores it."""
    group, model = _group(quantized(tensors)), architecture(beside)
    kept = ignored(tensors, model, linear=True)
    refuse_skipped(tensors, kept, lambda name, module: name in module)  # vLLM searches for it anywhere in a name
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept,
    }
    return Conversion(
        job=or_copied(partial(_job, group=group)),
        stem=module_of,
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=[
            "transformers needs GPTQModel to run AWQ; vLLM and mlx-lm load it as it is",
            *unknown(model),
            *loads_experts(tensors, model),
        ],
    )


# ---- the layout ------------------------------------------------------------------------------------------------------


READS = Reader(summary="AWQ (GEMM): qweight, qzeros and scales of 4 bits", find=find)

WRITES = Writer(
    summary="AWQ (GEMM): qweight, qzeros and scales of 4 bits, for vLLM, mlx-lm, GPTQModel and transformers",
    keeps="sides that are not a multiple of 8, rows shorter than a group, all but matrices named *.weight",
    accepts=Accepts(bits=(4,), groups=(16,)),
    shape=shape,
    convert=convert,
    module=not_linear,
    experts=one_by_one,
    mixes=False,
    joins=True,
    runtimes=(
        Runtime(
            name="vLLM, GPTQModel",
            command="quantize MODEL --bits 4 --to awq",
            limits="the layout, not the algorithm",
        ),
    ),
    scale_dtype="float16",
)
