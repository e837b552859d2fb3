"""EXAONE 4: norms behind attention and feed-forward, and of each query and key."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    GATED,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    gated,
    head_norms,
    norms,
    sizes,
)
from quantcli.layouts.gguf.families._windows import every
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse

WITH_WINDOW = 64
"""Layers of the size of which llama.cpp has a window in three layers of four, and rotates only there."""


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    if s.queries != s.hidden:
        raise refuse(f"llama.cpp wants heads of {s.hidden} rows together, not {s.queries}", "head_dim")
    keys: dict[str, Any] = {}
    window = config.get("sliding_window")
    if (window is not None) != (s.layers == WITH_WINDOW):
        raise refuse(f"llama.cpp has a window with {WITH_WINDOW} layers, and no other number", "sliding_window")
    if window is not None:
        every(Config({**config.values, "sliding_window_pattern": 4}), s, 4)
        keys["attention.sliding_window"] = config.whole("sliding_window")
    layer = {
        **{name: shape for name, shape in attention(s).items() if name != "attn_norm.weight"},
        **head_norms(s),
        **norms(s.hidden, "post_attention_norm", "post_ffw_norm"),
        **gated(s.hidden, s.inner),
    }
    return decoder(config, s, config.rope(base=1e6), [layer] * s.layers, keys=keys, by_tensor=True)


FAMILY = Family(
    architecture="exaone4",
    classes=("Exaone4ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **{name: ours for name, ours in ATTENTION.items() if name != "input_layernorm"},
        **HEAD_NORMS,
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        **GATED,
    },
)
