"""OLMo 1: norms without weights, and queries, keys and values that may be clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantcli.layouts.gguf.families._parts import ATTENTION, GATED, OUTER, TURNED, attention, decoder, gated, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config

_NORMS = ("attn_norm.weight", "output_norm.weight")


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    keys: dict[str, Any] = {"attention.layer_norm_epsilon": 1e-5}
    if config.get("clip_qkv") is not None:
        keys["attention.clamp_kqv"] = config.number("clip_qkv")
    layer = {**attention(s), **gated(s.hidden, s.inner)}
    found = decoder(config, s, config.rope(), [layer] * s.layers, keys=keys)
    return replace(
        found,
        keys={name: value for name, value in found.keys.items() if name != "attention.layer_norm_rms_epsilon"},
        needed={name: shape for name, shape in found.needed.items() if not name.endswith(_NORMS)},
    )


FAMILY = Family(
    architecture="olmo",
    classes=("OlmoForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**ATTENTION, **GATED},
    orders=TURNED,
)
