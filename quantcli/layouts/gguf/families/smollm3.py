"""SmolLM 3: a Llama that rotates nothing in every fourth layer."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    TURNED,
    attention,
    decoder_keys,
    gated,
    layers,
    no_window,
    norms,
    outer,
    scaling,
    sizes,
    tied,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s, rope = sizes(config), config.rope()
    rotated = [int((i + 1) % 4 != 0) for i in range(s.layers)]
    if config.get("no_rope_layers", rotated) != rotated or config.get("no_rope_layer_interval", 4) != 4:
        raise refuse("llama.cpp leaves each 4th layer without rotation", "no_rope_layers")
    shared = tied(config, default=True)
    return Parts(
        keys=decoder_keys(config, s, rope) | scaling(rope),
        needed={
            **outer(s.words, s.hidden, tied=shared),
            **layers(s.layers, {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}),
        },
        tied=shared,
        vocabulary=s.words,
        notes=no_window(config, used=False),
    )


FAMILY = Family(
    architecture="smollm3", classes=("SmolLM3ForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, orders=TURNED
)
