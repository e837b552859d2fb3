"""Qwen 2 and 2.5."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    attention,
    biases,
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
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s, rope = sizes(config), config.rope()
    own = attention(s)
    layer = {
        **own,
        **biases(own, "attn_q", "attn_k", "attn_v"),
        **norms(s.hidden, "ffn_norm"),
        **gated(s.hidden, s.inner),
    }
    return Parts(
        keys=decoder_keys(config, s, rope) | scaling(rope),
        needed={**outer(s.words, s.hidden, tied=tied(config)), **layers(s.layers, layer)},
        tied=tied(config),
        vocabulary=s.words,
        notes=no_window(config, used=False),
    )


FAMILY = Family(architecture="qwen2", classes=("Qwen2ForCausalLM",), parts=parts, modules=OUTER, layer=DENSE)
