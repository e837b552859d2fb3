"""gpt-oss: experts with biases, sinks of attention, a window in every other layer."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    EXPERTS,
    OUTER,
    attention,
    biases,
    decoder,
    matrices,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    s, rope, count = sizes(config), config.rope(base=150000.0), config.whole("num_local_experts")
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(s.layers)]
    if config.get("layer_types", kinds) != kinds:
        raise refuse("llama.cpp supports such models only with a window in each first layer of two", "layer_types")
    rounded = rope.kind == "yarn" and rope.values.get("truncate") is False
    layer = {**attention(s), **routed(s.hidden, s.inner, count)}
    layer |= {**biases(layer, *matrices(layer)), **norms(s.hidden, "post_attention_norm")}
    keys = {
        "attention.sliding_window": config.whole("sliding_window"),
        "expert_count": count,
        "expert_used_count": config.whole("num_experts_per_tok", config.get("experts_per_token")),
        "expert_feed_forward_length": s.inner,
    }
    return decoder(
        config,
        s,
        rope,
        [{**layer, "attn_sinks.weight": (s.heads,)}] * s.layers,
        keys=keys,
        scaled_by=("beta_fast", "beta_slow", "truncate"),
        notes=["llama.cpp rounds the range in which YaRN blends frequencies"] if rounded else [],
    )


FAMILY = Family(
    architecture="gpt-oss",
    classes=("GptOssForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        **EXPERTS,
        "mlp.router": "ffn_gate_inp",
        "self_attn.sinks": "attn_sinks.weight",
        "post_attention_layernorm": "post_attention_norm",
    },
)
