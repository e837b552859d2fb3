"""Write files of tests/golden/layouts with transformers 5.23.0 and torch: random 8-bit floats with scales of blocks,
and what its Fp8Dequantize makes of them under `expected`. Run by hand in an environment that has both.

    .venv-peers/bin/python tests/peers/write_layouts_fp8.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"
CASES = {"fp8-blocks": ((32, 48), (16, 16)), "fp8-blocks-oblong": ((24, 60), (8, 20))}


def main() -> None:
    for seed, (name, (shape, block)) in enumerate(CASES.items()):
        chance = torch.Generator().manual_seed(seed)
        codes = torch.randn(shape, generator=chance).to(torch.float8_e4m3fn)
        scale = torch.rand([n // b for n, b in zip(shape, block)], generator=chance)
        expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(block)}}
        save_file(
            {"m.weight": codes, "m.weight_scale_inv": scale, "expected": expected.contiguous()},
            FOLDER / f"{name}.safetensors",
            {"config": json.dumps(config)},
        )


if __name__ == "__main__":
    main()
