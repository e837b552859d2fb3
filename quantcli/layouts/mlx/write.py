"""Writing weights in MLX's mode `affine`, with what mlx-lm and transformers read of config.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantcli.architectures import UNNAMED, Architecture
from quantcli.architectures.experts import FLAT, Experts, Naming
from quantcli.asking import changed
from quantcli.kernels import row_bytes
from quantcli.layouts.mlx.read import GROUPS
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
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Weight, Write
from quantcli.patterns import module_of
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan


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
