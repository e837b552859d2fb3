"""Gemma: norms are 1 larger in the GGUF, and there is no head."""

from __future__ import annotations

from quantcli.layouts.gguf.families._gemma import ACTIVATION, gemma_sizes
from quantcli.layouts.gguf.families._parts import DENSE, OUTER, attention, decoder, gated, norms
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_activation", ACTIVATION)
    s = gemma_sizes(config)
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(config, s, config.rope(), [layer] * s.layers)


FAMILY = Family(
    architecture="gemma", classes=("GemmaForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, raised=1.0
)
