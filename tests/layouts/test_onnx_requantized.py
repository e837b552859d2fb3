"""Graphs whose nodes take codes, quantized again: what is written computes what the codes stood for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_parts as onnx
import pytest
from making import GOLDEN_FILES, one_line, run
from onnx_parts import nibbles, op, written

RNG = np.random.default_rng(5)
MULTIPLY, LOOK_UP = "com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized"


def i8(name: str, values: np.ndarray) -> bytes:
    return onnx.tensor(name, onnx.I8, values.shape, values.astype(np.int8).tobytes())


def u8(name: str, values: np.ndarray) -> bytes:
    return onnx.tensor(name, onnx.U8, values.shape, values.astype(np.uint8).tobytes())


def number(name: str, value: float) -> bytes:
    return onnx.f32(name, np.array(value, np.float32))


def product_behind() -> tuple[list[bytes], np.ndarray]:
    """A dynamic quantizer's product: scales come in behind it."""
    codes = RNG.integers(-127, 128, (64, 48))
    nodes = [
        op("DynamicQuantizeLinear", ["x"], ["x_q", "x_s", "x_z"]),
        op("Mul", ["x_s", "w_scale"], ["s"]),
        op("MatMulInteger", ["x_q", "w_quantized", "x_z", "w_zero_point"], ["i"]),
        op("Cast", ["i"], ["f"], to=1),
        op("Mul", ["f", "s"], ["y"]),
    ]
    held = [i8("w_quantized", codes), number("w_scale", 0.01), i8("w_zero_point", np.array(0))]
    return [*nodes, *held], codes * 0.01


def fused_product() -> tuple[list[bytes], np.ndarray]:
    codes = RNG.integers(0, 256, (64, 48))
    inputs = ["x", "w_quantized", "w_scale", "w_zero_point", "b"]
    nodes = [op("DynamicQuantizeMatMul", inputs, ["y"], "com.microsoft")]
    held = [u8("w_quantized", codes), number("w_scale", 0.01), u8("w_zero_point", np.array(131))]
    return [*nodes, *held, onnx.f32("b", np.zeros(48, np.float32))], (codes - 131) * 0.01


def product_in_blocks() -> tuple[list[bytes], np.ndarray]:
    codes, scale = RNG.integers(0, 16, (48, 2, 32)), RNG.uniform(0.01, 0.1, (48, 2)).astype(np.float32)
    node = op("MatMulNBits", ["x", "w_Q4", "w_scales"], ["y"], "com.microsoft", K=64, N=48, bits=4, block_size=32)
    held = [u8("w_Q4", nibbles(codes)), onnx.f32("w_scales", scale.reshape(-1))]
    return [node, *held], ((codes - 8) * scale[:, :, None]).reshape(48, 64).T


def decoded_before() -> tuple[list[bytes], np.ndarray]:
    """DequantizeLinear in front of a product, under the name that the weight itself would have."""
    codes, scale = RNG.integers(-127, 128, (64, 48)), RNG.uniform(0.01, 0.1, 48).astype(np.float32)
    nodes = [op("DequantizeLinear", ["w_quantized", "w_scale"], ["w"], axis=1), op("MatMul", ["x", "w"], ["y"])]
    return [*nodes, i8("w_quantized", codes), onnx.f32("w_scale", scale)], codes * scale


CASES = {f.__name__: f for f in (product_behind, fused_product, product_in_blocks, decoded_before)}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_products_of_codes_are_quantized_again(case: str, kept: bool, tmp_path: Path) -> None:
    """Or stay floats, beside another weight that is quantized."""
    graph, weight = CASES[case]()
    other = onnx.f32("v", RNG.normal(size=(48, 64)).astype(np.float32))
    more = [op("MatMul", ["y", "v"], ["out"]), other] if kept else []
    source, out = written(tmp_path / "codes.onnx", *graph, *more), tmp_path / "out.onnx"
    options = ["--exclude", "w"] if kept else []
    words = ["--bits", 8, "--group-size", 16, "--no-default-keep", *options, "-o", out, "--json"]
    done = run("quantize", source, "--requantize", *words)
    assert done.code == 0, done.err
    found, _, _ = onnx.read_model(out)
    assert MULTIPLY in found.operators
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "Cast"} & set(found.operators)
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(onnx.run_graph(found, {"x": x})["y"], x @ weight, atol=0.04 * np.abs(weight).max())
    if kept:
        np.testing.assert_allclose(onnx.run_graph(found, {"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-4)


def test_a_model_of_onnxruntimes_dynamic_quantizer(tmp_path: Path) -> None:
    """Rows of codes go into a product of codes, a convolution of codes has its own scales."""
    source, out = GOLDEN_FILES / "onnx" / "dynamic.onnx", tmp_path / "out.onnx"
    assert run("quantize", source, "--requantize", "--no-default-keep", "--bits", 8, "-o", out, "-q").code == 0
    found, _, _ = onnx.read_model(out)
    assert found.operators == ["DequantizeLinear", LOOK_UP, MULTIPLY, "Conv", "Add"]


def test_codes_stay_what_they_are_where_only_nodes_change(tmp_path: Path) -> None:
    graph, weight = product_in_blocks()
    source, out = written(tmp_path / "codes.onnx", *graph), tmp_path / "out.onnx"
    report = run("export", source, "--to", "onnx", "-o", out, "--json").json
    assert report["lossless"] and report["tensors"][0]["exported_scheme"] == "w4g32"
    found, _, _ = onnx.read_model(out)
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(onnx.run_graph(found, {"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ir", [3, 8])
def test_codes_that_are_inputs_of_the_graph(ir: int, tmp_path: Path) -> None:
    """Before version 4 of the format every initializer was one; since then it is a default that callers may replace."""
    graph, weight = decoded_before()
    inputs = [onnx.value(11, "w_quantized"), onnx.value(11, "w_scale")]
    source, out = written(tmp_path / "codes.onnx", *inputs, *graph, ir=ir), tmp_path / "out.onnx"
    done = run("quantize", source, "--requantize", "--no-default-keep", "--bits", 8, "-o", out, "-q")
    if ir == 8:
        assert "codes and scales that are inputs of the graph" in one_line(done, 2) and not out.exists()
        return
    assert done.code == 0, done.err
    found, _, _ = onnx.read_model(out)
    assert list(found.inputs) == ["x"]
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(onnx.run_graph(found, {"x": x})["y"], x @ weight, atol=0.04 * np.abs(weight).max())


def test_what_is_not_replaced_is_named(tmp_path: Path) -> None:
    source = GOLDEN_FILES / "onnx" / "qoperator.onnx"
    line = one_line(run("quantize", source, "--requantize", "-o", tmp_path / "out.onnx", "-q"), 2)
    assert "a QLinearMatMul that computes with codes is not written again in ONNX" in line
    graph, _ = product_behind()
    graph[4] = op("Add", ["f", "s"], ["y"])  # no product behind it
    source = written(tmp_path / "other.onnx", *graph)
    line = one_line(run("quantize", source, "--requantize", "-o", tmp_path / "out.onnx", "-q"), 2)
    assert "MatMulInteger without Cast and Mul behind it" in line
