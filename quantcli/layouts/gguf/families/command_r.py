"""Command R and Aya (Cohere): attention beside feed-forward."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import head_tied
from quantcli.layouts.gguf.families._parts import ATTENTION, GATED, HEAD_NORMS, OUTER, attention, decoder, gated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse

WITH_NORMS = 64
"""llama.cpp norms queries and keys of models of so many layers or more."""


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s = head_tied(config)
    normed = config.get("use_qk_norm", False) is True
    if normed != (s.layers >= WITH_NORMS):
        raise refuse(f"llama.cpp norms queries and keys from {WITH_NORMS} layers on, not below", "use_qk_norm")
    layer = {**attention(s), **gated(s.hidden, s.inner)}
    if normed:
        layer |= {"attn_q_norm.weight": (s.heads, s.head), "attn_k_norm.weight": (s.kv_heads, s.head)}
    keys = {"logit_scale": config.number("logit_scale", 0.0625)}
    return decoder(config, s, config.rope(), [layer] * s.layers, keys=keys, epsilon="layer_norm_eps")


FAMILY = Family(
    architecture="command-r",
    classes=("CohereForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**ATTENTION, **GATED, **HEAD_NORMS},
)
