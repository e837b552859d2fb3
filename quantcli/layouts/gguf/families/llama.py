"""Llama 1 to 3, Mixtral and Mistral, of those with vision the part that reads text."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    OUTER,
    TURNED,
    attention,
    biases,
    decoder,
    gated,
    matrices,
    no_window,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    if config.get("text_config") is not None:
        config.only("model_type", "llama", "mistral")  # those of the text, in a model with vision
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    rope = config.rope()
    if rope.part != 1:
        config.only("partial_rotary_factor", 1.0)
    keys, biased = {}, attention(s)
    if config.get("num_local_experts") is None:
        feed = gated(s.hidden, s.inner)
        biased = {**biased, **feed}
    else:
        count = config.whole("num_local_experts")
        feed = routed(s.hidden, s.inner, count)
        keys = {"expert_count": count, "expert_used_count": config.whole("num_experts_per_tok", 2)}
    return decoder(
        config,
        s,
        rope,
        [{**attention(s), **norms(s.hidden, "ffn_norm"), **feed}] * s.layers,
        optional=biases(biased, *matrices(biased)),
        keys=keys,
        by_tensor=True,
        notes=no_window(config, used=True),
    )


FAMILY = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Mistral3ForConditionalGeneration"),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, "block_sparse_moe.gate": "ffn_gate_inp"},
    orders=TURNED,
)
