"""Gemma: norms are 1 larger in the GGUF, and there is no head."""

from __future__ import annotations

from quantcli.layouts.gguf.families._gemma import ACTIVATION, gemma_sizes
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    attention,
    decoder_keys,
    gated,
    layers,
    norms,
    outer,
    scaling,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_activation", ACTIVATION)
    s, rope = gemma_sizes(config), config.rope()
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return Parts(
        keys=decoder_keys(config, s, rope) | scaling(rope),
        needed={**outer(s.words, s.hidden, tied=True), **layers(s.layers, layer)},
        tied=True,
        vocabulary=s.words,
    )


FAMILY = Family(
    architecture="gemma", classes=("GemmaForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, raised=1.0
)
