"""Write small GGUF files with the gguf package, with what that package decodes of them, for the tests.

    /path/to/python tests/peers/write_foreign_gguf.py

needs gguf==0.19.0 and writes tests/golden/gguf/. `blocks.gguf` holds a tensor of every type: where the package can
quantize, of normal weights with zeros and outliers among them, and `random.TYPE` of random bytes with finite scales,
which also sets every bit the quantizers leave alone. `NAME.expected` beside each is what the package decodes.
`small.gguf` is what it writes for the keys and tensors of `small()`, which test_gguf_writing.py lays out again, and
`names.json` its names of the tensors of a Llama, by the checkpoint's.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

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
    writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(weights, GGMLQuantizationType.Q4_0),
                      raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("output_norm.weight", np.ones(3, "f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def names() -> None:
    """The package's names of the tensors of the second layer, and of those outside of layers."""
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    layer = ["input_layernorm", *(f"self_attn.{n}_proj" for n in "qkvo"), "self_attn.q_norm", "self_attn.k_norm",
             "post_attention_layernorm", *(f"mlp.{n}_proj" for n in ("gate", "up", "down"))]
    modules = ["model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.1.{n}" for n in layer)]
    table = {f"{m}.weight": found.get_name(f"{m}.weight", try_suffixes=(".weight",)) for m in modules}
    (FOLDER / "names.json").write_text(json.dumps(table, indent=1) + "\n")


def main() -> None:
    small()
    names()
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
