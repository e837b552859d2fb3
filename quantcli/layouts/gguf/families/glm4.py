"""GLM 4 (0414): half of each head is rotated, norms behind attention and feed-forward, gate and up in one matrix."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import ATTENTION, OUTER, attention, biases, decoder, norms, sizes, ungated
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config = Config({"partial_rotary_factor": 0.5, **config.values})
    config.only("hidden_act", "silu")
    s = sizes(config)
    layer = {
        **attention(s),
        **norms(s.hidden, "post_attention_norm", "ffn_norm", "post_ffw_norm"),
        **ungated(s.hidden, s.inner, up=2),
    }
    optional = biases(layer, "attn_q", "attn_k", "attn_v")
    return decoder(config, s, config.rope(), [layer] * s.layers, optional=optional)


FAMILY = Family(
    architecture="glm4",
    classes=("Glm4ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **ATTENTION,
        "post_self_attn_layernorm": "post_attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_mlp_layernorm": "post_ffw_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
)
