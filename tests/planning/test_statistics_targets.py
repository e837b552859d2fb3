"""Statistics of inputs in the layouts of other tools, and for weights that are stored otherwise than a plain layer's.

What a reader of the file gets is what was predicted, and never worse than without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import one_line, run, run_process, save
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


COUNT, INNER, HIDDEN, BLOCK = 4, 96, 128, "model.layers.0.mlp"


def experts_in(folder: Path, model_type: str = "qwen3_moe") -> Arrays:
    """A folder with a layer of experts as transformers stores them; for gpt-oss [E, in, out], gate and up in turn."""
    folder.mkdir()
    both, down = gaussian(COUNT, 2 * INNER, HIDDEN, seed=1), gaussian(COUNT, HIDDEN, INNER, seed=2)
    layers = {f"{BLOCK}.experts.gate_up_proj": both, f"{BLOCK}.experts.down_proj": down}
    if model_type == "gpt_oss":
        rows = both.reshape(COUNT, 2, INNER, HIDDEN).transpose(0, 2, 1, 3).reshape(COUNT, 2 * INNER, HIDDEN)
        layers = dict(zip(layers, (np.ascontiguousarray(v.transpose(0, 2, 1)) for v in (rows, down))))
    save(folder / "model.safetensors", {**layers, "model.norm.weight": gaussian(HIDDEN, seed=3)})
    name = {"qwen3_moe": "Qwen3MoeForCausalLM", "gpt_oss": "GptOssForCausalLM"}[model_type]
    config = {"model_type": model_type, "architectures": [name], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return {"gate": both[:, :INNER], "up": both[:, INNER:], "gate_up": both, "down": down}


def of_experts(path: Path, form: str, counts: tuple[int, ...] = (500,) * COUNT) -> dict[str, np.ndarray]:
    """Write statistics of each expert, all in one tensor or by its name, in full or as vectors; the second moments."""
    found, entries = dict[str, np.ndarray](), Arrays()
    for kind, cols in (("gate_up", HIDDEN), ("down", INNER)):
        x = [inputs(cols, seed) * bool(count) for seed, count in enumerate(counts, start=cols)]
        full, means = np.stack([v.T @ v / len(v) for v in x]), np.stack([v.mean(axis=0) for v in x])
        squares = full.diagonal(axis1=1, axis2=2)
        spread = np.stack([np.diag(s - m * m) + np.outer(m, m) for s, m in zip(squares, means)])
        found[kind] = (spread if form == "vectors" else full).astype(np.float32)
        second = (squares if form == "vectors" else full).astype(np.float32)
        stem = f"{BLOCK}.experts.{kind}_proj"
        if form != "each":
            entries |= {f"{stem}.second": second, f"{stem}.mean": means.astype(np.float32),
                        f"{stem}.count": np.array(counts)}  # fmt: skip
            continue
        for i, word in ((i, word) for i in range(COUNT) for word in kind.split("_") if counts[i]):
            name = f"{BLOCK}.experts.{i}.{word}_proj.weight"
            entries |= {f"{name}.second": second[i], f"{name}.count": np.array(counts[i])}
    save_file({k: np.ascontiguousarray(v) for k, v in entries.items()}, path, metadata={"quantcli_statistics": "1"})
    return found


def inputs(cols: int, seed: int) -> np.ndarray:
    """Inputs of an expert, which go together in a way of its own, and whose means are not 0."""
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((500, 12)) @ chance.standard_normal((12, cols)) + chance.standard_normal((500, cols)) / 3
    found: np.ndarray = x + chance.standard_normal(cols)
    return found


OUTPUTS = {"compressed-tensors": 3 * COUNT, "mlx": 3, "native": 2, "gguf --container": 2}
"""Targets, and how many tensors they make of the experts of a layer."""


@pytest.mark.parametrize("form", ["stacks", "vectors", "each"])
@pytest.mark.parametrize("to", OUTPUTS)
def test_every_expert_is_rounded_by_its_own_statistics(to: str, form: str, tmp_path: Path) -> None:
    parts, seconds = experts_in(tmp_path / "model"), of_experts(tmp_path / "s.safetensors", form)
    ran = run(
        "quantize", tmp_path / "model", "--to", *to.split(), "--bits", 4, "--group-size", 32, "--statistics",
        tmp_path / "s.safetensors", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    values = decoded(tmp_path / "out")
    quantized = [t for t in ran.json["tensors"] if t["disposition"] == "quantized"]
    assert len(quantized) == OUTPUTS[to] == ran.json["summary"]["weighted"]
    for tensor in quantized:
        kind = tensor["name"].removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")
        number = [int(word) for word in tensor["name"].split(".")[3:] if word.isdigit()]
        errors = values[tensor["name"]] - (parts[kind][number[0]] if number else parts[kind])
        each = seconds["down" if kind == "down" else "gate_up"]
        pairs = zip(errors, each) if not number else [(errors, each[number[0]])]
        assert tensor["output"]["error"] == pytest.approx(sum(lost(e, h) for e, h in pairs), rel=1e-4)
        assert tensor["output"]["error"] < (0.98 if form == "vectors" else 0.7) * tensor["output"]["plain_error"]
    words = ["--against", tmp_path / "model", "--statistics", tmp_path / "s.safetensors", "--json"]
    ran = run("report", tmp_path / "out", *words)  # finds the same again, expert by expert
    assert ran.code == 0, ran
    again = {t["name"]: t["output"]["error"] for t in ran.json["tensors"] if t["output"] is not None}
    assert again == {t["name"]: pytest.approx(t["output"]["error"], rel=1e-5) for t in quantized}


@pytest.mark.parametrize("threads", [1, 3])
def test_experts_in_one_tensor_have_the_codes_of_experts_one_by_one(threads: int, tmp_path: Path) -> None:
    """and of experts stored [E, in, out], in numpy too"""
    experts_in(tmp_path / "model")
    experts_in(tmp_path / "turned", "gpt_oss")
    of_experts(tmp_path / "s.safetensors", "stacks", (500, 0, 90, 500))
    options = ["--bits", 3, "--group-size", 32, "--statistics", tmp_path / "s.safetensors", "--threads", threads, "-q"]
    found: list[Arrays] = []
    for model, to in (("model", "native"), ("model", "compressed-tensors"), ("turned", "mlx")):
        ran = run("quantize", tmp_path / model, "--to", to, *options, "-o", tmp_path / "out", "--force")
        assert ran.code == 0, ran
        found.append(decoded(tmp_path / "out"))
    again = run_process("quantize", tmp_path / "model", "--to", "native", *options, "-o", tmp_path / "numpy",
                        QUANTCLI_KERNELS="numpy")  # fmt: skip
    assert again.code == 0, again
    found.append(decoded(tmp_path / "numpy"))
    for i in range(COUNT):
        both = found[0][f"{BLOCK}.experts.gate_up_proj"][i]
        for part, rows in (("gate", both[:INNER]), ("up", both[INNER:]),
                           ("down", found[0][f"{BLOCK}.experts.down_proj"][i])):  # fmt: skip
            assert np.array_equal(rows, found[1][f"{BLOCK}.experts.{i}.{part}_proj.weight"])
            assert np.array_equal(rows, found[2][f"{BLOCK}.experts.{part}_proj.weight"][i])
    assert all(np.array_equal(found[0][name], found[3][name]) for name in found[0])


def test_experts_that_no_sample_reached_are_rounded_as_without_and_said(tmp_path: Path) -> None:
    experts_in(tmp_path / "model")
    of_experts(tmp_path / "s.safetensors", "stacks", (500, 0, 500, 0))
    words = ["quantize", tmp_path / "model", "--to", "mlx", "--bits", 4, "--group-size", 32, "-o", tmp_path / "out"]
    assert run(*words, "-q").code == 0
    before = decoded(tmp_path / "out")
    ran = run(*words, "--statistics", tmp_path / "s.safetensors", "--force", "--json")
    assert ran.code == 0, ran
    after = decoded(tmp_path / "out")
    for name in (f"{BLOCK}.switch_mlp.{part}_proj.weight" for part in ("gate", "up", "down")):
        same = [np.array_equal(a, b) for a, b in zip(before[name], after[name])]
        assert same == [False, True, False, True]
        (tensor,) = (t for t in ran.json["tensors"] if t["name"] == name)
        assert "no samples of 2 of 4 experts" in tensor["note"]
    ran = run("verify", tmp_path / "out", "--source", tmp_path / "model")
    assert ran.code == 0, ran


def test_an_expert_without_an_entry(tmp_path: Path) -> None:
    experts_in(tmp_path / "model")
    of_experts(tmp_path / "s.safetensors", "each", (500, 0, 500, 500))
    words = ["--bits", 4, "--group-size", 32, "--statistics", tmp_path / "s.safetensors", "-o", tmp_path / "out"]
    ran = run("quantize", tmp_path / "model", "--to", "mlx", *words)
    assert "the file has no statistics of this layer" in one_line(ran, 2) and not (tmp_path / "out").exists()
    ran = run("quantize", tmp_path / "model", "--to", "mlx", *words, "--allow-unweighted", "--json")
    assert ran.code == 0 and {t["note"] for t in ran.json["tensors"] if t["weighted"]} == {
        "no samples of 1 of 4 experts"
    }, ran


@pytest.mark.parametrize(("part", "change", "says"), [
    ("count", lambda v: v[:-1], "not [3] beside second moments of [4, 128, 128]"),
    ("count", lambda v: v[:1], "4 experts have as many counts, not [1]"),
    ("count", lambda v: v * 0, "a count of 0"),
    ("count", lambda v: v - 1000, "a count of -500"),
    ("mean", lambda v: v[:, :-1], "means of shape [4, 127]"),
    ("mean", lambda v: v[0], "means of shape [128]"),
    ("second", lambda v: v[:, :, :-1], "of E experts with a count each (E, C) or (E, C, C), not [4, 128, 127]"),
    ("second", lambda v: np.triu(v), "expert 0: the second moments are not symmetric"),
    ("second", lambda v: np.where(v == v[2, 0, 5], np.nan, v), "is not finite"),
    ("all", lambda v: v[:3], "the entry is of 3 experts"),
    ("all", lambda v: v[:, :64, :64] if v.ndim == 3 else v[:, :64] if v.ndim == 2 else v, "64 statistics for 128"),
])  # fmt: skip
def test_wrong_statistics_of_experts_are_refused_before_a_weight_is_read(
    part: str, change: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts_in(tmp_path / "model")
    of_experts(tmp_path / "s.safetensors", "stacks")
    known = {
        name: np.ascontiguousarray(change(v)) if "gate_up" in name and name.endswith(("" if part == "all" else part,))
        else v for name, v in load_file(tmp_path / "s.safetensors").items()
    }  # fmt: skip
    save_file(known, tmp_path / "s.safetensors", metadata={"quantcli_statistics": "1"})
    monkeypatch.setattr("quantcli.passes.write.walk", None)  # a pass over weights would fail
    for to in ("mlx", "native"):
        ran = run("quantize", tmp_path / "model", "--to", to, "--bits", 4, "--group-size", 32, "--statistics",
                  tmp_path / "s.safetensors", "-o", tmp_path / "out")  # fmt: skip
        assert says in one_line(ran, ran.code) and ran.code in (1, 2) and not (tmp_path / "out").exists()


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
