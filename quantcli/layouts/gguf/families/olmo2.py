"""OLMo 2 and 3: norms behind attention and feed-forward, and of all queries and all keys."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._parts import NORMED_BEHIND, OUTER, decoder, normed_behind, of_all_heads, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    keys: dict[str, Any] = {}
    if config.get("sliding_window") is not None:
        kinds = ["full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(s.layers)]
        if config.get("layer_types", kinds) != kinds:
            raise refuse("llama.cpp supports such models only with each 4th layer attending to all", "layer_types")
        keys["attention.sliding_window"] = config.whole("sliding_window")
        keys["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    layer = normed_behind(s, of_all_heads(s))
    return decoder(config, s, config.rope("full_attention", 5e5), [layer] * s.layers, keys=keys)


FAMILY = Family(
    architecture="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    parts=parts,
    modules=OUTER,
    layer=NORMED_BEHIND,
)
