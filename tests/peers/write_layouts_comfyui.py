"""Write files of tests/golden/layouts with comfy-kitchen 0.2.40 and torch: weights as it quantizes them or, for
awq_w4a16, which it only reads, random codes; and what it decodes them to under `expected`. Scales of rotated columns
are rounded to bfloat16, so that float32 holds every sum of its matrix products whatever their order. Run by hand in an
environment that has both.

    .venv-peers/bin/python tests/peers/write_layouts_comfyui.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from comfy_kitchen.tensor import TensorCoreAWQW4A16Layout, TensorCoreFP8Layout, TensorWiseINT8Layout
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"


def save(name: str, layout: type, codes: torch.Tensor, params: object, described: dict[str, object], own: bool) -> None:
    """`own`: whether the description is a tensor, and not in the header."""
    parts = layout.state_dict_tensors(codes, params)
    tensors = {f"m.weight{key}": value.contiguous() for key, value in parts.items()}
    tensors["expected"] = layout.dequantize(codes, params).float().contiguous()
    config = {} if own else {"_quantization_metadata": {"m": described}}
    if own:
        tensors["m.comfy_quant"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    save_file(tensors, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)})


def main() -> None:
    weight = torch.randn((37, 50), generator=torch.Generator().manual_seed(0))
    for name, per_row, own in [("comfy-int8c", True, False), ("comfy-int8t", False, True)]:
        codes, params = TensorWiseINT8Layout.quantize(weight, per_channel=per_row)
        save(name, TensorWiseINT8Layout, codes, params, {"format": "int8_tensorwise"}, own)
    for size, shape, own in [(256, (6, 512), True), (64, (5, 192), False), (16, (4, 48), True)]:
        rotated = torch.randn(shape, generator=torch.Generator().manual_seed(size))
        codes, params = TensorWiseINT8Layout.quantize(rotated, per_channel=True, convrot=True, convrot_groupsize=size)
        params = replace(params, scale=params.scale.bfloat16().float())
        described = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": size}
        save(f"comfy-convrot-{size}", TensorWiseINT8Layout, codes, params, described, own)
    codes, params = TensorCoreFP8Layout.quantize(weight)
    save("comfy-fp8t", TensorCoreFP8Layout, codes, params, {"format": "float8_e4m3fn"}, True)
    chance = torch.Generator().manual_seed(1)
    for name, shape, own in [("comfy-awq-g64", (12, 192), False), ("comfy-awq-g48", (6, 96), True)]:
        size = int(name[-2:])
        codes = torch.randint(-128, 128, (shape[0], shape[1] // 2), generator=chance).to(torch.int8)
        scale, zeros = (torch.randn((shape[1] // size, shape[0]), generator=chance).bfloat16() / 16 for _ in range(2))
        params = TensorCoreAWQW4A16Layout.Params(
            scale=scale, zeros=zeros, group_size=size, orig_dtype=torch.float32, orig_shape=shape
        )
        save(name, TensorCoreAWQW4A16Layout, codes, params, {"format": "awq_w4a16", "group_size": size}, own)


if __name__ == "__main__":
    main()
