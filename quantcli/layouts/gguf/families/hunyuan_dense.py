"""Hunyuan without experts: norms of each query and key behind the rotation."""

from __future__ import annotations

from dataclasses import replace

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, attention, decoder, gated, head_norms, norms, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, number


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s, rope = sizes(config, kv_heads=config.whole("num_attention_heads")), config.rope()
    if rope.kind == "dynamic" and rope.values.get("alpha"):  # a larger base, the same for text of every length
        base = rope.base * number(rope.values, "alpha") ** (s.head / (s.head - 2))
        rope = replace(rope, kind="default", base=base)
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(config, s, rope, [layer] * s.layers)


FAMILY = Family(
    architecture="hunyuan-dense",
    classes=("HunYuanDenseV1ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, "self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
)
