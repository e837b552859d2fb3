"""Other programs that do the same work on as many weights, each in its environment (see tests/peers).

Each prints the seconds that it took without its imports, so that these do not count against it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CLOCK = """
import sys, time
src, out, threads, more = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
"""

TORCH = (
    _CLOCK
    + """
import torch
from safetensors import safe_open
from safetensors.torch import save_file
torch.set_num_threads(threads)
began = time.perf_counter()
made = {}
with safe_open(src, "pt") as f:
    for name in f.keys():
        w = f.get_tensor(name).float().reshape(-1, 128)
        s = (w.abs().amax(1, keepdim=True) / 7).clamp(min=1e-12)
        q = (torch.clamp(torch.round(w / s), -8, 7) + 8).to(torch.uint8)
        made[name] = q[:, ::2] | q[:, 1::2] << 4
        made[name + "_scale"] = s.bfloat16()
save_file(made, out)
print(time.perf_counter() - began)
"""
)

GGUF = (
    _CLOCK
    + """
import numpy as np, gguf, ml_dtypes
from safetensors import safe_open
began = time.perf_counter()
writer = gguf.GGUFWriter(out, "none")
with safe_open(src, "np") as f:
    for name in f.keys():
        w = f.get_tensor(name).astype(np.float32)
        kind = gguf.GGMLQuantizationType[more]
        writer.add_tensor(name, gguf.quants.quantize(w, kind), raw_dtype=kind)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
print(time.perf_counter() - began)
"""
)

MLX = (
    _CLOCK
    + """
import mlx.core as mx
mx.set_default_device(mx.cpu)
began = time.perf_counter()
made = {}
for name, w in mx.load(src).items():
    made[name], made[name + ".scales"], made[name + ".biases"] = mx.quantize(w, group_size=128, bits=4)
    mx.eval(made[name])
mx.save_safetensors(out, made)
print(time.perf_counter() - began)
"""
)

LLAMA = (
    _CLOCK
    + """
import ctypes, llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
settings = llama_cpp.llama_model_quantize_default_params()
settings.nthread, settings.pure = threads, True
settings.ftype = {"Q4_0": 2, "Q8_0": 7, "Q4_K": 14}[more]
began = time.perf_counter()
if llama_cpp.llama_model_quantize(src.encode(), out.encode(), ctypes.byref(settings)):
    sys.exit("libllama did not quantize it")
print(time.perf_counter() - began)
"""
)

AS_LLAMA = """
import sys, numpy as np, gguf
path, layers, width = sys.argv[1], int(sys.argv[2]), 4096
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(512); writer.add_embedding_length(width); writer.add_block_count(layers)
writer.add_feed_forward_length(width); writer.add_head_count(32); writer.add_head_count_kv(32)
writer.add_layer_norm_rms_eps(1e-5); writer.add_rope_dimension_count(128); writer.add_vocab_size(256)
writer.add_tokenizer_model("llama"); writer.add_token_list([f"t{i}" for i in range(256)])
writer.add_token_scores([0.0] * 256); writer.add_token_types([1] * 256)
writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
weights = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32) * np.float32(0.02)
raw = (weights.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
kind = gguf.GGMLQuantizationType.BF16
writer.add_tensor("token_embd.weight", raw[:256], raw_dtype=kind)
ones = np.ones(width, np.float32)
writer.add_tensor("output_norm.weight", ones)
for i in range(layers):
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.{i}.{part}.weight", raw, raw_dtype=kind)
    writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
    writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""

LAYER = 7 * 4096 * 4096
"""Weights of a layer of that Llama, but for its norms."""


@dataclass(frozen=True)
class Peer:
    """A program: its environment, its script, the last word it is given, and whether it reads the GGUF."""

    title: str
    environment: str
    script: str
    more: str = ""
    gguf: bool = False


PEERS = (
    Peer("libllama, Q4_0 (pure)", "llamacpp", LLAMA, "Q4_0", gguf=True),
    Peer("libllama, Q8_0 (pure)", "llamacpp", LLAMA, "Q8_0", gguf=True),
    Peer("libllama, Q4_K (pure)", "llamacpp", LLAMA, "Q4_K", gguf=True),
    Peer("torch script, int4 g128", "current", TORCH),
    Peer("MLX, affine int4 g128", "current", MLX),
    Peer("gguf package, Q4_0", "current", GGUF, "Q4_0"),
)


def python_of(environments: Path, name: str) -> str | None:
    """The Python of an environment, where it was made."""
    path = environments / name / "bin" / "python"
    return str(path) if path.exists() else None


def write_llama(path: Path, python: str, layers: int) -> int:
    """Make a GGUF of a Llama in bfloat16; the number of its weights."""
    subprocess.run([python, "-c", AS_LLAMA, str(path), str(layers)], check=True)
    return layers * LAYER + 256 * 4096


def command(peer: Peer, python: str, model: Path, threads: int) -> list[str]:
    """What quantizes a model with a peer and prints the seconds that it took, without its imports."""
    out = f"OUT.{'gguf' if peer.gguf else 'safetensors'}"
    return [python, "-c", peer.script, str(model), out, str(threads), peer.more]
