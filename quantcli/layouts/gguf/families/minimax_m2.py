"""MiniMax M2: experts weighed by a sigmoid in all layers, and norms of all queries and all keys."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import SIGMOID
from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    EXPERTS,
    HEAD_NORMS,
    OUTER,
    attention,
    decoder,
    norms,
    of_all_heads,
    routed,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("tie_word_embeddings", False)
    s, count = sizes(config, head=128), config.whole("num_local_experts", 256)
    if config.get("rotary_dim") is not None:
        config = Config({"partial_rotary_factor": config.whole("rotary_dim") / s.head, **config.values})
    layer = {
        **attention(s),
        **of_all_heads(s),
        **norms(s.hidden, "ffn_norm"),
        **routed(s.hidden, s.inner, count),
        "exp_probs_b.bias": (count,),
    }
    keys = {
        "expert_count": count,
        "expert_used_count": config.whole("num_experts_per_tok", 8),
        "expert_feed_forward_length": s.inner,
        "expert_gating_func": SIGMOID,
    }
    return decoder(config, s, config.rope(base=5e6), [layer] * s.layers, keys=keys)


FAMILY = Family(
    architecture="minimax-m2",
    classes=("MiniMaxM2ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        **HEAD_NORMS,
        "post_attention_layernorm": "ffn_norm",
        **EXPERTS,
        "mlp.e_score_correction_bias": "exp_probs_b.bias",
    },
    unused=(r".*\.rotary_emb\.inv_freq", r"model\.mtp_.*"),
)
