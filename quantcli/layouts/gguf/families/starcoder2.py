"""StarCoder 2: norms and matrices with biases, and no gate."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    OUTER,
    attention,
    biases,
    decoder_keys,
    layers,
    no_window,
    norms,
    outer,
    scaling,
    sizes,
    tied,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "gelu_pytorch_tanh")
    s, rope = sizes(config), config.rope()
    layer = {
        **attention(s),
        **norms(s.hidden, "ffn_norm"),
        "ffn_up.weight": (s.inner, s.hidden),
        "ffn_down.weight": (s.hidden, s.inner),
    }
    shared = tied(config, default=True)
    whole = outer(s.words, s.hidden, tied=shared)
    return Parts(
        keys=decoder_keys(config, s, rope, epsilon="norm_epsilon") | scaling(rope),
        needed={**whole, **biases(whole, "output_norm"), **layers(s.layers, {**layer, **biases(layer)})},
        tied=shared,
        vocabulary=s.words,
        notes=no_window(config, used=True),
    )


FAMILY = Family(
    architecture="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        "post_attention_layernorm": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
)
