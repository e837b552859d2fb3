"""Predicted errors of outputs, found again from stored codes: against sums of numpy over what other readers decode."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from making import one_line, run, run_process, save
from onnx_parts import f32, op, value, written
from safetensors.numpy import load_file, save_file
from strategies import gaussian

import quantcli.reports.renderings

Arrays = dict[str, np.ndarray]
SCHEMA = json.loads((Path(quantcli.reports.renderings.__file__).parent / "report.schema.json").read_text())

FORMAT = {"quantcli_statistics": "1"}
LAYERS = {"layers.0.attn.q_proj.weight": (48, 96), "layers.0.mlp.down_proj.weight": (64, 160),
          "conv.weight": (40, 16, 3, 3)}  # fmt: skip
INT4 = ["--bits", 4, "--group-size", 32]


def inputs(cols: int, seed: int) -> np.ndarray:
    """Inputs that go together, and whose means are not 0."""
    chance = np.random.default_rng(seed)
    few = chance.standard_normal((600, 12)) @ chance.standard_normal((12, cols))
    found: np.ndarray = few + 0.4 * chance.standard_normal((600, cols)) + chance.standard_normal(cols)
    return found


def statistics(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Write full moments of each layer's inputs, and the vectors that linear layers have of them; the former by layer.
    Those of one layer are under the name of its module."""
    full, vectors, moments = Arrays(), Arrays(), Arrays()
    for i, (name, shape) in enumerate(shapes.items()):
        x = inputs(int(np.prod(shape[1:])), i)
        moments[name] = (x.T @ x / len(x)).astype(np.float32)
        own = {f"{name.removesuffix('.weight') if i else name}.count": np.array(len(x))}
        mean = {f"{name.removesuffix('.weight') if i else name}.mean": x.mean(axis=0).astype(np.float32)}
        second = f"{name.removesuffix('.weight') if i else name}.second"
        full |= own | {second: moments[name]}
        if len(shape) == 2:
            vectors |= own | mean | {second: moments[name].diagonal().copy()}
    save_file(full, "full.safetensors", metadata=FORMAT)
    save_file(vectors, "vectors.safetensors", metadata=FORMAT)
    return moments


def of_vectors(second: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The second moments of inputs that are independent but for their means."""
    m = mean.astype(np.float64)
    found: np.ndarray = np.outer(m, m) + np.diag(second.astype(np.float64) - m * m)
    return found


def decibels(errors: np.ndarray, weights: np.ndarray, moments: np.ndarray) -> float:
    """tr(W H W^T) over tr(E H E^T), from the definition."""
    rows = (v.astype(np.float64).reshape(-1, len(moments)) for v in (weights, errors))
    power, lost = (float(np.einsum("ri,ij,rj->", v, moments.astype(np.float64), v)) for v in rows)
    return float(10 * np.log10(power / lost))


def decoded(path: str) -> Arrays:
    ran = run("dequantize", path, "-o", "decoded", "--dtype", "float32", "--force", "-q")
    assert ran.code == 0, ran
    return load_file("decoded/model.safetensors" if os.path.isdir("decoded") else "decoded")


def predicted(file: str, original: str, known: str, *more: object) -> tuple[dict[str, float], dict[str, Any]]:
    """The SQNR of outputs by tensor, as `report` predicts it, and the whole report."""
    ran = run("report", file, "--against", original, "--statistics", known, *more, "--json")
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    jsonschema.validate(found, SCHEMA)
    outputs = {t["name"]: t["output"] for t in found["tensors"] if t["output"] is not None}
    assert all(o["plain_error"] is None and o["plain_sqnr_db"] is None for o in outputs.values())
    return {name: o["sqnr_db"] for name, o in outputs.items()}, found


@pytest.fixture
def moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """A folder with a model and statistics of its layers' inputs."""
    monkeypatch.chdir(tmp_path)
    weights = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(LAYERS.items())}
    save(tmp_path / "model.safetensors", weights | {"norm.weight": gaussian(96, seed=9)})
    return statistics(LAYERS)


def made(*words: object, name: str = "q.safetensors") -> dict[str, Any]:
    """What quantize reports of a file."""
    ran = run("quantize", "model.safetensors", *words, "-o", name, "--force", "--json")
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


SCHEMES = [
    INT4, ["--bits", 3, "--asymmetric"], ["--type", "nf4"], ["--bits", 2, "--group-size", 0], ["--levels", 6, "--type",
    "codebook"], ["--bits", 4, "--granularity", "block", "--group-size", 16],
    ["--bits", 4, "--granularity", "channel", "--axis", 1],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "vectors"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: " ".join(map(str, s)))
def test_native_files_have_the_figures_that_quantize_reported(moments: Arrays, scheme: list[Any], kind: str) -> None:
    """and that follow from the definition"""
    known = f"{kind}.safetensors"
    told = made(*scheme, "--statistics", known, "--allow-unweighted")
    found, report = predicted("q.safetensors", "model.safetensors", known)
    before, after, own = load_file("model.safetensors"), decoded("q.safetensors"), load_file(known)
    assert len(found) == {"full": 3, "vectors": 2}[kind] == told["summary"]["weighted"]
    for name, db in found.items():
        h = moments[name]
        if kind == "vectors":
            stem = name if f"{name}.second" in own else name.removesuffix(".weight")
            h = of_vectors(own[f"{stem}.second"], own[f"{stem}.mean"])
        assert db == pytest.approx(decibels(before[name] - after[name], before[name], h), abs=1e-5)
        (of_quantize,) = (t["output"]["sqnr_db"] for t in told["tensors"] if t["name"] == name)
        assert db == pytest.approx(of_quantize, abs=1e-5)
    if kind == "full":
        assert report["summary"]["output"]["sqnr_db"] == pytest.approx(told["summary"]["output"]["sqnr_db"], abs=1e-5)


@pytest.mark.parametrize("target", [
    "compressed-tensors", "compressed-tensors --scheme NVFP4A16", "gptq --exclude conv*", "mlx --group-size 32",
    "fp8-blocks", "gguf --container --scheme Q4_0", "comfyui",
])  # fmt: skip
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_files_of_other_tools(moments: Arrays, target: str, weighted: bool) -> None:
    scheme = [] if any(word in target for word in ("scheme", "fp8", "comfyui")) else INT4
    words = ["--to", *target.split(), *scheme]
    file = "q.gguf" if "gguf" in target else "q.safetensors"
    told = made(*words, *(["--statistics", "full.safetensors"] if weighted else []), name=file)
    found, report = predicted(file, "model.safetensors", "full.safetensors")
    before, after = load_file("model.safetensors"), decoded(file)
    assert list(found) == [t["name"] for t in report["tensors"] if t["disposition"] == "quantized"] and found
    for name, db in found.items():
        errors = before[name] - after[name].reshape(before[name].shape)
        assert db == pytest.approx(decibels(errors, before[name], moments[name]), abs=1e-4)
        if weighted:
            (of_quantize,) = (t["output"]["sqnr_db"] for t in told["tensors"] if t["name"] == name)
            assert db == pytest.approx(of_quantize, abs=1e-4)


def test_the_same_figures_at_any_number_of_threads_and_with_numpy(moments: Arrays) -> None:
    """what is reported is the same at any number of threads, with C++ or numpy kernels"""
    made("--to", "compressed-tensors", *INT4)
    words = ["report", "q.safetensors", "--against", "model.safetensors", "--statistics", "full.safetensors", "--json"]
    found = [run(*words, "--threads", n) for n in (1, 2, 7)]
    found.append(run_process(*words, QUANTCLI_KERNELS="numpy"))
    outputs = [[t["output"] for t in json.loads(ran.out)["tensors"]] for ran in found]
    assert all(own == outputs[0] for own in outputs) and outputs[0][0] is not None


def onnx_model(path: str) -> Arrays:
    """x @ a (in, out), square and not, then Gemm with a weight (out, in), and a convolution."""
    weights = {"a": gaussian(64, 64, seed=1), "b": gaussian(64, 96, seed=2), "c": gaussian(32, 96, seed=3),
               "k": gaussian(16, 8, 3, 3, seed=4)}  # fmt: skip
    written(
        Path(path), op("MatMul", ["x", "a"], ["u"]), op("MatMul", ["u", "b"], ["v"]),
        op("Gemm", ["v", "c"], ["w"], transB=1), op("Conv", ["w4", "k"], ["y4"]),
        *(f32(name, weight) for name, weight in weights.items()), value(11, "w4"), value(12, "y4"),
    )  # fmt: skip
    return weights


@pytest.mark.parametrize("to", ["onnx", "native"])
def test_matrices_of_a_graph_meet_the_inputs_they_are_multiplied_with(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a graph a MatMul has them [in, out]: MatMulNBits transposes them, the native layout does not."""
    monkeypatch.chdir(tmp_path)
    weights = onnx_model("m.onnx")
    by_outputs = {name: v if name in "ck" else v.T for name, v in weights.items()}
    moments = statistics({name: v.shape for name, v in by_outputs.items()})
    file = "q.onnx" if to == "onnx" else "q.safetensors"
    ran = run("quantize", "m.onnx", "--to", to, "-o", file, *INT4, "-q")
    assert ran.code == 0, ran
    found, _ = predicted(file, "m.onnx", "full.safetensors")
    after = decoded(file)
    assert set(found) == {"a", "b", "c", "k"}
    for name, db in found.items():
        turned = after[name].T if to == "native" and name in "ab" else after[name]
        errors = by_outputs[name] - turned.reshape(by_outputs[name].shape)
        assert db == pytest.approx(decibels(errors, by_outputs[name], moments[name]), abs=1e-4)


def test_gates_on_a_file_of_another_tool(moments: Arrays) -> None:
    made("--to", "gguf", "--container", "--scheme", "Q4_0", name="q.gguf")
    words = ["report", "q.gguf", "--against", "model.safetensors"]
    found, report = predicted("q.gguf", "model.safetensors", "full.safetensors")
    least = min(found, key=found.__getitem__)
    known = [*words, "--statistics", "full.safetensors"]
    ran = run(*known, "--min-output-sqnr", found[least] - 0.01)
    assert ran.code == 0 and f"min-output-sqnr {found[least] - 0.01:.2f} dB: {found[least]:.2f} dB" in ran.out, ran
    ran = run(*known, "--min-output-sqnr", found[least] + 0.01)
    assert ran.code == 1 and f"{least}: {found[least]:.2f} dB" in ran.err, ran
    ran = run(*words, "--min-output-sqnr", 10)
    assert ran.code == 1 and "nothing was measured; report measures it with --against ORIGINAL --statistics" in ran.err
    table, count = run(*known).out, len(found)
    assert "output dB" in table and "without" not in table
    total = f"predicted SQNR of outputs {report['summary']['output']['sqnr_db']:.2f} dB\n"
    assert f"statistics of the inputs of {count} of {count} quantized tensors: {total}" in table
    entry = {"file": "q.gguf", "against": "model.safetensors", "statistics": "full.safetensors"}
    for limit, code in ((found[least] - 0.01, 0), (found[least] + 0.01, 1)):
        Path("quantcli.yaml").write_text(json.dumps({"gates": {"min_output_sqnr": limit}, "models": [entry]}))
        assert run("report").code == code


def test_a_folder_that_says_nothing_of_quantcli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """of compressed-tensors, as llm-compressor writes them: without a document in the header"""
    monkeypatch.chdir(tmp_path)
    shapes = {f"model.layers.0.self_attn.{word}_proj.weight": (64, 128) for word in "qk"}
    weights = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    moments, folder = statistics(shapes), tmp_path / "model"
    folder.mkdir()
    save(folder / "model.safetensors", weights | {"model.norm.weight": gaussian(128, seed=3)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    assert run("quantize", folder, "--to", "compressed-tensors", *INT4, "-o", "q", "-q").code == 0
    after = decoded("q")
    save_file(load_file("q/model.safetensors"), "q/model.safetensors", metadata={"format": "pt"})
    found, _ = predicted("q", "model", "full.safetensors")
    assert set(found) == set(weights)
    for name, db in found.items():
        assert db == pytest.approx(decibels(weights[name] - after[name], weights[name], moments[name]), abs=1e-5)


def test_layers_without_statistics_have_no_figure(moments: Arrays) -> None:
    known = load_file("full.safetensors")
    save_file({k: v for k, v in known.items() if not k.startswith("conv")}, "some.safetensors", metadata=FORMAT)
    made(*INT4, "--statistics", "full.safetensors")
    found, _ = predicted("q.safetensors", "model.safetensors", "some.safetensors")
    assert set(found) == set(LAYERS) - {"conv.weight"}
    ran = run("report", "q.safetensors", "--against", "model.safetensors", "--statistics", "some.safetensors")
    assert "statistics of the inputs of 2 of 3 quantized tensors" in ran.out
    zeros = {k: np.zeros_like(v) if k.startswith("conv") and v.ndim else v for k, v in known.items()}
    save_file(zeros, "zeros.safetensors", metadata=FORMAT)
    assert "conv.weight" not in predicted("q.safetensors", "model.safetensors", "zeros.safetensors")[0]


Change = Callable[[Arrays], Arrays]
WRONG: list[tuple[Change, list[object], str]] = [
    (lambda v: {**v, "other.second": np.eye(4, dtype="f4"), "other.count": np.array(3)}, [], "names no tensor of the"),
    (lambda v: {k: np.array(x[:64, :64] if x.ndim == 2 else x[:64]) if 96 in x.shape else x for k, x in v.items()}, [],
     "64 statistics for 96 columns"),
    (lambda v: {k: x.diagonal().copy() if x.ndim == 2 else x for k, x in v.items() if not k.endswith("mean")}, [],
     "of mean squares alone"),
    (lambda v: {k: np.triu(x) for k, x in v.items() if x.ndim} | {k: x for k, x in v.items() if not x.ndim}, [],
     "not symmetric"),
    (lambda v: v, ["--memory", "100kB"], "more than --memory 100000"),
    (lambda v: v, ["--dask", "local:2"], "leave out --dask or --statistics"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "more", "says"), WRONG, ids=[says for *_, says in WRONG])
@pytest.mark.parametrize("to", ["native", "compressed-tensors"])
def test_wrong_statistics_are_refused_before_a_weight_is_read(
    moments: Arrays, change: Change, more: list[object], says: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("--to", to, *INT4)
    save_file(change(load_file("full.safetensors")), "wrong.safetensors", metadata=FORMAT)
    for name in ("measure", "compare"):
        monkeypatch.setattr(f"quantcli.passes.{name}.run", None)
    ran = run("report", "q.safetensors", "--against", "model.safetensors", "--statistics", "wrong.safetensors", *more)
    assert says in one_line(ran, 2)


def test_what_needs_the_original_or_statistics(moments: Arrays) -> None:
    made(*INT4)
    ran = run("report", "q.safetensors", "--statistics", "full.safetensors")
    assert "--statistics: the original weights are needed" in one_line(ran, 2) and "--against" in ran.err
    ran = run("report", "q.safetensors", "--against", "model.safetensors", "--memory", "1GB")
    assert "give --statistics FILE" in one_line(ran, 2)


def test_weights_that_are_not_finite(moments: Arrays) -> None:
    made("--to", "gguf", "--container", "--scheme", "Q4_0", name="q.gguf")
    weights = load_file("model.safetensors")
    weights["layers.0.mlp.down_proj.weight"][0, 0] = np.inf
    save(Path("model.safetensors"), weights)
    words = ["report", "q.gguf", "--against", "model.safetensors", "--statistics", "full.safetensors"]
    assert "down_proj.weight: it holds NaN or infinity" in one_line(run(*words), 2)
