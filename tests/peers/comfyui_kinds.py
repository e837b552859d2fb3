"""Whether comfy-kitchen decodes every kind of file for ComfyUI to the numbers of quantcli, bit for bit, and multiplies
with them. Run by hand with the Python of an environment that has comfy-kitchen, and the command of quantcli:

    .venv-peers/current/bin/python tests/peers/comfyui_kinds.py .venv/bin/quantcli
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from comfy_kitchen.tensor import (
    QuantizedTensor,
    TensorCoreFP8Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)
from safetensors.torch import load_file, save_file

KINDS = ("float8_tensorwise", "fp8_scaled", "int8_tensorwise", "int8_convrot", "mxfp8", "nvfp4")
SHAPES = {"a": (256, 1024), "b": (160, 320), "c": (96, 200)}


def loaded(held: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A weight as ComfyUI makes it of its parts (`_load_from_state_dict` of comfy/ops.py)."""
    own = {"orig_dtype": dtype, "orig_shape": shape}
    codes, older = held[f"{name}.weight"], held.get(f"{name}.scale_weight")
    if older is not None:
        return QuantizedTensor(codes, "TensorCoreFP8Layout", TensorCoreFP8Layout.Params(scale=older, **own))
    said = json.loads(held[f"{name}.comfy_quant"].numpy().tobytes())
    scale = held[f"{name}.weight_scale"]
    if said["format"] == "int8_tensorwise":
        turned = {key: said[key] for key in ("convrot", "convrot_groupsize") if key in said}
        return QuantizedTensor(codes, "TensorWiseINT8Layout", TensorWiseINT8Layout.Params(scale=scale, **turned, **own))
    if said["format"] == "mxfp8":
        params = TensorCoreMXFP8Layout.Params(scale=scale.view(torch.float8_e8m0fnu), **own)
        return QuantizedTensor(codes, "TensorCoreMXFP8Layout", params)
    if said["format"] == "nvfp4":
        params = TensorCoreNVFP4Layout.Params(scale=held[f"{name}.weight_scale_2"], block_scale=scale, **own)
        return QuantizedTensor(codes, "TensorCoreNVFP4Layout", params)
    assert said["format"] == "float8_e4m3fn"
    return QuantizedTensor(codes, "TensorCoreFP8Layout", TensorCoreFP8Layout.Params(scale=scale, **own))


def main(command: str) -> int:
    wrong, chance = 0, torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        source, out, floats = (str(Path(place, f"{name}.safetensors")) for name in ("source", "out", "floats"))
        weights = {f"{n}.weight": torch.randn(shape, generator=chance).bfloat16() for n, shape in SHAPES.items()}
        save_file(weights, source)
        for kind in KINDS:
            words = [["quantize", source, "--to", f"comfyui:{kind}", "-o", out],
                     ["dequantize", out, "--dtype", "float32", "-o", floats]]  # fmt: skip
            for line in words:
                subprocess.run([command, *line, "--force", "-q"], check=True)
            held, expected = load_file(out), load_file(floats)
            for name, shape in SHAPES.items():
                for dtype in (torch.float32, torch.bfloat16):
                    tensor = loaded(held, name, shape, dtype)
                    ours = expected[f"{name}.weight"]
                    same = torch.equal(tensor.dequantize()[: shape[0], : shape[1]], ours.to(dtype))
                    x = torch.randn((4, shape[1]), generator=chance).to(dtype)
                    got, want = torch.nn.functional.linear(x, tensor).float(), x.float() @ ours.T
                    apart = float((got - want).norm() / want.norm())
                    wrong += not same or apart > 0.02
                    print(f"{kind:18} {name} {str(dtype)[6:]:9} {'the same' if same else 'DIFFERENT'} {apart:.4f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
