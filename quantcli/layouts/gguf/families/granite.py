"""Granite: a Llama with factors on embedding, attention, each layer and logits."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    TURNED,
    attention,
    biases,
    decoder,
    gated,
    matrices,
    norms,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config

FACTORS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(
        config,
        s,
        config.rope(),
        [layer] * s.layers,
        optional=biases(layer, *matrices(layer)),
        keys={ours: config.number(theirs, 1.0) for ours, theirs in FACTORS.items()},
        by_tensor=True,
    )


FAMILY = Family(
    architecture="granite", classes=("GraniteForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, orders=TURNED
)
