"""Runs in the peers' environment current: an ONNX model that torch computes too, and its statistics from both.

    python observing_client.py PYTHON FOLDER

PYTHON has quantcli; onnxruntime is this environment's. Printed is a line of a table for every weight.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import onnx_parts as parts

torch.manual_seed(0)
SAMPLES = 12


def numbers(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def rows_of_convolution(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Patches of every group, by torch's own unfolding."""
    parts = x.chunk(conv.groups, 1)
    how = {"dilation": conv.dilation, "padding": conv.padding, "stride": conv.stride}
    return torch.cat([nn.functional.unfold(p, conv.kernel_size, **how).mT.flatten(0, 1) for p in parts])


def model(folder: Path) -> dict[str, torch.Tensor]:
    """x -> grouped Conv -> Relu -> Conv -> flat -> LSTM -> MatMul, as ONNX; the rows that each weight meets."""
    first = nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False)
    second = nn.Conv2d(6, 5, (1, 2), bias=False)
    x = torch.randn(SAMPLES, 4, 7, 8)
    h = torch.relu(first(x))
    y = second(h)
    steps = y.permute(0, 2, 1, 3).flatten(2)  # samples, steps, inputs
    lstm = nn.LSTM(steps.shape[-1], 9, batch_first=False, bias=False)
    states, _ = lstm(steps.transpose(0, 1))
    product = torch.randn(9, 3)
    with torch.no_grad():
        rows = {
            "first": rows_of_convolution(first, x), "second": rows_of_convolution(second, h),
            "w": steps.flatten(0, 1), "product": states.flatten(0, 1),
            "r": torch.cat([torch.zeros(1, SAMPLES, 9), states[:-1]]).flatten(0, 1),
        }  # fmt: skip
    w, r = (numbers(lstm)[f"weight_{kind}_l0"] for kind in ("ih", "hh"))
    order = [0, 3, 1, 2]  # torch: input, forget, cell, output gates; ONNX: input, output, forget, cell
    w, r = (np.concatenate([np.split(m, 4)[i] for i in order])[None] for m in (w, r))
    wide = steps.shape[-1]
    graph = [
        parts.value(11, "x"),
        parts.f32("first", numbers(first)["weight"]), parts.f32("second", numbers(second)["weight"]),
        parts.f32("w", w), parts.f32("r", r), parts.f32("product", product.numpy()),
        parts.op("Conv", ["x", "first"], ["a"], strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2], group=2),
        parts.op("Relu", ["a"], ["h"]),
        parts.op("Conv", ["h", "second"], ["y"]),
        parts.op("Transpose", ["y"], ["t"], perm=[2, 0, 1, 3]),
        parts.op("Constant", [], ["shape"], value=np.array([steps.shape[1], -1, wide])),
        parts.op("Reshape", ["t", "shape"], ["steps"]),
        parts.op("LSTM", ["steps", "w", "r"], ["states"], hidden_size=9),
        parts.op("MatMul", ["states", "product"], ["out"]),
        parts.value(12, "out"),
    ]  # fmt: skip
    graph[0] = parts.field(
        11, parts.field(1, "x") + parts.field(2, parts.field(1, parts.field(1, parts.FLOAT) + sizes()))
    )
    (folder / "model.onnx").write_bytes(parts.model(*graph, more=parts.opset(17), ir=8))
    np.savez(folder / "samples.npz", x=x.numpy())
    return rows


def sizes() -> bytes:
    """An open number of samples of 4 x 7 x 8."""
    dims = [parts.field(2, "n"), *(parts.field(1, n) for n in (4, 7, 8))]
    return parts.field(2, b"".join(parts.field(1, dim) for dim in dims))


def main() -> None:
    python, folder = sys.argv[1], Path(sys.argv[2])
    rows = model(folder)
    here = str(Path(np.__file__).resolve().parent.parent)
    command = [python, "-m", "quantcli", "observe", folder / "model.onnx", "--inputs", folder / "samples.npz", "-o",
               folder / "statistics.safetensors", "--batch", "5", "-q"]  # fmt: skip
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))  # onnxruntime is there
    subprocess.run([str(c) for c in command], check=True, env={**os.environ, "PYTHONPATH": paths})
    found = load_file(folder / "statistics.safetensors")
    print("| weight of an ONNX model | inputs | vectors | second moments beside torch's |")
    print("| --- | --- | --- | --- |")
    for name, own in rows.items():
        wide = own.detach().double().numpy()
        second = wide.T @ wide / len(wide)
        same = found[f"{name}.count"] == len(wide) and np.allclose(found[f"{name}.mean"], wide.mean(axis=0), atol=1e-5)
        off = float(np.abs(found[f"{name}.second"] - second).max() / np.abs(second).max())
        print(f"| {name} | {wide.shape[1]} | {len(wide)} | {off:.0e}{'' if same and off < 1e-5 else ' differs'} |")


if __name__ == "__main__":
    main()
