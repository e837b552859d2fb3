"""Runs in a peers' environment that has transformers and mlx-lm: tiny models of types with experts, and of others whose
settings transformers 5 saves under names of its own, for tests/golden/mlx.json.

    .venv-peers/current/bin/python tests/peers/write_mlx_names.py tests/golden/mlx.json

Every model has its config.json and the names and shapes of its tensors, as transformers saves them; the keys that are
added by hand here for mlx-lm to load it, and the names and shapes of the matrices that mlx-lm can have quantized then.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers
from hf_zoo import DECODER, GEMMA
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from safetensors import safe_open

SMALL = {**DECODER, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96}
MOE = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32}
LOCAL = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
HEADS = {key: value for key, value in MOE.items() if key != "head_dim"}  # of the usual size
ROUTED = {**SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
          "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
LATENT = {**ROUTED, "kv_lora_rank": 32, "q_lora_rank": 64, "qk_rope_head_dim": 32, "v_head_dim": 32,
          "qk_nope_head_dim": 32, "num_key_value_heads": 4}  # fmt: skip
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "num_hidden_layers": 4,
          "linear_value_head_dim": 32, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "shared_intermediate_size": 96,
         "layer_types": ["mamba", "attention"], "position_embedding_type": "rope"}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
STRETCHED = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
THETA = {"rope_theta": 10000.0}
PARTIAL = {**THETA, "partial_rotary_factor": 0.25}
SEEN = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "deepstack_visual_indexes": [0]}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SMALL, "rope_parameters": LLAMA3},
              {"rope_theta": 500000.0, "rope_scaling": STRETCHED}),
    "smollm3": ("SmolLM3ForCausalLM", SMALL, {"rope_theta": 2000000.0}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**SMALL, "intermediate_size": 256},
                 {"rotary_emb_base": 10000.0, "rotary_pct": 0.25}),
    "gemma3_text": ("Gemma3ForCausalLM", {**GEMMA, **SMALL, "num_hidden_layers": 6},
                    {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
    "exaone4": ("Exaone4ForCausalLM", {**SMALL, "sliding_window": 64, "num_hidden_layers": 4},
                {**THETA, "rope_scaling": None, "head_dim": 16, "sliding_window_pattern": "LLLG"}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MOE, {**THETA, "num_experts": 4}),
    "qwen3_next": ("Qwen3NextForCausalLM", {**MOE, **LINEAR, "shared_expert_intermediate_size": 32}, PARTIAL),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", {**MOE, **LINEAR, "shared_expert_intermediate_size": 32},
                    {"model_type": "qwen3_5_moe", **PARTIAL}),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration",
                     {"text_config": {**MOE, "rope_parameters": SECTIONS}, "vision_config": SEEN},
                     {"text_config": {**THETA, "num_experts": 4, "norm_topk_prob": True,
                                      "tie_word_embeddings": False}}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**HEADS, "shared_expert_intermediate_size": 64}, THETA),
    "olmoe": ("OlmoeForCausalLM", MOE, THETA),
    "mixtral": ("MixtralForCausalLM", LOCAL, {"rope_theta": 1000000.0}),
    "phimoe": ("PhimoeForCausalLM", {**LOCAL, "attention_bias": True, "lm_head_bias": True}, {"rope_theta": 1000000.0}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", {**LOCAL, "head_dim": 32},
                   {"rope_theta": 5000000.0, "rotary_dim": 32, "shared_intermediate_size": 0}),
    "granitemoe": ("GraniteMoeForCausalLM", LOCAL, THETA),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", {**LOCAL, **MAMBA},
                         {**THETA, "layer_types": ["mamba", "attention"]}),
    "granite4": ("GraniteMoeHybridForCausalLM", {**SMALL, **MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0},
                 {**THETA, "layer_types": ["mamba", "attention"]}),
    "jamba": ("JambaForCausalLM", {**SMALL, "num_experts": 4, "attn_layer_offset": 1, "attn_layer_period": 2,
                                   "expert_layer_offset": 1, "expert_layer_period": 2, "mamba_d_state": 16}, {}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {**HEADS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
                 {"rope_theta": 1000000.0}),
    "nemotron_h": ("NemotronHForCausalLM", {
        **SMALL, "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3, "mamba_num_heads": 4,
        "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "n_shared_experts": 1, "head_dim": 32,
        "mlp_hidden_act": "relu2"}, {}),
    "gemma4_text": ("Gemma4ForCausalLM", {
        **GEMMA, **SMALL, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
        "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 0, "global_head_dim": 32}, {"global_head_dim": 32}),
    "gpt_oss": ("GptOssForCausalLM", {**LOCAL, "head_dim": 32, "intermediate_size": 32}, {"rope_theta": 150000.0}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT, THETA),
    "glm4_moe": ("Glm4MoeForCausalLM", {**ROUTED, "head_dim": 32},
                 {**THETA, "rope_scaling": None, "partial_rotary_factor": 0.5}),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", {**LATENT, "index_head_dim": 32, "index_n_heads": 4, "index_topk": 64},
                    {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}),
    "exaone_moe": ("ExaoneMoeForCausalLM", {**MOE, "num_shared_experts": 1, "first_k_dense_replace": 1,
                                            "sliding_window": 64}, {**THETA, "is_moe_layer": [False, True]}),
    "dots1": ("Dots1ForCausalLM", {**ROUTED, "head_dim": 32}, THETA),
    "afmoe": ("AfmoeForCausalLM", {**MOE, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 64,
                                   "layer_types": ["sliding_attention", "full_attention"]}, THETA),
    "laguna": ("LagunaForCausalLM", MOE, {}),
    "mellum": ("MellumForCausalLM", {**MOE, "layer_types": ["sliding_attention", "full_attention"],
                                     "sliding_window": 64}, {"num_experts": 4}),
}  # fmt: skip


def deeply(config: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """A config.json with keys added, inside its objects too where those have keys to add."""
    inner = {k: {**config[k], **v} if k == "text_config" else v for k, v in added.items()}
    return {**config, **inner}


def modules(config: dict[str, Any]) -> dict[str, list[int]]:
    """The matrices that mlx-lm can have quantized, by the names of their modules."""
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    shapes = dict(tree_flatten(model.parameters()))
    found = {path: m for path, m in model.named_modules() if hasattr(m, "to_quantized")}
    return {path: list(shapes[f"{path}.weight"].shape) for path in sorted(found)}


def model_of(name: str) -> dict[str, Any]:
    architecture, settings, added = MODELS[name]
    kind = getattr(transformers, architecture)
    with tempfile.TemporaryDirectory() as folder:
        kind(kind.config_class(**settings)).save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            tensors = {key: list(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    return {"config": config, "added": added, "tensors": tensors, "modules": modules(deeply(config, added))}


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = {name: model_of(name) for name in MODELS}
    lines = [f"{json.dumps(name)}: {json.dumps(model, sort_keys=True)}" for name, model in found.items()]
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
