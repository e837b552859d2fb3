"""GPT-2: learned positions, biases everywhere; its matrices are transposed in checkpoints."""

from __future__ import annotations

import re

from quantcli.layouts.gguf.families._parts import biases, layers, norms, outer, tied, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("activation_function", "gelu_new")
    hidden, count, words = config.whole("n_embd"), config.layers("n_layer"), config.whole("vocab_size")
    inner, positions = config.whole("n_inner", 4 * hidden), config.whole("n_positions", 1024)
    layer = {
        **norms(hidden, "attn_norm", "ffn_norm"),
        "attn_qkv.weight": (3 * hidden, hidden),
        "attn_output.weight": (hidden, hidden),
        **ungated(hidden, inner),
    }
    shared = tied(config, default=True)
    whole = outer(words, hidden, tied=shared)
    return Parts(
        keys={
            "vocab_size": words,
            "block_count": count,
            "context_length": positions,
            "embedding_length": hidden,
            "feed_forward_length": inner,
            "attention.head_count": config.whole("n_head"),
            "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
        },
        needed={
            **whole,
            **biases(whole, "output_norm"),
            "position_embd.weight": (positions, hidden),
            **layers([{**layer, **biases(layer)}] * count),
        },
        tied=shared,
        vocabulary=words,
    )


def rebuilt(info: TensorInfo, config: Config) -> list[Rebuilt] | None:
    """A matrix [inputs, outputs] as [outputs, inputs]; None for other tensors."""
    if not re.search(r"\.c_(?:attn|proj|fc)\.weight$", info.name) or len(info.shape) != 2:
        return None
    inputs, outputs = info.shape
    return [Rebuilt(info.name, (outputs, inputs), (Matrix(name=info.name, rows=outputs, cols=inputs, width=outputs),))]


FAMILY = Family(
    architecture="gpt2",
    classes=("GPT2LMHeadModel",),
    parts=parts,
    modules={"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"},
    layer={
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    layers="h",
    prefixes=("transformer.",),
    unused=(r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias",),
    rebuilt=rebuilt,
)
