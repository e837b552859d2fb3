"""BERT and its kin for embeddings: what is above the last layer is left out."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import biases, layers, norms, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "gelu")
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    hidden, inner, words = config.whole("hidden_size"), config.whole("intermediate_size"), config.whole("vocab_size")
    count, positions, types = (
        config.layers(),
        config.whole("max_position_embeddings"),
        config.whole("type_vocab_size", 2),
    )
    square = {f"attn_{name}.weight": (hidden, hidden) for name in ("q", "k", "v", "output")}
    layer = {
        **square,
        **ungated(hidden, inner),
        **norms(hidden, "attn_output_norm", "layer_output_norm"),
    }
    whole = {
        "token_embd.weight": (words, hidden),
        "token_types.weight": (types, hidden),
        "position_embd.weight": (positions, hidden),
        **norms(hidden, "token_embd_norm"),
    }
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": positions,
            "embedding_length": hidden,
            "block_count": count,
            "feed_forward_length": inner,
            "attention.head_count": config.whole("num_attention_heads"),
            "attention.layer_norm_epsilon": config.number("layer_norm_eps", 1e-12),
            "attention.causal": False,
        },
        needed={**whole, **biases(whole, "token_embd_norm"), **layers([{**layer, **biases(layer)}] * count)},
        general={"tokenizer.ggml.token_type_count": types},
        tied=True,
        vocabulary=words,
    )


FAMILY = Family(
    architecture="bert",
    classes=("BertModel", "BertForMaskedLM"),
    parts=parts,
    modules={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.LayerNorm": "token_embd_norm",
    },
    layer={
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    },
    layers="encoder.layer",
    prefixes=("bert.",),
    unused=(r"(?:bert\.)?embeddings\.position_ids", r"(?:bert\.)?pooler\..*", r"cls\..*"),
)
