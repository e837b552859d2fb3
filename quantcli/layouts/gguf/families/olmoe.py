"""OLMoE: experts in all layers, and norms of all queries and all keys."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import as_many_keys
from quantcli.layouts.gguf.families._moe import chosen_add_up, experts_of
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("tie_word_embeddings", False)
    if config.get("clip_qkv") is not None:
        raise refuse("llama.cpp does not clip queries, keys and values of such models", "clip_qkv")
    chosen_add_up(config, always=False)
    s, count = sizes(config, kv_heads=config.whole("num_attention_heads")), experts_of(config)
    as_many_keys(s)
    layer = {
        **attention(s),
        **norms(s.hidden, "attn_q_norm", "attn_k_norm", "ffn_norm"),
        **routed(s.hidden, s.inner, count),
    }
    keys = {"expert_count": count, "expert_used_count": config.whole("num_experts_per_tok", 8)}
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys)


FAMILY = Family(
    architecture="olmoe",
    classes=("OlmoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **HEAD_NORMS},
)
