"""Write the GPTQ files of tests/golden/layouts (format gptq_v2) with GPTQModel 7.7: random words, and what its linear
layer decodes of them under `expected`. Run by hand with torch and the path of an unpacked source distribution.

    .venv-peers/current/bin/python tests/peers/write_layouts_gptq.py gptqmodel-7.7.0
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent.parent / "golden" / "layouts"
WANTED = ("_torch_right_shift", "_torch_left_shift", "dequantize_weight", "_dequantize_from_codes",
          "_init_wf_unsqueeze_buffers")  # fmt: skip


def functions(source: Path) -> dict[str, Any]:
    """Functions and methods of the library's module, without importing the rest of the library."""
    tree = ast.parse((source / "gptqmodel" / "nn_modules" / "qlinear" / "__init__.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in WANTED]
    for node in found:
        node.decorator_list = []
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
    scope: dict[str, Any] = {"t": torch, "torch": torch}
    exec(compile(ast.Module(found, []), "qlinear", "exec"), scope)
    return scope


def main(source: Path) -> None:
    scope = functions(source)
    chance = torch.Generator().manual_seed(0)
    for bits, group, ordered in ((2, 32, True), (3, 32, True), (4, 16, False), (8, 64, True)):
        rows, cols = 64, 32  # inputs, outputs

        def words(*shape: int) -> torch.Tensor:
            return torch.randint(-(2**31), 2**31, shape, generator=chance, dtype=torch.int64).to(torch.int32)

        g_idx = torch.arange(rows, dtype=torch.int32) // group
        if not ordered:
            g_idx = g_idx[torch.randperm(rows, generator=chance)]
        layer = SimpleNamespace(
            planar=False, bits=bits, maxq=2**bits - 1, pack_factor=32 // bits, pack_dtype_bits=32, in_features=rows,
            enable_wf_unsqueeze=True, dequant_dtype=torch.int16 if bits == 8 else torch.int8, g_idx=g_idx,
            qweight=words(rows * bits // 32, cols), qzeros=words(rows // group, cols * bits // 32),
            scales=torch.rand(rows // group, cols, generator=chance), _buffers={}, _wf_device=lambda: "cpu",
        )  # fmt: skip
        layer.scales = layer.scales.half().float()
        layer.register_buffer = lambda name, value, persistent=False, layer=layer: setattr(layer, name, value)
        for name in ("_dequantize_from_codes", "_init_wf_unsqueeze_buffers"):
            setattr(layer, name, scope[name].__get__(layer))
        expected = scope["dequantize_weight"](layer).T.contiguous()
        tensors = {"m.qweight": layer.qweight, "m.qzeros": layer.qzeros, "m.scales": layer.scales.half(),
                   "m.g_idx": g_idx, "expected": expected.float()}  # fmt: skip
        config = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": bits,
                                          "group_size": group, "sym": False, "desc_act": not ordered}}  # fmt: skip
        save_file(
            {k: np.ascontiguousarray(v.numpy()) for k, v in tensors.items()},
            FOLDER / f"gptq-w{bits}.safetensors",
            {"config": json.dumps(config)},
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
