"""MLX: codes along the rows, and for every group of a row a scale, and a bias where they are integers.

In the mode `affine` a weight of b bits [out, in] (or more leading dimensions) with groups of g, where g divides in, is
stored as

    X.weight   U32                [out, in*b/32]   codes u from 0 to 2^b-1 in b bits each, low bits first, across words
    X.scales   F16, BF16 or F32   [out, in/g]
    X.biases   as the scales      [out, in/g]      `qbiases` where transformers wrote it for Metal

and is scale * u + bias, here in float32. b is 2, 3, 4, 5, 6 or 8. With 4 bits the codes 0 to 7 are the bytes
`10 32 54 76`. Shapes give only b*g = 32*words/groups, so that 4 bits in groups of 64 look like 8 bits in groups of 32:
config.json decides, under `quantization` or `quantization_config`, for all modules and for single ones by name.

In the modes of small floats it is

    X.weight   U32   [out, in*b/32]   mxfp4, nvfp4: E2M1, the first of a word in its low bits; mxfp8: E4M3
    X.scales   U8    [out, in/g]      mxfp4, mxfp8: E8M0, g is 32; nvfp4: E4M3, g is 16

and is float * scale. They differ in words/groups: 4, 2 and 8; config.json must not contradict that.

Writing: `affine` with the native codes word for word, scales in their native dtype, repeated where the native groups
are larger, and the bias -zero * scale, or a float offset as it is. -2^(b-1) * scale is exact in every float dtype, so
symmetric weights lose nothing; with zero points the product is rounded to the scale's dtype. mlx-lm reads bits and
groups from `quantization`; transformers looks under `quantization_config`, so both are written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.architectures import UNNAMED, Architecture
from quantcli.architectures.experts import FLAT, Experts, Naming
from quantcli.asking import changed
from quantcli.errors import DataError, printable
from quantcli.kernels import OFFSET, CodeGrid, QuantParams, row_bytes
from quantcli.layouts.config import CONFIG_HINT, section, text, whole
from quantcli.layouts.pieces import (
    bands,
    element,
    facts,
    finer,
    not_a_matrix,
    params,
    plain,
    products_fit,
    quantized,
    repeated,
    rounded,
    words,
)
from quantcli.layouts.reader import Found, Held, Read, Reader, not_moved
from quantcli.layouts.small import held, scales, small_floats
from quantcli.layouts.stored import FLOATS, floats, part, scheme_name, wrong
from quantcli.layouts.writer import Accepts, Beside, Codes, Conversion, Job, Piece, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
"""Bits and groups of the mode `affine`."""


# ---- reading ---------------------------------------------------------------------------------------------------------


SMALL = {"mxfp4": (4, 32, "F8_E8M0"), "mxfp8": (8, 32, "F8_E8M0"), "nvfp4": (4, 16, "F8_E4M3")}
"""Modes of small floats: bits, columns of a group, and what its scale is."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    bits: int
    group: int
    cols: int
    codes: TensorInfo
    scales: TensorInfo
    biases: TensorInfo


class _Config:
    """What config.json says of modules."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        whole = section(config, "quantization") or section(config, "quantization_config")
        self._modules = whole if text(whole, "quant_method") in (None, "metal") else {}
        self._general = {key: value for key, value in self._modules.items() if not isinstance(value, dict)}

    def settings(self, name: str, path: str) -> dict[str, Any]:
        """The settings of a module."""
        own = self._modules.get(path)
        if own is False:
            raise wrong(name, "it is quantized, but config.json says it is not")
        if own is None or own is True:
            return self._general
        if not isinstance(own, dict):
            raise DataError("it is not an object", place=["config.json", printable(path)])
        return {"mode": "affine", **own}  # mlx takes nothing from the others: mlx-lm's gpt-oss has 8 bits beside MXFP4


def _bits_and_group(name: str, settings: Mapping[str, Any], width: int, groups: int) -> tuple[int, int]:
    bits, group = whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if bits is not None and bits not in BITS:
        raise wrong(name, f"{bits} bits are not supported")
    fitting = [
        (b, g)
        for b in (BITS if bits is None else (bits,))
        for g in (GROUPS if group is None else (group,))
        if width * 32 == groups * g * b
    ]
    if not fitting:
        expected = f" of {bits} bits" if bits else ""
        expected += f" in groups of {group}" if group else ""
        raise wrong(name, f"{width} words and {groups} scales in a row do not hold codes{expected}")
    if len(fitting) > 1:
        choices = " or ".join(f"{b} bits in groups of {g}" for b, g in fitting)
        raise wrong(name, f"the shapes fit {choices}", CONFIG_HINT)
    return fitting[0]


def _stored(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> _Stored:
    stem = name.removesuffix(".weight")
    settings, scales = config.settings(name, stem), f"{stem}.scales"
    biases = next((n for n in (f"{stem}.biases", f"{stem}.qbiases") if n in infos), f"{stem}.biases")
    mode = text(settings, "mode") or "affine"
    if mode != "affine":
        raise wrong(name, f"MLX mode {mode} is not supported")
    codes = part(infos, name, name, ("U32",))
    scale = part(infos, scales, name, FLOATS)
    bias = part(infos, biases, name, FLOATS)
    if len(codes.shape) < 2 or scale.shape[:-1] != codes.shape[:-1] or bias.shape != scale.shape:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, bias))
        raise wrong(name, f"codes, scales and biases do not match: {shapes}")
    bits, group = _bits_and_group(name, settings, codes.shape[-1], scale.shape[-1])
    return _Stored(name, bits, group, group * scale.shape[-1], codes, scale, bias)


def _packed(stored: _Stored, read: Read, first: int, last: int) -> Bytes:
    size = stored.codes.shape[-1] * 4
    return read(stored.codes.name, first * size, (last - first) * size)


def _params(stored: _Stored, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and biases (last - first, groups)."""
    rows, groups = last - first, stored.cols // stored.group
    scale, bias = (
        floats(read, info, stored.name, first * groups, rows * groups).reshape(rows, groups)
        for info in (stored.scales, stored.biases)
    )
    return scale, bias


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    params = QuantParams(*_params(stored, read, first, last))
    shape = last - first, stored.cols
    grid = CodeGrid(mode=OFFSET, bits=stored.bits, umin=0, umax=(1 << stored.bits) - 1)
    return kernels.load().decode(_packed(stored, read, first, last), shape, stored.group, params, grid)


def _held(stored: _Stored, read: Read) -> Held:
    return Held(
        bits=stored.bits,
        group=stored.group,
        offsets="float",
        scale_dtype=stored.scales.dtype,
        packed=partial(_packed, stored, read),
        params=partial(_params, stored, read),
    )


def _small(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> Found:
    """A weight of small floats."""
    stem = name.removesuffix(".weight")
    settings = config.settings(name, stem)
    codes, scale = part(infos, name, name, ("U32",)), part(infos, f"{stem}.scales", name, ("U8",))
    for other in ("biases", "qbiases", "global_scale"):
        if f"{stem}.{other}" in infos:
            raise wrong(name, f"{other} beside one-byte scales are not supported")
    fitting = [
        (mode, own)
        for mode, own in SMALL.items()
        if len(codes.shape) > 1
        and codes.shape[:-1] == scale.shape[:-1]
        and codes.shape[-1] * 32 == scale.shape[-1] * own[0] * own[1]
    ]
    if not fitting:
        raise wrong(name, f"codes {list(codes.shape)} and one-byte scales {list(scale.shape)} match no mode of MLX")
    mode, (bits, group, kind) = fitting[0]
    stated = text(settings, "mode") or mode, whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if stated[0] != mode or stated[1] not in (None, bits) or stated[2] not in (None, group):
        values = ", ".join(str(value) for value in stated if value is not None)
        raise wrong(name, f"its shapes are those of {mode}, but config.json says {values}")
    return Found(
        name=name,
        shape=(*codes.shape[:-1], scale.shape[-1] * group),
        scheme=mode,
        bits=bits,
        parts=(codes, scale),
        decode=partial(_decode_small, name, codes, replace(scale, dtype=kind), (bits, group)),
        dtype="BF16",
        held=partial(_held_small, name, codes, scale) if mode == "mxfp4" else not_moved,
    )


def _held_small(name: str, codes: TensorInfo, scale: TensorInfo, read: Read) -> Held:
    return held(read, codes, scale, name, codes.shape[-1] * 8)


def _decode_small(
    name: str, codes: TensorInfo, scale: TensorInfo, mode: tuple[int, int], read: Read, first: int, last: int
) -> Floats:
    bits, group = mode
    rows, groups, size = last - first, scale.shape[-1], codes.shape[-1] * 4
    own = scales(read, scale, name, first * groups, rows * groups).reshape(rows, groups)
    raw = read(codes.name, first * size, rows * size)
    return small_floats(raw, (rows, groups * group), own, group, "F4" if bits == 4 else "F8_E4M3")


def _affine(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> Found:
    stored = _stored(infos, name, config)
    return Found(
        name=name,
        shape=(*stored.codes.shape[:-1], stored.cols),
        scheme=scheme_name(stored.bits, stored.group, "float"),
        bits=stored.bits,
        parts=(stored.codes, stored.scales, stored.biases),
        decode=partial(_decode, stored),
        held=partial(_held, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as codes in 32-bit words with scales beside them, and biases where those are floats."""
    stems = [name.removesuffix(".weight") for name, i in infos.items() if i.dtype == "U32" and name.endswith(".weight")]
    stems = [stem for stem in stems if f"{stem}.scales" in infos or f"{stem}.biases" in infos]
    if not stems:
        return []
    found, stated = [], _Config(config)
    for stem in stems:
        scale = infos.get(f"{stem}.scales")
        small = scale is not None and scale.dtype == "U8"
        found.append((_small if small else _affine)(infos, f"{stem}.weight", stated))
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


def shape(weight: Weight) -> str | None:
    """Why MLX cannot store a weight: it needs whole groups of 32, 64 or 128 along the last axis."""
    _, plan = facts(weight)
    why = not_a_matrix(weight, most=64)
    if why is None and finer(plan.group, GROUPS) is None:
        return f"rows of {plan.cols} are not a multiple of 32"
    return why


def _group(weight: Weight) -> int:
    found = finer(facts(weight)[1].group, GROUPS)
    assert found is not None
    return found


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    name, group = module_of(weight.info.name), _group(weight)
    lead, groups = weight.info.shape[:-1], plan.cols // group
    outputs = (
        TensorInfo(f"{name}.weight", "U32", (*lead, plan.cols * scheme.bits // 32)),
        TensorInfo(f"{name}.scales", weight.scale_dtype, (*lead, groups)),
        TensorInfo(f"{name}.biases", weight.scale_dtype, (*lead, groups)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        at = span.row * row_bytes(plan.cols, scheme.bits) + span.col * scheme.bits // 8
        write(0, at, words(codes, span, plan, scheme.bits))
        scale, zero = params(codes, span, plan, scheme)
        exact_bias = zero.astype(np.float64) if scheme.zero_point == "float" else -zero.astype(np.float64) * scale
        bias = exact_bias.astype(np.float32)
        exact = bool(np.array_equal(bias, exact_bias))
        exact &= scheme.zero_point == "float" or products_fit(scale, scheme.bits)
        place = (span.row * groups + span.col // group) * element(weight.scale_dtype)
        for number, values in ((1, scale), (2, bias)):
            stored, same = rounded(values, weight.scale_dtype, weight.info.name, zeros=number == 2)
            write(number, place, repeated(stored, span, plan, group))
            exact &= same
        return exact

    def pieces() -> Iterator[Piece]:
        for span in bands(plan, scheme.bits, group):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")

READ = {"baichuan_m1": "lm_head", "bailing_moe": "lm_head", "bailing_moe_linear": "lm_head", "minicpm": "embed_tokens"}
"""What mlx-lm normalizes or copies while it loads models of a type."""

OWN = {
    ("bailing_moe_v3", "embedding"): 0,
    ("bailing_moe_v3", "lm-head"): 0,
    ("granite", "lm-head"): 8,
    ("granitemoe", "lm-head"): 8,
    ("muse_spark", "embedding"): 0,
    ("muse_spark", "lm-head"): 0,
    ("rwkv7", "embedding"): 8,
}
"""Bits of the tables that mlx-lm's models have rules for, in groups of 64; 0 where these say to keep them."""


def module(weight: Weight, model: Architecture) -> str | None:
    """Why mlx-lm does not load a quantized weight in this module."""
    path = module_of(weight.info.name)
    if HEAD.search(weight.info.name) and model is not UNNAMED and model.tied is not False:
        said = "true" if model.tied else "not there, which mlx-lm may take for true"
        return f"tie_word_embeddings is {said}: the embedding is the head then, and codes of another one do not load"
    if path.rpartition(".")[2] == READ.get(model.model_type):
        return "mlx-lm computes with this matrix while it loads it, which needs floating-point weights"
    if path.endswith(".kv_b_proj"):
        return "mlx-lm splits this matrix while it loads it, and quantizes the parts again"
    if model.holder(path) == "Conv1D":
        return "mlx-lm transposes this matrix while it loads it, which needs floating-point weights"
    return None


def tables(info: TensorInfo, kind: str, scheme: Scheme, model: Architecture) -> Scheme | None:
    """The scheme of an embedding or output head as mlx-lm's convert has it: that of all weights, apart from a few types
    of models. Embeddings that have a class of their own in transformers may have one in mlx-lm too, and are kept."""
    holder = model.holder(module_of(info.name))
    if holder is not None and holder != "Embedding" and not holder.endswith("ScaledWordEmbedding"):
        return None
    bits = OWN.get((model.model_type, "lm-head" if kind == "lm-head" else "embedding"), scheme.bits)
    if bits in (0, scheme.bits):
        return scheme if bits else None
    return changed(scheme, bits=bits, granularity="group", group_size=64, grid=None)


IN_EXPERTS = {"llama4", "llama4_text", "gpt_oss", "afmoe", "dots1"}
"""Types of models whose experts are stacked in `experts`; those of most are in `switch_mlp`."""


def experts(layer: Experts, types: Sequence[str], model: Architecture) -> Naming | str | None:
    """How mlx-lm wants experts: stacked, which it does itself for floating-point weights only; those of DBRX each by
    itself."""
    if "dbrx" in types:
        return Naming(stacked=False, prefix=layer.prefix.removesuffix(".mlp"), words=FLAT)
    if "qwen3_next" in types:
        return "mlx-lm takes a file with stacked experts for one whose norms it has changed before"
    if IN_EXPERTS.intersection(types):
        return Naming(stacked=True, prefix=layer.prefix)
    block = layer.prefix.removesuffix(".experts")
    own = block.removesuffix(".mlp")
    if "mixtral" in types and own != block:
        new = f"{own}.block_sparse_moe"
        return Naming(stacked=True, prefix=f"{new}.switch_mlp", home=(block, new))
    return Naming(stacked=True, prefix=f"{block}.switch_mlp")


def _settings(weight: Weight) -> tuple[int, int]:
    """Group size and bits of a weight."""
    return _group(weight), facts(weight)[0].bits


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as MLX stores it; the settings of most weights are the default, the others are named."""
    own = {module_of(w.info.name): _settings(w) for w in quantized(tensors)}
    (group, bits), _ = Counter(own.values()).most_common(1)[0]
    settings: dict[str, Any] = {"group_size": group, "bits": bits, "mode": "affine"}
    settings |= {m: {"group_size": g, "bits": b} for m, (g, b) in own.items() if (g, b) != (group, bits)}
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t) for t in tensors},
        config={"quantization": settings, "quantization_config": settings},
        header=lambda names: {"format": "mlx"},
        notes=_notes(tensors),
    )


def _notes(tensors: Sequence[Weight]) -> list[str]:
    notes = ["mlx-lm loads folders of models whose model_type it knows, from files named model*.safetensors"]
    rounded_biases = [w for w in quantized(tensors) if not facts(w)[0].symmetric and facts(w)[0].zero_point != "float"]
    if rounded_biases:
        notes.append("MLX stores -zero * scale, rounded to the scale's dtype; symmetric weights lose nothing")
    return notes


# ---- the layout ------------------------------------------------------------------------------------------------------


READS = Reader(summary="MLX: affine, mxfp4, mxfp8 and nvfp4", find=find)

WRITES = Writer(
    summary="MLX: weight, scales and biases, for mlx and mlx-lm",
    keeps="rows that are not a multiple of 32, vectors, names that do not end in .weight",
    accepts=Accepts(bits=BITS, groups=GROUPS[:1], zero_points=("int", "float")),
    shape=shape,
    convert=convert,
    module=module,
    tables=tables,
    usual={"group_size": 64},
    experts=experts,
)
