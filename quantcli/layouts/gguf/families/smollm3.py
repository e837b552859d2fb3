"""SmolLM 3: a Llama that rotates nothing in every fourth layer."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    TURNED,
    attention,
    decoder,
    gated,
    no_window,
    norms,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s = sizes(config, shared=True)
    rotated = [int((i + 1) % 4 != 0) for i in range(s.layers)]
    if config.get("no_rope_layers", rotated) != rotated or config.get("no_rope_layer_interval", 4) != 4:
        raise refuse("llama.cpp leaves each 4th layer without rotation", "no_rope_layers")
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(config, s, config.rope(), [layer] * s.layers, notes=no_window(config, used=False))


FAMILY = Family(
    architecture="smollm3", classes=("SmolLM3ForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, orders=TURNED
)
