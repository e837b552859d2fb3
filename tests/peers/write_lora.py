"""Write tests/golden/lora: small models, adapters of PEFT for them, and what merge_and_unload makes of both.

    python tests/peers/write_lora.py

with torch, transformers and peft.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "lora"
LINEAR = ["q_proj", "v_proj", "down_proj"]
LLAMA = LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, tie_word_embeddings=False)  # fmt: skip
GPT2 = GPT2Config(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=16)
BIASED = LlamaConfig(**{**LLAMA.to_dict(), "attention_bias": True, "num_hidden_layers": 1})

CASES: dict[str, tuple[Any, torch.dtype, dict[str, Any]]] = {
    "plain": (LLAMA, torch.float32, {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}),
    "bfloat16": (LLAMA, torch.bfloat16, {"r": 4, "lora_alpha": 16, "target_modules": LINEAR}),
    "rslora": (LLAMA, torch.float32, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": LINEAR}),
    "patterns": (LLAMA, torch.float32, {"r": 4, "lora_alpha": 8, "target_modules": LINEAR,
                                        "rank_pattern": {"v_proj": 2, "layers.1.mlp.down_proj": 3},
                                        "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 24, "down_proj": 5}}),
    "embedding": (LLAMA, torch.float32, {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]}),
    "saved": (LLAMA, torch.float32, {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"],
                                     "modules_to_save": ["lm_head"]}),
    "conv1d": (GPT2, torch.float32, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"],
                                     "fan_in_fan_out": True}),
    "bias": (BIASED, torch.float32, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "lora_only"}),
    "dora": (LLAMA, torch.float32, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True}),
}  # fmt: skip


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for number, (name, (config, dtype, options)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = GOLDEN / name
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        model.save_pretrained(folder / "base")
        before = load_file(folder / "base" / "model.safetensors")
        tuned = get_peft_model(model, LoraConfig(**options))
        with torch.no_grad():
            for value in tuned.parameters():
                if value.requires_grad:
                    value.copy_(value + 0.1 * torch.randn(value.shape).to(value.dtype))
        tuned.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        config_path = folder / "adapter" / "adapter_config.json"
        settings = {k: v for k, v in json.loads(config_path.read_text()).items() if v not in (None, {}, "", [])}
        config_path.write_text(json.dumps({**settings, "target_modules": sorted(options["target_modules"])}, indent=1))
        tuned.merge_and_unload().save_pretrained(folder / "merged")
        after = load_file(folder / "merged" / "model.safetensors")
        shutil.rmtree(folder / "merged")
        changed = {k: v for k, v in after.items() if not torch.equal(v, before[k])}
        save_file(changed, folder / "changed.safetensors")
        (folder / "base" / "generation_config.json").unlink(missing_ok=True)
        print(name, sorted(changed))


if __name__ == "__main__":
    main()
