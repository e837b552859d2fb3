"""StableLM: a quarter of each head is rotated, and norms have biases."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import DENSE, OUTER, attention, biases, decoder, gated, norms, sizes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config = Config({"partial_rotary_factor": 0.25, **config.values})
    config.only("hidden_act", "silu")
    for key in ("qk_layernorm", "use_parallel_residual", "tie_word_embeddings"):
        config.only(key, False)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    layer = {**attention(s), **norms(s.hidden, "ffn_norm"), **gated(s.hidden, s.inner)}
    return decoder(
        config,
        s,
        config.rope(),
        [{**layer, **biases(layer, "attn_norm", "ffn_norm")}] * s.layers,
        outside={"output_norm.bias": (s.hidden,)},
        optional=biases(layer, "attn_q", "attn_k", "attn_v"),
        keys={"use_parallel_residual": False},
        epsilon="layer_norm_eps",
    )


FAMILY = Family(architecture="stablelm", classes=("StableLmForCausalLM",), parts=parts, modules=OUTER, layer=DENSE)
