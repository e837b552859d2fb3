"""Qwen 3."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder_keys,
    gated,
    head_norms,
    layers,
    no_window,
    norms,
    outer,
    scaling,
    sizes,
    tied,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s, rope = sizes(config), config.rope()
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return Parts(
        keys=decoder_keys(config, s, rope) | scaling(rope),
        needed={**outer(s.words, s.hidden, tied=tied(config)), **layers(s.layers, layer)},
        tied=tied(config),
        vocabulary=s.words,
        notes=no_window(config, used=False),
    )


FAMILY = Family(
    architecture="qwen3", classes=("Qwen3ForCausalLM",), parts=parts, modules=OUTER, layer={**DENSE, **HEAD_NORMS}
)
