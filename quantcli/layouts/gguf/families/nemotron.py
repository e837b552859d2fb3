"""Nemotron and Minitron: half of each head is rotated, norms are stored 1 smaller, and there is no gate."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import as_wide_as_hidden
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    OUTER,
    attention,
    biases,
    decoder,
    matrices,
    norms,
    sizes,
    ungated,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config = Config({"partial_rotary_factor": 0.5, **config.values})
    config.only("hidden_act", "relu2")
    config.only("tie_word_embeddings", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    as_wide_as_hidden(s)
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **ungated(s.hidden, s.inner)}
    return decoder(
        config,
        s,
        config.rope(),
        [{**layer, **biases(layer, "attn_norm", "ffn_norm")}] * s.layers,
        outside={"output_norm.bias": (s.hidden,)},
        optional=biases(layer, *matrices(layer)),
        epsilon="norm_eps",
    )


FAMILY = Family(
    architecture="nemotron", classes=("NemotronForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, raised=1.0
)
