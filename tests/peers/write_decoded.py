"""Write files of tests/golden/decoded with transformers 5.23.0, compressed-tensors 0.20.0, bitsandbytes 0.50.2 and
comfy-kitchen 0.2.40: weights as each tool stores them, and the tensor that the tool makes of them under `expected`, in
its own dtype. Run by hand in an environment that has all.

    .venv-peers/current/bin/python tests/peers/write_decoded.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "decoded"
Tensors = dict[str, torch.Tensor]
CHANCE = torch.Generator().manual_seed(20)


def save(name: str, tensors: Tensors, expected: torch.Tensor, config: dict[str, Any]) -> None:
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file({**tensors, "expected": expected.contiguous()}, FOLDER / f"{name}.safetensors",
              {"config": json.dumps(config)})  # fmt: skip


def words(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=CHANCE, dtype=torch.uint8)


def float8(*shape: int) -> torch.Tensor:
    """Every code that is a number, in a random order."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127]
    picked = torch.randint(0, len(codes), shape, generator=CHANCE)
    return codes[picked].view(torch.float8_e4m3fn)


def powers(*shape: int) -> torch.Tensor:
    return words(*shape, low=110, high=130).view(torch.float8_e8m0fnu)


def transformers() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    decode = Fp8Dequantize(None)._dequantize_one
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}

    def config(dtype: str, *block: int) -> dict[str, Any]:
        return {"torch_dtype": dtype, "quantization_config": {**said, "weight_block_size": list(block) or None}}

    for name, shape, block, dtype in [("v3", (48, 80), (16, 16), "bfloat16"), ("v3-f16", (32, 96), (16, 32), "float16"),
                                      ("v3-experts", (3, 16, 32), (8, 16), "bfloat16")]:  # fmt: skip
        codes = float8(*shape)
        scale = torch.rand([*shape[:-2], shape[-2] // block[0], shape[-1] // block[1]], generator=CHANCE) / 64
        key = "m.experts.down_proj" if len(shape) == 3 else "m.weight"
        save(name, {key: codes, f"{key}_scale_inv": scale}, decode(codes, scale, getattr(torch, dtype)),
             config(dtype, *block))  # fmt: skip
    codes, scale = float8(32, 64), powers(2, 4)
    save("v4-fp8", {"m.wq.weight": codes, "m.wq.scale": scale}, decode(codes, scale), config("bfloat16", 16, 16))
    codes, scale = words(32, 48).view(torch.int8), powers(32, 3)
    save("v4-fp4", {"m.w1.weight": codes, "m.w1.scale": scale}, decode(codes, scale), config("bfloat16", 128, 128))
    codes, scale = float8(16, 96), powers(16, 3)
    save("mxfp8-bytes", {"m.weight": codes, "m.weight_scale_inv": scale.view(torch.uint8)},
         decode(codes, scale.view(torch.uint8), torch.bfloat16), config("bfloat16", 1, 32))  # fmt: skip
    codes, scale = float8(24, 40), torch.tensor(0.0123, dtype=torch.bfloat16)
    save("mistral", {"m.weight": codes, "m.qscale_weight": scale, "m.qscale_act": torch.tensor(0.5)},
         decode(codes, scale, torch.bfloat16), config("bfloat16"))  # fmt: skip
    blocks, exponents = words(2, 24, 3, 16), words(2, 24, 3, low=100, high=140)
    gpt = {"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"}}
    save("gpt-oss", {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": exponents},
         convert_moe_packed_tensors(blocks, exponents), gpt)  # fmt: skip


def compressed_tensors() -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    cases: dict[str, tuple[str, dict[str, Any], Any]] = {
        "ct-nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group",
                                              "group_size": 16}, (20, 6)),
        "ct-mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
                     (20, 3)),
        "ct-mxfp8": ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32},
                     (20, 3)),
        "ct-fp8-channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, (20, 1)),
        "ct-fp8-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, (1,)),
        "ct-fp8-block": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block",
                                             "block_structure": [5, 32]}, (4, 3)),
        "ct-int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, (20, 1)),
        "ct-int4": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, (20, 3)),
        "ct-int8-asym": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32,
                                            "symmetric": False}, (20, 3)),
    }  # fmt: skip
    for name, (layout, values, shape) in cases.items():
        args = QuantizationArgs(**values)
        weight = torch.randn((20, 96), generator=CHANCE).to(torch.bfloat16)
        scale = (torch.rand(shape, generator=CHANCE) / 16 + 0.01).to(torch.bfloat16)
        state: Tensors = {"weight": weight, "weight_scale": scale}
        if "mx" in name:
            state["weight_scale"] = torch.exp2(torch.floor(torch.log2(scale.float()))).to(torch.bfloat16)
        if name == "ct-nvfp4":
            state["weight_scale"] = (scale * 800).to(torch.float8_e4m3fn).to(torch.bfloat16)
            state["weight_global_scale"] = torch.tensor([777.7])
        if values.get("symmetric") is False:
            state["weight_zero_point"] = torch.randint(-128, 128, shape, generator=CHANCE, dtype=torch.int8)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
        tool = BaseCompressor.get_value_from_registry(layout)
        stored = tool.compress(state, scheme)
        decoded = tool.decompress(dict(stored), scheme)["weight"]
        said = {"targets": ["Linear"], "weights": {"symmetric": True, **values}}
        save(name, {f"m.{key}": value for key, value in stored.items()}, decoded,
             {"quantization_config": {"quant_method": "compressed-tensors", "format": layout,
                                      "config_groups": {"group_0": said}}})  # fmt: skip


def bitsandbytes() -> None:
    import bitsandbytes.functional as tool

    for kind, dtype, double in [("nf4", torch.bfloat16, False), ("nf4", torch.float16, True),
                                ("fp4", torch.bfloat16, False)]:  # fmt: skip
        weight = torch.randn((24, 64), generator=CHANCE).to(dtype)
        codes, state = tool.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
        expected = tool.dequantize_4bit(codes, state)
        parts = {"m.weight": codes, **{f"m.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
        save(f"bnb-{kind}-{str(dtype)[6:]}", parts, expected, {})


def comfyui() -> None:
    from comfy_kitchen.tensor import TensorCoreFP8Layout, TensorCoreMXFP8Layout, TensorCoreNVFP4Layout

    for name, tool, shape, dtype in [("nvfp4", TensorCoreNVFP4Layout, (144, 160), torch.float32),
                                     ("nvfp4", TensorCoreNVFP4Layout, (40, 72), torch.float32),
                                     ("mxfp8", TensorCoreMXFP8Layout, (160, 224), torch.bfloat16),
                                     ("float8_e4m3fn", TensorCoreFP8Layout, (20, 30), torch.float32)]:  # fmt: skip
        weight = torch.randn(shape, generator=CHANCE).to(dtype)
        codes, params = tool.quantize(weight)
        expected = tool.dequantize(codes, params)[: shape[0], : shape[1]]
        parts = {f"m.weight{key}": value for key, value in tool.state_dict_tensors(codes, params).items()}
        described = {"format": name, "orig_shape": list(shape)}
        parts["m.comfy_quant"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
        save(f"comfy-{name}-{shape[0]}", parts, expected, {})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    transformers()
    compressed_tensors()
    bitsandbytes()
    comfyui()
