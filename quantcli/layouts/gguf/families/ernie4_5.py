"""ERNIE 4.5."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, attention, decoder, gated, norms, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config

BASE = 5e5


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("use_bias", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"), head=128, shared=True)
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(config, s, config.rope(base=BASE), [layer] * s.layers)


FAMILY = Family(
    architecture="ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    parts=parts,
    modules=OUTER,
    layer=DENSE,
)
