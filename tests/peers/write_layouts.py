"""Write the files of tests/golden/layouts with compressed-tensors 0.20.0 and torch: weights it compressed, and what it
makes of them again under `expected`. Run by hand in an environment that has both.

    .venv-peers/current/bin/python tests/peers/write_layouts.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"

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
            "group_0": {"targets": ["Linear"], "weights": values | {"symmetric": args.symmetric}}}}}  # fmt: skip
        save_file(tensors, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)})


SMALL = {
    "ct-nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    "ct-mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "ct-mxfp8": ("mxfp8-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}),
}  # fmt: skip


def small() -> None:
    """Floats of 4 and 8 bits with scales of a byte; decoded in float32 by the library's own steps, which by themselves
    round to bfloat16."""
    for seed, (name, (layout, values)) in enumerate(SMALL.items()):
        args = QuantizationArgs(type="float", symmetric=True, **values)
        weight = torch.randn((7, 128), generator=torch.Generator().manual_seed(seed))
        scale = blocks(weight, args).abs().amax(-1) / (6 if args.num_bits == 4 else 448)
        state = {"weight": weight, "weight_scale": torch.exp2(torch.floor(torch.log2(scale)))}
        if name == "ct-nvfp4":
            state["weight_global_scale"] = (448 * 6 / weight.abs().max()).reshape(1)
            state["weight_scale"] = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
        stored = BaseCompressor.get_value_from_registry(layout).compress(state, scheme)
        if args.num_bits == 4:
            codes = unpack_fp4_from_uint8(stored["weight_packed"], 7, 128, torch.float32)
        else:
            codes = stored["weight"].float()
        own = stored["weight_scale"]
        own = decompress_mx_scale(own).float() if own.dtype == torch.uint8 else own.float()
        expected = dequantize(codes, own, args=args, global_scale=state.get("weight_global_scale"), dtype=torch.float32)
        tensors = {f"m.{key}": value.contiguous() for key, value in stored.items()}
        tensors["expected"] = expected.contiguous()
        config = {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": layout,
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": {**values, "type": "float", "symmetric": True}}
                },
            }
        }
        save_file(tensors, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
    small()
