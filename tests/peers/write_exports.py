"""Write tests/golden/exports with bitsandbytes 0.50: a weight, and the tensors it stores for it. Run by hand:

.venv-peers/current/bin/python tests/peers/write_exports.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "exports"


def main() -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, state = quantize_4bit(weight.float(), blocksize=64, quant_type="nf4", quant_storage=torch.uint8)
    state.dtype = weight.dtype
    parts = {f"expected.weight.{name}": value.contiguous() for name, value in state.as_dict(packed=True).items()}
    save_file({"m.weight": weight, "expected.weight": codes, **parts}, FOLDER / "bnb-nf4.safetensors")


if __name__ == "__main__":
    main()
