"""Write the models of tests/golden/audits/onnxruntime: a small network as onnxruntime's own quantizers quantize it.

    python tests/peers/write_audits_onnx.py [OUT]

Needs onnx 1.23.2, onnx_ir and onnxruntime 1.31.1. The network has a convolution, one in groups, one for each channel, a
transposed one, a MatMul and a Gemm, whose weights are of Student's t.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "audits" / "onnxruntime"
INPUT = (1, 8, 8, 8)

RNG = np.random.default_rng(0)
SHAPES = {
    "conv.weight": (32, 8, 3, 3), "conv.bias": (32,), "grouped.weight": (32, 8, 3, 3), "depth.weight": (32, 1, 3, 3),
    "up.weight": (32, 16, 2, 2), "mm.weight": (16, 96), "gemm.weight": (24, 96), "gemm.bias": (24,),
}  # fmt: skip


def model() -> onnx.ModelProto:
    """The network in floats."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        node("Conv", ["a", "grouped.weight"], ["b"], name="grouped", group=4, pads=[1, 1, 1, 1]),
        node("Conv", ["b", "depth.weight"], ["c"], name="depth", group=32, pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["c", "up.weight"], ["d"], name="up", strides=[2, 2]),
        node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        node("Flatten", ["e"], ["f"], name="flat"),
        node("MatMul", ["f", "mm.weight"], ["g"], name="mm"),
        node("Gemm", ["g", "gemm.weight", "gemm.bias"], ["y"], name="gemm", transB=1),
    ]
    weights = [numpy_helper.from_array((RNG.standard_t(5, s) * 0.05).astype(np.float32), n) for n, s in SHAPES.items()]
    ends = (("x", list(INPUT)), ("y", [1, 24]))
    given, made = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in ends)
    graph = helper.make_graph(nodes, "net", given, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Samples(CalibrationDataReader):
    """Some inputs."""

    def __init__(self) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": RNG.normal(size=INPUT).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def main(out: str = "") -> None:
    place = Path(out or OUT)
    place.mkdir(parents=True, exist_ok=True)
    base = place / "base.onnx"
    onnx.save(model(), base)
    qdq, operators = {"quant_format": QuantFormat.QDQ}, {"quant_format": QuantFormat.QOperator}
    channels = {"per_channel": True}
    static = {
        "qdq-channels": {**qdq, **channels, "weight_type": QuantType.QInt8},
        "qdq-tensors": {**qdq, "weight_type": QuantType.QInt8},
        "qdq-channels-int4": {**qdq, **channels, "weight_type": QuantType.QInt4},
        "qdq-reduced": {**qdq, **channels, "weight_type": QuantType.QUInt8, "reduce_range": True},
        "operators": {**operators, **channels, "weight_type": QuantType.QInt8},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, options in static.items():
            made = Path(folder) / f"{name}.onnx"
            quantize_static(base, made, Samples(), activation_type=QuantType.QUInt8, **options)
            onnx.save(onnx.load(made), place / f"{name}.onnx")
    quantize_dynamic(base, place / "dynamic-channels.onnx", weight_type=QuantType.QInt8, **channels)
    quantize_dynamic(base, place / "dynamic-tensors.onnx", weight_type=QuantType.QUInt8)
    for name, options in {"blocks": {}, "blocks-qdq": {**qdq}}.items():
        found = MatMulNBitsQuantizer(onnx.load(base), block_size=16, is_symmetric=False, **options)
        found.process()
        onnx.save(found.model.model if hasattr(found.model, "model") else found.model, place / f"{name}.onnx")


if __name__ == "__main__":
    main(*sys.argv[1:])
