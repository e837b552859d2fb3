"""Write the files of tests/golden/onnx with onnx 1.23 and onnxruntime 1.31: weights that onnxruntime's own quantizer
quantized or that are made of random codes, and beside each, as NAME.expected, what onnxruntime decodes it to. Run by
hand in an environment that has both and onnx_ir.

    .venv-peers/bin/python tests/peers/write_layouts_onnx.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "onnx"


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def expected(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> None:
    for name, value in values.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), f"{name}.expected")
        model.graph.initializer.append(tensor)


def matmul(rows: int, cols: int, seed: int) -> onnx.ModelProto:
    """A model of one MatMul with a weight [cols, rows], as it stands in a graph."""
    weight = np.random.default_rng(seed).normal(size=(cols, rows)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], "multiply")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", cols])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows])],
        [numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantized(name: str, rows: int, cols: int, **options: object) -> None:
    """What onnxruntime's quantizer makes of a MatMul; multiplied with the identity it shows its weight."""
    config = DefaultWeightOnlyQuantConfig(**options)
    made = MatMulNBitsQuantizer(matmul(rows, cols, rows), bits=options["bits"], algo_config=config)
    made.process()
    model = made.model.model
    (seen,) = session(model).run(None, {"x": np.eye(cols, dtype=np.float32)})
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type in ("MatMulNBits", "DequantizeLinear"))
    weight = node.input[1] if node.op_type == "MatMulNBits" else node.input[0]
    assert weight in kinds, kinds
    expected(model, {weight: seen.T if node.op_type == "MatMulNBits" else seen})
    onnx.save(model, FOLDER / f"{name}.onnx")


LINEAR = {
    "int8.tensor": (TensorProto.INT8, (5, 7), None, 0),
    "uint8.rows": (TensorProto.UINT8, (5, 7), 0, 0),
    "int8.columns": (TensorProto.INT8, (5, 7), 1, 0),
    "int8.convolution": (TensorProto.INT8, (4, 3, 2, 5), 0, 0),
    "int8.middle": (TensorProto.INT8, (4, 3, 2, 5), -3, 0),
    "uint8.blocks": (TensorProto.UINT8, (6, 11), 1, 4),
    "int4.tensor": (TensorProto.INT4, (3, 5), None, 0),
    "uint4.rows": (TensorProto.UINT4, (3, 5), 0, 0),
    "int4.blocks": (TensorProto.INT4, (7, 33), 1, 16),
    "uint4.blocks": (TensorProto.UINT4, (33, 7), 0, 16),
    "int4.deep": (TensorProto.INT4, (2, 9, 3, 5), 1, 4),
    "int16.rows": (TensorProto.INT16, (3, 4), 0, 0),
    "int32.bias": (TensorProto.INT32, (9,), 0, 0),
    "fp8.tensor": (TensorProto.FLOAT8E4M3FN, (4, 6), None, 0),
}  # fmt: skip
"""Weights of DequantizeLinear: type, shape, axis and blocks."""

RANGES = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT4: (-8, 7),
          TensorProto.UINT4: (0, 15), TensorProto.INT16: (-32768, 32767), TensorProto.INT32: (-(2**20), 2**20),
          TensorProto.FLOAT8E4M3FN: (-200, 200)}  # fmt: skip


def linear(name: str, *, zeros: bool, raw: bool) -> None:
    """Random codes, scales and zero points; raw: whether elements are bytes, and not numbers one by one."""
    rng = np.random.default_rng(7)
    nodes, initializers, outputs = [], [], []
    for weight, (kind, shape, axis, block) in LINEAR.items():
        low, high = RANGES[kind]
        own = () if axis is None else (shape[axis],)
        if block:
            own = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
        count = int(np.prod(own, dtype=int))
        parts = [
            helper.make_tensor(weight, kind, shape, rng.integers(low, high + 1, int(np.prod(shape))).tolist()),
            helper.make_tensor(f"{weight}_s", TensorProto.FLOAT, own, rng.uniform(0.01, 0.1, count).tolist()),
        ]
        if zeros and kind not in (TensorProto.INT32, TensorProto.FLOAT8E4M3FN):
            parts.append(helper.make_tensor(f"{weight}_z", kind, own, rng.integers(low, high + 1, count).tolist()))
        if raw:
            parts = [numpy_helper.from_array(numpy_helper.to_array(p), p.name) for p in parts]
        settings = {"axis": axis} if axis is not None else {}
        nodes.append(helper.make_node("DequantizeLinear", [p.name for p in parts], [f"{weight}_out"], **settings,
                                      **({"block_size": block} if block else {})))  # fmt: skip
        outputs.append(helper.make_tensor_value_info(f"{weight}_out", TensorProto.FLOAT, shape))
        initializers += parts
    graph = helper.make_graph(nodes, "g", [], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    expected(model, dict(zip(LINEAR, session(model).run([o.name for o in outputs], {}))))
    onnx.save(model, FOLDER / f"{name}.onnx")


def integers() -> None:
    """What onnxruntime's dynamic and static quantizers make of a MatMul, a Conv and an embedding: nodes that compute
    with the codes. Nothing decodes these files, so they hold no expected weights."""
    rng = np.random.default_rng(11)
    shapes = {"W": (16, 12), "E": (20, 16), "C": (4, 3, 3, 3), "B": (12,)}
    parts = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "W"], ["m"]),
        helper.make_node("Add", ["m", "B"], ["y"]),
        helper.make_node("Conv", ["img", "C"], ["c"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
         helper.make_tensor_value_info("img", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 12]),
         helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 4, 6, 6])], parts)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, FOLDER / "floats.onnx")

    class Inputs(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"ids": np.arange(5), "img": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)}] * 2

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    source = str(FOLDER / "floats.onnx")
    quantize_dynamic(source, str(FOLDER / "dynamic.onnx"), weight_type=QuantType.QInt8)
    quantize_static(source, str(FOLDER / "qoperator.onnx"), Inputs(), quant_format=QuantFormat.QOperator)


def looked_up() -> None:
    """What onnxruntime's quantizer makes of an embedding; asked for every row it shows its weight."""
    table = np.random.default_rng(5).normal(size=(20, 72)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["W", "x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 72])],
        [numpy_helper.from_array(table, "W")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = MatMulNBitsQuantizer(model, block_size=16, is_symmetric=False, op_types_to_quantize=("Gather",))
    made.process()
    (seen,) = session(made.model.model).run(None, {"x": np.arange(20)})
    expected(made.model.model, {"W_Q4": seen})
    onnx.save(made.model.model, FOLDER / "nbits-gather.onnx")


def recurrent() -> None:
    """What onnxruntime's dynamic quantizer makes of an LSTM, with scales for channels and for the whole."""
    rng = np.random.default_rng(13)
    shapes = {"W": (1, 32, 12), "R": (1, 32, 8), "B": (1, 64)}
    parts = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=8)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 1, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1, 1, 8])], parts)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, FOLDER / "recurrent.onnx")
    for name, each in (("channels", True), ("whole", False)):
        quantize_dynamic(str(FOLDER / "recurrent.onnx"), str(FOLDER / f"recurrent-{name}.onnx"),
                         weight_type=QuantType.QInt8, per_channel=each)  # fmt: skip


def numbers() -> None:
    """A tensor of every type in the field for it and as bytes, and the bytes alone in a file beside."""
    kinds = {
        "f2": TensorProto.FLOAT16,
        "f4": TensorProto.FLOAT,
        "f8": TensorProto.DOUBLE,
        "i1": TensorProto.INT8,
        "i2": TensorProto.INT16,
        "i4": TensorProto.INT32,
        "i8": TensorProto.INT64,
        "u1": TensorProto.UINT8,
        "u2": TensorProto.UINT16,
        "u4": TensorProto.UINT32,
        "u8": TensorProto.UINT64,
        "b1": TensorProto.BOOL,
    }
    tensors = []
    for name, kind in kinds.items():
        values = np.arange(6).reshape(1, 2, 3) % 2 if name == "b1" else np.arange(6).reshape(1, 2, 3)
        values = values - 3 if name[0] in "fi" else values
        values = values.astype(name)
        tensors.append(helper.make_tensor(f"typed.{name}", kind, values.shape, values.ravel().tolist()))
        tensors.append(numpy_helper.from_array(values, f"raw.{name}"))
    tensors.append(helper.make_tensor("typed.none", TensorProto.FLOAT, (0, 3), []))
    graph = helper.make_graph([], "g", [], [], tensors)
    model = helper.make_model(graph, producer_name="golden", opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"some": "words"})
    onnx.save(model, FOLDER / "numbers.onnx")
    (FOLDER / "outside.onnx.data").unlink(missing_ok=True)  # it would be appended to
    onnx.save(model, FOLDER / "outside.onnx", save_as_external_data=True, location="outside.onnx.data",
              size_threshold=8, convert_attribute=False)  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    quantized("nbits-w4g32", 20, 72, bits=4, block_size=32, is_symmetric=True)
    quantized("nbits-w4g16-asym", 21, 72, bits=4, block_size=16, is_symmetric=False)
    quantized("nbits-w8g32-asym", 12, 64, bits=8, block_size=32, is_symmetric=False)
    quantized("nbits-w2g16-asym", 12, 80, bits=2, block_size=16, is_symmetric=False)
    quantized("nbits-qdq", 20, 72, bits=4, block_size=32, is_symmetric=False, quant_format=QuantFormat.QDQ)
    linear("linear", zeros=False, raw=True)
    linear("linear-zeros", zeros=True, raw=True)
    linear("linear-typed", zeros=True, raw=False)
    numbers()
    integers()
    looked_up()
    recurrent()


if __name__ == "__main__":
    main()
