"""Write files of tests/golden/layouts with AutoAWQ 0.2.9's unpacking and MLX 0.32: codes, scales and zero points, and
what those libraries make of them under `expected`. Run by hand in an environment that has torch and `mlx[cpu]`, with
the path of AutoAWQ's awq/utils/packing_utils.py (of a download without its dependencies); without it MLX's alone.

    .venv-peers/current/bin/python tests/peers/write_layouts_awq_mlx.py packing_utils.py
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"


def awq(path: str) -> None:
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    chance = torch.Generator().manual_seed(0)
    for group in (16, 48):
        words = torch.randint(-(2**31), 2**31, (48, 5), generator=chance, dtype=torch.int64).to(torch.int32)
        zeros = torch.randint(-(2**31), 2**31, (48 // group, 5), generator=chance, dtype=torch.int64).to(torch.int32)
        scales = torch.rand(48 // group, 40, generator=chance).half()
        expected = library.dequantize_gemm(words, zeros, scales.float(), 4, group).T.contiguous()
        tensors = {"m.qweight": words, "m.qzeros": zeros, "m.scales": scales, "expected": expected}
        config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}}
        save_file(
            {k: v.numpy() for k, v in tensors.items()},
            FOLDER / f"awq-g{group}.safetensors",
            {"config": json.dumps(config)},
        )


def mlx() -> None:
    for bits in (2, 3, 4, 5, 6, 8):
        weight = mx.array(np.random.default_rng(bits).standard_normal((5, 128)).astype(np.float32))
        words, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
        expected = mx.dequantize(words, scales, biases, group_size=64, bits=bits)
        parts = {"m.weight": words, "m.scales": scales, "m.biases": biases, "expected": expected}
        config = {"quantization": {"bits": bits, "group_size": 64}}
        save_file(
            {k: np.array(v) for k, v in parts.items()},
            FOLDER / f"mlx-w{bits}.safetensors",
            {"config": json.dumps(config)},
        )


def mlx_small() -> None:
    """Modes of small floats: of normal weights, and of every code and scale that is a number."""
    for mode, (bits, group) in {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}.items():
        chance = np.random.default_rng(bits + group)
        weight = mx.array(chance.standard_normal((5, 128)).astype(np.float32))
        words, scales = mx.quantize(weight, mode=mode)
        raw = chance.integers(0, 256, (120, group * bits // 8), dtype=np.uint8)
        raw[(raw & 127) == 127] = 0  # not a number as 8-bit float
        some = np.resize(np.setdiff1d(np.arange(250), [127]) if mode == "nvfp4" else np.arange(8, 250), 120)
        for name, codes, scale in [
            (mode, words, scales),
            (f"{mode}-all", mx.array(raw.view("<u4")), mx.array(some.astype("u1")[:, None])),
        ]:
            expected = mx.dequantize(codes, scale, None, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
            parts = {"m.weight": codes, "m.scales": scale, "expected": expected}
            config = {"quantization": {"bits": bits, "group_size": group, "mode": mode}}
            save_file(
                {k: np.array(v) for k, v in parts.items()},
                FOLDER / f"mlx-{name}.safetensors",
                {"config": json.dumps(config)},
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        awq(sys.argv[1])
    mlx()
    mlx_small()
