"""Gemma 3, of models with vision the part that reads text: a window in five of six layers, and norms of heads."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._gemma import ACTIVATION, LAYER, between, check_scale, gemma_sizes
from quantcli.layouts.gguf.families._limits import every
from quantcli.layouts.gguf.families._parts import HEAD_NORMS, OUTER, attention, decoder, gated, head_norms
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse

USUAL = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "head_dim": 256,
}
"""What transformers takes where a config.json does not say it, as those of the models with vision do not."""


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config = Config({**USUAL, **{key: value for key, value in config.values.items() if value is not None}})
    config.only("hidden_activation", ACTIVATION)
    config.only("attn_logit_softcapping")
    s, rope = gemma_sizes(config), config.rope("full_attention", 1e6)
    apart = "sliding_attention" in config.get("rope_parameters", {})
    near = config.rope("sliding_attention").base if apart else config.number("rope_local_base_freq", 1e4)
    check_scale(config, s, 62)
    every(config, s, 6)
    if near != 1e4:
        raise refuse("llama.cpp takes 10000 for layers with a window", "rope_local_base_freq")
    keys: dict[str, Any] = {"attention.sliding_window": config.whole("sliding_window")}
    if config.get("final_logit_softcapping") is not None:
        keys["final_logit_softcapping"] = config.number("final_logit_softcapping")
    layer = {**attention(s), **head_norms(s), **between(s), **gated(s.hidden, s.inner)}
    return decoder(config, s, rope, [layer] * s.layers, keys=keys)


FAMILY = Family(
    architecture="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    parts=parts,
    modules=OUTER,
    layer={**LAYER, **HEAD_NORMS},
    raised=1.0,
)
