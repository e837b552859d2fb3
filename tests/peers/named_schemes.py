"""Decode schemes by name with compressed-tensors and transformers, bit for bit what quantcli decodes. Run by hand, in
an environment that has both and quantcli:

.venv-peers/current/bin/python tests/peers/named_schemes.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from models import MODEL, command
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

NAMES = ("W4A16", "W8A16", "W4A16_ASYM", "W8A8", "W4A8", "W4AFP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16",
         "MXFP4", "MXFP8A16", "MXFP8")  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def differences(out: Path, back: Path) -> tuple[int, list[str]]:
    """How many weights the library decodes, and those that are other numbers than quantcli's."""
    settings: dict[str, Any] = json.loads((out / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate({k: v for k, v in settings.items() if k != "quant_method"})
    (group,) = config.config_groups.values()
    stored, wanted = tensors(out), tensors(back)
    library, wrong, count = BaseCompressor.get_value_from_registry(group.format), [], 0
    for name, expected in wanted.items():
        module = name.removesuffix("weight")
        if f"{name}_scale" not in stored:
            continue
        parts = {key.removeprefix(module): value for key, value in stored.items() if key.startswith(module)}
        found = library.decompress(parts, group)["weight"]
        count += 1
        if not torch.equal(found.to(torch.bfloat16), expected.to(torch.bfloat16)):
            wrong.append(name)
    return count, wrong


def loaded(name: str, out: Path, back: Path) -> bool:
    """Whether transformers with dequantize=True has the weights that quantcli decodes; without, it generates words."""
    settings = CompressedTensorsConfig(dequantize=True)
    own = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, quantization_config=settings)
    other = AutoModelForCausalLM.from_pretrained(back, dtype=torch.bfloat16)
    words = torch.arange(16)[None]
    if "ASYM" not in name and name != "FP8_BLOCK":  # rows of 64 are too short for inputs in groups of 128
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
        model.generate(words, max_new_tokens=2, do_sample=False)
    return torch.equal(own(words).logits, other(words).logits)


def main() -> int:
    failed = 0
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            out, back = Path(folder, "out"), Path(folder, "back")
            for words in (["quantize", MODEL, "--scheme", name, "-o", out], ["dequantize", out, "-o", back]):
                ran = command(*words, "-q")
                assert ran.returncode == 0, ran.stderr
            count, wrong = differences(out, back)
            same = loaded(name, out, back)
            failed += bool(wrong) + (not same) + (not count)
            print(f"{name}: {count} weights, {len(wrong)} differ; transformers {'agrees' if same else 'differs'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
