"""quantcli observe: statistics of what weights of ONNX models are multiplied with.

onnxruntime is not among what the tests need: a session that computes with numpy stands for it here. `make peers` runs
the real one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_parts as parts
import pytest
from making import one_line, run
from safetensors.numpy import load_file

RNG = np.random.default_rng(5)


class Session:
    """As much of onnxruntime's as observing needs. fed: how many samples each run had."""

    fed: list[int]

    def __init__(self, model: bytes, options: Any, providers: list[str]) -> None:
        own = [*parts.fields(model)]
        (graph,) = [v for k, v in own if k == 7]
        self.graph, self.fed = parts.graph_of(graph, Path()), []
        self.inputs = [declared(v) for k, v in parts.fields(graph) if k == 11]

    def get_inputs(self) -> list[SimpleNamespace]:
        return self.inputs

    def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        known = parts.run_graph(self.graph, given)
        return [known[name] for name in names]


def declared(value: bytes) -> SimpleNamespace:
    """An input as onnxruntime shows it."""
    held = dict(parts.fields(value))
    kind = dict(parts.fields(dict(parts.fields(held[2]))[1]))
    dims = [dict(parts.fields(v)).get(1, "n") for k, v in parts.fields(kind.get(2, b"")) if k == 1]
    return SimpleNamespace(name=held[1].decode(), type={1: "tensor(float)", 9: "tensor(bool)"}[kind[1]], shape=dims)


def given(name: str, *dims: int, kind: int = parts.FLOAT) -> bytes:
    """An input of a graph; 0 is an open size."""
    sizes = b"".join(parts.field(1, parts.field(1, n) if n else parts.field(2, "n")) for n in dims)
    return parts.field(
        11, parts.field(1, name) + parts.field(2, parts.field(1, parts.field(1, kind) + parts.field(2, sizes)))
    )


@pytest.fixture(autouse=True)
def onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("onnxruntime")
    module.InferenceSession = Session
    module.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None)
    module.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_BASIC=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


W1, W2 = RNG.standard_normal((6, 5)).astype(np.float32), RNG.standard_normal((4, 5)).astype(np.float32)
X = RNG.standard_normal((20, 6)).astype(np.float32)
H = np.maximum(X @ W1, 0)


def model(path: Path) -> Path:
    """x [n, 6] -> MatMul with W1 [in, out] -> Relu -> Gemm with W2 [out, in]."""
    graph = [
        given("x", 0, 6),
        parts.f32("w1", W1),
        parts.f32("w2", W2),
        parts.op("MatMul", ["x", "w1"], ["a"]),
        parts.op("Relu", ["a"], ["h"]),
        parts.op("Gemm", ["h", "w2"], ["y"], transB=1),
        parts.value(12, "y"),
    ]
    path.write_bytes(parts.model(*graph, more=parts.opset(21)))
    return path


def observe(folder: Path, *options: str, x: Any = X, **more: Any) -> Any:
    np.savez(folder / "in.npz", x=x, **more)
    return run("observe", folder / "m.onnx", "--inputs", folder / "in.npz", "-o", folder / "s.safetensors", *options)


def test_the_file_holds_mean_moments_and_count_of_every_input(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    assert "inputs of 2 weights, 20 samples" in observe(tmp_path).out
    found = load_file(tmp_path / "s.safetensors")
    assert sorted(found) == [f"w{i}.{part}" for i in (1, 2) for part in ("count", "mean", "second")]
    for name, rows in (("w1", X), ("w2", H)):
        wide = rows.astype(np.float64)
        assert np.allclose(found[f"{name}.second"], wide.T @ wide / 20, atol=1e-6)
        assert np.allclose(found[f"{name}.mean"], wide.mean(axis=0), atol=1e-6)
        assert found[f"{name}.count"].shape == () and found[f"{name}.count"] == 20


def test_bytes_depend_on_neither_threads_nor_memory(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    seen = set()
    for options in (["--threads", "1"], ["--threads", "3", "--memory", "500B"]):
        said = observe(tmp_path, *options, "--force").out
        assert ("in 2 runs" in said) == ("--memory" in options)
        seen.add((tmp_path / "s.safetensors").read_bytes())
    assert len(seen) == 1


def test_squares_alone_are_the_diagonal(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    observe(tmp_path, "--moments", "diagonal")
    assert np.allclose(load_file(tmp_path / "s.safetensors")["w2.second"], (H.astype(np.float64) ** 2).mean(axis=0))


def test_samples_may_have_an_axis_in_front(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    observe(tmp_path, x=X.reshape(10, 2, 6))
    assert load_file(tmp_path / "s.safetensors")["w1.count"] == 20


def test_weights_in_branches_are_observed_where_samples_come(tmp_path: Path) -> None:
    """A branch without samples is left out of the file, and named."""

    def branch(name: str, weight: np.ndarray) -> bytes:
        named = parts.field(2, name) + parts.f32(f"w{name}", weight)
        return named + parts.op("MatMul", ["x", f"w{name}"], [f"y{name}"]) + parts.value(12, f"y{name}")

    conditional = parts.op("If", ["c"], ["y"], then_branch=branch("a", W1), else_branch=branch("b", W1 + 1))
    graph = [given("x", 0, 6), given("c", kind=9), conditional, parts.value(12, "y")]
    (tmp_path / "m.onnx").write_bytes(parts.model(*graph, more=parts.opset(21)))
    ran = observe(tmp_path, c=np.array(True))
    assert "1 weight not observed: y/else_branch/wb (no samples came to it)" in ran.err
    found = load_file(tmp_path / "s.safetensors")
    assert sorted(found) == [f"y/then_branch/wa.{part}" for part in ("count", "mean", "second")]
    assert np.allclose(found["y/then_branch/wa.mean"], X.mean(axis=0), atol=1e-6)


def test_names_are_those_that_quantize_uses(tmp_path: Path) -> None:
    model(tmp_path / "m.onnx")
    observe(tmp_path)
    said = run("quantize", tmp_path / "m.onnx", "--dry-run", "--json").json
    names = {tensor["name"] for tensor in said["tensors"]}
    assert {name.rpartition(".")[0] for name in load_file(tmp_path / "s.safetensors")} <= names


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "z": X}, "in.npz: z: it is no input of the model"),
        ({"z": X}, "in.npz: it has no array 'x', an F32 input [any, 6] of the model; it has z"),
        ({"x": X.astype(np.float64)}, "in.npz: x: it is F64, the model takes F32"),
        ({"x": X[:, :4]}, "in.npz: x: its shape [20, 4] does not fit the model's [any, 6]"),
        ({"x": X[:0]}, "in.npz: no samples"),
        ({"x": np.where(X > 2, np.nan, X)}, "in.npz: sample 0: the inputs of w1 are not finite"),
        ({"x": X * np.float32(1e25)}, "in.npz: sample 0: the inputs of w1 are so large that float32 does not hold"),
    ],
)
def test_wrong_samples_are_refused_in_a_line(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    model(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", **arrays)
    ran = run("observe", tmp_path / "m.onnx", "--inputs", tmp_path / "in.npz", "-o", tmp_path / "s.safetensors")
    assert said in one_line(ran, ran.code) and ran.code in (1, 2)
    assert not (tmp_path / "s.safetensors").exists()


def test_other_wrong_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "m.onnx")
    observe(tmp_path)
    assert "the output exists" in one_line(observe(tmp_path), 2)
    line = one_line(observe(tmp_path, "--memory", "300B", "--force"), 2)
    assert "more than --memory 300" in line and "--moments diagonal" in line
    assert "--memory: '1X'" in one_line(observe(tmp_path, "--memory", "1X", "--force"), 2)
    ran = run("observe", tmp_path / "s.safetensors", "--inputs", tmp_path / "in.npz", "-o", tmp_path / "t.safetensors")
    assert "only ONNX models can be run" in one_line(ran, 2)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'quantcli[onnx]'" in one_line(observe(tmp_path, "--force"), 2)
