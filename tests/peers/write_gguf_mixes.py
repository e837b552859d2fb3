"""Write tests/golden/gguf_mixes.json: the types that llama-quantize gives the tensors of small models, by file type.

    python tests/peers/write_gguf_mixes.py      with the packages gguf and llama-cpp-python

Every model is made here with random weights: layers, queries per key, experts, whether the embedding is the output too.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

OUT = Path(__file__).parent.parent / "golden" / "gguf_mixes.json"
MODELS = {
    "llama": {"layers": 16, "sharing": 4, "experts": 0, "tied": False},
    "tied": {"layers": 9, "sharing": 1, "experts": 0, "tied": True},
    "large": {"layers": 80, "sharing": 8, "experts": 0, "tied": False},
    "experts": {"layers": 8, "sharing": 4, "experts": 8, "tied": False},
    "falcon": {"layers": 32, "sharing": 4, "experts": 0, "tied": False},
}
KINDS = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4_MOE": 38,
}  # fmt: skip
HIDDEN, INNER, WORDS, HEADS = 256, 512, 32, 8


def write(path: Path, *, falcon: bool, layers: int, sharing: int, experts: int, tied: bool) -> None:
    """A model of random weights in float32."""
    architecture = "falcon" if falcon else "llama"
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // sharing)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("no_vocab")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))

    kv = HIDDEN // sharing
    tensor("token_embd", WORDS, HIDDEN)
    tensor("output_norm", HIDDEN)
    if falcon:
        writer.add_tensor("output_norm.bias", np.zeros(HIDDEN, np.float32))
    if not tied:
        tensor("output", WORDS, HIDDEN)
    for layer in range(layers):
        name = f"blk.{layer}."
        tensor(f"{name}attn_norm", HIDDEN)
        tensor(f"{name}attn_output", HIDDEN, HIDDEN)
        if falcon:
            writer.add_tensor(f"{name}attn_norm.bias", np.zeros(HIDDEN, np.float32))
            tensor(f"{name}attn_qkv", HIDDEN + 2 * kv, HIDDEN)
            tensor(f"{name}ffn_up", INNER, HIDDEN)
            tensor(f"{name}ffn_down", HIDDEN, INNER)
            continue
        tensor(f"{name}ffn_norm", HIDDEN)
        tensor(f"{name}attn_q", HIDDEN, HIDDEN)
        tensor(f"{name}attn_k", kv, HIDDEN)
        tensor(f"{name}attn_v", kv, HIDDEN)
        lead, end = ((experts,), "_exps") if experts else ((), "")
        if experts:
            tensor(f"{name}ffn_gate_inp", experts, HIDDEN)
        tensor(f"{name}ffn_gate{end}", *lead, INNER, HIDDEN)
        tensor(f"{name}ffn_up{end}", *lead, INNER, HIDDEN)
        tensor(f"{name}ffn_down{end}", *lead, HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(source: Path, kind: int, folder: Path) -> dict[str, list[str]]:
    """The names of the quantized tensors of each type."""
    out = folder / "out.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = kind
    assert not llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options))
    found: dict[str, list[str]] = {}
    for tensor in gguf.GGUFReader(str(out)).tensors:
        if tensor.tensor_type.name not in ("F32", "F16"):
            found.setdefault(tensor.tensor_type.name, []).append(tensor.name)
    return found


def main() -> None:
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, asked in MODELS.items():
            source = Path(folder, f"{model}.gguf")
            write(source, falcon=model == "falcon", **asked)
            shapes = {t.name: [int(n) for n in t.shape[::-1]] for t in gguf.GGUFReader(str(source)).tensors}
            found = {kind: types(source, number, Path(folder)) for kind, number in KINDS.items()}
            base = {kind: max(own, key=lambda name: len(own[name])) for kind, own in found.items()}
            golden[model] = {
                "shapes": shapes,
                "most": base,
                "others": {
                    kind: {name: own[name] for name in sorted(own) if name != base[kind]} for kind, own in found.items()
                },
            }
    OUT.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
