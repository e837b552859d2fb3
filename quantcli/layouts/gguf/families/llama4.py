"""Llama 4, the part that reads text: experts beside one that all tokens share, no rotation in every fourth layer."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import ATTENTION, OUTER, attention, decoder, gated, norms, routed, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    s = sizes(config)
    rotated = [int((i + 1) % 4 != 0) for i in range(s.layers)]
    if (config.get("no_rope_layers") or rotated) != rotated:
        raise refuse("llama.cpp leaves each 4th layer without rotation", "no_rope_layers")
    count, step = config.whole("num_local_experts", 16), config.whole("interleave_moe_layer_step", 1)
    if config.get("use_qk_norm", True) != (count != 128):
        raise refuse("llama.cpp norms queries and keys unless there are 128 experts", "use_qk_norm")
    moe = [i for i in range(s.layers) if (i + 1) % step == 0]
    if (config.get("moe_layers") or moe) != moe:
        raise refuse(f"llama.cpp takes each {step}th layer for one with experts", "moe_layers")
    width = config.whole("intermediate_size_mlp", 16384)
    experts = {**routed(s.hidden, s.inner, count), **gated(s.hidden, s.inner, "_shexp")}
    layer, dense = {**attention(s), **norms(s.hidden, "ffn_norm")}, gated(s.hidden, width)
    return decoder(
        config,
        s,
        config.rope(base=5e5),
        [{**layer, **(experts if i in moe else dense)} for i in range(s.layers)],
        keys={
            "feed_forward_length": width,
            "expert_count": count,
            "expert_used_count": config.whole("num_experts_per_tok", 1),
            "expert_feed_forward_length": s.inner,
            "interleave_moe_layer_step": step,
        },
        by_tensor=True,
    )


FAMILY = Family(
    architecture="llama4",
    classes=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        "post_attention_layernorm": "ffn_norm",
        "feed_forward.router": "ffn_gate_inp",
        "feed_forward.experts.gate_proj": "ffn_gate_exps",
        "feed_forward.experts.up_proj": "ffn_up_exps",
        "feed_forward.experts.down_proj": "ffn_down_exps",
        "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
        "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
        "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
        "feed_forward.gate_proj": "ffn_gate",
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": "ffn_down",
    },
)
