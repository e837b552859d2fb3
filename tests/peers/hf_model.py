"""Runs in a peers' environment: make a random model of the Llama family with transformers.

python hf_model.py FAMILY FOLDER [DTYPE]     FAMILY is one of CASES
"""

from __future__ import annotations

import re
import sys

import torch
import transformers

WORDS = 100
PROMPT, LENGTH = "\nfifty nine plus forty eight is", 24
"""What tiny-llama goes on with, a word for each letter, and how many words to take."""
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 500000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LARGER = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "initializer_range": 0.03,
}
NOROPE = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
        "long_factor": [1.0 + i / 4 for i in range(16)], "short_factor": [1.0 + i / 16 for i in range(16)]}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GEMMA = {**SMALL, "head_dim": 64, "num_hidden_layers": 7, "sliding_window": 32, "query_pre_attn_scalar": 64}
GPT2 = {"n_embd": 256, "n_layer": 3, "n_head": 8, "n_positions": 512, "vocab_size": 320, "initializer_range": 0.06}
BERT = {**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, "type_vocab_size": 2}
MOE = {"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2}
MLA = {**SMALL, "num_key_value_heads": 8, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
       "qk_rope_head_dim": 16, "v_head_dim": 32, "moe_intermediate_size": 96, "n_routed_experts": 8,
       "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1}  # fmt: skip
MLA_OF_MINICPM = {**SMALL, "num_key_value_heads": 8, **{k: MLA[k] for k in (
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}}  # fmt: skip
MOE_SIGMOID = {"moe_intermediate_size": 96, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
               "norm_topk_prob": True, "routed_scaling_factor": 1.5}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}}
NOTHING_ADDED = {"rms_norm_eps": 1e-12}
"""llama.cpp does not read what norms of Qwen2-VL add, and takes 0."""
SEEING = {"depth": 1, "hidden_size": 32, "embed_dim": 32, "out_hidden_size": 256, "intermediate_size": 64,
          "num_heads": 2, "patch_size": 14}  # fmt: skip
T5 = {"d_model": 256, "d_ff": 704, "d_kv": 64, "num_heads": 8, "num_layers": 3, "vocab_size": 320,
      "feed_forward_proj": "relu"}  # fmt: skip
CASES = {
    "llama": ("Llama", SMALL),
    "llama-larger": ("Llama", LARGER),
    "llama-tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "llama3": ("Llama", SMALL | {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", SMALL | {"rope_parameters": LINEAR}),
    "llama-bias": ("Llama", SMALL | {"attention_bias": True, "mlp_bias": True}),
    "llama-heads": ("Llama", SMALL | {"head_dim": 64}),
    "mistral": ("Mistral", SMALL | {"sliding_window": None}),
    "mixtral": ("Mixtral", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2-yarn": ("Qwen2", SMALL | {"rope_parameters": YARN}),
    "qwen2moe": ("Qwen2Moe", SMALL | MOE | {"shared_expert_intermediate_size": 160, "decoder_sparse_step": 1}),
    "words": ("Llama", SMALL | {"vocab_size": 1600}),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 64}),
    "qwen3moe": ("Qwen3Moe", SMALL | MOE | {"head_dim": 64, "norm_topk_prob": True}),
    "gemma": ("Gemma", SMALL | {"head_dim": 64}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA),
    "phi3": ("Phi3", SMALL | {"pad_token_id": 0, "sliding_window": None}),
    "phi3-long": ("Phi3", SMALL | {"pad_token_id": 0, "rope_parameters": LONG, "sliding_window": None,
                                   "original_max_position_embeddings": 256}),
    "phi4-mini": ("Phi3", SMALL | {"pad_token_id": 0, "tie_word_embeddings": True, "sliding_window": None,
                                   "rope_parameters": PARTIAL}),
    "smollm3": ("SmolLM3", SMALL | {"num_hidden_layers": 5, **NOROPE}),
    "olmo2": ("Olmo2", SMALL),
    "olmo3": ("Olmo3", SMALL | {"num_hidden_layers": 5, "sliding_window": 32}),
    "granite": ("Granite", SMALL | {"embedding_multiplier": 6.0, "attention_multiplier": 0.1, "logits_scaling": 4.0,
                                    "residual_multiplier": 0.3}),
    "glm4": ("Glm4", SMALL | {"head_dim": 32, "attention_bias": True, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2", SMALL | {"sliding_window": None}),
    "falcon": ("Falcon", {**BERT, "new_decoder_architecture": False, "multi_query": True, "alibi": False,
                          "bias": False}),
    "falcon-40b": ("Falcon", {**BERT, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False,
                              "bias": False}),
    "gpt2": ("GPT2", GPT2),
    "gptneox": ("GPTNeoX", BERT),
    "bert": ("Bert", BERT),
    "nomic": ("NomicBert", BERT),
    "roberta": ("Roberta", BERT | {"max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", BERT | {"max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}),
    "modern-bert": ("ModernBert", BERT | {"intermediate_size": 96, "num_hidden_layers": 5, "local_attention": 16,
                                          **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id",
                                                           "cls_token_id", "sep_token_id"), 0)}),
    "deepseek3-yarn": ("DeepseekV3", MLA | {"n_group": 1, "topk_group": 1, "rope_parameters": YARN | {
        "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "deepseek2": ("DeepseekV2", MLA | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "head_dim": 16}),
    "deepseek3": ("DeepseekV3", MLA | {"n_group": 2, "topk_group": 1, "norm_topk_prob": True}),
    "gpt-oss": ("GptOss", SMALL | {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
                                   "intermediate_size": 96, "sliding_window": 32, "num_hidden_layers": 4,
                                   "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "glm4moe": ("Glm4Moe", SMALL | MOE_SIGMOID | {"head_dim": 32, "attention_bias": True, "use_qk_norm": True,
                                                  "first_k_dense_replace": 1}),
    "dots1": ("Dots1", SMALL | MOE_SIGMOID | {"num_key_value_heads": 8, "head_dim": 32, "first_k_dense_replace": 1}),
    "cohere2": ("Cohere2", SMALL | {"num_hidden_layers": 5, "sliding_window": 32, "logit_scale": 0.25}),
    "command-r": ("Cohere", SMALL | {"logit_scale": 0.25}),
    "exaone4": ("Exaone4", SMALL | {"sliding_window": None, "layer_types": ["full_attention"] * 3,
                                    "rope_parameters": LLAMA3}),
    "ernie4_5": ("Ernie4_5", SMALL | {"head_dim": 64}),
    "ernie4_5moe": ("Ernie4_5_Moe", SMALL | {"moe_intermediate_size": 96, "moe_num_experts": 4, "moe_k": 2,
                                             "moe_num_shared_experts": 2, "moe_layer_start_index": 1}),
    "hunyuan-dense": ("HunYuanDenseV1", SMALL | {"head_dim": 32, "rope_parameters": {
        "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 10000.0}}),
    "seed-oss": ("SeedOss", SMALL | {"head_dim": 64}),
    "arcee": ("Arcee", SMALL),
    "olmoe": ("Olmoe", SMALL | {"num_key_value_heads": 8, "num_experts": 4, "num_experts_per_tok": 2,
                                "intermediate_size": 96}),
    "stablelm": ("StableLm", SMALL | {"use_qkv_bias": True}),
    "nemotron": ("Nemotron", SMALL),
    "lfm2": ("Lfm2", SMALL | {"num_hidden_layers": 4, "full_attn_idxs": [0, 2], "block_multiple_of": 32}),
    "lfm2moe": ("Lfm2Moe", SMALL | MOE | {
        "num_hidden_layers": 4, "num_dense_layers": 1,
        "layer_types": ["full_attention", "conv", "full_attention", "conv"]}),
    "minicpm3": ("MiniCPM3", MLA_OF_MINICPM),
    "minicpm3-long": ("MiniCPM3", MLA_OF_MINICPM | {"rope_parameters": {
        **LONG, "long_factor": LONG["long_factor"][:8], "short_factor": LONG["short_factor"][:8]},
        "original_max_position_embeddings": 256}),
    "granitemoe": ("GraniteMoe", SMALL | {"num_local_experts": 4, "intermediate_size": 96, "attention_multiplier": 0.1,
                                          "embedding_multiplier": 6.0, "logits_scaling": 4.0,
                                          "residual_multiplier": 0.3}),
    "qwen2vl": ("Qwen2VL", {"text_config": SMALL | MROPE | NOTHING_ADDED, "vision_config": SEEING}),
    "qwen2_5vl": ("Qwen2_5_VL", {"text_config": SMALL | MROPE | NOTHING_ADDED, "vision_config": SEEING}),
    "qwen3vl": ("Qwen3VL", {"text_config": SMALL | MROPE | {"head_dim": 32}, "vision_config": SEEING | {
        "deepstack_visual_indexes": [0]}}),
    "qwen3vlmoe": ("Qwen3VLMoe", {"text_config": SMALL | MOE | MROPE | {"head_dim": 32}, "vision_config": SEEING | {
        "deepstack_visual_indexes": [0]}}),
    "olmo": ("Olmo", SMALL | {"clip_qkv": 0.5}),
    "minimax-m2": ("MiniMaxM2", SMALL | {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
                                         "intermediate_size": 96, "partial_rotary_factor": 0.5}),
    "t5": ("T5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "t5-relu": ("T5", T5),
    "umt5": ("UMT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "llama4": ("Llama4", SMALL | {"num_hidden_layers": 4, "num_local_experts": 4, "intermediate_size": 96,
                                  "intermediate_size_mlp": 192, "head_dim": 32}),
}  # fmt: skip
"""The stem of the classes, and the settings of a small one."""
EXACT = re.compile(r"\b(?:o_proj|out_proj|c_proj|dense|attn\.Wo|SelfAttention\.o)\.weight$")
"""The first matrix of such a name is made so that Q8_0 holds it exactly, whichever way its blocks go."""
OTHERWISE = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}
"""Configurations that are called otherwise."""
CLASSES = {
    "GPT2": "GPT2LMHeadModel",
    "T5": "T5EncoderModel",
    "UMT5": "UMT5EncoderModel",
    **{stem: f"{stem}ForConditionalGeneration" for stem in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe")},
}
"""Classes that are called otherwise."""


def make(family: str, folder: str, dtype: str = "float32") -> None:
    torch.manual_seed(0)
    stem, settings = CASES[family]
    config = getattr(transformers, OTHERWISE.get(stem, f"{stem}Config"))(**settings)
    kind = f"{stem}Model" if "ert" in stem else CLASSES.get(stem, f"{stem}ForCausalLM")
    made = getattr(transformers, kind)(config)
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1, which would hide mistakes
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
        exactly = next(w for name, w in made.named_parameters() if w.ndim == 2 and EXACT.search(name))
        rows, cols = (torch.arange(size) for size in exactly.shape)
        codes = (rows[:, None] * 7 + cols * 5) % 255 - 127
        codes[(rows[:, None] + cols) % 32 == 0] = 127
        exactly.copy_(codes / 1024)
    made.to(getattr(torch, dtype)).save_pretrained(folder)


if __name__ == "__main__":
    make(*sys.argv[1:])
