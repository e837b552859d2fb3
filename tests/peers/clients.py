"""Runs in a peers' environment: what a real client makes of the quantized weights of some models.

    python clients.py CLIENT JOBS.json

JOBS is a list of {"model", "original", "names", "out"}; for each a line of JSON is printed: {"loaded": true} with the
weights by name in OUT (.npz), or {"refused": "Error: words"} in the client's own words. Whole models are asked by
sending the identity through their modules, so that the weights are those the client computes with.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent))  # behind all packages
from decoders import (
    Weights,
    bitsandbytes,
    comfy_kitchen,
    compressor,
    converter,
    converter_awq,
    converter_fp8,
    converter_modelopt,
    modelopt,
    module_of,
)

# ---- transformers ---------------------------------------------------------------------------


class OnlyAWarningError(Exception):
    """A model is there, but not all of its weights are those of the file."""


def run_modules(model: Any, names: list[str]) -> Weights:
    """What the modules of a model make of the identity, and embeddings of every word."""
    import torch

    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits  # compressed modules are decoded when they are first used
        assert bool(torch.isfinite(logits).all()), "logits that are not finite"
        for name in names:
            module = model.get_submodule(module_of(name))
            if isinstance(module, torch.nn.Embedding):
                yield name, module(torch.arange(module.num_embeddings))
            else:
                yield name, module(torch.eye(module.in_features, dtype=logits.dtype)).T


OF_INPUTS = ("input_scale", "input_global_scale")
"""What is left over of a weight that is decoded: the scales with which its inputs would be quantized."""


def transformers(model: Path, original: Path, names: list[str], **settings: Any) -> Weights:
    """from_pretrained without further ado, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.float32, "output_loading_info": True, **settings}
    found, info = AutoModelForCausalLM.from_pretrained(model, **settings)
    for kind, keys in info.items():
        told = [str(key) for key in keys if kind != "unexpected_keys" or not str(key).endswith(OF_INPUTS)]
        if told:
            raise OnlyAWarningError(f"{kind}: {min(told)}")
    return run_modules(found, names)


def transformers_auto(model: Path, original: Path, names: list[str]) -> Weights:
    """In the dtype of the original: 8-bit floats in blocks become that, whatever is asked for."""
    return transformers(model, original, names, dtype="auto")


def transformers_dequantize(model: Path, original: Path, names: list[str]) -> Weights:
    from transformers import CompressedTensorsConfig

    return transformers(model, original, names, quantization_config=CompressedTensorsConfig(dequantize=True))


def transformers_decompress(model: Path, original: Path, names: list[str]) -> Weights:
    """The word of the older stack for the same."""
    from transformers import CompressedTensorsConfig

    return transformers(model, original, names, quantization_config=CompressedTensorsConfig(run_compressed=False))


def transformers_gguf(model: Path, original: Path, names: list[str]) -> Weights:
    return transformers(model.parent, original, names, gguf_file=model.name)


# ---- mlx --------------------------------------------------------------------------------------------------------


def mlx(model: Path, original: Path, names: list[str]) -> Weights:
    import mlx.core as mx

    settings = json.loads((model / "config.json").read_text())["quantization"]
    held = {n: t for path in sorted(glob.glob(f"{model}/model*.safetensors")) for n, t in mx.load(path).items()}
    for name in names:
        module = module_of(name)
        own = {"mode": "affine", **settings[module]} if module in settings else settings
        parts = [held[f"{module}.{part}"] for part in ("scales", "biases") if f"{module}.{part}" in held]
        if own["mode"] == "affine":
            parts = [part.astype(mx.float32) for part in parts]
        sizes = {"group_size": own["group_size"], "bits": own["bits"], "mode": own["mode"]}
        yield name, mx.dequantize(held[name], *parts, **sizes, dtype=mx.float32)


def mlx_lm(model: Path, original: Path, names: list[str]) -> Weights:
    """Its modules, in float32."""
    import mlx.core as mx
    import mlx_lm

    found, _ = mlx_lm.load(str(model))
    found.set_dtype(mx.float32)
    modules = dict(found.named_modules())
    for name in names:
        module = modules[module_of(name)]
        if type(module).__name__ == "QuantizedEmbedding":
            yield name, module(mx.arange(module.weight.shape[0])).astype(mx.float32)
            continue
        assert type(module).__name__ == "QuantizedLinear", f"{module_of(name)} is {type(module).__name__}"
        cols = module.weight.shape[-1] * 32 // module.bits
        yield name, module(mx.eye(cols)).T


# ---- llama.cpp --------------------------------------------------------------------------------------------------


def gguf(model: Path, original: Path, names: list[str]) -> Weights:
    """gguf-py's decoders, under its own names of a checkpoint's tensors, the rows of q and k put back in halves; of
    models of pictures as they are, in the shapes that the keys for ComfyUI-GGUF have."""
    import gguf as library

    if original.is_file():
        file = library.GGUFReader(model)
        found = {tensor.name: tensor for tensor in file.tensors}
        for name in names:
            values = library.quants.dequantize(found[name].data, found[name].tensor_type)
            shape = file.fields.get(f"comfy.gguf.orig_shape.{name}")
            yield name, values.reshape(shape.contents()) if shape else values
        return
    config = json.loads((original / "config.json").read_text())
    known = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    held = {tensor.name: tensor for tensor in library.GGUFReader(model).tensors}
    for name in names:
        tensor = held[known.get_name(name, (".weight",))]
        values = library.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads:
            rows, cols = values.shape
            pairs = values.reshape(config[heads], rows // config[heads] // 2, 2, cols)
            values = pairs.swapaxes(1, 2).reshape(rows, cols)
        yield name, values


def llamacpp(model: Path, original: Path, names: list[str]) -> Weights:
    """llama.cpp turns every block into float32."""
    import ctypes

    import llama_cpp

    llama_cpp.Llama(str(model), n_ctx=16, verbose=False).eval([1, 2, 3])
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize, wanted.nthread = 0, True, 1
    with tempfile.TemporaryDirectory() as place:
        floats = Path(place) / "floats.gguf"
        done = llama_cpp.llama_model_quantize(str(model).encode(), str(floats).encode(), ctypes.byref(wanted))
        assert done == 0, f"llama_model_quantize gave {done}"
        yield from gguf(floats, original, names)


# ---- others -----------------------------------------------------------------------------------------------------


def onnxruntime(model: Path, original: Path, names: list[str]) -> Weights:
    """Every node multiplies the identity: what comes out is the weight."""
    import onnxruntime as library

    options = library.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1  # tensors no node uses are meant to be there
    session = library.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    none = {i.name: np.zeros((1, i.shape[1]), np.float32) for i in session.get_inputs()}
    sizes = {i.name: i.shape[1] for i in session.get_inputs()}
    for name in names:
        into, out = f"{module_of(name)}.input", f"{module_of(name)}.output"
        yield name, session.run([out], {**none, into: np.eye(sizes[into], dtype=np.float32)})[0].T


def empty_torchvision() -> None:
    """Have an empty torchvision where there is none: gptqmodel imports it, for models that see, and its wheels want the
    torch they were built with."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        for part in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[part] = types.ModuleType(part)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms.functional"].InterpolationMode = None


def gptqmodel_load(model: Path, dtype: Any) -> Any:
    """A model of torch modules on the CPU."""
    empty_torchvision()
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(model), backend=BACKEND.TORCH, device="cpu", dtype=dtype).model


def gptqmodel(model: Path, original: Path, names: list[str]) -> Weights:
    """In float16, which is the dtype of the scales."""
    import torch

    return run_modules(gptqmodel_load(model, torch.float16), names)


CLIENTS: dict[str, Callable[..., Weights]] = {
    "compressor": compressor, "converter": converter, "converter-awq": converter_awq, "converter-fp8": converter_fp8,
    "converter-modelopt": converter_modelopt, "modelopt": modelopt, "transformers": transformers,
    "transformers-auto": transformers_auto, "transformers-dequantize": transformers_dequantize,
    "transformers-decompress": transformers_decompress, "transformers-gguf": transformers_gguf,
    "mlx": mlx, "mlx-lm": mlx_lm, "gguf": gguf, "llamacpp": llamacpp, "onnxruntime": onnxruntime,
    "bitsandbytes": bitsandbytes, "comfy-kitchen": comfy_kitchen, "gptqmodel": gptqmodel,
}  # fmt: skip


def array(values: Any) -> np.ndarray:
    """Values as float32."""
    if hasattr(values, "detach"):
        values = values.detach().float().numpy()
    return np.array(values, np.float32)


class Log(logging.Handler):
    """Lines that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += re.sub("\x1b[^m]*m", "", record.getMessage()).splitlines()


def words(error: BaseException, log: Sequence[str]) -> str:
    """An error in one line; of one that refers to what was logged, the line that tells."""
    if "above report" in str(error):
        told = sorted(line for line in log if re.search(r"MISMATCH +\||^\w+Error: ", line))
        return re.sub(" +", " ", told[0]).strip() if told else str(error)
    said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"it only warns of {said}" if isinstance(error, OnlyAWarningError) else f"{type(error).__name__}: {said}"


def main() -> None:
    warnings.simplefilter("ignore")
    client, jobs = CLIENTS[sys.argv[1]], json.loads(Path(sys.argv[2]).read_text())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what clients print on standard output is no answer
    for job in jobs:
        log = Log()
        logging.getLogger("transformers").addHandler(log)
        try:
            found = client(Path(job["model"]), Path(job["original"]), job["names"])
            np.savez(job["out"], **{name: array(values) for name, values in found})
            answer = {"loaded": True}
        except Exception as error:
            answer = {"refused": words(error, log.lines)}
        logging.getLogger("transformers").removeHandler(log)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
