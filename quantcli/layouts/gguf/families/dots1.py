"""dots.llm1: experts weighed by a sigmoid in all but the first layers, and norms of each query and key."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import as_many_keys
from quantcli.layouts.gguf.families._moe import ROUTED_AND_SHARED, behind_dense, shared_experts, sigmoid_keys
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    head_norms,
    no_window,
    norms,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("n_group", 1)
    config.only("tie_word_embeddings", False)
    s, dense = sizes(config), config.whole("first_k_dense_replace", 0, least=0)
    as_many_keys(s)
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm")}
    return decoder(
        config,
        s,
        config.rope(),
        behind_dense(s, layer, dense, shared_experts(config, s.hidden)),
        keys={**sigmoid_keys(config), "leading_dense_block_count": dense},
        notes=no_window(config, used=False),
    )


FAMILY = Family(
    architecture="dots1",
    classes=("Dots1ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **ROUTED_AND_SHARED, **HEAD_NORMS},
)
