"""Runs in a peers' environment: a model quantized by other tools, each with what its own library rounds and packs.

    python audits_client.py BASE OUT

BASE is a folder of a BERT in float32. A line is printed for each file or folder written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def kept(tensor: torch.Tensor) -> torch.Tensor:
    """As these tools keep it: floats in bfloat16."""
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def write(folder: Path, tensors: Tensors, config: dict[str, Any], more: dict[str, Any]) -> None:
    """A folder of a model."""
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    print(folder.name)


def mlx(base: Tensors, names: list[str], config: dict[str, Any], out: Path) -> None:
    """MLX's own quantize, at three widths."""
    import mlx.core as mx

    for bits, group in ((4, 64), (8, 64), (3, 32)):
        found = {name: kept(t) for name, t in base.items() if name not in names}
        for name in names:
            weights = mx.array(base[name].numpy()).astype(mx.bfloat16)
            codes, *params = mx.quantize(weights, group_size=group, bits=bits)
            found[name] = torch.from_numpy(np.array(codes).view(np.int32)).view(torch.uint32)
            for kind, values in zip(("scales", "biases"), params):
                floats = torch.from_numpy(np.array(values.astype(mx.float32))).bfloat16()
                found[name.removesuffix("weight") + kind] = floats
        settings = {"bits": bits, "group_size": group}
        write(out / f"mlx, {bits} bits, groups of {group}", found, config, {"quantization": settings})


def compressed(base: Tensors, names: list[str], config: dict[str, Any], out: Path) -> None:
    """compressed-tensors' parameters, rounding and packing of min-max ranges, without an offset and with one."""
    from compressed_tensors.compressors import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    for symmetric in (True, False):
        asked = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=128)
        found = {name: kept(t) for name, t in base.items() if name not in names}
        for name in names:
            weights, stem = base[name].bfloat16(), name.removesuffix("weight")
            groups = weights.reshape(len(weights), -1, 128)
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), asked)
            codes = quantize(weights, scale, zero, asked, dtype=torch.int8)
            found[f"{stem}weight_packed"] = pack_to_int32(codes, 4)
            found[f"{stem}weight_scale"] = scale
            found[f"{stem}weight_shape"] = torch.tensor(weights.shape)
            if not symmetric:
                found[f"{stem}weight_zero_point"] = pack_to_int32(zero.to(torch.int8), 4, packed_dim=0)
        group = {"targets": ["Linear"], "weights": asked.model_dump(mode="json", exclude_none=True)}
        method = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [],
                  "quantization_status": "compressed", "config_groups": {"group_0": group}}  # fmt: skip
        how = "" if symmetric else ", with zero points"
        write(out / f"compressed-tensors, 4 bits{how}", found, config, {"quantization_config": method})


def bitsandbytes(source: Path, out: Path) -> None:
    """transformers' NF4, with scales as they are and quantized themselves."""
    from transformers import AutoModel, BitsAndBytesConfig

    for double in (False, True):
        asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        found = AutoModel.from_pretrained(source, quantization_config=asked, device_map="cpu", dtype=torch.float16)
        name = f"bitsandbytes, NF4{', nested scales' if double else ''}"
        found.save_pretrained(out / name)
        print(name)


def gguf(base: Tensors, names: list[str], out: Path) -> None:
    """The gguf package's own quantization, types that it has."""
    import gguf

    for name in ("Q4_0", "Q5_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        path = out / f"gguf, {name}.gguf"
        writer = gguf.GGUFWriter(path, "nothing")
        for tensor, values in base.items():
            if tensor in names:
                writer.add_tensor(tensor, gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
            elif values.is_floating_point():
                writer.add_tensor(tensor, values.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        print(path.name)


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True)
    tensors = load_file(source / "model.safetensors")
    own = json.loads((source / "config.json").read_text())
    matrices = [n for n, t in tensors.items() if t.ndim == 2 and "encoder" in n and n.endswith("weight")]
    mlx(tensors, matrices, own, folder)
    compressed(tensors, matrices, own, folder)
    gguf(tensors, matrices, folder)
    bitsandbytes(source, folder)
