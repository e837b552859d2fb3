"""Qwen 2 with experts."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import all_layers, chosen_add_up, expert_keys, experts_of
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    OUTER,
    SHARED,
    attention,
    biases,
    decoder,
    gated,
    no_window,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    all_layers(config)
    chosen_add_up(config, always=False)
    s, inner = sizes(config), config.whole("moe_intermediate_size")
    shared = config.whole("shared_expert_intermediate_size")
    layer = {
        **attention(s),
        **biases(attention(s), "attn_q", "attn_k", "attn_v"),
        **norms(s.hidden, "ffn_norm"),
        **routed(s.hidden, inner, experts_of(config)),
        **gated(s.hidden, shared, "_shexp"),
        "ffn_gate_inp_shexp.weight": (1, s.hidden),
    }
    keys = {**expert_keys(config, inner), "expert_shared_feed_forward_length": shared}
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys, notes=no_window(config, used=False))


FAMILY = Family(
    architecture="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **SHARED},
)
