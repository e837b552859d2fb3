"""Llama 1 to 3, Mistral, of those that see too the part that reads text, and Mixtral."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    OUTER,
    TURNED,
    attention,
    biases,
    decoder_keys,
    frequencies,
    gated,
    layers,
    no_window,
    norms,
    outer,
    routed,
    scaling,
    sizes,
    tied,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    if config.get("text_config") is not None:
        config.only("model_type", "llama", "mistral")  # those of the text, in a model that sees too
    s = sizes(config, kv_heads=config.whole("num_attention_heads"))
    rope = config.rope()
    if rope.part != 1:
        config.only("partial_rotary_factor", 1.0)
    keys = decoder_keys(config, s, rope)
    linear = dict(attention(s))
    if config.get("num_local_experts") is None:
        feed = gated(s.hidden, s.inner)
        linear |= feed
    else:
        count = config.whole("num_local_experts")
        feed = routed(s.hidden, s.inner, count)
        keys |= {"expert_count": count, "expert_used_count": config.whole("num_experts_per_tok", 2)}
    own = [name.removesuffix(".weight") for name in linear if "norm" not in name]
    return Parts(
        keys=keys | scaling(rope),
        needed={
            **outer(s.words, s.hidden, tied=tied(config)),
            **layers(s.layers, {**attention(s), **norms(s.hidden, "ffn_norm"), **feed}),
        },
        optional=layers(s.layers, biases(linear, *own)),
        made=frequencies(config, rope, s.head),
        tied=tied(config),
        vocabulary=s.words,
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
