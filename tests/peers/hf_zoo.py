"""Runs in a peers' environment: make small random models of many architectures with transformers.

    python hf_zoo.py FOLDER NAME...     makes FOLDER/NAME; NAME is one of MODELS

Weights are as large for every layer to matter to what comes out: with the small ones that transformers begins with, a
model says much the same whatever its layers are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

GAIN = 0.5
"""Of every matrix, so that 4 bits cost what they cost trained models: with 1 errors grow from layer to layer."""
WORDS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**WORDS, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
ENCODER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SEES = {"image_size": 32, "patch_size": 8}
GEMMA = {**DECODER, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32}
EXPERTS = {**DECODER, "num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("LlamaForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "qwen3-tied": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3": ("Gemma3ForCausalLM", GEMMA),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 128}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True, "rope_theta": 10000.0}),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 8}),
    "llama4": ("Llama4ForCausalLM", {
        **DECODER, "intermediate_size": 64, "intermediate_size_mlp": 256, "head_dim": 32, "num_local_experts": 8,
        "num_hidden_layers": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
        "attn_temperature_tuning": False, "no_rope_layers": [1, 1, 1, 0]}),
    "gpt-oss": ("GptOssForCausalLM", {
        **DECODER, "head_dim": 32, "intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 4}),
    "dbrx": ("DbrxForCausalLM", {
        **WORDS, "d_model": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 4, "hidden_size": 128}}),
    "glm4-moe": ("Glm4MoeForCausalLM", {
        **DECODER, "head_dim": 32, "moe_intermediate_size": 64, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "rope_theta": 10000.0, "rope_scaling": None,
        "partial_rotary_factor": 0.5}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", {
        **DECODER, "moe_intermediate_size": 64, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 64, "qk_rope_head_dim": 32,
        "v_head_dim": 32, "qk_nope_head_dim": 32, "num_key_value_heads": 4, "n_shared_experts": 1}),
    "qwen3-5-moe": ("Qwen3_5MoeForCausalLM", {
        **EXPERTS, "head_dim": 32, "shared_expert_intermediate_size": 64, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3-next": ("Qwen3NextForCausalLM", {
        **EXPERTS, "head_dim": 32, "shared_expert_intermediate_size": 64, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "num_hidden_layers": 4,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "full_attention_interval": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", {**DECODER}),
    "gpt2": ("GPT2LMHeadModel", {**WORDS, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "t5": ("T5ForConditionalGeneration", {
        **WORDS, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0}),
    "whisper": ("WhisperForConditionalGeneration", {
        **WORDS, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "num_mel_bins": 80,
        "max_source_positions": 32, "max_target_positions": 64, "decoder_start_token_id": 1}),
    "bert": ("BertForMaskedLM", {**WORDS, **ENCODER}),
    "vit": ("ViTForImageClassification", {**ENCODER, **SEES, "num_labels": 32}),
    "clip": ("CLIPModel", {
        "text_config": {**WORDS, **ENCODER, "projection_dim": 128, "max_position_embeddings": 64},
        "vision_config": {**ENCODER, **SEES, "projection_dim": 128}, "projection_dim": 128}),
    "mamba": ("MambaForCausalLM", {**WORDS, "hidden_size": 128, "state_size": 16, "num_hidden_layers": 2}),
}  # fmt: skip


def fan_in(module: nn.Module, weight: torch.Tensor) -> int:
    """How many products are added up in what a weight of a module makes; experts are stacked."""
    if isinstance(module, Conv1D) or weight.ndim < 2:
        return weight.shape[0]
    return weight.shape[2] if weight.ndim == 3 and not isinstance(module, nn.Conv1d) else weight[0].numel()


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Random weights in place of those transformers begins with."""
    for module in model.modules():
        around = 0.0 if "Gemma" in type(module).__name__ else 1.0
        for name, weight in module.named_parameters(recurse=False):
            if name in ("A_log", "D", "logit_scale"):
                continue
            if name == "bias":
                weight.normal_(0, 0.1)
            elif weight.ndim == 1 and "Norm" in type(module).__name__:
                weight.uniform_(around - 0.5, around + 0.5)
            elif isinstance(module, nn.Embedding):
                weight.normal_(0, 1)
            else:
                weight.normal_(0, GAIN * fan_in(module, weight) ** -0.5)
        if type(module).__name__ == "T5Attention":  # it does not divide by the root of the size of a head
            module.q.weight.mul_(module.key_value_proj_dim**-0.5)


def make(name: str, folder: Path) -> None:
    architecture, settings = MODELS[name]
    torch.manual_seed(0)
    made: Callable[..., nn.Module] = getattr(transformers, architecture)
    model = made(made.config_class(**settings))
    fill(model)
    model.tie_weights()
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())  # without names that only older versions know
    (folder / "config.json").write_text(json.dumps({**settings, **saved}, indent=2))


if __name__ == "__main__":
    for each in sys.argv[2:]:
        make(each, Path(sys.argv[1]) / each)
