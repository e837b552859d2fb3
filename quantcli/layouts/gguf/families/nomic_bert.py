"""Nomic's BERT: rotary positions, a gate, no biases in matrices."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import biases, gated, layers, norms
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config

NEW = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
"""The names of transformers for those of Nomic's own code."""


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    named = {NEW.get(key, key): value for key, value in config.values.items()}
    config = Config(named)
    for key, fine in (("activation_function", "swiglu"), ("hidden_act", "silu"), ("prenorm", False)):
        config.only(key, fine)
    for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "num_experts"):
        config.only(key, False, 0)
    config.only("rotary_emb_fraction", 1, 1.0)
    hidden, inner, words = config.whole("hidden_size"), config.whole("intermediate_size"), config.whole("vocab_size")
    count, types, heads = config.layers(), config.whole("type_vocab_size", 2), config.whole("num_attention_heads")
    layer = {
        "attn_qkv.weight": (3 * hidden, hidden),
        "attn_output.weight": (hidden, hidden),
        **gated(hidden, inner),
    }
    behind = norms(hidden, "attn_output_norm", "layer_output_norm")
    first = norms(hidden, "token_embd_norm")
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": config.whole("max_position_embeddings"),
            "embedding_length": hidden,
            "block_count": count,
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.layer_norm_epsilon": config.number("layer_norm_eps", 1e-12),
            "attention.causal": False,
            "rope.freq_base": config.rope(base=1000.0).base,
        },
        needed={
            "token_embd.weight": (words, hidden),
            "token_types.weight": (types, hidden),
            **first,
            **biases(first),
            **layers([{**layer, **behind, **biases(behind)}] * count),
        },
        general={"tokenizer.ggml.token_type_count": types},
        tied=True,
        vocabulary=words,
    )


FAMILY = Family(
    architecture="nomic-bert",
    classes=("NomicBertModel",),
    parts=parts,
    modules={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "emb_ln": "token_embd_norm",
    },
    layer={
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "norm1": "attn_output_norm",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc2": "ffn_down",
        "norm2": "layer_output_norm",
    },
    layers="encoder.layers",
    unused=(r"pooler\..*", r"cls\..*"),
)
