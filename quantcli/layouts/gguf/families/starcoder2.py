"""StarCoder 2: norms and matrices with biases, and no gate."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    OUTER,
    attention,
    biases,
    decoder,
    no_window,
    norms,
    sizes,
    ungated,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "gelu_pytorch_tanh")
    s = sizes(config, shared=True)
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **ungated(s.hidden, s.inner)}
    return decoder(
        config,
        s,
        config.rope(),
        [{**layer, **biases(layer)}] * s.layers,
        outside={"output_norm.bias": (s.hidden,)},
        epsilon="norm_epsilon",
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
