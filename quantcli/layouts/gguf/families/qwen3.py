"""Qwen 3."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    gated,
    head_norms,
    no_window,
    norms,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s = sizes(config)
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(config, s, config.rope(), [layer] * s.layers, notes=no_window(config, used=False))


FAMILY = Family(
    architecture="qwen3", classes=("Qwen3ForCausalLM",), parts=parts, modules=OUTER, layer={**DENSE, **HEAD_NORMS}
)
