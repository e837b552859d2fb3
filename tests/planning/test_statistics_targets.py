"""Statistics of inputs in the layouts of other tools, and for weights that are stored otherwise than a plain layer's.

What a reader of the file gets is what was predicted, and never worse than without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from making import one_line, run, save
from onnx_parts import f32, node, written
from safetensors.numpy import load_file, save_file
from strategies import gaussian

Arrays = dict[str, np.ndarray]


def moments(cols: int, seed: int) -> np.ndarray:
    """Second moments of inputs that go together."""
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((500, 12)) @ chance.standard_normal((12, cols)) + chance.standard_normal((500, cols)) / 3
    found: np.ndarray = (x.T @ x / len(x)).astype(np.float32)
    return found


def statistics(path: Path, columns: Mapping[str, int]) -> Arrays:
    """Write statistics of layers with so many inputs; the second moments by layer."""
    found = {name: moments(cols, i) for i, (name, cols) in enumerate(columns.items())}
    entries = {f"{name}.second": values for name, values in found.items()}
    entries |= {f"{name}.count": np.array(500) for name in found}
    save_file(entries, path, metadata={"quantcli_statistics": "1"})
    return found


def lost(errors: np.ndarray, second: np.ndarray) -> float:
    rows = errors.astype(np.float64).reshape(-1, len(second))
    return float(np.einsum("ri,ij,rj->", rows, second.astype(np.float64), rows))


TARGETS = [
    "compressed-tensors --bits 4 --group-size 32", "compressed-tensors --scheme NVFP4A16",
    "compressed-tensors --scheme MXFP4A16", "gptq --bits 4 --group-size 64", "awq --bits 4 --group-size 64",
    "mlx --bits 4 --group-size 64", "bnb-nf4", "fp8-blocks", "comfyui", "gguf --container --scheme Q4_0",
    "gguf --container --scheme Q8_0", "gguf --container --scheme Q4_K", "gguf --container --scheme Q3_K",
    "gguf --container --scheme Q2_K", "gguf --container --scheme IQ4_XS",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_layouts_of_other_tools_hold_what_is_reported(target: str, tmp_path: Path) -> None:
    weights = {"layers.0.attn.q_proj.weight": gaussian(64, 256, seed=1), "layers.0.mlp.up_proj.weight":
               gaussian(128, 256, seed=2)}  # fmt: skip
    source = save(tmp_path / "model.safetensors", weights)
    seconds = statistics(tmp_path / "s.safetensors", dict.fromkeys(weights, 256))
    figures: list[dict[str, float]] = []
    for more in ([], ["--statistics", tmp_path / "s.safetensors"]):
        ran = run("quantize", source, "--to", *target.split(), *more, "-o", tmp_path / "out", "--force", "--json")
        assert ran.code == 0, ran
        values = decoded(tmp_path / "out")
        figures.append({n: lost(values[n].reshape(weights[n].shape) - weights[n], seconds[n]) for n in weights})
    for tensor in ran.json["tensors"]:
        assert tensor["output"]["error"] == pytest.approx(figures[1][tensor["name"]], rel=1e-4)
        assert figures[1][tensor["name"]] < 0.7 * figures[0][tensor["name"]]


def decoded(path: Path) -> Arrays:
    """The weights of a quantized model, in float32."""
    out = path.with_name("decoded")
    ran = run("dequantize", path, "-o", out, "--dtype", "float32", "--force", "-q")
    assert ran.code == 0, ran
    return load_file(out / "model.safetensors" if out.is_dir() else out)


@pytest.mark.parametrize("to", ["compressed-tensors", "mlx", "native"])
def test_statistics_of_stacked_experts_are_those_of_each(to: str, tmp_path: Path) -> None:
    """transformers has the experts of a layer in two tensors, which targets take apart or put together otherwise"""
    count, inner, hidden, prefix = 3, 96, 128, "model.layers.0.mlp"
    both, down = gaussian(count, 2 * inner, hidden, seed=1), gaussian(count, hidden, inner, seed=2)
    layers = {f"{prefix}.experts.gate_up_proj": both, f"{prefix}.experts.down_proj": down}
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder / "model.safetensors", {**layers, "model.norm.weight": gaussian(hidden, seed=3)})
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    seconds = statistics(tmp_path / "s.safetensors", {name: v.shape[-1] for name, v in layers.items()})
    ran = run(
        "quantize", folder, "--to", to, "--bits", 4, "--group-size", 32, "--statistics", tmp_path / "s.safetensors",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    parts = {"gate_up": both, "gate": both[:, :inner], "up": both[:, inner:], "down": down}
    values = decoded(tmp_path / "out")
    quantized = [t for t in ran.json["tensors"] if t["disposition"] == "quantized"]
    assert len(quantized) == {"compressed-tensors": 9, "mlx": 3, "native": 2}[to] == ran.json["summary"]["weighted"]
    for tensor in quantized:
        kind = tensor["name"].removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")
        number = [int(word) for word in tensor["name"].split(".")[3:] if word.isdigit()]
        original = parts[kind][number[0]] if number else parts[kind]
        second = seconds[f"{prefix}.experts.{'down' if kind == 'down' else 'gate_up'}_proj"]
        found = lost(values[tensor["name"]] - original, second)
        assert tensor["output"]["error"] == pytest.approx(found, rel=1e-4) and found < tensor["output"]["plain_error"]


def test_statistics_of_each_expert_are_not_those_of_all(tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{i}.{kind}_proj.weight" for i in range(2) for kind in ("gate", "up", "down")]
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder / "model.safetensors", {name: gaussian(64, 64, seed=i) for i, name in enumerate(names)})
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    statistics(tmp_path / "s.safetensors", dict.fromkeys(names, 64))
    words = ["--bits", 4, "--group-size", 32, "--statistics", tmp_path / "s.safetensors", "-o", tmp_path / "out"]
    ran = run("quantize", folder, "--to", "mlx", *words)
    assert "all experts are in one tensor there" in one_line(ran, 2) and not (tmp_path / "out").exists()


# ---- weights whose columns are outputs: where they are square, no shape tells ------------------------------------


@pytest.mark.parametrize("option", ["--importance", "--statistics"])
def test_square_weights_of_gpt2_that_are_stored_in_out_are_refused(option: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder / "model.safetensors", {"h.0.attn.c_proj.weight": gaussian(64, 64, seed=1)})
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    statistics(tmp_path / "s.safetensors", {"h.0.attn.c_proj": 64})
    ran = run("quantize", folder, "--to", "native", option, tmp_path / "s.safetensors", "-o", tmp_path / "out")
    assert "its columns are the layer's outputs, not its inputs" in one_line(ran, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--importance", "--statistics"])
def test_gpt2_without_a_config_is_told_by_names_and_shapes(option: str, tmp_path: Path) -> None:
    """Weights as transformers stores them are refused; nanoGPT's, of the same names, are (out, in)."""
    for shape in ((64, 192), (192, 64)):
        names = {"transformer.h.0.attn.c_attn.weight": shape, "transformer.h.0.attn.c_proj.weight": (64, 64)}
        source = save(tmp_path / "m.safetensors", {n: gaussian(*s, seed=i) for i, (n, s) in enumerate(names.items())})
        statistics(tmp_path / "s.safetensors", {"transformer.h.0.attn.c_proj": 64})
        more = ["--include", "*c_proj*", "-o", tmp_path / "out"]
        ran = run("quantize", source, option, tmp_path / "s.safetensors", *more)
        assert (tmp_path / "out").exists() == (shape == (192, 64))
        if shape == (64, 192):
            assert "c_proj.weight is stored (in, out)" in one_line(ran, 2)
        else:
            assert ran.code == 0, ran


def test_square_weights_of_products_in_onnx_are_read_transposed_or_refused(tmp_path: Path) -> None:
    weights = gaussian(64, 64, seed=1)
    source = written(tmp_path / "m.onnx", node("MatMul", ["x", "w"]), f32("w", weights))
    second = statistics(tmp_path / "s.safetensors", {"w": 64})["w"]
    words = ["--bits", 4, "--group-size", 32, "--statistics", tmp_path / "s.safetensors", "--no-default-keep"]
    ran = run("quantize", source, *words, "--to", "native", "-o", tmp_path / "a")
    assert "--to onnx reads such weights transposed" in one_line(ran, 2) and not (tmp_path / "a").exists()
    ran = run("quantize", source, *words, "--to", "onnx", "-o", tmp_path / "b.onnx", "--json")
    assert ran.code == 0, ran
    values = decoded(tmp_path / "b.onnx")["w"]
    found = min(lost(v, second) for v in (values - weights.T, (values - weights).T))
    assert ran.json["tensors"][0]["output"]["error"] == pytest.approx(found, rel=1e-4)
