"""Seed-OSS: biases of queries, keys and values."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, attention, biases, decoder, gated, norms, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_out_bias", False)
    config.only("mlp_bias", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"), head=128)
    layer = {**attention(s), **norms(s.hidden, "post_attention_norm"), **gated(s.hidden, s.inner)}
    optional = biases(layer, "attn_q", "attn_k", "attn_v")
    return decoder(config, s, config.rope(), [layer] * s.layers, optional=optional)


FAMILY = Family(
    architecture="seed_oss",
    classes=("SeedOssForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, "post_attention_layernorm": "post_attention_norm"},
)
