"""Falcon: queries, keys and values in one matrix, in llama.cpp all queries before all keys before all values."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import biases as with_biases
from quantcli.layouts.gguf.families._parts import layers, norms, outer, tied, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.rows import APART
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    for key, fine in (("alibi", False), ("bias", False), ("parallel_attn", True), ("activation", "gelu")):
        config.only(key, fine)
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    if hidden % heads:
        raise refuse(f"{hidden} is not a multiple of the {heads} heads", "hidden_size")
    new = config.get("new_decoder_architecture", False) is True
    kv_heads = config.whole("num_kv_heads", heads) if new else 1 if config.get("multi_query", True) else heads
    count, words, inner = config.layers(), config.whole("vocab_size"), config.whole("ffn_hidden_size", 4 * hidden)
    two = new and config.get("num_ln_in_parallel_attn", 2) == 2
    between = norms(hidden, "attn_norm", *(["attn_norm_2"] if two else []))
    layer = {
        **between,
        **with_biases(between),
        "attn_qkv.weight": (hidden // heads * (heads + 2 * kv_heads), hidden),
        "attn_output.weight": (hidden, hidden),
        **ungated(hidden, inner),
    }
    shared = tied(config, default=True)
    whole = outer(words, hidden, tied=shared)
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": config.whole("max_position_embeddings", 2048),
            "tensor_data_layout": "jploski",
            "embedding_length": hidden,
            "feed_forward_length": inner,
            "block_count": count,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
            "rope.freq_base": config.rope().base,
        },
        needed={**whole, **with_biases(whole, "output_norm"), **layers([layer] * count)},
        tied=shared,
        vocabulary=words,
    )


FAMILY = Family(
    architecture="falcon",
    classes=("FalconForCausalLM",),
    parts=parts,
    modules={"word_embeddings": "token_embd", "ln_f": "output_norm", "lm_head": "output"},
    layer={
        "input_layernorm": "attn_norm",
        "ln_mlp": "attn_norm",
        "ln_attn": "attn_norm_2",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    layers="h",
    prefixes=("transformer.",),
    orders={"attn_qkv": APART},
)
