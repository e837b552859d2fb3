"""Gemma 2: a window in every other layer, norms behind attention and behind the layer's end, capped scores."""

from __future__ import annotations

from quantcli.layouts.gguf.families._gemma import ACTIVATION, LAYER, between, check_scale, gemma_sizes
from quantcli.layouts.gguf.families._limits import every
from quantcli.layouts.gguf.families._parts import OUTER, attention, decoder, gated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_activation", ACTIVATION)
    s = gemma_sizes(config)
    check_scale(config, s, 46)
    every(config, s, 2)
    keys = {
        "attention.sliding_window": config.whole("sliding_window", 4096),
        "attn_logit_softcapping": config.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": config.number("final_logit_softcapping", 30.0),
    }
    layer = {**attention(s), **between(s), **gated(s.hidden, s.inner)}
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys)


FAMILY = Family(
    architecture="gemma2", classes=("Gemma2ForCausalLM",), parts=parts, modules=OUTER, layer=LAYER, raised=1.0
)
