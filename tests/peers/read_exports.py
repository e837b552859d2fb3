"""Decode an export with its own tool: for every weight the largest error against the native weights, as a share of the
largest weight, in JSON on the last line.

    python read_exports.py TARGET EXPORT DECODED.safetensors
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

Decoded = Iterator[tuple[str, Any]]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in sorted(glob.glob(f"{folder}/*.safetensors")) for n, t in load_file(path).items()}


def mlx(out: Path, names: set[str]) -> Decoded:
    import mlx.core as mx

    settings = json.loads((out / "config.json").read_text())["quantization"]
    held = {n: t for path in sorted(glob.glob(f"{out}/model*.safetensors")) for n, t in mx.load(path).items()}
    for module in [n.removesuffix(".scales") for n in held if n.endswith(".scales")]:
        own = {**settings, **settings.get(module, {})}
        parts = (held[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        decoded = mx.dequantize(held[f"{module}.weight"], *parts, group_size=own["group_size"], bits=own["bits"])
        yield f"{module}.weight", np.array(decoded)


def onnx(out: Path, names: set[str]) -> Decoded:
    """Every node multiplies the identity: what comes out is the weight."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # tensors no node uses are meant to be there
    session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    none = {i.name: np.zeros((1, i.shape[1]), np.float32) for i in session.get_inputs()}
    for i, o in zip(session.get_inputs(), session.get_outputs()):
        (values,) = session.run([o.name], {**none, i.name: np.eye(i.shape[1], dtype=np.float32)})
        yield i.name.removesuffix(".input") + ".weight", values.T


def bnb_nf4(out: Path, names: set[str]) -> Decoded:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    held = tensors(out)
    for name in [n.removesuffix(".absmax") for n in held if n.endswith(".absmax")]:
        parts = {n.removeprefix(f"{name}."): t for n, t in held.items() if n.startswith(f"{name}.")}
        state = QuantState.from_dict(parts, torch.device("cpu"))
        state.dtype = torch.float32
        yield name, dequantize_4bit(held[name], state)


def comfyui(out: Path, names: set[str]) -> Decoded:
    import comfy_kitchen

    held = tensors(out)
    layers: dict[str, Any] = {}
    for path in sorted(glob.glob(f"{out}/*.safetensors")):
        with safe_open(path, "pt") as file:
            layers |= json.loads(file.metadata()["_quantization_metadata"])["layers"]
    for module, settings in layers.items():
        assert settings == {"format": "int8_tensorwise"}
        name = f"{module}.weight"
        yield name, comfy_kitchen.dequantize_int8_simple(held[name], held[f"{name}_scale"])


def compressed_tensors(out: Path, names: set[str]) -> Decoded:
    """The whole model through transformers, every weight decoded on the way in."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    settings = CompressedTensorsConfig(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(out, quantization_config=settings, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    for name, parameter in model.named_parameters():
        if name in names:
            yield name, parameter.detach()


READERS: dict[str, Callable[[Path, set[str]], Decoded]] = {
    "mlx": mlx, "onnx": onnx, "bnb-nf4": bnb_nf4, "comfyui": comfyui, "compressed-tensors": compressed_tensors,
}  # fmt: skip


def main() -> None:
    target, out, decoded = sys.argv[1], Path(sys.argv[2]), load_file(sys.argv[3])
    found = {}
    for name, values in READERS[target](out, set(decoded)):
        seen = values.float().numpy() if isinstance(values, torch.Tensor) else values
        exact = decoded[name].float().numpy()
        assert seen.shape == exact.shape, name
        found[name] = float(np.abs(seen - exact).max() / np.abs(exact).max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
