"""GPTQ: codes down the columns of the transposed weight, zero points along the outputs, a group for every input.

A weight of b bits [out, in] (b is 2, 3, 4 or 8) is stored transposed, in G groups of inputs, as

    X.qweight  I32                [in*b/32, out]   codes u from 0 to 2^b-1; the stream of a column runs down the words
    X.qzeros   I32                [G, out*b/32]    zero points, the stream running along the outputs
    X.scales   F16, BF16 or F32   [G, out]
    X.g_idx    I32                [in]             the group of every input; left out, inputs i*g to i*g+g-1 are group i

and is (u - z) * scale, here in float32. A stream holds b bits for each value, low bits first, across words. `gptq_v2`
stores z; `gptq`, the first version, stores z-1 in b bits, so that 4-bit zero points of 8 are words 0x77777777 and
0x88888888 in the second. No tensor tells the two apart: `checkpoint_format` in config.json does, and stands for the
first where it is missing. AutoRound's own models say it as `packing_format`.

Writing: both sides are multiples of 32, scales are F16, and
parameters are repeated where the model has smaller groups than the weight. Symmetric models are the first version.
Loaders add the one back to whole words, so that a zero point of 0 would carry into its neighbour: models with zero
points of their own are the second. Bits, groups and version hold for the whole model; kept layers are listed under
`dynamic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.architectures import numberless
from quantcli.layouts import transposed
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.config import CONFIG_HINT, architecture, section, text, whole
from quantcli.layouts.loaders import ignored, loads_experts, not_linear, one_by_one, unknown
from quantcli.layouts.pieces import (
    bands,
    below,
    facts,
    not_a_matrix,
    one_group,
    or_copied,
    pack_rows,
    params,
    put_columns,
    quantized,
    repeated,
    rounded,
    same_bits,
    turned,
    words,
)
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.regrouped import Regrouped, by_index
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
from quantcli.layouts.transposed import Bands, Rows, as_rows
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Runtime, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""The number to add to a stored zero point."""
PACKINGS = {"auto_round:auto_gptq": 1, "auto_round": 0, "auto_round:gptqmodel": 0}
"""The same by `packing_format` of AutoRound, which packs symmetric models as the first version, others as the second:
qlinear_torch_zp.py and qlinear_torch.py of auto_round_extension 0.15."""
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
"""Files by which a tokenizer is found."""


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    bits: int
    rows: int
    cols: int
    groups: int
    size: int | None
    added: int
    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo
    indices: TensorInfo | None


def _added(name: str, settings: Mapping[str, Any]) -> int:
    """The number to add to a stored zero point, by the version in config.json."""
    method = text(settings, "quant_method")
    if method is None:
        raise wrong(name, "the tensors do not tell GPTQ's first version from its second", CONFIG_HINT)
    packed = text(settings, "packing_format")
    if method in ("auto-round", "intel/auto-round") and packed in PACKINGS:
        return PACKINGS[packed]
    version = text(settings, "checkpoint_format") or text(settings, "format") or "gptq"
    if method != "gptq" or version not in VERSIONS:
        raise wrong(name, f"GPTQ as {version if method == 'gptq' else method} is not supported")
    return VERSIONS[version]


def _bits(name: str, height: int, cols: int | None, settings: Mapping[str, Any]) -> int:
    """Bits of a code: from the shapes where the number of inputs is known (config.json must agree), else from
    config.json."""
    stated = whole(settings, "bits", 1, 32)
    if settings.get("dynamic") and cols is not None:
        stated = None
    bits = stated if cols is None else height * 32 // cols
    if bits is None:
        raise wrong(name, "without g_idx the shapes fit several bit widths", CONFIG_HINT)
    if bits not in BITS or (cols is not None and height * 32 != bits * cols):
        raise wrong(name, f"{height} words do not hold codes of {f'{bits} bits' if cols is None else f'{cols} inputs'}")
    if stated not in (None, bits):
        raise wrong(name, f"its codes have {bits} bits, but config.json says {stated}")
    return bits


def _stored(infos: Mapping[str, TensorInfo], name: str, settings: Mapping[str, Any]) -> _Stored:
    stem = name.removesuffix(".weight")
    codes = part(infos, f"{stem}.qweight", name, ("I32",))
    zeros = part(infos, f"{stem}.qzeros", name, ("I32",))
    scales = part(infos, f"{stem}.scales", name, FLOATS)
    indices = part(infos, f"{stem}.g_idx", name, ("I32", "I64")) if f"{stem}.g_idx" in infos else None
    (height, rows), (groups, outputs) = matrix(codes, name), matrix(scales, name)
    bits = _bits(name, height, indices.numel if indices else None, settings)
    if outputs != rows or rows * bits % 32 or matrix(zeros, name) != (groups, rows * bits // 32) or height * 32 % bits:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, zeros, scales))
        raise wrong(name, f"codes, zero points and scales of {bits} bits do not match: {shapes}")
    cols = height * 32 // bits
    size = None if settings.get("dynamic") else group_size(settings, name, groups, cols)
    if indices is None and size is None and cols % groups:
        raise wrong(name, f"{groups} groups of {cols} inputs differ in size", CONFIG_HINT)
    return _Stored(name, bits, rows, cols, groups, size, _added(name, settings), codes, zeros, scales, indices)


def _group_of(stored: _Stored, read: Read) -> int | NDArray[np.intp]:
    """The size of the groups, or the group of every input where groups are not runs of inputs."""
    if stored.indices is None:
        size = stored.cols // stored.groups if stored.size is None else stored.size
        return stored.cols if size == -1 else size
    raw = read(stored.indices.name, 0, stored.indices.nbytes)
    found = raw.view("<i4" if stored.indices.dtype == "I32" else "<i8").astype(np.intp)
    if found.min() < 0 or found.max() >= stored.groups:
        raise wrong(stored.name, f"g_idx names a group beyond the {stored.groups} there are")
    size = -(-stored.cols // stored.groups)
    return size if np.array_equal(found, np.arange(stored.cols) // size) else found


def _zeros(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """Zero points (last - first, groups) of outputs first to last."""
    bits, start = stored.bits, first // 32 * 32
    count = min(-(-last // 32) * 32, stored.rows) - start
    packed = np.ascontiguousarray(columns(read, stored.zeros, start * bits // 32, (start + count) * bits // 32))
    codes = packing.unpack(packed.view(np.uint8), stored.groups, count, bits)[:, first - start : last - start]
    zeros = (codes.T.astype(np.uint16) + np.uint16(stored.added)) & np.uint16((1 << bits) - 1)
    return np.array(zeros, np.float32, order="C")


def _params(stored: _Stored, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and zero points of outputs first to last (last - first, groups)."""
    return float_columns(read, stored.scales, stored.name, first, last), _zeros(stored, read, first, last)


def _rows(stored: _Stored, read: Read, first: int, last: int) -> Rows:
    """Outputs first to last."""
    scale, zero = _params(stored, read, first, last)
    codes = as_rows(read, stored.codes, first, last).view(np.uint8)
    return Rows(codes=codes, scale=scale, zero=zero, group_of=_group_of(stored, read))


def _decode(stored: _Stored, bands: Bands, read: Read, first: int, last: int) -> Floats:
    shape = stored.rows, stored.cols
    return transposed.decode(bands, stored.name, (first, last), shape, stored.bits, partial(_rows, stored, read))


def _held(stored: _Stored, label: int | str, bands: Bands, read: Read) -> Held | str:
    """The codes, whose words become rows as they are, unless the groups are not runs of inputs."""
    if not isinstance(_group_of(stored, read), int):
        return "its groups are not runs of inputs (desc_act)"
    return transposed.held(
        bands,
        stored.name,
        (stored.rows, stored.cols),
        stored.bits,
        partial(_rows, stored, read),
        partial(_params, stored, read),
        group=label,
        scale_dtype=stored.scales.dtype,
    )


def _regrouped(stored: _Stored, read: Read) -> Regrouped | None:
    """How groups lie in it where they are not runs of inputs."""
    found = _group_of(stored, read)
    if isinstance(found, int):
        return None
    scale, zero = _params(stored, read, 0, stored.rows)
    return by_index((stored.rows, stored.cols), found, scale, zero, stored.bits, stored.scales.dtype)


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that are stored as codes running down the inputs."""
    settings = section(config, "quantization_config")
    bands, found = Bands(), []
    for stem in qweights(infos):
        if across_outputs(infos, stem, text(settings, "quant_method")):
            continue
        stored = _stored(infos, f"{stem}.weight", settings)
        group = grouping(stored.size, stored.groups, stored.cols)
        indices = (stored.indices,) if stored.indices else ()
        found.append(
            Found(
                name=stored.name,
                shape=(stored.rows, stored.cols),
                scheme=scheme_name(stored.bits, group, "" if settings.get("sym") is True else "int"),
                bits=stored.bits,
                parts=(stored.codes, stored.zeros, stored.scales, *indices),
                decode=partial(_decode, stored, bands),
                dtype=stored.scales.dtype,
                held=partial(_held, stored, group, bands),
                regrouped=partial(_regrouped, stored),
            )
        )
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def shape(weight: Weight) -> str | None:
    """Why GPTQ cannot store a weight: both sides must fill whole words of 32 codes."""
    why = not_a_matrix(weight)
    if why is None and (odd := [n for n in weight.info.shape if n % 32]):
        return f"{odd[0]} {'rows' if weight.info.shape[0] % 32 else 'columns'} are not a multiple of 32"
    return why


def _job(weight: Weight, group: int, added: int) -> Job:
    """The tensors of a weight. group: of the model, -1 for whole rows. added: what loaders add to a stored zero
    point."""
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
        for strip in below(span, bits, 32):
            first = strip.row - span.row
            turned(words(codes, strip, plan, bits).view("<u4"), slab[:, first : first + strip.rows])
        put_columns(write, 0, slab, (span.col * bits // 32, span.row), rows)
        scale, zero = params(codes, span, plan, scheme)
        stored, exact = rounded(scale, "F16", weight.info.name)
        at = span.col // size
        put_columns(write, 2, repeated(stored, span, plan, size).T, (at, span.row), rows)
        stored_zero = zero.astype(np.int16) - added  # never negative: what is added is 0 but for symmetric weights
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
    version = "gptq" if symmetric else "gptq_v2"
    settings: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": any(module_of(w.info.name).endswith("lm_head") for w in own),
        "checkpoint_format": version,
        "pack_dtype": "int32",
        **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in kept}} if kept else {}),
    }
    notes = [
        *([] if any(map(beside, TOKENIZERS)) else ["GPTQModel needs the tokenizer in the folder"]),
        "mlx-lm does not load the model because of g_idx",
        *unknown(model),
        *loads_experts(tensors, model),
    ]
    if not symmetric or bits not in (4, 8):
        notes.append("vLLM loads only symmetric weights of 4 or 8 bits")
    return Conversion(
        job=or_copied(partial(_job, group=group, added=VERSIONS[version])),
        stem=module_of,
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=notes,
    )


# ---- the layout ------------------------------------------------------------------------------------------------------


READS = Reader(summary="GPTQ, both versions: qweight, qzeros, scales and g_idx", find=find)

WRITES = Writer(
    summary="GPTQ: qweight, qzeros, scales and g_idx, for GPTQModel, transformers and vLLM",
    keeps="sides that are not a multiple of 32, all but matrices named *.weight",
    accepts=Accepts(bits=BITS, groups=(16,)),
    shape=shape,
    convert=convert,
    module=not_linear,
    experts=one_by_one,
    mixes=False,
    joins=True,
    runtimes=(
        Runtime(
            name="GPTQModel, vLLM",
            command="quantize MODEL --bits 4 --to gptq",
            limits="the layout; one width for a model, vLLM loads 4 and 8 bits",
        ),
    ),
    scale_dtype="float16",
)
