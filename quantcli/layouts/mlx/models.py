"""What mlx-lm's models are like: which weights they take quantized, and how they hold experts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantcli import asking
from quantcli.architectures import UNNAMED, Architecture
from quantcli.architectures.experts import FLAT, Experts, Naming
from quantcli.asking import changed
from quantcli.layouts.writer import Weight
from quantcli.patterns import module_of
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo

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
    if scheme.family != "int":
        return asking.Scheme(bits=bits, group_size=64)
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
