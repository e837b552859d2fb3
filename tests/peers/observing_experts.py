"""Runs in the peers' environment current: mixtures of experts of transformers, and their statistics by the script of
`quantcli help statistics`.

    python observing_experts.py SCRIPT.py FOLDER

Into FOLDER/TYPE comes a random model, into FOLDER/TYPE.safetensors its statistics. Printed is a line of a table for
each: how far the moments are from those of what comes to the products of the experts while transformers runs them one
by one.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "num_experts_per_tok": 2, "tie_word_embeddings": False, "experts_implementation": "eager",
}  # fmt: skip
MODELS = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=96)),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig(**SIZES, num_local_experts=4, intermediate_size=96)),
}


class Products(TorchFunctionMode):
    """Adds up x x^T of what is multiplied by a matrix, by where that lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, Any] = defaultdict(float)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("linear", "matmul", "__matmul__") and args[1].ndim == 2:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            self.sums[args[1].data_ptr()] += x.mT @ x
        return func(*args, **(kwargs or {}))


def main() -> None:
    offered: dict[str, Any] = {}
    exec(Path(sys.argv[1]).read_text(encoding="utf-8"), offered)
    torch.manual_seed(0)
    for name, (kind, config) in MODELS.items():
        folder = Path(sys.argv[2]) / name
        model = kind(config).eval()
        model.save_pretrained(folder)
        batches = [{"input_ids": torch.randint(0, 64, (4, 96))} for _ in range(2)]
        offered["observe"](model, batches, folder.with_suffix(".safetensors"), full_of_experts=True)
        with Products() as products, torch.no_grad():
            for batch in batches:
                model(**batch)
        found, worst = load_file(folder.with_suffix(".safetensors")), 0.0
        experts = model.model.layers[0].mlp.experts
        for part in ("gate_up_proj", "down_proj"):
            own = f"model.layers.0.mlp.experts.{part}"
            for i, weight in enumerate(getattr(experts, part)):
                wanted = products.sums[weight.data_ptr()] / found[f"{own}.count"][i]
                worst = max(worst, float((found[f"{own}.second"][i] - wanted).abs().max() / wanted.abs().max()))
        says = "as computed" if worst < 1e-5 else "differs"
        print(f"| {name} | experts of the script | {says} ({worst:.1e}) |", flush=True)


if __name__ == "__main__":
    main()
