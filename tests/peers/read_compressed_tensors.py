"""Runs in the peers' environment: decode a quantized folder with compressed-tensors' own converter, and print the
SQNR it sees for every tensor as JSON.

    python read_compressed_tensors.py QUANTIZED_FOLDER ORIGINAL_FOLDER
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer, convert_checkpoint
from safetensors import safe_open


def tensors(folder: str) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files of a folder."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            found.update({name: file.get_tensor(name) for name in names})
    return found


def main() -> None:
    quantized, original = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        converter = CompressedTensorsDequantizer(quantized, dtype=torch.float32)
        convert_checkpoint(model_stub=quantized, save_directory=folder, converter=converter, max_workers=1)
        decoded = tensors(folder)
    seen: dict[str, float | None] = {}
    for name, weights in tensors(original).items():
        power = float((weights.double() ** 2).sum())
        noise = float(((weights.double() - decoded[name].double()) ** 2).sum())
        seen[name] = 10 * math.log10(power / noise) if noise and power else None
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
