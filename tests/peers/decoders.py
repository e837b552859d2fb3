"""Clients that decode the tensors of a file without a model; see clients.py.

Runs in a peers' environment: every function imports the client of which it tells.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Weights = Iterator[tuple[str, Any]]
"""Names, and arrays of numpy, torch or mlx."""


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file, or those of a folder, by torch."""
    from safetensors.torch import load_file

    paths = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return {n: t for path in paths for n, t in load_file(path).items()}


def module_of(name: str) -> str:
    return name.removesuffix(".weight")


def parts(held: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The tensors whose names begin with a prefix and a dot, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): held[name] for name in held if name.startswith(f"{prefix}.")}


# ---- compressed-tensors ----------------------------------------------------------------------------------------------


def converter(model: Path, original: Path, names: list[str], own: Any = None) -> Weights:
    """compressed-tensors turns a folder into one of floats."""
    import torch
    from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer, convert_checkpoint

    with tempfile.TemporaryDirectory() as place:
        if own is not None:
            first = Path(place) / "packed"
            convert_checkpoint(str(model), str(first), own.from_pretrained(str(model)), max_workers=1)
            model = first
        decoded = Path(place) / "decoded"
        floats = CompressedTensorsDequantizer(str(model), dtype=torch.float32)
        convert_checkpoint(str(model), str(decoded), floats, max_workers=1)
        found = tensors(decoded)
    yield from ((name, found[name]) for name in names)


def compressor(model: Path, original: Path, names: list[str]) -> Weights:
    """What compressed-tensors decodes of every weight alone: its converter takes norms for weights of layers where the
    codes of a scheme are called `weight`."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    settings = json.loads((model / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate({k: v for k, v in settings.items() if k != "quant_method"})
    (group,), held = config.config_groups.values(), tensors(model)
    library = BaseCompressor.get_value_from_registry(group.format)
    for name in names:
        yield name, library.decompress(parts(held, module_of(name)), group)["weight"]


def converter_awq(model: Path, original: Path, names: list[str]) -> Weights:
    """compressed-tensors turns AWQ into its own layout, and that into floats."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    return converter(model, original, names, AutoAWQConverter)


def converter_modelopt(model: Path, original: Path, names: list[str]) -> Weights:
    """compressed-tensors turns ModelOpt's NVFP4 into its own, and multiplies that with its scales."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

    scheme: QuantizationScheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    library = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    held = ModelOptNvfp4Converter(targets=["re:.*"]).process(tensors(model))
    for name in names:
        yield name, library.decompress(parts(held, module_of(name)), scheme)["weight"]


def converter_fp8(model: Path, original: Path, names: list[str]) -> Weights:
    """compressed-tensors multiplies 8-bit floats in blocks with their scales."""
    import torch
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer

    held = FP8BlockDequantizer.from_pretrained(str(model), dtype=torch.float32).process(tensors(model))
    yield from ((name, held[name]) for name in names)


# ---- others ----------------------------------------------------------------------------------------------------------


def bitsandbytes(model: Path, original: Path, names: list[str]) -> Weights:
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    held = tensors(model)
    for name in names:
        state = QuantState.from_dict(parts(held, name), torch.device("cpu"))
        state.dtype = torch.float32
        yield name, dequantize_4bit(held[name], state)


def comfy_kitchen(model: Path, original: Path, names: list[str]) -> Weights:
    """What ComfyUI's loader (`_load_from_state_dict` of comfy/ops.py) makes of the parts of a weight, decoded; and
    products with it have to be those of what it is decoded to, but for how inputs are rounded."""
    import torch

    held, said = tensors(model), comfyui_descriptions(model)
    for name in names:
        tensor, size = comfyui_weight(held, module_of(name), said.get(module_of(name)), torch.float32)
        decoded = tensor.dequantize()[: size[0], : size[1]]
        x = torch.randn((4, size[1]), generator=torch.Generator().manual_seed(0))
        product, expected = torch.nn.functional.linear(x, tensor), x @ decoded.T
        apart = float((product[:, : size[0]] - expected).norm() / expected.norm())
        assert apart < 0.02, f"{name}: products are {apart} apart from those of the decoded weight"
        yield name, decoded


def comfyui_descriptions(model: Path) -> dict[str, Any]:
    """What headers say of weights, under their modules."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in [model] if model.is_file() else sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= json.loads((file.metadata() or {}).get("_quantization_metadata", '{"layers": {}}'))["layers"]
    return found


def comfyui_weight(held: dict[str, Any], module: str, header: Any, dtype: Any) -> tuple[Any, tuple[int, ...]]:
    """The quantized tensor of a module, and its shape. A description beside the weight has to be that of the header."""
    import torch
    from comfy_kitchen.tensor import (
        QuantizedTensor,
        TensorCoreFP8Layout,
        TensorCoreMXFP8Layout,
        TensorCoreNVFP4Layout,
        TensorWiseINT8Layout,
    )

    codes, older = held[f"{module}.weight"], held.get(f"{module}.scale_weight")
    own = held.get(f"{module}.comfy_quant")
    said = json.loads(own.numpy().tobytes()) if own is not None else header
    assert older is not None or said == (header or said), f"{module}: {said} is not {header}"
    kind = "float8_e4m3fn" if older is not None else said["format"]
    size = tuple((said or {}).get("orig_shape") or (codes.shape[0], codes.shape[1] * (2 if kind == "nvfp4" else 1)))
    scale = older if older is not None else held[f"{module}.weight_scale"]
    common = {"orig_dtype": dtype, "orig_shape": size}
    if kind == "int8_tensorwise":
        turned = {key: said[key] for key in ("convrot", "convrot_groupsize") if key in said}
        params: Any = TensorWiseINT8Layout.Params(scale=scale, **turned, **common)
    elif kind == "mxfp8":
        params = TensorCoreMXFP8Layout.Params(scale=scale.view(torch.float8_e8m0fnu), **common)
    elif kind == "nvfp4":
        params = TensorCoreNVFP4Layout.Params(scale=held[f"{module}.weight_scale_2"], block_scale=scale, **common)
    else:
        assert kind in ("float8_e4m3fn", "float8_e5m2"), kind
        params = TensorCoreFP8Layout.Params(scale=scale, **common)
    layout = {"int8_tensorwise": "TensorWiseINT8Layout", "mxfp8": "TensorCoreMXFP8Layout",
              "nvfp4": "TensorCoreNVFP4Layout"}.get(kind, "TensorCoreFP8Layout")  # fmt: skip
    return QuantizedTensor(codes, layout, params), size


def modelopt(model: Path, original: Path, names: list[str]) -> Weights:
    """ModelOpt's own tensors, in float32."""
    import torch
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor

    held, kinds = tensors(model), json.loads((model / "hf_quant_config.json").read_text())["quantization"]
    for name in names:
        codes, scale = held[name], held[f"{name}_scale"]
        if kinds["quant_algo"] in ("W4A16_NVFP4", "NVFP4"):
            shape = torch.Size((codes.shape[0], codes.shape[1] * 2))
            own = {"scale": scale, "double_scale": held[f"{name}_scale_2"], "block_sizes": {-1: 16}}
            yield name, NVFP4QTensor(shape, torch.float32, codes).dequantize(torch.float32, **own)
        elif kinds["quant_algo"] == "MXFP8":
            yield name, MXFP8QTensor(codes.shape, torch.float32, codes).dequantize(torch.float32, scale=scale)
        else:
            rows = kinds["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
            assert rows or kinds["quant_algo"] == "FP8", kinds
            own = {"scale": scale.reshape(-1, 1), "block_sizes": {-1: codes.shape[1]}} if rows else {"scale": scale}
            yield name, FP8QTensor(codes.shape, torch.float32, codes).dequantize(torch.float32, **own)
