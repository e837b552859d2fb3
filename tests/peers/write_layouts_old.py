"""Write files of tests/golden/layouts with compressed-tensors 0.17.0 and torch: codes of 3, 5, 6 and 7 bits as they
were packed before release 0.18, whole ones to a word, and what it makes of them again. Run by hand in an environment
that has that release.

    PYTHONPATH=/path/to/compressed-tensors-0.17.0 .venv-peers/bin/python tests/peers/write_layouts_old.py
"""

from __future__ import annotations

import json
from pathlib import Path

import compressed_tensors
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"

CASES = {
    "old-w3g10-asym": (20, {"num_bits": 3, "strategy": "group", "group_size": 10, "symmetric": False}),
    "old-w5c": (12, {"num_bits": 5, "strategy": "channel"}),
    "old-w6g40": (160, {"num_bits": 6, "strategy": "group", "group_size": 40}),
    "old-w7c-asym": (11, {"num_bits": 7, "strategy": "channel", "symmetric": False}),
}
"""Columns and schemes: with so few columns both ways to pack take as many words, but for the third."""


def main() -> None:
    assert compressed_tensors.__version__ == "0.17.0"
    for seed, (name, (cols, values)) in enumerate(CASES.items()):
        args = QuantizationArgs(**values)
        weight = torch.randn((37, cols), generator=torch.Generator().manual_seed(seed))
        shared = weight.reshape(37, -1, args.group_size or cols)
        scale, zero = calculate_qparams(shared.amin(-1), shared.amax(-1), args)
        state = {"weight": weight, "weight_scale": scale}
        if not args.symmetric:
            state["weight_zero_point"] = zero
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        stored = compressor.compress(state, scheme)
        expected = compressor.decompress(stored, scheme)["weight"]
        tensors = {f"m.{key}": value.contiguous() for key, value in stored.items()}
        tensors["expected"] = expected.float().contiguous()
        config = {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "version": "0.17.0",
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": values | {"symmetric": args.symmetric}}
                },
            }
        }
        save_file(tensors, FOLDER / f"{name}.safetensors", {"config": json.dumps(config)})
        print(name, stored["weight_packed"].shape, -(-cols * args.num_bits // 32))


if __name__ == "__main__":
    main()
