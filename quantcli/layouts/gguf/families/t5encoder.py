"""The encoder of T5, mT5 and UMT5: no positions but a bias of attention by distance."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import layers, norms
from quantcli.layouts.gguf.family import Family, Parts, Shapes
from quantcli.layouts.gguf.settings import Config

BLOCKS = "enc.blk"
_FEED = "layer.1.DenseReluDense"
_ALONE = "the file is the encoder alone, for embeddings and as ComfyUI-GGUF loads it: the decoder is left out"


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("relative_attention_max_distance", 128)
    config.only("feed_forward_proj", "relu", "gated-gelu")
    hidden, inner, words = config.whole("d_model"), config.whole("d_ff"), config.whole("vocab_size")
    heads, head, count = config.whole("num_heads"), config.whole("d_kv"), config.layers("num_layers")
    buckets = config.whole("relative_attention_num_buckets", 32)
    layer: Shapes = {
        **norms(hidden, "attn_norm", "ffn_norm"),
        **{f"attn_{name}.weight": (heads * head, hidden) for name in "qkv"},
        "attn_o.weight": (hidden, heads * head),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    if config.get("feed_forward_proj", "relu") == "gated-gelu":
        layer = {**layer, "ffn_gate.weight": (inner, hidden)}
    bias: Shapes = {"attn_rel_b.weight": (buckets, heads)}
    each = [{**layer, **(bias if i == 0 or config.get("model_type") == "umt5" else {})} for i in range(count)]
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": config.whole("n_positions", 512),
            "embedding_length": hidden,
            "block_count": count,
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-6),
            "attention.layer_norm_rms_epsilon": config.number("layer_norm_epsilon", 1e-6),
            "attention.relative_buckets_count": buckets,
            "attention.causal": False,
        },
        needed={
            "token_embd.weight": (words, hidden),
            **norms(hidden, "enc.output_norm"),
            **layers(each, BLOCKS),
        },
        tied=True,
        vocabulary=words,
        notes=[] if "Encoder" in str(config.get("architectures")) else [_ALONE],
    )


FAMILY = Family(
    architecture="t5encoder",
    classes=(
        *("T5EncoderModel", "T5ForConditionalGeneration", "MT5EncoderModel", "MT5ForConditionalGeneration"),
        *("UMT5EncoderModel", "UMT5ForConditionalGeneration"),
    ),
    parts=parts,
    modules={
        "shared": "token_embd",
        "encoder.embed_tokens": "token_embd",
        "encoder.final_layer_norm": "enc.output_norm",
    },
    layer={
        "layer.0.layer_norm": "attn_norm",
        **{f"layer.0.SelfAttention.{name}": f"attn_{name}" for name in "qkvo"},
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        "layer.1.layer_norm": "ffn_norm",
        f"{_FEED}.wi_0": "ffn_gate",
        f"{_FEED}.wi_1": "ffn_up",
        f"{_FEED}.wi": "ffn_up",
        f"{_FEED}.wo": "ffn_down",
    },
    layers="encoder.block",
    blocks=BLOCKS,
    unused=(r"decoder\..*", r"lm_head\..*"),
)
