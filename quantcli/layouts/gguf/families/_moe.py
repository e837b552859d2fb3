"""What mixtures of experts have in common: Qwen's, and those whose experts a sigmoid weighs."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._parts import EXPERTS, SHARED_EXPERTS, Sizes, gated, routed
from quantcli.layouts.gguf.family import Shapes
from quantcli.layouts.gguf.settings import Config, refuse

SIGMOID = 2
"""The number of the way of weighing experts by a sigmoid."""

ROUTED_AND_SHARED = {**EXPERTS, "mlp.gate.e_score_correction_bias": "exp_probs_b.bias", **SHARED_EXPERTS}
"""Names of experts with a bias for choosing them, and of those that all tokens share."""


def all_layers(config: Config) -> None:
    """Raise DataError where not all layers have experts."""
    for key, fine in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(key, fine) != fine:
            raise refuse("llama.cpp supports such models only with experts in all layers", key)


def chosen_add_up(config: Config, *, always: bool) -> None:
    """Raise DataError where llama.cpp would weigh the chosen experts differently."""
    if bool(config.get("norm_topk_prob", False)) != always:
        problem = f"llama.cpp {'always adds' if always else 'never adds'} the weights of chosen experts up to 1"
        raise refuse(problem, "norm_topk_prob")


def experts_of(config: Config) -> int:
    """The number of experts, which transformers 5 may call otherwise."""
    return config.whole("num_experts", config.get("num_local_experts"))


def expert_keys(config: Config, inner: int) -> dict[str, Any]:
    """How many experts there are and are used, and their rows."""
    return {
        "expert_count": experts_of(config),
        "expert_used_count": config.whole("num_experts_per_tok"),
        "expert_feed_forward_length": inner,
    }


def behind_dense(s: Sizes, layer: Shapes, dense: int, experts: Shapes) -> list[Shapes]:
    """The tensors of each layer where the first ones have no experts. layer: the tensors of all layers. dense: how many
    have no experts."""
    return [{**layer, **(gated(s.hidden, s.inner) if i < dense else experts)} for i in range(s.layers)]


def shared_experts(config: Config, hidden: int) -> Shapes:
    """Experts with a bias for choosing them, and those that all tokens share."""
    inner, count = config.whole("moe_intermediate_size"), config.whole("n_routed_experts")
    shared = config.whole("n_shared_experts", 1, least=0)
    own = gated(hidden, inner * shared, "_shexp") if shared else {}
    return {**routed(hidden, inner, count), "exp_probs_b.bias": (count,), **own}


def sigmoid_keys(config: Config) -> dict[str, Any]:
    """How such experts are chosen and weighed."""
    return {
        "expert_count": config.whole("n_routed_experts"),
        "expert_used_count": config.whole("num_experts_per_tok", 8),
        "expert_feed_forward_length": config.whole("moe_intermediate_size"),
        "expert_shared_count": config.whole("n_shared_experts", 1, least=0),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "expert_weights_norm": config.get("norm_topk_prob", True) is True,
        "expert_gating_func": SIGMOID,
    }
