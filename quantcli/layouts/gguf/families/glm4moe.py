"""GLM 4.5 to 4.7 with experts: a sigmoid weighs them, and the first layers have none."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import ROUTED_AND_SHARED, behind_dense, shared_experts, sigmoid_keys
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    HEAD_NORMS,
    OUTER,
    attention,
    biases,
    decoder,
    head_norms,
    norms,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config = Config({"partial_rotary_factor": 0.5, **config.values})
    config.only("hidden_act", "silu")
    config.only("n_group", 1)
    s, dense = sizes(config), config.whole("first_k_dense_replace", 1, least=0)
    layer = {**attention(s), **norms(s.hidden, "post_attention_norm")}
    layer |= biases(layer, "attn_q", "attn_k", "attn_v") if config.get("attention_bias", False) else {}
    layer |= head_norms(s) if config.get("use_qk_norm", False) else {}
    return decoder(
        config,
        s,
        config.rope(),
        behind_dense(s, layer, dense, shared_experts(config, s.hidden)),
        keys={**sigmoid_keys(config), "leading_dense_block_count": dense},
    )


FAMILY = Family(
    architecture="glm4moe",
    classes=("Glm4MoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **DENSE,
        **ROUTED_AND_SHARED,
        **HEAD_NORMS,
        "post_attention_layernorm": "post_attention_norm",
    },
)
