"""Runs in a peers' environment: make a random model of the Llama family with transformers.

python hf_model.py FAMILY FOLDER [DTYPE]     FAMILY is one of CASES
"""

from __future__ import annotations

import sys

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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
CASES = {
    "llama": (LlamaConfig, LlamaForCausalLM, SMALL),
    "llama-larger": (LlamaConfig, LlamaForCausalLM, LARGER),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, SMALL | {"tie_word_embeddings": True}),
    "llama3": (LlamaConfig, LlamaForCausalLM, SMALL | {"rope_parameters": LLAMA3}),
    "llama-linear": (LlamaConfig, LlamaForCausalLM, SMALL | {"rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-bias": (LlamaConfig, LlamaForCausalLM, SMALL | {"attention_bias": True, "mlp_bias": True}),
    "llama-heads": (LlamaConfig, LlamaForCausalLM, SMALL | {"head_dim": 64}),
    "mistral": (MistralConfig, MistralForCausalLM, SMALL | {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, SMALL),
    "qwen2-yarn": (Qwen2Config, Qwen2ForCausalLM, SMALL | {"rope_parameters": YARN}),
    "words": (LlamaConfig, LlamaForCausalLM, SMALL | {"vocab_size": 1600}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, SMALL | {"head_dim": 64}),
}  # fmt: skip


def make(family: str, folder: str, dtype: str = "float32") -> None:
    torch.manual_seed(0)
    config, model, settings = CASES[family]
    made = model(config(**settings))
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1, which would hide mistakes
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
    made.to(getattr(torch, dtype)).save_pretrained(folder)


if __name__ == "__main__":
    make(*sys.argv[1:])
