"""Small models whose weights are a function of their place alone: the same on every machine, with every numpy."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from making import npy_bytes, raw_tensors, save, zip_bytes

Array = np.ndarray

DTYPES = {
    "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
"""Dtypes beside float32 that a model may have its weights in."""


def hashed(count: int, salt: int) -> Array:
    """Integers of 64 bits that look random (splitmix64 of salt and place)."""
    x: Array = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0x2545F491)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Array = x ^ (x >> np.uint64(31))
    return found


def weights(*shape: int, salt: int = 0) -> Array:
    """Weights in a bell of deviation 0.3 with an outlier in about a hundred, all exact in float32."""
    bits = hashed(int(np.prod(shape)), salt)
    total = sum(((bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4))
    values = (total - 131070).astype(np.float32) / np.float32(1 << 17)
    found: Array = np.where(bits % np.uint64(97) == 0, 4 * values, values).reshape(shape)
    return found


def block(salt: int, rows: int = 3, cols: int = 70) -> dict[str, Array]:
    """A weight whose rows are no multiple of a usual group, and what stays beside it as it is."""
    return {
        "mlp.weight": weights(rows, cols, salt=salt),
        "mlp.bias": weights(rows, salt=salt + 1),
        "norm.weight": np.abs(weights(rows, salt=salt + 2)) + 1,
    }


def shapes() -> dict[str, Array]:
    """Matrices, a convolution, three dimensions, more rows than a word of zero points has, and one row."""
    return {
        "matrix.weight": weights(3, 70, salt=11),
        "conv.weight": weights(4, 3, 3, 3, salt=12),
        "deep.weight": weights(2, 2, 24, salt=13),
        "tall.weight": weights(33, 6, salt=14),
        "row.weight": weights(1, 33, salt=15),
    }


def special() -> dict[str, Array]:
    """Weights that searches must not fall over: zeros, constants, one sign, tiny, huge, and no weights at all."""
    one = weights(3, 40, salt=21)
    rows = np.stack([np.zeros(40), np.full(40, 0.25), np.full(40, -3.0), one[0], -np.abs(one[1])]).astype(np.float32)
    return {
        "rows.weight": rows,
        "zero.weight": np.zeros((3, 40), np.float32),
        "tiny.weight": one * np.float32(2.0**-60),
        "subnormal.weight": one * np.float32(2.0**-140),
        "huge.weight": one * np.float32(2.0**60),
        "positive.weight": np.abs(one) + 1,
        "empty.weight": np.zeros((0, 40), np.float32),
        "scalar": np.float32(1.5).reshape(()),
    }


def kept() -> bytes:
    """A file with a tensor of every dtype the container has, beside a weight."""
    sizes = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
             "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8,
             "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for salt, (dtype, bits) in enumerate(sizes.items()):
        raw = (hashed(8, 100 + salt) & np.uint64(0x3F)).astype("<u8").tobytes()  # no NaN in any of them
        raw = bytes(b & 1 for b in raw) if dtype == "BOOL" else raw
        tensors[f"kept.{dtype.lower()}"] = (dtype, (8,), raw[:bits])
    tensors["mlp.weight"] = ("F32", (5, 70), weights(5, 70, salt=31).astype("<f4").tobytes())
    return raw_tensors(tensors, {"format": "pt", "a note": 'kept, \u00fcnescaped "quotes" too'})


def nonfinite() -> dict[str, Array]:
    """A weight with NaN and infinities beside a good one."""
    bad = weights(5, 70, salt=42)
    bad[1, 3], bad[2, 4], bad[3, 5] = np.nan, np.inf, -np.inf
    return {"good.weight": weights(5, 70, salt=41), "bad.weight": bad}


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 12, "hidden_size": 16,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip


def layer(index: int) -> dict[str, Array]:
    """One layer of a Llama of width 16."""
    sizes = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (16, 16), "self_attn.v_proj": (16, 16),
             "self_attn.o_proj": (16, 16), "mlp.gate_proj": (64, 16), "mlp.up_proj": (64, 16),
             "mlp.down_proj": (16, 64)}  # fmt: skip
    found = {f"model.layers.{index}.{name}.weight": weights(*size, salt=200 + 20 * index + place)
             for place, (name, size) in enumerate(sizes.items())}  # fmt: skip
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"model.layers.{index}.{name}.weight"] = np.ones(16, np.float32)
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in found.items()}


def checkpoint(folder: Path, config: dict[str, object]) -> None:
    """A sharded checkpoint folder with a configuration, a tokenizer and a model card."""
    folder.mkdir()
    ends = {"model.embed_tokens.weight": weights(12, 16, salt=301), "model.norm.weight": np.ones(16, np.float32),
            "lm_head.weight": weights(12, 16, salt=302)}  # fmt: skip
    last = {name: array.astype(ml_dtypes.bfloat16) for name, array in ends.items()}
    where: dict[str, str] = {}
    for number, tensors in enumerate((layer(0), {**layer(1), **last}), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save(folder / name, tensors, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    total = sum((folder / name).stat().st_size for name in set(where.values()))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}\n', encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n\nIts text.\n", encoding="utf-8")


RECIPE = """\
default: {bits: 4, group_size: 32}
rules:
  - {match: conv.weight, bits: 8, granularity: channel, reason: first layer}
  - {match: "re:deep.*", format: nf4, group_size: 16}
  - {match: tall.weight, keep: true}
  - {match: row.weight, bits: 3, symmetric: false, group_size: 11}
  - {match: "nothing.*", keep: true, optional: true}
"""


def build(folder: Path) -> None:
    """Write every model, and what is named beside them on command lines."""
    save(folder / "block.safetensors", block(1))
    for dtype, kind in DTYPES.items():
        found = {name: array.astype(kind) for name, array in block(2).items()}
        save(folder / f"block-{dtype.lower()}.safetensors", found)
    save(folder / "large.safetensors", {n: a * np.float32(2.0**18) for n, a in block(3).items()})
    save(folder / "shapes.safetensors", shapes())
    save(folder / "special.safetensors", special())
    (folder / "kept.safetensors").write_bytes(kept())
    save(folder / "nonfinite.safetensors", nonfinite())
    save(folder / "vectors.safetensors", {"a": weights(70, salt=51), "b": weights(5, salt=52)})
    save(folder / "embedding.safetensors", {"embedding.weight": weights(40, 32, salt=53)})
    (folder / "array.npy").write_bytes(npy_bytes(weights(5, 70, salt=61)))
    members = [(f"{name}.npy", npy_bytes(array)) for name, array in block(62).items()]
    (folder / "arrays.npz").write_bytes(zip_bytes(members))
    save(folder / "importance.safetensors", {"mlp.weight": np.abs(weights(70, salt=71)) + np.float32(0.125)})
    (folder / "levels.txt").write_text("-1 -0.5 -0.25 0 0.125 0.375 1\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    checkpoint(folder / "llama", LLAMA)
    checkpoint(folder / "plain", {"hidden_size": 16})
