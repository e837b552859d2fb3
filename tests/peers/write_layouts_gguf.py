"""Write small GGUF files with the gguf package, with what that package decodes of them, for the tests.

    /path/to/python tests/peers/write_layouts_gguf.py

needs gguf==0.19.0 and writes tests/golden/gguf/. `blocks.gguf` holds a tensor of every type: where the package can
quantize, of normal weights with zeros and outliers among them, and `random.TYPE` of random bytes with finite scales,
which also sets every bit the quantizers leave alone. `NAME.expected` beside each is what the package decodes.
`small.gguf` is what it writes for the keys and tensors of `small()`, which test_gguf_writing.py lays out again, and
`names.json` its names of the tensors of a Llama, by the checkpoint's. `model/` is a checkpoint whose weights its
quantizers store without an error, and `model.gguf` what it writes of that, q and k turned and the frequencies of Llama
3 computed here, for test_gguf_export.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "gguf"
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
"""Where in a block the float16s are."""
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


def random_blocks(rng: np.random.Generator, name: str, rows: int, blocks: int) -> np.ndarray:
    """Rows of random blocks with finite scales."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[name]:
        scales = rng.standard_normal((rows, blocks)).astype("<f2") / np.float16(64)
        raw[:, :, at : at + 2] = scales.view(np.uint8).reshape(rows, blocks, 2)
    if name == "MXFP4":
        raw[:, :, 0] %= 250  # beyond, products are no float32
    return raw.reshape(rows, blocks * size)


def small() -> None:
    """A GGUF with a key of every kind that is written, and tensors that leave room before the next."""
    writer = gguf.GGUFWriter(FOLDER / "small.gguf", "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_add_bos_token(True)
    writer.add_token_list(["a", "b\u00e4", ""])
    writer.add_token_scores([0.0, -1.0, -2.5])
    writer.add_token_types([1, 2, 3])
    writer.add_tensor("token_embd.weight", np.arange(15, dtype="f4").reshape(3, 5))
    weights = np.linspace(-1, 1, 64, dtype="f4").reshape(2, 32)
    writer.add_tensor(
        "blk.0.attn_q.weight",
        gguf.quants.quantize(weights, GGMLQuantizationType.Q4_0),
        raw_dtype=GGMLQuantizationType.Q4_0,
    )
    writer.add_tensor("output_norm.weight", np.ones(3, "f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def names() -> None:
    """The package's names of the tensors of the second layer, and of those outside of layers."""
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    layer = ["input_layernorm", *(f"self_attn.{n}_proj" for n in "qkvo"), "self_attn.q_norm", "self_attn.k_norm",
             "post_attention_layernorm", *(f"mlp.{n}_proj" for n in ("gate", "up", "down"))]  # fmt: skip
    modules = ["model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.1.{n}" for n in layer)]
    table = {f"{m}.weight": found.get_name(f"{m}.weight", try_suffixes=(".weight",)) for m in modules}
    (FOLDER / "names.json").write_text(json.dumps(table, indent=1) + "\n")


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 12, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip
WORDS = ["a", "b", "ab", "\u0120", "\u0120ab", "c", "d", "e", "f"]
MERGES = ["a b", "\u0120 ab"]
TYPES = {"q_proj": "Q4_0", "o_proj": "Q5_0", "gate_proj": "Q4_1", "up_proj": "Q5_1", "down_proj": "Q8_0"}
LEVELS = {"Q4_0": (16, 8), "Q5_0": (32, 16), "Q4_1": (16, 5), "Q5_1": (32, 9), "Q8_0": (255, 127)}
"""Codes of a type, and which of them is 0."""


def weights(rows: int, cols: int, kind: str, seed: int) -> np.ndarray:
    """Multiples of 1/64, every block of 32 with the lowest and the highest code."""
    levels, zero = LEVELS[kind]
    codes = (np.arange(rows * cols) * 7 + seed) % levels
    if kind == "Q8_0":
        codes[::32] = levels - 1
    return ((codes - zero) / 64).astype(np.float32).reshape(rows, cols)


def turned(array: np.ndarray, heads: int) -> np.ndarray:
    """The halves of a head in turns."""
    return array.reshape(heads, 2, len(array) // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)


def checkpoint() -> dict[str, np.ndarray]:
    sizes = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32), "gate_proj": (64, 32),
             "up_proj": (64, 32), "down_proj": (32, 64)}  # fmt: skip
    layer = {n: weights(*s, TYPES.get(n, "Q4_0"), i) for i, (n, s) in enumerate(sizes.items())}
    ramp = np.linspace(-1, 1, 12 * 32, dtype=np.float32).reshape(12, 32)
    tensors = {
        "model.embed_tokens.weight": ramp,
        "lm_head.weight": ramp[::-1].astype(ml_dtypes.bfloat16),
        "model.norm.weight": ramp[3].astype(np.float16),
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.0.{name}.weight"] = ramp[len(name) % 12].astype(ml_dtypes.bfloat16)
    for name, values in layer.items():
        module = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        kept = {"k_proj": ml_dtypes.bfloat16, "v_proj": np.float16}
        tensors[f"model.layers.0.{module}.{name}.weight"] = values.astype(kept.get(name, ml_dtypes.bfloat16))
    return tensors


def model() -> None:
    folder = FOLDER / "model"
    folder.mkdir(exist_ok=True)
    tensors = checkpoint()
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tokenizer = {
        "model": {"type": "BPE", "vocab": {w: i for i, w in enumerate(WORDS)}, "merges": MERGES},
        "added_tokens": [{"id": 9, "content": "<s>", "special": True}, {"id": 10, "content": "</s>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    writer = gguf.GGUFWriter(FOLDER / "model.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)  # of three types with as many weights the last by name
    writer.add_quantization_version(2)
    writer.add_vocab_size(12)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(500000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*WORDS, "<s>", "</s>", "[PAD11]"])
    writer.add_token_types([1] * 9 + [3, 3, 5])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(9)
    writer.add_eos_token_id(10)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{{ messages }}")
    writer.add_string("quantcli.version", "any")
    writer.add_string("quantcli_export", "any")
    names = {name: name.removeprefix("model.layers.0.").removeprefix("self_attn.").removeprefix("mlp.")
             .removesuffix(".weight") for name in tensors}  # fmt: skip
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    found = {table.get_name(n, try_suffixes=(".weight",)): (t, names[n]) for n, t in tensors.items()}
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = (64 / waves - 1) / 3
    blended = 1 / ((1 - smooth) / 8 + smooth)
    frequencies = np.where(waves < 16, 1, np.where(waves > 64, 8, blended)).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", frequencies)
    layer = sorted(n for n in found if n.startswith("blk."))
    for name in ["token_embd.weight", *layer, "output.weight", "output_norm.weight"]:
        array, short = found[name]
        if short in ("q_proj", "k_proj"):
            array = turned(array, 2 if short == "q_proj" else 1)
        if short in TYPES:
            kind = GGMLQuantizationType[TYPES[short]]
            writer.add_tensor(name, gguf.quants.quantize(array.astype(np.float32), kind), raw_dtype=kind)
        elif array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        elif array.dtype == ml_dtypes.bfloat16:
            writer.add_tensor(name, array.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    small()
    names()
    model()
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(FOLDER / "blocks.gguf", "none")
    writer.add_array("some.words", ["a", "", "\u00e9"])
    writer.add_array("some.numbers", [1, -2, 3])
    writer.add_bool("some.truth", True)
    writer.add_float64("some.fraction", 0.5)
    expected = {}
    for name in HALVES:
        kind = GGMLQuantizationType[name]
        raw = random_blocks(rng, name, 3, 2)
        writer.add_tensor(f"random.{name}", raw, raw_dtype=kind)
        expected[f"random.{name}"] = gguf.quants.dequantize(raw, kind)
        if name in QUANTIZED:
            weights = rng.standard_normal((3, 96)).astype(np.float32)
            weights[0, :40] = 0
            weights[1, 5] = 30
            raw = gguf.quants.quantize(weights, kind)
            writer.add_tensor(f"normal.{name}", raw, raw_dtype=kind)
            expected[f"normal.{name}"] = gguf.quants.dequantize(raw, kind)
    for name, value in expected.items():
        writer.add_tensor(f"{name}.expected", value)
    for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8"):
        writer.add_tensor(f"plain.{dtype}", np.arange(-3, 3).reshape(1, 2, 3).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
