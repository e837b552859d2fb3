"""Weights encoded and decoded again by other programs. Runs in a peers' environment that has the program.

    python encoders.py ORDER.json

ORDER has `sources`, names with an .npz of float32 matrices each; `methods`, names of METHODS; perhaps `importance`, an
.npz with a number for every column, under the same names; and perhaps `decoded`, a folder for what comes back, one .npz
a method.

For each source and method a line of JSON is printed: the bytes of codes, scales and offsets, the squared error, and the
sum of squared weights.

Where blocks do not divide a row, rows are joined, and the last block is filled with zeros, whose bytes do not count.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Encoder = Callable[[Array, "Array | None"], "tuple[Array, float]"]
"""Weights and importances of columns in; decoded weights and bytes out."""


@dataclass(frozen=True)
class Method:
    """A way to encode. program: whose it is; environment: where it runs; encode: what does it."""

    program: str
    environment: str
    encode: Encoder


def blocks(weights: Array, size: int) -> Array:
    """All weights as rows of `size`, the last one filled with zeros."""
    flat = weights.reshape(-1)
    return np.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


def as_before(decoded: Array, weights: Array) -> Array:
    return np.ascontiguousarray(decoded, np.float32).reshape(-1)[: weights.size].reshape(weights.shape)


# ---- llama.cpp ------------------------------------------------------------------------------------------------------


@cache
def _ggml() -> Any:
    found = find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    library = ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libggml-base.so"))
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def ggml(kind: str, weights: Array, importance: Array | None) -> tuple[Array, float]:
    """The function with which llama-quantize writes a tensor; of ones, where no importances are given."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    number = GGMLQuantizationType[kind]
    block, stored = GGML_QUANT_SIZES[number]
    height, width = weights.shape
    joined = block // gcd(width, block)
    rows = np.pad(weights, ((0, -height % joined), (0, 0))).reshape(-1, joined * width)
    given = np.ones(width, np.float32) if importance is None else importance.astype(np.float32)
    columns = np.ascontiguousarray(np.tile(given, joined))
    codes = np.empty((len(rows), rows.shape[1] // block * stored), np.uint8)
    rows = np.ascontiguousarray(rows, np.float32)
    size = _ggml().ggml_quantize_chunk(
        int(number), rows.ctypes.data, codes.ctypes.data, 0, len(rows), rows.shape[1], columns.ctypes.data
    )
    assert size == codes.nbytes, (kind, size, codes.nbytes)
    return as_before(dequantize(codes, number), weights), weights.size / block * stored


# ---- torch ----------------------------------------------------------------------------------------------------------


def nf4(kind: str, size: int, nested: bool, weights: Array, importance: Array | None) -> tuple[Array, float]:
    """bitsandbytes. Largest weights of blocks are float32, or nested: 8 bits in blocks of 256."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    tensor = torch.from_numpy(blocks(weights, size))
    codes, state = quantize_4bit(tensor, blocksize=size, quant_type=kind, compress_statistics=nested)
    groups = weights.size / size
    return as_before(dequantize_4bit(codes, state).numpy(), weights), weights.size / 2 + groups * (
        1 + 4 / 256 if nested else 4
    )


def hqq(bits: int, size: int, weights: Array, importance: Array | None) -> tuple[Array, float]:
    """HQQ by its own search, with scales and zero points of 16 bits. It packs ten codes of 3 bits in 32."""
    import torch
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        torch.from_numpy(blocks(weights, 40 * size).reshape(-1, size)),  # 40: as many rows as it packs in any width
        nbits=bits, group_size=size, optimize=True, axis=1, device="cpu", compute_dtype=torch.float16,
    )  # fmt: skip
    decoded = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
    per = {3: 3.2}.get(bits, bits)
    return as_before(decoded.float().numpy(), weights), weights.size * per / 8 + weights.size / size * 4


def modelopt(kind: str, weights: Array, importance: Array | None) -> tuple[Array, float]:
    """ModelOpt's NVFP4 and MXFP4 of weights, whose scales are those of the largest weights."""
    import torch

    if kind == "nvfp4":
        from modelopt.torch.quantization.qtensor import NVFP4QTensor

        tensor = torch.from_numpy(blocks(weights, 64))
        codes, scale, scale_2 = NVFP4QTensor.quantize(tensor, 16)
        decoded = codes.dequantize(dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
        return as_before(decoded.numpy(), weights), weights.size * (0.5 + 1 / 16) + 4
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    tensor = torch.from_numpy(blocks(weights, 64))
    codes, scale = MXFP4QTensor.quantize(tensor, 32)
    decoded = codes.dequantize(dtype=torch.float32, scale=scale, block_sizes={-1: 32})
    return as_before(decoded.numpy(), weights), weights.size * (0.5 + 1 / 32)


def comfy(weights: Array, importance: Array | None) -> tuple[Array, float]:
    """comfy-kitchen's NVFP4."""
    import torch
    from comfy_kitchen.tensor import TensorCoreNVFP4Layout

    tensor = torch.from_numpy(blocks(weights, 256)).bfloat16()
    codes, params = TensorCoreNVFP4Layout.quantize(tensor)
    decoded = TensorCoreNVFP4Layout.dequantize(codes, params)[: len(tensor), :256]
    return as_before(decoded.float().numpy(), weights), weights.size * (0.5 + 1 / 16) + 4


# ---- MLX ------------------------------------------------------------------------------------------------------------


def mlx(mode: str, bits: int, size: int, weights: Array, importance: Array | None) -> tuple[Array, float]:
    """MLX's own quantization, scales and offsets in the dtype of the weights: bfloat16 where that holds them."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    dtype = mx.float16 if (weights.view(np.uint32) & 0xFFFF).any() else mx.bfloat16
    rows = mx.array(blocks(weights, size)).astype(dtype)
    given = {"group_size": size, "bits": bits, "mode": mode}
    parts = mx.quantize(rows, **given)
    decoded = np.array(mx.dequantize(*(p.astype(mx.float32) if p.dtype == dtype else p for p in parts), **given
                                     ).astype(mx.float32))  # fmt: skip
    return as_before(decoded, weights), weights.size * (bits / 8 + (4 if mode == "affine" else 1) / size)


# ---- all ------------------------------------------------------------------------------------------------------------

GGML = (
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K",
    "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "MXFP4",
)  # fmt: skip

METHODS: dict[str, Method] = {
    **{f"llama.cpp {kind}": Method("llama.cpp", "llamacpp", partial(ggml, kind)) for kind in GGML},
    **{
        f"HQQ {bits} bits g{size}": Method("HQQ", "hqq", partial(hqq, bits, size))
        for bits, size in [(2, 16), (2, 32), (2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (8, 64)]
    },
    "bitsandbytes NF4 g64": Method("bitsandbytes", "current", partial(nf4, "nf4", 64, False)),
    "bitsandbytes NF4 g64, nested": Method("bitsandbytes", "current", partial(nf4, "nf4", 64, True)),
    "bitsandbytes FP4 g64": Method("bitsandbytes", "current", partial(nf4, "fp4", 64, False)),
    **{
        f"MLX affine {bits} bits g{size}": Method("MLX", "current", partial(mlx, "affine", bits, size))
        for bits, size in [(2, 32), (2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64)]
    },
    "MLX MXFP4": Method("MLX", "current", partial(mlx, "mxfp4", 4, 32)),
    "MLX NVFP4": Method("MLX", "current", partial(mlx, "nvfp4", 4, 16)),
    "MLX MXFP8": Method("MLX", "current", partial(mlx, "mxfp8", 8, 32)),
    "ModelOpt NVFP4": Method("ModelOpt", "modelopt", partial(modelopt, "nvfp4")),
    "ModelOpt MXFP4": Method("ModelOpt", "modelopt", partial(modelopt, "mxfp4")),
    "comfy-kitchen NVFP4": Method("comfy-kitchen", "comfyui", comfy),
}


def told(
    method: str, weights: Mapping[str, Array], importance: Mapping[str, Array], out: Path | None
) -> dict[str, Any]:
    """What a method makes of all matrices."""
    stored = error = energy = 0.0
    found = dict[str, Array]()
    for name, matrix in weights.items():
        decoded, size = METHODS[method].encode(matrix, importance.get(name))
        stored += size
        energy += float(np.square(matrix, dtype=np.float64).sum())
        error += float(np.square(np.subtract(decoded, matrix, dtype=np.float64)).sum())
        if out is not None:
            found[name] = decoded
    if out is not None:
        np.savez(out, **found)
    sums = {"method": method, "bytes": stored, "error": error, "energy": energy}
    return sums | {"decoded": None if out is None else str(out)}


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    importance = dict(np.load(order["importance"])) if order.get("importance") else {}
    for source, path in order["sources"].items():
        weights = dict(np.load(path))
        for number, method in enumerate(order["methods"]):
            out = Path(order["decoded"]) / f"{order.get('prefix', '')}{number}.npz" if order.get("decoded") else None
            print(json.dumps({"source": source} | told(method, weights, importance, out)), flush=True)


if __name__ == "__main__":
    main()
