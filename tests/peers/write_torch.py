"""Write tests/golden/torch with torch.save of torch 2.13.0: state dicts of many dtypes, views and shared storages, and
what torch has that is no state dict. expected.json has the bytes of each tensor as torch lays them out in C order.
Run by hand in an environment that has torch.

    .venv-peers/bin/python tests/peers/write_torch.py
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent.parent / "golden" / "torch"

DTYPES = {
    "F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def dtypes(chance: torch.Generator) -> dict[str, torch.Tensor]:
    """A tensor of every dtype; float8 and wider unsigned integers are written by _rebuild_tensor_v3."""
    values = torch.randn(3, 4, generator=chance) * 20
    return {name: values.abs().to(dtype) if name[0] == "U" else values.to(dtype) for name, dtype in DTYPES.items()}


def views(chance: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors that lie in one storage of 600 elements, or repeat their elements."""
    base = torch.randn(20, 30, generator=chance)
    cube = base.reshape(4, 5, 30)
    return {
        "whole": base,
        "same": base,
        "rows": base[3:7],
        "row": base[19],
        "transposed": base.t(),
        "columns": base[:, 4:20:3],
        "permuted": cube.permute(2, 0, 1),
        "piece": cube[1:3, ::2, 5:].transpose(0, 2),
        "expanded": base[:, :1].expand(20, 6),
        "diagonal": base.diagonal(),
        "number": base[2, 2],
        "empty": torch.zeros(0, 7),
        "also-empty": torch.zeros(3, 0),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "halves": base.to(torch.bfloat16).t(),
    }


def expected(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    found = {}
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1)
        raw = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
        found[name] = [names[tensor.dtype], list(tensor.shape), raw.hex()]
    return found


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    chance = torch.Generator().manual_seed(0)
    known = {}
    for name, tensors in {"dtypes": dtypes(chance), "views": views(chance)}.items():
        known[name] = expected(tensors)
        torch.save(tensors, FOLDER / f"{name}.pt")
        torch.save(OrderedDict(tensors), FOLDER / f"{name}.protocol4.pt", pickle_protocol=4)
        torch.save(tensors, FOLDER / f"{name}.legacy.pt", _use_new_zipfile_serialization=False)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 32), torch.nn.Linear(32, 8, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 128)).sum().backward()
    optimizer.step()
    known["model"] = expected(model.state_dict())
    torch.save(model.state_dict(), FOLDER / "model.pt")
    training = {"epoch": 3, "step": torch.tensor(40), "args": {"lr": 0.1}, "optimizer": optimizer.state_dict()}
    torch.save({"state_dict": model.state_dict(), **training}, FOLDER / "training.ckpt")
    torch.save({"args": argparse.Namespace(lr=0.1), "model": model.state_dict()}, FOLDER / "namespace.ckpt")
    known["alone"] = expected({"alone": model[1].weight})
    torch.save(model[1].weight, FOLDER / "alone.pt")
    refused: dict[str, Any] = {
        "module": model,
        "two": {"model": model.state_dict(), "ema": model.state_dict()},
        "list": [model[0].weight],
        "sparse": {"a": torch.eye(3).to_sparse()},
        "quantized": {"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)},
        "conjugate": {"a": torch.ones(4, dtype=torch.complex64).conj()},
        "meta": {"a": torch.ones(4, device="meta")},
        "numbers": {"epoch": 3},
    }
    for name, value in refused.items():
        torch.save(value, FOLDER / f"refused-{name}.pt")
    torch.jit.script(model).save(str(FOLDER / "refused-script.pt"))
    (FOLDER / "expected.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
