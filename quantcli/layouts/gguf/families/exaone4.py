"""EXAONE 4: norms behind attention and feed-forward, and of each query and key."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._limits import as_wide_as_hidden, every
from quantcli.layouts.gguf.families._parts import NORMED_BEHIND, OUTER, decoder, head_norms, normed_behind, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse

WITH_WINDOW = 64
"""Layers of the size for which llama.cpp has a window in three layers of four, and rotates only there."""


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    as_wide_as_hidden(s)
    keys: dict[str, Any] = {}
    window = config.get("sliding_window")
    if (window is not None) != (s.layers == WITH_WINDOW):
        raise refuse(f"llama.cpp has a window with {WITH_WINDOW} layers, and no other number", "sliding_window")
    if window is not None:
        config.only("sliding_window_pattern", "LLLG", 4)
        every(Config({**config.values, "sliding_window_pattern": 4}), s, 4)
        keys["attention.sliding_window"] = config.whole("sliding_window")
    layer = normed_behind(s, head_norms(s))
    return decoder(config, s, config.rope(base=1e6), [layer] * s.layers, keys=keys, by_tensor=True)


FAMILY = Family(
    architecture="exaone4",
    classes=("Exaone4ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer=NORMED_BEHIND,
)
