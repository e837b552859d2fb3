"""Command R7B and A (Cohere 2): attention beside feed-forward, no rotation in each layer that attends to all."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import every, head_tied
from quantcli.layouts.gguf.families._parts import ATTENTION, GATED, OUTER, attention, decoder, gated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s = head_tied(config)
    every(config, s, 4)
    return decoder(
        config,
        s,
        config.rope(),
        [{**attention(s), **gated(s.hidden, s.inner)}] * s.layers,
        keys={
            "logit_scale": config.number("logit_scale", 0.0625),
            "attention.sliding_window": config.whole("sliding_window", 4096),
        },
        epsilon="layer_norm_eps",
    )


FAMILY = Family(
    architecture="cohere2", classes=("Cohere2ForCausalLM",), parts=parts, modules=OUTER, layer={**ATTENTION, **GATED}
)
