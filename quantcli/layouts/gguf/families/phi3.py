"""Phi 3, 3.5 and 4: queries, keys and values in one matrix, gate and up in another."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    OUTER,
    decoder_keys,
    layers,
    no_window,
    norms,
    outer,
    sizes,
    ungated,
)
from quantcli.layouts.gguf.families._positions import with_factors
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s, rope = sizes(config, kv_heads=config.whole("num_attention_heads")), config.rope()
    keys, made = with_factors(config, rope, int(s.head * rope.part))
    layer = {
        **norms(s.hidden, "attn_norm", "ffn_norm"),
        "attn_qkv.weight": (s.queries + 2 * s.keys, s.hidden),
        "attn_output.weight": (s.hidden, s.queries),
        **ungated(s.hidden, s.inner, up=2),
    }
    return Parts(
        keys={**decoder_keys(config, s, rope), **keys, "attention.sliding_window": config.get("sliding_window", 0)},
        needed={**outer(s.words, s.hidden, tied=s.tied), **layers([layer] * s.layers)},
        made=made,
        tied=s.tied,
        vocabulary=s.words,
        notes=no_window(config, used=True),
    )


FAMILY = Family(
    architecture="phi3",
    classes=("Phi3ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
)
