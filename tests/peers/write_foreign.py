"""Write the files of tests/golden/foreign with compressed-tensors 0.20.0 and torch: weights it compressed, and what it
makes of them again under `expected`. Run by hand in an environment that has both.

    .venv-peers/current/bin/python tests/peers/write_foreign.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "foreign"

CASES = {
    "w4g24": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 24}),
    "w4g16-asym": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}),
    "w3c-asym": ("pack-quantized", {"num_bits": 3, "strategy": "channel", "symmetric": False}),
    "w5g24": ("pack-quantized", {"num_bits": 5, "strategy": "group", "group_size": 24}),
    "w6t": ("pack-quantized", {"num_bits": 6, "strategy": "tensor"}),
    "w8t-asym": ("pack-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "int-w8c": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int-w8g24-asym": ("int-quantized", {"num_bits": 8, "strategy": "group", "group_size": 24, "symmetric": False}),
    "naive-w4c": ("naive-quantized", {"num_bits": 4, "strategy": "channel"}),
    "fp8t": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8c": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8b": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}),
}


def blocks(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """The weights that share a scale, along the last axis."""
    rows, cols = weight.shape
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "block":
        high, wide = args.block_structure
        rows, cols = -(-rows // high) * high, -(-cols // wide) * wide
        weight = torch.nn.functional.pad(weight, (0, cols - weight.shape[1], 0, rows - weight.shape[0]))
        return weight.reshape(rows // high, high, cols // wide, wide).transpose(1, 2).flatten(2)
    return weight.reshape(rows, -1, args.group_size or cols)


def main() -> None:
    for seed, (name, (layout, values)) in enumerate(CASES.items()):
        args = QuantizationArgs(**values)
        shape = (37, 53) if args.strategy in ("channel", "block") else (37, 48)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        shared = blocks(weight, args)
        scale, zero = calculate_qparams(shared.amin(-1), shared.amax(-1), args)
        state = {"weight": weight, "weight_scale": scale}
        if not args.symmetric:
            state["weight_zero_point"] = zero
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
        compressor = BaseCompressor.get_value_from_registry(layout)
        stored = compressor.compress(state, scheme)
        expected = compressor.decompress(stored, scheme)["weight"]
        tensors = {f"m.{key}": value.contiguous() for key, value in stored.items()}
        tensors["expected"] = expected.float().contiguous()
        config = {"quantization_config": {"quant_method": "compressed-tensors", "format": layout, "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": values | {"symmetric": args.symmetric}}}}}
        save_file(tensors, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
