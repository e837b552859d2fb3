"""What the loaders of vLLM, SGLang and TensorRT-LLM want of a folder, as their sources have it: the parameters that a
Linear layer registers, by scheme, and what they check when they join layers.

Read were vLLM 0.32 (model_executor/layers/quantization), SGLang 0.5.23 (srt/layers/quantization) and TensorRT-LLM of
November 2026 (_torch/modules/linear.py, quantization/modelopt_config.py). No GPU was at hand to run them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import Stored, load, run, save
from strategies import gaussian

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
SIZES = {"q": (256, 256), "k": (128, 256), "v": (128, 256), "o": (256, 256)}

Shape = Callable[[int, int], tuple[int, ...]]


def words(bits: int) -> Shape:
    return lambda rows, cols: (rows, math.ceil(cols * bits / 32))


def groups(size: int) -> Shape:
    return lambda rows, cols: (rows, cols // size)


def rows_of(rows: int, cols: int) -> tuple[int, ...]:
    return (rows, 1)


def whole(rows: int, cols: int) -> tuple[int, ...]:
    return (rows, cols)


def halves(rows: int, cols: int) -> tuple[int, ...]:
    return (rows, cols // 2)


def blocks(rows: int, cols: int) -> tuple[int, ...]:
    return (-(-rows // 128), -(-cols // 128))


FLOATS = ("F32", "BF16", "F16")
"""What is copied into a parameter of float32, or of the model's dtype."""

PACKED = {
    "_packed": (("I32",), words(4)),
    "_scale": (FLOATS, groups(128)),
    "_shape": (("I64",), lambda rows, cols: (2,)),
}
CHANNEL = {"": (("F8_E4M3",), whole), "_scale": (FLOATS, rows_of)}
NVFP4 = {"_packed": (("U8",), halves), "_scale": (("F8_E4M3",), groups(16)),
         "_global_scale": (("F32",), lambda rows, cols: (1,))}  # fmt: skip

DEMANDS: dict[tuple[str, str], Mapping[str, tuple[tuple[str, ...], Shape]]] = {
    ("W4A16", "compressed-tensors"): PACKED,
    ("W8A8", "compressed-tensors"): {"": (("I8",), whole), "_scale": (FLOATS, rows_of)},
    ("FP8_DYNAMIC", "compressed-tensors"): CHANNEL,
    ("FP8_BLOCK", "compressed-tensors"): {"": (("F8_E4M3",), whole), "_scale": (FLOATS, blocks)},
    ("NVFP4A16", "compressed-tensors"): NVFP4,
    ("MXFP4", "compressed-tensors"): {"_packed": (("U8",), halves), "_scale": (("U8",), groups(32))},
    ("MXFP8", "compressed-tensors"): {"": (("F8_E4M3",), whole), "_scale": (("U8",), groups(32))},
    ("FP8_BLOCK", "fp8-blocks"): {"": (("F8_E4M3",), whole), "_scale_inv": (("F32",), blocks)},
    ("NVFP4A16", "modelopt"): {"": (("U8",), halves), "_scale": (("F8_E4M3",), groups(16)),
                               "_scale_2": (("F32",), lambda rows, cols: ())},
    # TensorRT-LLM has a vector here, vLLM takes one for a column.
    ("FP8_DYNAMIC", "modelopt"): {"": (("F8_E4M3",), whole), "_scale": (("F32",), lambda rows, cols: (rows,))},
    ("MXFP8A16", "modelopt"): {"": (("F8_E4M3",), whole), "_scale": (("U8",), groups(32))},
}  # fmt: skip
"""The tensors of a weight by the end of their names: dtypes that parameters take, and shapes for out and in."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose joined weights differ much in size."""
    folder = tmp_path_factory.mktemp("runtimes") / "model"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": gaussian(256, 256), "lm_head.weight": gaussian(256, 256, seed=9)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes = {f"{layer}self_attn.{n}_proj.weight": shape for n, shape in SIZES.items()}
        shapes |= {f"{layer}mlp.{n}_proj.weight": (512, 256) for n in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (256, 512)}
        scale = {"k": 8.0, "up": 0.1}
        tensors |= {n: gaussian(*shape, seed=i) * scale.get(n.split(".")[-2].removesuffix("_proj"), 1.0)
                    for n, shape in shapes.items()}  # fmt: skip
        tensors |= {f"{layer}{n}_layernorm.weight": np.ones(256) for n in ("input", "post_attention")}
    save(folder / "model.safetensors", {n: t.astype(np.float16) * np.float16(0.02) for n, t in tensors.items()})
    return folder


def written(model: Path, scheme: str, to: str, out: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    own = [] if to == "fp8-blocks" else ["--scheme", scheme]
    assert run("quantize", model, *own, "--to", to, "-o", out, "-q").code == 0
    config: dict[str, Any] = json.loads((out / "config.json").read_text())["quantization_config"]
    return load(out / "model.safetensors"), config


@pytest.mark.parametrize(("scheme", "to"), DEMANDS, ids="-".join)
def test_every_tensor_fills_a_parameter(scheme: str, to: str, model: Path, tmp_path: Path) -> None:
    """And nothing else is there: what no parameter has is dropped, or ends the loading."""
    stored, config = written(model, scheme, to, tmp_path / "out")
    original = load(model / "model.safetensors")
    listed = config["ignore"] if "ignore" in config else config["modules_to_not_convert"]
    kept = {f"{name}.weight" for name in listed}
    left = set(stored)
    for name, tensor in original.items():
        if len(tensor.shape) < 2 or name in kept:
            assert stored[name].shape == tensor.shape
            left.discard(name)
            continue
        for end, (dtypes, shape) in DEMANDS[scheme, to].items():
            part = stored[f"{name}{end}"]
            assert part.dtype in dtypes and part.shape == shape(*tensor.shape), (name, end, part.dtype, part.shape)
            left.discard(f"{name}{end}")
    assert not left


@pytest.mark.parametrize(("scheme", "to"), [k for k in DEMANDS if k[0] == "NVFP4A16"], ids="-".join)
def test_joined_layers_share_the_scale_of_the_tensor(scheme: str, to: str, model: Path, tmp_path: Path) -> None:
    """vLLM and SGLang take the largest for all and warn, TensorRT-LLM asserts that they are the same."""
    stored, _ = written(model, scheme, to, tmp_path / "out")
    end = "weight_global_scale" if to == "compressed-tensors" else "weight_scale_2"
    for i in range(2):
        for names in JOINED:
            found = {t.data for n, t in stored.items() if n.endswith(end) and n.split(".")[2] == str(i)
                     and n.split(".")[-2] in names}  # fmt: skip
            assert len(found) == 1


@pytest.mark.parametrize("scheme", ["NVFP4A16", "FP8_DYNAMIC", "MXFP8A16"])
def test_the_configuration_of_modelopt(scheme: str, model: Path, tmp_path: Path) -> None:
    """TensorRT-LLM reads hf_quant_config.json with `quantization`, and compares it with config.json; vLLM and SGLang
    read the latter, flat: an algorithm that they know, the size of groups as a number, and a list of modules."""
    _, config = written(model, scheme, "modelopt", tmp_path / "out")
    nested = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    known = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4", "MXFP8"}
    assert config["quant_method"] == "modelopt" and config["quant_algo"] == nested["quant_algo"]
    assert config["quant_algo"] in known and nested["kv_cache_quant_algo"] is None
    assert config.get("group_size") == nested.get("group_size")
    if config["quant_algo"] != "FP8_PER_CHANNEL_PER_TOKEN":
        assert type(config["group_size"]) is int
    assert set(config["ignore"]) == set(nested["exclude_modules"]) == {"lm_head", "model.embed_tokens"}


def test_ignored_modules_hide_no_quantized_ones(model: Path, tmp_path: Path) -> None:
    """SGLang matches `ignore` as the end of a path, and modules_to_not_convert as any part of it."""
    words_ = ["--exclude", "model.layers.0.mlp.down_proj.weight"]
    for to in ("compressed-tensors", "fp8-blocks", "modelopt"):
        assert run("quantize", model, *words_, "--to", to, "-o", tmp_path / to, "-q").code == 0
        config = json.loads((tmp_path / to / "config.json").read_text())["quantization_config"]
        listed = config.get("ignore", config.get("modules_to_not_convert"))
        quantized = {n.removesuffix(".weight_scale").removesuffix(".weight_scale_inv")
                     for n in load(tmp_path / to / "model.safetensors") if "_scale" in n}  # fmt: skip
        assert "model.layers.0.mlp.down_proj" in listed
        for module in quantized:
            assert not any(f".{name}." in f".{module}." for name in listed), (to, module)


def test_sglang_drops_the_scales_of_blocks_in_llama(model: Path, tmp_path: Path) -> None:
    """Its llama.py renames weight_scale_inv, which its FP8 in blocks is waiting for."""
    ran = run("quantize", model, "--to", "fp8-blocks", "-o", tmp_path / "out")
    assert ran.code == 0 and "SGLang 0.5.23 does not load" in ran.err and "--scheme FP8_BLOCK" in ran.err
