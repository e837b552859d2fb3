"""Write files of tests/golden/layouts with bitsandbytes 0.50.2 and torch: layers as they are saved, and what it
decodes them to under `expected`. Run by hand in an environment that has both.

    .venv-peers/bin/python tests/peers/write_layouts_bnb.py

4 bits are decoded by its own reference, not by its CPU kernel: where blocks end inside of rows that kernel of 0.50.2
takes the scale of another block: errors of 1.6 on normal weights, where its reference stays within 0.55.
"""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import (
    QuantState,
    dequantize_blockwise,
    get_4bit_type,
    int8_vectorwise_dequant,
    quantize_4bit,
)
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"

CASES = {
    "bnb-nf4g64": ((37, 64), {"quant_type": "nf4", "blocksize": 64}),
    "bnb-nf4g64-ragged": ((37, 53), {"quant_type": "nf4", "blocksize": 64}),
    "bnb-nf4g128-bf16": ((16, 64), {"quant_type": "nf4", "blocksize": 128, "quant_storage": torch.bfloat16}),
    "bnb-nf4g32-double": ((65, 128), {"quant_type": "nf4", "blocksize": 32, "compress_statistics": True}),
    "bnb-fp4g64": ((33, 48), {"quant_type": "fp4", "blocksize": 64}),
    "bnb-fp4g64-double": ((5, 6, 7), {"quant_type": "fp4", "blocksize": 64, "compress_statistics": True}),
}


def save(name: str, tensors: dict[str, torch.Tensor], expected: torch.Tensor, **settings: object) -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", **settings}}
    tensors = {f"m.{key}": value.clone().contiguous() for key, value in tensors.items()}
    save_file(
        {**tensors, "expected": expected.contiguous()}, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)}
    )


def decoded(codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    largest = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    levels = get_4bit_type(state.quant_type, device="cpu")
    flat = codes.view(torch.uint8).reshape(-1)
    found = _dequantize_4bit_compute(flat, largest, levels, state.blocksize, state.shape, torch.float32)
    return found.reshape(state.shape)


def main() -> None:
    for seed, (name, (shape, values)) in enumerate(CASES.items()):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        weight.view(-1)[:70] = 0
        codes, state = quantize_4bit(weight, **values)
        parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        save(name, {"weight": codes, **parts}, decoded(codes, state), load_in_4bit=True)
    weight = torch.randn((37, 50), generator=torch.Generator().manual_seed(9))
    layer = bnb.nn.Linear8bitLt(50, 37, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    layer(torch.ones(1, 50))  # it quantizes when it is first used
    stored = layer.state_dict()
    assert stored["weight"].dtype == torch.int8, stored
    save("bnb-int8", stored, int8_vectorwise_dequant(stored["weight"], stored["SCB"]), load_in_8bit=True)


if __name__ == "__main__":
    main()
