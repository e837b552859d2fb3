"""What mlx-lm's models are like: which weights they take quantized, how they hold experts, and which names are theirs
alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantcli import asking
from quantcli.architectures import UNNAMED, Architecture
from quantcli.architectures.experts import FLAT, GATE, MIXTRAL, ONE_BY_ONE, UNGATED, Experts, Naming
from quantcli.asking import changed
from quantcli.layouts.writer import Weight
from quantcli.patterns import module_of
from quantcli.scheme import Scheme
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")

READ: Mapping[str, Sequence[str]] = {
    "baichuan_m1": ("lm_head",),
    "bailing_moe": ("lm_head",),
    "bailing_moe_linear": ("lm_head",),
    "falcon_h1": (
        "embed_tokens", "lm_head", "q_proj", "k_proj", "o_proj", "in_proj", "out_proj", "gate_proj", "down_proj",
    ),
    "minicpm": ("embed_tokens",),
}  # fmt: skip
"""What mlx-lm normalizes, multiplies or copies while it loads models of a type."""

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


WHOLE_KV = {"deepseek_v2", "minicpm3"}
"""Types whose kv_b_proj mlx-lm leaves whole."""


def module(weight: Weight, model: Architecture) -> str | None:
    """Why mlx-lm does not load a quantized weight in this module."""
    path = module_of(weight.info.name)
    if HEAD.search(weight.info.name) and model is not UNNAMED and model.tied is not False:
        said = "true" if model.tied else "not there, which mlx-lm may take for true"
        return f"tie_word_embeddings is {said}: the embedding is the head then, and codes of another one do not load"
    if path.rpartition(".")[2] in READ.get(model.model_type, ()):
        return "mlx-lm computes with this matrix while it loads it, which needs floating-point weights"
    if path.endswith(".kv_b_proj") and model.model_type not in WHOLE_KV:
        return "mlx-lm splits this matrix while it loads it, and quantizes the parts again"
    if model.model_type == "hunyuan" and path.endswith((".qkv_proj", ".gate_and_up_proj")):
        return "mlx-lm splits this matrix while it loads it, but not its scales"
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
    if scheme.family != "int":
        return asking.Scheme(bits=bits, group_size=64)
    return changed(scheme, bits=bits, granularity="group", group_size=64, grid=None)


IN_EXPERTS = {"llama4", "llama4_text", "gpt_oss", "afmoe", "dots1", "Klear"}
"""Types of models whose experts are stacked in `experts`; those of most are in `switch_mlp`."""

WITHOUT_EXPERTS = {"llama4_text"}
"""Types that have experts in transformers, but not in mlx-lm: Llama 4 with experts is its type llama4, with vision."""

GEMMA4 = {"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"}
"""Types with experts in `experts.switch_glu`."""

IN_BLOCK = {"mixtral", "phimoe", "minimax", "minimax_m2"}
"""Types with experts in `block_sparse_moe`, wherever transformers has them."""


def experts(layer: Experts, types: Sequence[str], model: Architecture) -> Naming | str | None:
    """How mlx-lm wants experts: stacked, which it does itself for floating-point weights only; those of DBRX each by
    itself."""
    if "dbrx" in types:
        return Naming(stacked=False, prefix=layer.prefix.removesuffix(".mlp"), words=FLAT)
    if IN_EXPERTS.intersection(types):
        return Naming(stacked=True, prefix=layer.prefix)
    if GEMMA4.intersection(types):
        return Naming(stacked=True, prefix=f"{layer.prefix}.switch_glu")
    block = layer.prefix.removesuffix(".experts")
    own = block.removesuffix(".mlp")
    if IN_BLOCK.intersection(types) and own != block:
        new = f"{own}.block_sparse_moe"
        return Naming(stacked=True, prefix=f"{new}.switch_mlp", home=(block, new))
    own = block.removesuffix(".block_sparse_moe")
    if "kimi_linear" in types and own != block:  # whose other modules mlx-lm moves, where they are not quantized
        home = (f"{block}.shared_experts", f"{own}.mlp.shared_experts")
        return Naming(stacked=True, prefix=f"{own}.mlp.switch_mlp", home=home)
    words = ONE_BY_ONE if GATE in layer.weights else UNGATED
    return Naming(stacked=True, prefix=f"{block}.switch_mlp", words=words)


# ---- matrices under other names ---------------------------------------------------------------------------------


_OF_LFM2 = re.compile(r"(.*\.layers\.\d+\.feed_forward)\.(w1|w2|w3)\.weight")
_OF_GRANITE = re.compile(r"(.*\.layers\.\d+)\.shared_mlp\.(input_linear|output_linear)\.weight")


def rebuilt(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Sequence[Rebuilt]]:
    """Matrices that mlx-lm renames or splits while it loads them, their codes but not their scales: here that is done
    before."""
    kind = config.get("model_type")
    if kind == "lfm2_moe":
        words = dict(zip(MIXTRAL, ONE_BY_ONE))
        found = ((info, _OF_LFM2.fullmatch(info.name)) for info in infos)
        return {info.name: [_part(info, f"{m[1]}.{words[m[2]]}.weight")] for info, m in found if m}
    if kind == "granitemoehybrid" and not config.get("num_local_experts"):
        found = ((info, _OF_GRANITE.fullmatch(info.name)) for info in infos)
        return {info.name: _of_granite(info, m[1], m[2]) for info, m in found if m and len(info.shape) == 2}
    return {}


def _of_granite(info: TensorInfo, layer: str, word: str) -> list[Rebuilt]:
    """Gate and up of a Granite without experts, or down."""
    if word == "output_linear":
        return [_part(info, f"{layer}.mlp.down_proj.weight")]
    return [_part(info, f"{layer}.mlp.{name}.weight", place, 2) for place, name in enumerate(("gate_proj", "up_proj"))]


def _part(info: TensorInfo, name: str, place: int = 0, parts: int = 1) -> Rebuilt:
    """One of several equal parts of the rows of a matrix, under a name."""
    rows, cols = info.shape[0] // parts, info.shape[1]
    matrix = Matrix(name=info.name, rows=rows, cols=cols, first=place * rows * cols)
    return Rebuilt(name, (rows, cols), (matrix,))


# ---- names that tell whose model it is --------------------------------------------------------------------------


_OWN = re.compile(
    r"\.(?:switch_mlp|switch_glu|embed_q|unembed_out|gate\.gate_proj)\."
    r"|\bexperts\.(?:gate_proj|up_proj|down_proj)\.(?:weight|bias)$"
)
_OWN_OF_TYPES = {
    "dbrx": r".*\.ffn\.experts\.\d+\.(?:w1|v1|w2)\.weight$",
    **dict.fromkeys(("gemma4", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"), r"language_model\.model\."),
    "granitemoehybrid": r".*\.layers\.\d+\.mlp\.",
    "kimi_linear": r".*\.layers\.\d+\.mlp\.(?:shared_)?experts\.",
    "lfm2_moe": r".*\.feed_forward\.(?:gate|up|down)_proj\.",
}
"""Names of tensors that only mlx-lm has, in models of any type and of a type."""


def own_name(names: Iterable[str], types: Sequence[str]) -> str | None:
    """The first of the names of a model's tensors that only mlx-lm has; None where all are those of other tools too.
    types: of the model."""
    own = [re.compile(_OWN_OF_TYPES[name]) for name in types if name in _OWN_OF_TYPES]
    return next((n for n in names if _OWN.search(n) or any(pattern.match(n) for pattern in own)), None)
