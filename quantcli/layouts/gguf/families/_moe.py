"""What Qwen's mixtures of experts have in common."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.settings import Config, refuse


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
