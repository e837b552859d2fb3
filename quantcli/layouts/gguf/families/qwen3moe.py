"""Qwen 3 with experts."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import all_layers, chosen_add_up, expert_keys, experts_of
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    head_norms,
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
    chosen_add_up(config, always=True)
    s, inner = sizes(config), config.whole("moe_intermediate_size")
    experts = routed(s.hidden, inner, experts_of(config))
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm"), **experts}
    keys = expert_keys(config, inner)
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys, notes=no_window(config, used=False))


FAMILY = Family(
    architecture="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **HEAD_NORMS},
)
