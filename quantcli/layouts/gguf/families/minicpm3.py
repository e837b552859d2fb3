"""MiniCPM 3: attention through small matrices, and factors on embedding, layers and logits, which llama.cpp knows."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, decoder_keys, gated, layers, norms, outer, sizes
from quantcli.layouts.gguf.families._positions import with_factors
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("scale_emb", 12)
    config.only("scale_depth", 1.4)
    config.only("dim_model_base", 256)
    flat, rotated, value = (config.whole(f"{name}_head_dim") for name in ("qk_nope", "qk_rope", "v"))
    query_rank, rank = config.whole("q_lora_rank"), config.whole("kv_lora_rank")
    config = Config({**config.values, "head_dim": rotated})
    s, rope = sizes(config, shared=True), config.rope()
    scaled, made = with_factors(config, rope, rotated)
    keys = {
        **decoder_keys(config, s, rope),
        **scaled,
        "attention.key_length": flat + rotated,
        "attention.value_length": value,
        "attention.q_lora_rank": query_rank,
        "attention.kv_lora_rank": rank,
    }
    layer = {
        **norms(s.hidden, "attn_norm", "ffn_norm"),
        **norms(query_rank, "attn_q_a_norm"),
        **norms(rank, "attn_kv_a_norm"),
        "attn_q_a.weight": (query_rank, s.hidden),
        "attn_q_b.weight": (s.heads * (flat + rotated), query_rank),
        "attn_kv_a_mqa.weight": (rank + rotated, s.hidden),
        "attn_kv_b.weight": (s.heads * (flat + value), rank),
        "attn_output.weight": (s.hidden, s.heads * value),
        **gated(s.hidden, s.inner),
    }
    return Parts(
        keys=keys,
        needed={**outer(s.words, s.hidden, tied=s.tied), **layers([layer] * s.layers)},
        made=made,
        tied=s.tied,
        vocabulary=s.words,
    )


FAMILY = Family(
    architecture="minicpm3",
    classes=("MiniCPM3ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **DENSE,
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": "attn_kv_b",
    },
)
