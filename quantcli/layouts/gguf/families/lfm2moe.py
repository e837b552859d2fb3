"""LFM2 with experts, which a sigmoid weighs, behind some layers without."""

from __future__ import annotations

from quantcli.layouts.gguf.families import lfm2
from quantcli.layouts.gguf.families._moe import SIGMOID, expert_keys, experts_of
from quantcli.layouts.gguf.families._parts import gated, routed
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("norm_topk_prob", True)
    config.only("routed_scaling_factor", 1.0)
    config.only("use_expert_bias", True)
    config, s = lfm2.settings(config)
    dense, inner = config.whole("num_dense_layers", 0, least=0), config.whole("moe_intermediate_size")
    count = experts_of(config)
    experts = {**routed(s.hidden, inner, count), "exp_probs_b.bias": (count,)}
    feeds = [gated(s.hidden, s.inner) if i < dense else experts for i in range(s.layers)]
    keys = {
        **expert_keys(config, inner),
        "leading_dense_block_count": dense,
        "expert_gating_func": SIGMOID,
    }
    return lfm2.mixed(config, s, feeds, keys)


FAMILY = Family(
    architecture="lfm2moe",
    classes=("Lfm2MoeForCausalLM",),
    parts=parts,
    modules=lfm2.FAMILY.modules,
    layer={
        **lfm2.FAMILY.layer,
        "feed_forward.gate": "ffn_gate_inp",
        "feed_forward.expert_bias": "exp_probs_b.bias",
        "feed_forward.experts.gate_proj": "ffn_gate_exps",
        "feed_forward.experts.up_proj": "ffn_up_exps",
        "feed_forward.experts.down_proj": "ffn_down_exps",
    },
    rebuilt=lfm2.rebuilt,
)
