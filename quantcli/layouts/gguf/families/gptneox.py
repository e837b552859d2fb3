"""GPT-NeoX and Pythia: queries, keys and values in one matrix, in llama.cpp all of one kind together."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import biases, layers, norms, outer, tied, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.rows import APART
from quantcli.layouts.gguf.settings import Config, refuse


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "gelu", "gelu_new", "gelu_fast")
    config.only("attention_bias", True)
    config = Config({"partial_rotary_factor": config.get("rotary_pct", 0.25), **config.values})
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    if hidden % heads:
        raise refuse(f"{hidden} is not a multiple of the {heads} heads", "hidden_size")
    count, words, inner = config.layers(), config.whole("vocab_size"), config.whole("intermediate_size")
    rope = config.rope(base=config.number("rotary_emb_base", 10000.0))
    layer = {
        **norms(hidden, "attn_norm", "ffn_norm"),
        "attn_qkv.weight": (3 * hidden, hidden),
        "attn_output.weight": (hidden, hidden),
        **ungated(hidden, inner),
    }
    whole = outer(words, hidden, tied=tied(config))
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": config.whole("max_position_embeddings"),
            "embedding_length": hidden,
            "block_count": count,
            "feed_forward_length": inner,
            "rope.dimension_count": int(rope.part * (hidden // heads)),
            "rope.freq_base": rope.base,
            "attention.head_count": heads,
            "use_parallel_residual": config.get("use_parallel_residual", True) is True,
            "attention.layer_norm_epsilon": config.number("layer_norm_eps", 1e-5),
        },
        needed={**whole, **biases(whole, "output_norm"), **layers([{**layer, **biases(layer)}] * count)},
        tied=tied(config),
        vocabulary=words,
    )


FAMILY = Family(
    architecture="gptneox",
    classes=("GPTNeoXForCausalLM",),
    parts=parts,
    modules={
        "embed_out": "output",
        "lm_head": "output",
        "embed_in": "token_embd",
        "final_layer_norm": "output_norm",
    },
    layer={
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    layers="layers",
    prefixes=("gpt_neox.",),
    unused=(r"(?:gpt_neox\.)?layers\.\d+\.attention\.(?:masked_bias|bias|rotary_emb\.inv_freq)",),
    orders={"attn_qkv": APART},
)
