"""ModernBERT for embeddings: every third layer sees all words, the others their neighbours."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import layers, norms, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse

_FULL = "full_attention"


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_activation", "gelu")
    for key in ("attention_bias", "mlp_bias", "norm_bias"):
        config.only(key, False)
    hidden, inner, words = config.whole("hidden_size"), config.whole("intermediate_size"), config.whole("vocab_size")
    count = config.layers()
    layer = {
        "attn_qkv.weight": (3 * hidden, hidden),
        "attn_output.weight": (hidden, hidden),
        **ungated(hidden, inner, up=2),
        **norms(hidden, "ffn_norm"),
    }
    each = [layer if i == 0 else {**layer, **norms(hidden, "attn_norm")} for i in range(count)]
    return Parts(
        keys={
            "vocab_size": words,
            "context_length": config.whole("max_position_embeddings"),
            "embedding_length": hidden,
            "block_count": count,
            "feed_forward_length": inner,
            "attention.head_count": config.whole("num_attention_heads"),
            "attention.layer_norm_epsilon": config.number("norm_eps", 1e-5),
            "attention.causal": False,
            "attention.sliding_window": config.whole("local_attention", 128),
            "attention.sliding_window_pattern": _period(config, count),
            "rope.freq_base": config.rope(_FULL, config.number("global_rope_theta", 160000.0)).base,
            "rope.freq_base_swa": config.rope("sliding_attention", config.number("local_rope_theta", 10000.0)).base,
            "rope.scaling.type": "none",
        },
        needed={
            "token_embd.weight": (words, hidden),
            **norms(hidden, "token_embd_norm", "output_norm"),
            **layers(each),
        },
        tied=True,
        vocabulary=words,
    )


def _period(config: Config, count: int) -> int:
    """One of so many layers sees all words, the first one among them. Raises DataError for another order."""
    kinds = config.get("layer_types")
    if kinds is None:
        return config.whole("global_attn_every_n_layers", 3)
    full = [i for i, kind in enumerate(kinds) if kind == _FULL] if isinstance(kinds, list) else []
    period = full[1] if len(full) > 1 else max(count, 1)
    if full != list(range(0, count, period)):
        raise refuse("llama.cpp wants the first of every few layers to see all words", "layer_types")
    return period


FAMILY = Family(
    architecture="modern-bert",
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    parts=parts,
    modules={
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "final_norm": "output_norm",
    },
    layer={
        "attn_norm": "attn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.Wo": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn_up",
        "mlp.Wo": "ffn_down",
    },
    layers="layers",
    prefixes=("model.",),
    unused=(r"head\..*", r"decoder\..*"),
)
