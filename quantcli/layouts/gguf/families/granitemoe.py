"""Granite 3 with experts: a Llama with experts, and factors on embedding, attention, each layer and logits."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    EXPERTS,
    OUTER,
    TURNED,
    attention,
    decoder,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.families.granite import FACTORS
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("shared_intermediate_size", 0)  # such experts are those of another class
    s, count = sizes(config, kv_heads=config.whole("num_attention_heads")), config.whole("num_local_experts", 8)
    keys = {
        **{ours: config.number(theirs, 1.0) for ours, theirs in FACTORS.items()},
        "expert_count": count,
        "expert_used_count": config.whole("num_experts_per_tok", 2),
    }
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **routed(s.hidden, s.inner, count)}
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys, by_tensor=True)


FAMILY = Family(
    architecture="granitemoe",
    classes=("GraniteMoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        "post_attention_layernorm": "ffn_norm",
        "mlp.router.layer": "ffn_gate_inp",
        **EXPERTS,
    },
    orders=TURNED,
)
