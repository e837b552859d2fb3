"""Write tests/golden/named.json and tests/golden/named/ with llm-compressor 0.14: what its model-free path makes of the
sample Llama, by the name of a scheme: names, dtypes and shapes of tensors, and the quantization_config; and of the same
model in float32 the bytes of two layers, beside their weights. Run by hand, where it is installed:

python tests/peers/write_named.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from llmcompressor.entrypoints.model_free import model_free_ptq
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).parent.parent
MODEL = TESTS.parent / "sample_models" / "tiny-llama"
SCHEMES = ("FP8_DYNAMIC", "W8A8", "NVFP4A16", "MXFP4", "MXFP8A16")
IGNORED = ("lm_head", "model.embed_tokens")
BYTES = ("FP8_DYNAMIC", "W8A8", "NVFP4A16", "MXFP4", "MXFP8A16")
LAYER = "model.layers.0.self_attn."


def in_float32(folder: Path) -> dict[str, torch.Tensor]:
    """The sample model in float32, where dividing by a scale rounds once; its tensors."""
    weights: dict[str, torch.Tensor] = {}
    for path in MODEL.glob("*.safetensors"):
        weights |= {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32", "dtype": "float32"}))
    return weights


def layers(scheme: str) -> dict[str, torch.Tensor]:
    """The tensors of k and v as stored by a scheme, and what they were."""
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as folder:
        weights = in_float32(Path(source))
        model_free_ptq(source, folder, scheme=scheme, ignore=IGNORED, device="cpu")
        found: dict[str, torch.Tensor] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            found |= load_file(path)
    own = [f"{LAYER}{name}_proj." for name in ("k", "v")]
    stored = {name: tensor for name, tensor in found.items() if name.startswith(tuple(own))}
    return stored | {f"original.{name}weight": weights[f"{name}weight"] for name in own}


def main() -> None:
    found = {}
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as folder:
            model_free_ptq(str(MODEL), folder, scheme=scheme, ignore=IGNORED, device="cpu")
            tensors = {}
            for path in sorted(Path(folder).glob("*.safetensors")):
                with safe_open(str(path), "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        part = file.get_slice(name)
                        tensors[name] = [part.get_dtype(), list(part.get_shape())]
            config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
            found[scheme] = {"config": config, "tensors": dict(sorted(tensors.items()))}
    for scheme in BYTES:
        save_file(layers(scheme), TESTS / "golden" / "named" / f"{scheme}.safetensors")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(made)}" for name, made in found.items())
    (TESTS / "golden" / "named.json").write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    main()
