"""dots.llm1: experts weighed by a sigmoid, behind layers without, and norms of each query and key."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import shared_experts, sigmoid_keys
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    HEAD_NORMS,
    OUTER,
    SHARED_EXPERTS,
    attention,
    decoder,
    gated,
    head_norms,
    no_window,
    norms,
    sizes,
)
from quantcli.layouts.gguf.families._windows import as_many_keys
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("n_group", 1)
    config.only("tie_word_embeddings", False)
    s, dense = sizes(config), config.whole("first_k_dense_replace", 0, least=0)
    as_many_keys(s)
    layer = {**attention(s), **head_norms(s), **norms(s.hidden, "ffn_norm")}
    experts = shared_experts(config, s.hidden)
    return decoder(
        config,
        s,
        config.rope(),
        [{**layer, **(gated(s.hidden, s.inner) if i < dense else experts)} for i in range(s.layers)],
        keys={**sigmoid_keys(config), "leading_dense_block_count": dense},
        notes=no_window(config, used=False),
    )


FAMILY = Family(
    architecture="dots1",
    classes=("Dots1ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        **DENSE,
        **EXPERTS,
        **SHARED_EXPERTS,
        **HEAD_NORMS,
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    },
)
