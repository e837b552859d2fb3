"""AFM of Arcee: a Llama without gates, whose feed-forward network squares."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, TURNED, attention, decoder, norms, sizes, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "relu2")
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **ungated(s.hidden, s.inner)}
    scaled_by = ("beta_fast", "beta_slow", "mscale")
    return decoder(config, s, config.rope(), [layer] * s.layers, scaled_by=scaled_by, by_tensor=True)


FAMILY = Family(
    architecture="arcee", classes=("ArceeForCausalLM",), parts=parts, modules=OUTER, layer=DENSE, orders=TURNED
)
