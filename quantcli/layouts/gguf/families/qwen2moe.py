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
    decoder_keys,
    gated,
    layers,
    no_window,
    norms,
    outer,
    routed,
    scaling,
    sizes,
    tied,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    all_layers(config)
    chosen_add_up(config, always=False)
    s, rope = sizes(config), config.rope()
    own, inner, shared = (
        attention(s),
        config.whole("moe_intermediate_size"),
        config.whole("shared_expert_intermediate_size"),
    )
    layer = {
        **own,
        **biases(own, "attn_q", "attn_k", "attn_v"),
        **norms(s.hidden, "ffn_norm"),
        **routed(s.hidden, inner, experts_of(config)),
        **gated(s.hidden, shared, "_shexp"),
        "ffn_gate_inp_shexp.weight": (1, s.hidden),
    }
    keys = {**expert_keys(config, inner), "expert_shared_feed_forward_length": shared}
    return Parts(
        keys=decoder_keys(config, s, rope) | keys | scaling(rope),
        needed={**outer(s.words, s.hidden, tied=tied(config)), **layers(s.layers, layer)},
        tied=tied(config),
        vocabulary=s.words,
        notes=no_window(config, used=False),
    )


FAMILY = Family(
    architecture="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **SHARED},
)
