"""DeepSeek V2 and V3: attention through small matrices; experts from some layer on, and some that all tokens share.

llama.cpp wants the matrix behind keys and values as two, that of keys transposed.
"""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.families._moe import ROUTED_AND_SHARED, SIGMOID
from quantcli.layouts.gguf.families._parts import (
    ATTENTION,
    DENSE,
    OUTER,
    decoder_keys,
    gated,
    layers,
    norms,
    outer,
    routed,
    scaling,
    sizes,
)
from quantcli.layouts.gguf.family import Family, Parts, Shapes
from quantcli.layouts.gguf.settings import Config, Rope, number
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

SOFTMAX = 1
KEYS_VALUES = "self_attn.kv_b_proj.weight"


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("moe_layer_freq", 1)
    rotated = config.whole("qk_rope_head_dim")
    config = Config({**config.values, "head_dim": rotated, "num_key_value_heads": 1})
    s, rope = sizes(config), config.rope()
    dense = (
        config.whole("first_k_dense_replace", 0, least=0) if config.get("n_routed_experts") is not None else s.layers
    )
    attention, experts = _attention(config, s.hidden, s.heads), _experts(config, s.hidden) if dense < s.layers else {}
    each = [{**attention, **(gated(s.hidden, s.inner) if i < dense else experts)} for i in range(s.layers)]
    lora = config.whole("kv_lora_rank")
    keys = {
        **decoder_keys(config, s, rope),
        "attention.key_length": lora + rotated,
        "attention.value_length": lora,
        "attention.key_length_mla": config.whole("qk_nope_head_dim") + rotated,
        "attention.value_length_mla": config.whole("v_head_dim"),
        "attention.kv_lora_rank": lora,
        "leading_dense_block_count": dense,
        "expert_feed_forward_length": config.whole("moe_intermediate_size", s.inner),
        "expert_shared_count": config.whole("n_shared_experts", 0, least=0),
        **(_routing(config) if dense < s.layers else {}),
        **_scaling(rope),
    }
    if config.get("q_lora_rank") is not None:
        keys["attention.q_lora_rank"] = config.whole("q_lora_rank")
    by_best = config.get("topk_method") == "group_limited_greedy" and config.whole("n_group", 1) > 1
    return Parts(
        keys=keys,
        needed={**outer(s.words, s.hidden, tied=s.tied), **layers(each)},
        tied=s.tied,
        vocabulary=s.words,
        notes=["llama.cpp chooses groups of experts by the two best of each, not by the best"] if by_best else [],
    )


def _attention(config: Config, hidden: int, heads: int) -> Shapes:
    flat, rotated = config.whole("qk_nope_head_dim"), config.whole("qk_rope_head_dim")
    value, lora = config.whole("v_head_dim"), config.whole("kv_lora_rank")
    found: dict[str, tuple[int, ...]] = {
        **norms(hidden, "attn_norm", "ffn_norm"),
        "attn_kv_a_mqa.weight": (lora + rotated, hidden),
        "attn_kv_a_norm.weight": (lora,),
        "attn_k_b.weight": (heads, lora, flat),
        "attn_v_b.weight": (heads, value, lora),
        "attn_output.weight": (hidden, heads * value),
    }
    rank = config.get("q_lora_rank")
    if rank is None:
        return found | {"attn_q.weight": (heads * (flat + rotated), hidden)}
    return found | {
        "attn_q_a.weight": (rank, hidden),
        "attn_q_a_norm.weight": (rank,),
        "attn_q_b.weight": (heads * (flat + rotated), rank),
    }


def _experts(config: Config, hidden: int) -> Shapes:
    inner, count = config.whole("moe_intermediate_size"), config.whole("n_routed_experts")
    found = dict(routed(hidden, inner, count))
    if config.whole("n_shared_experts", 0, least=0):
        found |= gated(hidden, inner * config.whole("n_shared_experts"), "_shexp")
    if _sigmoid(config):
        found["exp_probs_b.bias"] = (count,)
    return found


def _sigmoid(config: Config) -> bool:
    """Whether experts are weighed by a sigmoid, with a bias for choosing them, as in V3."""
    usual = "sigmoid" if config.get("model_type") in ("deepseek_v3", "kimi_k2") else "softmax"
    return bool(config.get("scoring_func", usual) == "sigmoid")


def _routing(config: Config) -> dict[str, Any]:
    """How experts are chosen and weighed."""
    keys: dict[str, Any] = {
        "expert_count": config.whole("n_routed_experts"),
        "expert_used_count": config.whole("num_experts_per_tok"),
        "expert_gating_func": SIGMOID if _sigmoid(config) else SOFTMAX,
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "expert_weights_norm": config.get("norm_topk_prob", False) is True,
    }
    if config.whole("n_group", 1) > 1 and config.get("topk_method") != "greedy":
        keys |= {"expert_group_count": config.whole("n_group"), "expert_group_used_count": config.whole("topk_group")}
    return keys


def _scaling(rope: Rope) -> dict[str, Any]:
    keys = scaling(rope, ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"))
    if rope.kind == "yarn" and rope.values.get("mscale_all_dim") is not None:
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * number(rope.values, "mscale_all_dim")
    return keys


def rebuilt(info: TensorInfo, config: Config) -> list[Rebuilt] | None:
    """The matrix behind keys and values as one for keys, transposed, and one for values, for each head; None for other
    tensors."""
    if not info.name.endswith(KEYS_VALUES) or len(info.shape) != 2:
        return None
    heads, flat, value = (config.whole(key) for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    lora, stem = info.shape[1], info.name.removesuffix("kv_b_proj.weight")
    if info.shape[0] != heads * (flat + value):
        return None
    starts = [head * (flat + value) * lora for head in range(heads)]
    keys = tuple(Matrix(name=info.name, rows=lora, cols=flat, first=at, width=lora) for at in starts)
    values = tuple(Matrix(name=info.name, rows=value, cols=lora, first=at + flat * lora) for at in starts)
    return [
        Rebuilt(f"{stem}k_b_proj.weight", (heads, lora, flat), keys),
        Rebuilt(f"{stem}v_b_proj.weight", (heads, value, lora), values),
    ]


FAMILY = Family(
    architecture="deepseek2",
    classes=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    parts=parts,
    modules=OUTER,
    layer={
        "input_layernorm": ATTENTION["input_layernorm"],
        "self_attn.q_proj": "attn_q",
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.k_b_proj": "attn_k_b",
        "self_attn.v_b_proj": "attn_v_b",
        "self_attn.o_proj": "attn_output",
        **{name: ours for name, ours in DENSE.items() if name.startswith(("post", "mlp"))},
        **ROUTED_AND_SHARED,
    },
    rebuilt=rebuilt,
)
