"""ERNIE 4.5 with experts: the first layers have none, and a bias helps to choose them."""

from __future__ import annotations

from quantcli.layouts.gguf.families._moe import behind_dense
from quantcli.layouts.gguf.families._parts import (
    DENSE,
    EXPERTS,
    OUTER,
    SHARED_EXPERTS,
    attention,
    decoder,
    gated,
    norms,
    routed,
    sizes,
)
from quantcli.layouts.gguf.families.ernie4_5 import BASE
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, refuse
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

CHOICE = "mlp.moe_statics.e_score_correction_bias"


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("use_bias", False)
    config.only("moe_layer_interval", 1)
    s = sizes(config, kv_heads=config.whole("num_attention_heads"), shared=True)
    last = config.get("moe_layer_end_index", -1)
    if last not in (-1, s.layers - 1):
        raise refuse("llama.cpp supports such models only with experts up to the last layer", "moe_layer_end_index")
    dense, count = config.whole("moe_layer_start_index", 1, least=0), config.whole("moe_num_experts", 64)
    inner, shared = config.whole("moe_intermediate_size", 1536), config.whole("moe_num_shared_experts", 2, least=0)
    experts = {**routed(s.hidden, inner, count), "exp_probs_b.bias": (count,)}
    experts |= gated(s.hidden, inner * shared, "_shexp") if shared else {}
    layer = {**attention(s), **norms(s.hidden, "ffn_norm")}
    return decoder(
        config,
        s,
        config.rope(base=BASE),
        behind_dense(s, layer, dense, experts),
        keys={
            "expert_count": count,
            "expert_used_count": config.whole("moe_k", 6),
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": dense,
            "expert_feed_forward_length": inner,
            "expert_shared_count": shared,
            "expert_shared_feed_forward_length": inner * shared,
        },
    )


def rebuilt(info: TensorInfo, config: Config) -> list[Rebuilt] | None:
    """The bias for choosing experts as a vector; None for other tensors."""
    if not info.name.endswith(CHOICE) or len(info.shape) != 2 or info.shape[0] != 1:
        return None
    return [Rebuilt(info.name, info.shape[1:], (Matrix(name=info.name, rows=1, cols=info.shape[1]),))]


FAMILY = Family(
    architecture="ernie4_5-moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **SHARED_EXPERTS, CHOICE: "exp_probs_b.bias"},
    unused=(r".*\.rotary_emb\.inv_freq", r"model\.mtp_.*"),
    rebuilt=rebuilt,
)
