"""Granite: a Llama with factors on embedding, attention, each layer and logits."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    TURNED,
    attention,
    biases,
    decoder_keys,
    frequencies,
    gated,
    layers,
    norms,
    outer,
    scaling,
    sizes,
    tied,
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
    s, rope = sizes(config, kv_heads=config.whole("num_attention_heads")), config.rope()
    matrices = {**attention(s), **gated(s.hidden, s.inner)}
    own = [name.removesuffix(".weight") for name in matrices if "norm" not in name]
    return Parts(
        keys={
            **decoder_keys(config, s, rope),
            **{ours: config.number(theirs, 1.0) for ours, theirs in FACTORS.items()},
            **scaling(rope),
        },
        needed={
            **outer(s.words, s.hidden, tied=tied(config)),
            **layers(s.layers, {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}),
        },
        optional=layers(s.layers, biases(matrices, *own)),
        made=frequencies(config, rope, s.head),
        tied=tied(config),
        vocabulary=s.words,
    )


FAMILY = Family(
    architecture="granite", classes=("GraniteForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, orders=TURNED
)
