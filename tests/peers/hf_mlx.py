"""Runs in a peers' environment: make small random models of the types that mlx-lm has, with transformers, as it saves
them.

    python hf_mlx.py FOLDER [NAME...]     makes FOLDER/NAME of all MODELS, or of some, and prints their names in JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.append(str(Path(__file__).parent))  # behind all packages
from hf_zoo import DECODER, EXPERTS, GEMMA, fill
from hf_zoo import MODELS as ZOO

HEADS = {**DECODER, "head_dim": 32}
FOUR = {**DECODER, "num_hidden_layers": 4}
ROUTED = {**DECODER, "moe_intermediate_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 4,
          "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 64, "qk_rope_head_dim": 32, "v_head_dim": 32, "qk_nope_head_dim": 32,
          "num_key_value_heads": 4}  # fmt: skip
MLA = {**ROUTED, **LATENT}
INDEXED = {"index_head_dim": 32, "index_n_heads": 4, "index_topk": 64}
LOCAL = {**DECODER, "num_local_experts": 8}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
          "linear_value_head_dim": 32, "head_dim": 32, "num_hidden_layers": 4,
          "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
MAMBA = {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16,
         "position_embedding_type": "rope"}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
        "mscale": 0.707, "mscale_all_dim": 0.707}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
        "short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [1.0 + i / 4 for i in range(16)]}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
SEES = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
        "deepstack_visual_indexes": [0]}  # fmt: skip
SEES4 = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
         "image_size": 28, "patch_size": 14, "projector_input_dim": 64, "projector_output_dim": 64,
         "vision_output_dim": 64}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("AfmoeForCausalLM", {**EXPERTS, **ALTERNATING, "head_dim": 32, "num_dense_layers": 1,
                                   "num_shared_experts": 1}),
    "apertus": ("ApertusForCausalLM", DECODER),
    "cohere2": ("Cohere2ForCausalLM", {**FOUR, "head_dim": 32}),
    "dbrx": ZOO["dbrx"],
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**MLA, "rope_parameters": YARN}),
    "deepseek_v3": ZOO["deepseek-v3"],
    "deepseek_v32": ("DeepseekV32ForCausalLM", {**MLA, **INDEXED}),
    "dots1": ("Dots1ForCausalLM", {**ROUTED, "head_dim": 32}),
    "ernie4_5": ("Ernie4_5ForCausalLM", HEADS),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", {**DECODER, "moe_intermediate_size": 64, "moe_num_experts": 8,
                                                 "moe_k": 2, "moe_layer_start_index": 1, "moe_num_shared_experts": 1}),
    "exaone4": ("Exaone4ForCausalLM", {**FOUR, "sliding_window": 64}),
    "exaone_moe": ("ExaoneMoeForCausalLM", {**EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1,
                                            "head_dim": 32, "sliding_window": 64}),
    "falcon_h1": ("FalconH1ForCausalLM", {**DECODER, "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32,
                                          "mamba_d_state": 16}),
    "gemma": ("GemmaForCausalLM", HEADS),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3_text": ("Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 6}),
    "gemma4_text": ("Gemma4ForCausalLM", {
        **GEMMA, **ALTERNATING, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
        "moe_intermediate_size": 64, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512,
        "num_kv_shared_layers": 0, "global_head_dim": 32}),
    "glm4": ("Glm4ForCausalLM", HEADS),
    "glm4_moe": ZOO["glm4-moe"],
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", MLA),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", {**MLA, **INDEXED}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**DECODER, "intermediate_size": 512}),
    "gpt_oss": ZOO["gpt-oss"],
    "granite": ("GraniteForCausalLM", DECODER),
    "granitemoe": ("GraniteMoeForCausalLM", {**LOCAL, "num_experts_per_tok": 4}),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", {**LOCAL, **MAMBA, "num_experts_per_tok": 4,
                                                         "shared_intermediate_size": 64}),
    "granitemoehybrid, no experts": ("GraniteMoeHybridForCausalLM", {
        **DECODER, **MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 256}),
    "helium": ("HeliumForCausalLM", HEADS),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", HEADS),
    "jamba": ("JambaForCausalLM", {**DECODER, "num_experts": 8, "num_experts_per_tok": 2, "attn_layer_offset": 1,
                                   "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
                                   "mamba_d_state": 16, "use_mamba_kernels": False}),
    "laguna": ("LagunaForCausalLM", {**EXPERTS, "head_dim": 32}),
    "lfm2": ("Lfm2ForCausalLM", {**DECODER, "layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]}),
    "llama": ("LlamaForCausalLM", DECODER),
    "llama, stretched": ("LlamaForCausalLM", {**DECODER, "rope_parameters": LLAMA3}),
    "llama4": ("Llama4ForConditionalGeneration", {"text_config": ZOO["llama4"][1], "vision_config": SEES4}),
    "llama4_text": ZOO["llama4"],
    "mellum": ("MellumForCausalLM", {**EXPERTS, **ALTERNATING, "head_dim": 32}),
    "minicpm3": ("MiniCPM3ForCausalLM", {**DECODER, **LATENT, "rope_parameters": LONG}),
    "minicpm3, not stretched": ("MiniCPM3ForCausalLM", {**DECODER, **LATENT}),
    "minimax": ("MiniMaxForCausalLM", {**LOCAL, "head_dim": 32, "layer_types": ["full_attention"] * 2}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", {**LOCAL, "num_experts_per_tok": 2, "head_dim": 32}),
    "ministral3": ("Ministral3ForCausalLM", DECODER),
    "mistral": ("MistralForCausalLM", DECODER),
    "mistral4": ("Mistral4ForCausalLM", MLA),
    "mixtral": ("MixtralForCausalLM", LOCAL),
    "nemotron": ("NemotronForCausalLM", DECODER),
    "nemotron_h": ("NemotronHForCausalLM", {
        **DECODER, "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3, "mamba_num_heads": 8,
        "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 2, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "n_shared_experts": 1, "head_dim": 32,
        "mlp_hidden_act": "relu2"}),
    "olmo2": ("Olmo2ForCausalLM", DECODER),
    "olmo3": ("Olmo3ForCausalLM", {**FOUR, "sliding_window": 64}),
    "olmoe": ("OlmoeForCausalLM", EXPERTS),
    "phi": ("PhiForCausalLM", DECODER),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "phimoe": ("PhimoeForCausalLM", {**LOCAL, "attention_bias": True, "lm_head_bias": True}),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 128}),
    "qwen3": ("Qwen3ForCausalLM", HEADS),
    "qwen3_5": ("Qwen3_5ForCausalLM", {**DECODER, **LINEAR}),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "head_dim": 32}),
    "qwen3_next": ("Qwen3NextForCausalLM", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 64}),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", {
        "text_config": {**HEADS, "rope_parameters": SECTIONS}, "vision_config": SEES}),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", {
        "text_config": {**EXPERTS, "head_dim": 32, "rope_parameters": SECTIONS}, "vision_config": SEES}),
    "seed_oss": ("SeedOssForCausalLM", HEADS),
    "smollm3": ("SmolLM3ForCausalLM", DECODER),
    "solar_open": ("SolarOpenForCausalLM", {**ROUTED, "head_dim": 32, "first_k_dense_replace": 0}),
    "stablelm": ("StableLmForCausalLM", DECODER),
    "starcoder2": ("Starcoder2ForCausalLM", DECODER),
    "bailing_hybrid": ("BailingHybridForCausalLM", {**MLA, "num_experts": 8, "head_dim": 32}),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", {**HEADS, "num_experts": 8, "moe_topk": 2}),
    "kimi_linear": ("KimiLinearForCausalLM", {**MLA, "num_experts": 8, "head_dim": 32}),
    "longcat_flash": ("LongcatFlashForCausalLM", {**MLA, "ffn_hidden_size": 256, "expert_ffn_hidden_size": 64,
                                                  "moe_topk": 4, "zero_expert_num": 4, "num_layers": 1}),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", {**MLA, "head_dim": 32}),
}  # fmt: skip
"""By the type that mlx-lm knows it under: the class in transformers, and its settings."""


def make(name: str, folder: Path) -> None:
    architecture, settings = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, architecture)
    model = made(made.config_class(**settings))
    fill(model)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    names = sys.argv[2:] or list(MODELS)
    for each in names:
        make(each, Path(sys.argv[1]) / each)
    print(json.dumps(names))
