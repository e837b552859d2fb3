"""ONNX files: what onnx wrote and onnxruntime decoded is read bit for bit, damage is refused in one line."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import GOLDEN_FILES, ROOT, load, one_line, run, save, to
from onnx_parts import FLOAT, FLOAT16, I8, INT4, U8, UINT4, f32, field, model, node, tensor, varint

from quantcli.errors import DataError, QuantcliError
from quantcli.layouts import reader as reading
from quantcli.stores import open_source
from quantcli.stores.onnx import OnnxFile

GOLDEN = GOLDEN_FILES / "onnx"
"""Written by peers/write_layouts_onnx.py."""


# ---- files byte by byte -----------------------------------------------------------------------------------------


def opened(path: Path, content: bytes) -> OnnxFile:
    path.write_bytes(content)
    source = open_source(str(path))
    assert isinstance(source, OnnxFile)
    return source


def read_all(source: OnnxFile, name: str) -> bytes:
    buffer = bytearray(next(i for i in source.infos() if i.name == name).nbytes)
    source.read(name, 0, memoryview(buffer))
    return bytes(buffer)


def found_in(source: OnnxFile) -> dict[str, reading.Found]:
    return {f.name: f for f in reading.find({i.name: i for i in source.infos()}, {"onnx": source.graph})}


def reader(source: OnnxFile) -> reading.Read:
    sizes = {i.name: i.nbytes for i in source.infos()}

    def read(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        assert count == 1 and start >= 0 and size >= 0 and start + size <= sizes[name]
        buffer = np.empty(size, np.uint8)
        source.read(name, start, buffer.data)
        return buffer

    return read


def check_every_piece(source: OnnxFile, found: reading.Found, expected: np.ndarray) -> None:
    expected = expected.reshape(-1, expected.shape[-1])
    rows = len(expected)
    for first, last in [(0, rows), (0, 1), (rows - 1, rows), (rows // 2, rows), *((i, min(i + 3, rows)) for i in
                                                                                  range(0, rows, 3))]:  # fmt: skip
        np.testing.assert_array_equal(found.decode(reader(source), first, last), expected[first:last])


# ---- what onnx and onnxruntime wrote ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("[nl][bi]*.onnx")), ids=lambda p: p.stem)
def test_onnxruntime_decodes_the_same(path: Path) -> None:
    source = open_source(str(path))
    assert isinstance(source, OnnxFile) and source.graph.nodes
    found, shapes = found_in(source), {i.name: i.shape for i in source.infos()}
    codes = {weight.parts[0].name: weight for weight in found.values()}
    assert {f"{name}.expected" for name in codes} == {n for n in shapes if n.endswith(".expected")}
    for name, weight in codes.items():
        shape = shapes[f"{name}.expected"]
        assert weight.shape == shape and weight.name in (name, "W")
        expected = np.frombuffer(read_all(source, f"{name}.expected"), np.float32).reshape(shape)
        check_every_piece(source, weight, expected)
    source.close()


def test_there_are_files_of_onnxruntime() -> None:
    assert len(list(GOLDEN.glob("[nl][bi]*.onnx"))) == 9


def test_schemes_and_bits() -> None:
    source = open_source(str(GOLDEN / "linear-zeros.onnx"))
    assert isinstance(source, OnnxFile)
    assert {n: (f.scheme, f.bits) for n, f in found_in(source).items()} == {
        "int8.tensor": ("w8t-asym", 8), "uint8.rows": ("w8c-asym", 8), "int8.columns": ("w8c1-asym", 8),
        "int8.convolution": ("w8c-asym", 8), "int8.middle": ("w8c1-asym", 8), "uint8.blocks": ("w8g4-asym", 8),
        "int4.tensor": ("w4t-asym", 4), "uint4.rows": ("w4c-asym", 4), "int4.blocks": ("w4g16-asym", 4),
        "uint4.blocks": ("w4g16-axis0-asym", 4), "int4.deep": ("w4g4-axis1-asym", 4), "int16.rows": ("w16c-asym", 16),
        "int32.bias": ("w32c", 32), "fp8.tensor": ("fp8-e4m3t", 8)}  # fmt: skip
    source.close()


@pytest.mark.parametrize("file", ["numbers.onnx", "outside.onnx"])
def test_elements_one_by_one_in_bytes_and_outside(file: str) -> None:
    source = open_source(str(GOLDEN / file))
    assert isinstance(source, OnnxFile) and not source.graph.nodes
    infos = {i.name: i for i in source.infos()}
    for name, dtype in [
        ("f2", "F16"),
        ("f4", "F32"),
        ("f8", "F64"),
        ("i1", "I8"),
        ("i2", "I16"),
        ("i4", "I32"),
        ("i8", "I64"),
        ("u1", "U8"),
        ("u2", "U16"),
        ("u4", "U32"),
        ("u8", "U64"),
        ("b1", "BOOL"),
    ]:
        values = np.arange(6) % 2 if name == "b1" else np.arange(6) - (3 if name[0] in "fi" else 0)
        for way in ("typed", "raw"):
            assert (infos[f"{way}.{name}"].dtype, infos[f"{way}.{name}"].shape) == (dtype, (1, 2, 3))
            assert read_all(source, f"{way}.{name}") == values.astype(name).tobytes()
    assert infos["typed.none"].shape == (0, 3)
    assert source.metadata == {"ir_version": "10", "producer_name": "golden", "opset": "21", "some": "words"}
    assert len(source.files()) == (2 if file == "outside.onnx" else 1)
    source.check_unchanged()
    source.close()


# ---- MatMulNBits written out ------------------------------------------------------------------------------------


def nbits(
    n: int, k: int, bits: int, block: int, *, scale: str = "<f4", zero: str | None = "u1", flat: bool = False
) -> tuple[bytes, np.ndarray]:
    """A model of one node, and its weight value by value."""
    rng = np.random.default_rng(n)
    blocks, per = -(-k // block), 8 // bits
    u = rng.integers(0, 1 << bits, (n, blocks * block))
    z = rng.integers(0, 1 << bits, (n, blocks)) if zero == "u1" else rng.normal(size=(n, blocks)).astype(np.float16)
    s = rng.uniform(-1, 1, (n, blocks)).astype(scale)
    places = np.arange(per) * bits
    packed = (u.reshape(n, -1, per) << places).sum(axis=-1).astype(np.uint8)
    parts = [
        tensor("B", U8, (n, blocks * block * bits // 8) if flat else (n, blocks, block * bits // 8), packed.tobytes()),
        tensor("s", FLOAT if scale == "<f4" else FLOAT16, (n * blocks,) if flat else (n, blocks), s.tobytes()),
    ]
    inputs = ["x", "B", "s"]
    if zero is not None:
        inputs.append("z")
        padded = np.zeros((n, -(-blocks // per) * per), int)
        padded[:, :blocks] = z
        stream = (padded.reshape(n, -1, per) << places).sum(axis=-1).astype(np.uint8)
        raw = stream.tobytes() if zero == "u1" else z.tobytes()
        parts.append(tensor("z", U8 if zero == "u1" else FLOAT16, stream.shape if zero == "u1" else z.shape, raw))
    zeros = np.full((n, blocks), 1 << (bits - 1)) if zero is None else z
    expected = np.array([[(np.float32(u[o, i]) - np.float32(zeros[o, i // block])) * np.float32(s[o, i // block])
                          for i in range(k)] for o in range(n)], np.float32)  # fmt: skip
    head = node("MatMulNBits", inputs, "com.microsoft", K=k, N=n, bits=bits, block_size=block, accuracy_level=4)
    return model(head, *parts), expected


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits(bits: int, tmp_path: Path) -> None:
    cases: list[tuple[int, int, int, dict[str, Any]]] = [
        (5, 64, 16, {}), (7, 50, 32, {"zero": None}), (3, 40, 16, {"scale": "<f2"}),
        (4, 70, 32, {"zero": "f2", "flat": True}), (2, 16, 128, {}),
    ]  # fmt: skip
    for n, k, block, options in cases:
        content, expected = nbits(n, k, bits, block, **options)
        source = opened(tmp_path / "x.onnx", content)
        (found,) = found_in(source).values()
        assert (found.name, found.shape, found.bits) == ("B", (n, k), bits)
        check_every_piece(source, found, expected)
        source.close()


def test_weights_used_in_two_ways_are_refused(tmp_path: Path) -> None:
    content, _ = nbits(5, 64, 4, 16)
    for inputs in (["other", "B", "s", "z"], ["other", "B", "s"]):
        again = node("MatMulNBits", inputs, "com.microsoft", K=64, N=5, bits=4, block_size=16)
        source = opened(tmp_path / "x.onnx", _with(content, again))
        if len(inputs) == 4:  # a weight that two nodes share
            assert list(found_in(source)) == ["B"]
        else:
            with pytest.raises(DataError, match="B: two nodes decode it in different ways"):
                found_in(source)
        source.close()


def _with(content: bytes, more: bytes) -> bytes:
    """A model of `model` with something more in its graph."""
    own = 2  # ir_version
    length, at = 0, own + 1
    for shift in range(0, 64, 7):
        length |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            break
    return content[:own] + field(7, content[at : at + length] + more)


def test_a_zero_point_that_weights_share_is_counted_once(tmp_path: Path) -> None:
    parts = [
        tensor("a", I8, (2, 2), b"1234"),
        tensor("b", I8, (2, 2), b"5678"),
        f32("s", np.array(0.5)),
        tensor("z", I8, (), b"\1"),
    ]
    nodes = [node("DequantizeLinear", [name, "s", "z"]) for name in "ab"]
    source = opened(tmp_path / "x.onnx", model(*nodes, *parts))
    found = found_in(source)
    assert [p.name for f in found.values() for p in f.parts] == ["a", "s", "z", "b"]
    np.testing.assert_array_equal(found["b"].decode(reader(source), 0, 2), (np.array([[53, 54], [55, 56]]) - 1) / 2)
    source.close()


def test_what_is_computed_and_single_numbers_are_left_alone(tmp_path: Path) -> None:
    parts = [
        tensor("a", I8, (), b"1"),
        f32("s", np.array(0.5)),
        tensor("q", I8, (2, 2), b"1234"),
        f32("q_scale", np.ones((2, 1))),
    ]
    nodes = [
        node("DequantizeLinear", ["a", "s"]),
        node("DequantizeLinear", ["hidden", "s"]),
        node("MatMulNBits", ["x", "hidden", "s"], "com.microsoft", K=1, N=1, bits=4, block_size=16),
        node("MatMulNBits", ["x", "q", "s"], "other.domain"),
        node("Add", ["q", "s"]),
    ]
    source = opened(tmp_path / "x.onnx", model(*nodes, *parts))
    # q beside q_scale would be compressed-tensors' in a safetensors file; here no node says so.
    assert found_in(source) == {}
    source.close()


def test_branches_are_read(tmp_path: Path) -> None:
    branch = field(1, b"") + f32("deep", np.ones((2, 3)))
    held = field(5, field(1, "then_branch") + field(6, branch) + field(20, 5))
    source = opened(tmp_path / "x.onnx", model(field(1, field(4, "If") + held), f32("top", np.ones(1))))
    assert [i.name for i in source.infos()] == ["If/then_branch/deep", "top"]
    source.close()


def constant(output: str, kind: int, dims: tuple[int, ...], raw: bytes | None, more: bytes = b"") -> bytes:
    """A Constant node: its tensor has no name of its own, or another one."""
    value = b"".join(field(1, n) for n in dims) + field(2, kind) + field(8, "value") + more
    value += b"" if raw is None else field(9, raw)
    return field(1, field(2, output) + field(4, "Constant") + field(5, field(1, "value") + field(5, value)))


def holder(operator: str, output: str, **graphs: bytes) -> bytes:
    """A node with graphs in its attributes."""
    held = b"".join(field(5, field(1, name) + field(6, graph)) for name, graph in graphs.items())
    return field(1, field(2, output) + field(4, operator) + held)


def values_of(source: OnnxFile) -> dict[str, list[float]]:
    """The tensors by name, floats read as such."""
    return {i.name: np.frombuffer(read_all(source, i.name), "<f4").tolist() for i in source.infos()}


def pair_of(first: float) -> bytes:
    return np.array([first, first + 1], "<f4").tobytes()


def test_constants_are_weights(tmp_path: Path) -> None:
    """Numbers alone, and rows of integers, are what a graph computes with: shapes, axes, indices, and no weights."""
    source = opened(tmp_path / "x.onnx", model(
        constant("w", FLOAT, (1, 2), pair_of(1)), constant("b", FLOAT, (2,), pair_of(3)),
        constant("half", FLOAT, (), bytes(4)), constant("shape", 7, (3,), bytes(24)), constant("axis", 7, (), bytes(8)),
        constant("words", 8, (1,), None, field(6, "a")), constant("more words", 8, (1,), None),
        field(1, field(2, "list") + field(4, "Constant") + field(5, field(1, "value_floats") + field(7, bytes(4)))),
        constant("table", I8, (2, 2), b"1234"), f32("top", np.array([5, 6])),
    ))  # fmt: skip
    assert [i.name for i in source.infos()] == ["w", "b", "table", "top"]
    assert {n: v for n, v in values_of(source).items() if n != "table"} == {"w": [1, 2], "b": [3, 4], "top": [5, 6]}
    source.close()


def test_graphs_in_nodes_may_use_the_same_names(tmp_path: Path) -> None:
    """Branches, bodies, graphs in lists, and functions: each tensor is listed by where it is."""
    body = holder("If", "inner", then_branch=constant("w", FLOAT, (2,), pair_of(5)))
    first, second = (field(11, f32("w", np.array(values))) for values in ([7, 8], [9, 10]))
    several = field(5, field(1, "graphs") + first + second)
    function = field(25, field(1, "gelu") + field(10, "lib") + field(7, constant("w", FLOAT, (2,), pair_of(11))[2:]))
    content = model(
        holder("If", "cond", then_branch=f32("w", np.array([1, 2])),
               else_branch=constant("w", FLOAT, (2,), pair_of(3))),
        holder("Loop", "loop", body=body), field(1, field(2, "many") + field(4, "Search") + several),
        f32("w", np.array([0, 1])),
    )  # fmt: skip
    source = opened(tmp_path / "x.onnx", content + function)
    assert values_of(source) == {
        "cond/then_branch/w": [1, 2], "cond/else_branch/w": [3, 4], "loop/body/inner/then_branch/w": [5, 6],
        "many/graphs/0/w": [7, 8], "many/graphs/1/w": [9, 10], "w": [0, 1], "lib/gelu/w": [11, 12]}  # fmt: skip
    source.close()


def test_nodes_decode_what_their_own_graph_and_those_around_it_hold(tmp_path: Path) -> None:
    inside = constant("q", I8, (2, 2), b"1234") + node("DequantizeLinear", ["q", "s"])
    other = tensor("q", I8, (2, 2), b"5678") + constant("s", FLOAT, (), np.float32(2).tobytes())
    other += node("DequantizeLinear", ["q", "s"])
    content = model(holder("If", "c", a=inside, b=other), constant("s", FLOAT, (), np.float32(0.5).tobytes()), GOOD)
    source = opened(tmp_path / "x.onnx", content)
    found = found_in(source)
    assert {n: [p.name for p in f.parts] for n, f in found.items()} == {
        "c/a/q": ["c/a/q", "s"],
        "c/b/q": ["c/b/q", "c/b/s"],
    }
    np.testing.assert_array_equal(found["c/a/q"].decode(reader(source), 0, 2), [[24.5, 25], [25.5, 26]])
    np.testing.assert_array_equal(found["c/b/q"].decode(reader(source), 0, 2), [[106, 108], [110, 112]])
    source.close()


def test_constants_are_quantized_as_initializers_are(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    (tmp_path / "a.onnx").write_bytes(model(constant("w", FLOAT, weights.shape, weights.tobytes())))
    (tmp_path / "b.onnx").write_bytes(model(f32("w", weights)))
    for name in ("a", "b"):
        assert run("quantize", tmp_path / f"{name}.onnx", "-o", tmp_path / f"{name}.safetensors").code == 0
    assert load(tmp_path / "a.safetensors") == load(tmp_path / "b.safetensors")
    ran = run("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--json")
    assert ran.code == 0 and ran.json["summary"]["exact"]


@pytest.mark.parametrize(("file", "operator"), [("dynamic.onnx", "MatMulInteger"), ("qoperator.onnx", "QLinearMatMul")])
def test_nodes_that_compute_with_codes(file: str, operator: str, tmp_path: Path) -> None:
    """onnxruntime's int8 files are decoded, and quantized again only where that is asked for."""
    path, original = GOLDEN / file, GOLDEN / "floats.onnx"
    for ran in (run("quantize", path, "-o", tmp_path / "out"), run("plan", path, "--target-bpw", "5"),
                run("sweep", path)):  # fmt: skip
        line = one_line(ran, 1)
        assert line.startswith(f"{path}: ") and f"ONNX with {operator}" in line and "--requantize" in line
    assert f"layout: ONNX with {operator}" in run("inspect", path).out
    done = run("compare", original, path, "--json")
    rows = {t["name"]: t for t in done.json["tensors"] if t["disposition"] == "quantized"}
    assert done.code == 0 and set(rows) >= {"W", "C"}
    assert all(30 < row["sqnr_db"] < 50 for row in rows.values())
    assert run("quantize", path, "--requantize", "-o", tmp_path / "out.safetensors", "--no-default-keep").code == 0
    if operator == "QLinearMatMul":
        line = one_line(run("quantize", path, "--requantize", "-o", tmp_path / "out.onnx"), 2)
        assert "computes with codes is not written again" in line and "start from the float model" in line
        assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize("scales", ["channels", "whole"])
def test_the_weights_of_an_lstm_are_turned_back(scales: str) -> None:
    """onnxruntime's quantizer stores them as [directions, in, out]."""
    path, original = GOLDEN / f"recurrent-{scales}.onnx", GOLDEN / "recurrent.onnx"
    source = open_source(str(path))
    assert isinstance(source, OnnxFile)
    infos, found = {i.name: i for i in source.infos()}, found_in(source)
    for name, cols in (("W", 12), ("R", 8)):
        codes = np.frombuffer(read_all(source, f"{name}_quantized"), "i1").reshape(1, cols, 32).astype(np.float32)
        zero = np.frombuffer(read_all(source, f"{name}_zero_point"), "i1").astype(np.float32)
        scale = np.frombuffer(read_all(source, f"{name}_scale"), np.float32)
        assert scale.size == infos[f"{name}_zero_point"].numel == (32 if scales == "channels" else 1)
        check_every_piece(source, found[name], ((codes - zero) * scale).transpose(0, 2, 1))
    source.close()
    rows = run("compare", original, path, "--json").json["tensors"]
    assert {r["name"]: r["scheme"] for r in rows if r["disposition"] == "quantized"} == dict.fromkeys(
        "WR", "w8c-asym" if scales == "channels" else "w8t-asym"
    )
    assert all(35 < r["sqnr_db"] < 50 for r in rows if r["disposition"] == "quantized")


@pytest.mark.parametrize("file", ["dynamic.onnx", "qoperator.onnx"])
def test_codes_that_nodes_compute_with_by_the_formula(file: str) -> None:
    """(code - zero point) * scale, from the file's own tensors."""
    source = open_source(str(GOLDEN / file))
    assert isinstance(source, OnnxFile)
    infos, found = {i.name: i for i in source.infos()}, found_in(source)
    for name in ("W", "C", "E"):
        dtype = {"I8": "i1", "U8": "u1"}[infos[f"{name}_quantized"].dtype]
        codes = np.frombuffer(read_all(source, f"{name}_quantized"), dtype).reshape(infos[f"{name}_quantized"].shape)
        zero = np.frombuffer(read_all(source, f"{name}_zero_point"), dtype).astype(np.float32)
        scale = np.frombuffer(read_all(source, f"{name}_scale"), np.float32)
        assert scale.size == 1
        expected = (codes.astype(np.float32) - zero) * scale
        check_every_piece(source, found[name], expected)
    source.close()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("[nl][bi]*.onnx")), ids=lambda p: p.stem)
def test_what_nodes_decode_is_not_quantized_again(path: Path, tmp_path: Path) -> None:
    line = one_line(run("quantize", path, "-o", tmp_path / "out"), 1)
    assert "quantized already, ONNX with " in line and "start from the original; --requantize decodes it" in line


def test_codes_of_an_embedding_that_no_node_decodes(tmp_path: Path) -> None:
    """Only the names that the quantizer gives tell that they are codes; their zero point is missing."""
    parts = [tensor("E_quantized", U8, (50, 64), bytes(3200)), f32("E_scale", np.array(0.5)), GOOD]
    (tmp_path / "x.onnx").write_bytes(model(node("Add", ["E_quantized", "ids"]), *parts))
    line = one_line(run("compare", tmp_path / "x.onnx", tmp_path / "x.onnx"), 2)
    assert "onnxruntime's quantizer" in line and "E_quantized is U8 beside E_scale" in line


# ---- malformed --------------------------------------------------------------------------------------------------

GOOD = f32("w", np.ones((2, 3)))


def external(**values: str) -> bytes:
    return b"".join(field(13, field(1, k) + field(2, v)) for k, v in values.items()) + field(14, 1)


def outside(**values: str) -> bytes:
    return model(tensor("w", FLOAT, (2, 3), None, external(**values)))


def nested(levels: int) -> bytes:
    inner = GOOD
    for _ in range(levels):
        inner = field(1, field(4, "If") + field(5, field(1, "g") + field(6, inner)))
    return inner


def deep(levels: int) -> bytes:
    return model(nested(levels))


HUGE = (1 << 62, 1 << 62)
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it holds no graph"),
    "text": (b"version 1 of something", "field of kind"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "field"),
    "no graph": (field(1, 10), "it holds no graph"),
    "two graphs": (model(GOOD) + field(7, GOOD), "it holds two graphs"),
    "segment": (model(tensor("w", FLOAT, (1,), None, field(3, b""))), "a segment, which is not supported"),
    "no tensors": (model(node("Add", ["a"])), "holds no weights"),
    "graph of a number": (field(7, 3), "a number where a message should be"),
    "cut": (model(GOOD)[:-1], "a length reaches beyond the end"),
    "long": (field(7, b"") + b"\x3a\xff\xff\xff\xff\x7f", "a length reaches beyond the end"),
    "long inside": (model(b"\x2a\x7f" + b"\x08\x01"), "a length reaches beyond the end"),
    "endless number": (b"\x08" + b"\xff" * 11, "more than 64 bits"),
    "number of 70 bits": (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
    "cut number": (b"\x08\xff", "cut short"),
    "field 0": (b"\x00\x01", "field of number 0"),
    "group": (b"\x0b", "field of kind 3"),
    "deep": (deep(20), "nested too deeply"),
    "very deep": (deep(2000), "nested too deeply"),
    "name": (model(tensor("", FLOAT, (), bytes(4))), "a tensor without a name"),
    "twice": (model(GOOD, GOOD), "w: duplicate tensor"),
    "bad name": (model(field(5, field(8, b"\xff"))), "not valid UTF-8"),
    "long name": (model(tensor("n" * (1 << 21), FLOAT, (), bytes(4))), "where up to 1048576 are expected"),
    "negative": (model(tensor("w", FLOAT, (-1, 3), b"")), "w: dimension -1 is not"),
    "huge": (model(tensor("w", FLOAT, HUGE, bytes(4))), "but it holds 4"),
    "huge and nothing": (model(tensor("w", FLOAT, HUGE, None)), "but it holds 0"),
    "huge nibbles": (model(tensor("w", UINT4, HUGE, bytes(4))), "but it holds 4"),
    "dimensions": (model(tensor("w", FLOAT, (1,) * 65, bytes(4))), "more than 64 dimensions"),
    "packed dimensions": (model(field(5, field(1, b"\1" * 100_000) + field(8, "w"))), "more than 64 dimensions"),
    "short": (model(tensor("w", FLOAT, (2, 3), bytes(23))), "take 24 bytes, but it holds 23"),
    "type": (model(tensor("w", 99, (1,), bytes(4))), "type 99 are not supported"),
    "text elements": (model(tensor("w", 8, (1,), None)), "are text, which is not supported"),
    "strings": (model(tensor("w", 8, (1,), None, field(6, "a"))), "are text, which is not supported"),
    "type twice": (model(tensor("w", FLOAT, (1,), bytes(4), field(2, 1))), "one of its fields appears twice"),
    "two ways": (model(tensor("w", FLOAT, (1,), bytes(4), field(4, bytes(4)))), "in more than one way"),
    "other place": (model(tensor("w", FLOAT, (1,), None, field(14, 7))), "in more than one way"),
    "wrong field": (model(tensor("w", FLOAT, (1,), None, field(5, bytes(1)))), "which does not hold F32"),
    "few floats": (model(tensor("w", FLOAT, (2,), None, field(4, bytes(4)))), "take 8 bytes, but it holds 4"),
    "floats as numbers": (model(tensor("w", FLOAT, (2,), None, field(4, 3))), "not have the type of their field"),
    "large numbers": (model(tensor("w", I8, (1,), None, field(5, 200))), "not 1 numbers of I8"),
    "many numbers": (model(tensor("w", I8, (1,), None, field(5, bytes(2)))), "not 1 numbers of I8"),
    "sparse": (model(GOOD, field(15, b"")), "sparse initializers"),
    "constant without a name": (model(GOOD, constant("", FLOAT, (), bytes(4))), "a tensor without a name"),
    "constant twice": (model(GOOD, constant("w", FLOAT, (), bytes(4))), "w: duplicate tensor"),
    "short constant": (model(constant("c", FLOAT, (2, 3), bytes(23))), "c: its elements take 24 bytes"),
    "constants alone": (model(constant("c", FLOAT, (), bytes(4))), "holds no weights"),
    "deep function": (model(GOOD) + field(25, field(7, field(4, "If") + field(5, field(6, nested(20))))), "too deeply"),
    "no location": (outside(), "its location ''"),
    "absolute": (outside(location="/etc/passwd"), "'/etc/passwd' is not a file in this folder"),
    "above": (outside(location="../x.data"), "is not a file in this folder"),
    "above inside": (outside(location="a/../../x.data"), "is not a file in this folder"),
    "backslash": (outside(location="..\\x.data"), "is not a file in this folder"),
    "NUL": (outside(location="a\0b"), "is not a file in this folder"),
    "missing": (outside(location="nothing.data"), "nothing.data: no such file"),
    "a folder": (outside(location="."), "this is a folder"),
    "offset": (outside(location="x.data", offset="-1"), "its offset '-1' is not a whole number"),
    "large offset": (outside(location="x.data", offset="9" * 19), "are beyond"),
    "long offset": (outside(location="x.data", offset="9" * 5000), "is not a whole number"),
    "length": (outside(location="x.data", length="25"), "take 24 bytes, but its length is 25"),
    "beyond": (outside(location="x.data", offset="80"), "its bytes 80 to 104 are beyond"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_damage_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    (tmp_path / "x.data").write_bytes(bytes(100))
    line = one_line(run("inspect", path), 1)
    assert line.startswith(f"{path}: ") and message in line


def test_files_beside_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.data").write_bytes(bytes(4) + np.arange(6, dtype="<f4").tobytes())
    source = opened(tmp_path / "x.onnx", outside(location="./sub/x.data", offset="4", checksum="none"))
    assert read_all(source, "w") == np.arange(6, dtype="<f4").tobytes()
    (tmp_path / "sub" / "x.data").write_bytes(bytes(3))
    with pytest.raises(DataError, match="changed while it was read"):
        read_all(source, "w")
    source.close()


def linear(inputs: list[str], *parts: bytes, **numbers: Any) -> bytes:
    return model(node("DequantizeLinear", inputs, **numbers), *parts)


Q, S = tensor("q", I8, (4, 6), bytes(24)), f32("s", np.ones(4))
NBITS = nbits(5, 64, 4, 16)[0]


def replaced(old: bytes, new: bytes) -> bytes:
    """The model of one MatMulNBits with some of its bytes changed for others of the same length."""
    assert NBITS.count(old) == 1 and len(old) == len(new)
    return NBITS.replace(old, new)


def with_number(name: str, old: int, new: int) -> bytes:
    """The same with another attribute."""
    return replaced(field(1, name) + field(3, old), field(1, name) + field(3, new))


NODES: dict[str, tuple[bytes, str]] = {
    "bits": (with_number("bits", 4, 3), "B: MatMulNBits of 3 bits"),
    "block": (with_number("block_size", 16, 17), "power of 2"),
    "K": (with_number("K", 64, 65), "do not match 5 x 65"),
    "N": (with_number("N", 5, 0), "its N 0 is not"),
    "no K": (replaced(field(1, "K"), field(1, "J")), "its K None is not"),
    "scale": (replaced(field(1, "s") + field(1, "z"), field(1, "t") + field(1, "z")), "its scale is not"),
    "zero": (replaced(field(1, "s") + field(1, "z"), field(1, "s") + field(1, "B")), "zero points U8"),
    "g_idx": (_with(NBITS, node("MatMulNBits", ["x", "q", "s", "", "g"], "com.microsoft", K=64, N=5, bits=4,
                                block_size=16) + tensor("q", U8, (5, 4, 8), bytes(160))), "g_idx"),
    "computed scale": (linear(["q", "other"], Q), "q: its scale is not an initializer"),
    "computed zero": (linear(["q", "s", "other"], Q, S, axis=0), "q: its zero point is not an initializer"),
    "axis": (linear(["q", "s"], Q, S, axis=2), "axis 2"),
    "negative axis": (linear(["q", "s"], Q, S, axis=-3), "axis -3"),
    "no axis": (linear(["q", "s"], Q, S), "scales [4] do not match axis 1 of [4, 6]"),
    "blocks": (linear(["q", "s"], Q, S, axis=0, block_size=2), "do not match axis 0 in blocks of 2"),
    "negative blocks": (linear(["q", "s"], Q, S, axis=0, block_size=-2), "in blocks of -2"),
    "zeros": (linear(["q", "s", "z"], Q, S, tensor("z", I8, (3,), bytes(3)), axis=0), "zero points [3] do not match"),
    "zeros of a kind": (linear(["q", "s", "z"], Q, S, tensor("z", U8, (4,), bytes(4)), axis=0), "is U8"),
    "zeros of a sign": (linear(["q", "s", "z"], tensor("q", INT4, (4, 6), bytes(12)), S,
                               tensor("z", UINT4, (4,), bytes(2)), axis=0), "do not match"),
    "scale of integers": (linear(["q", "z"], Q, tensor("z", I8, (), bytes(1))), "is I8"),
    "4-bit floats": (linear(["q", "s"], tensor("q", 23, (4, 6), bytes(12)), S, axis=0), "floats is not supported"),
    "64 bits": (linear(["q", "s"], tensor("q", 7, (4, 1), bytes(32)), S, axis=0), "of I64 is not supported"),
    "nothing": (linear(["q", "s"], tensor("q", I8, (4, 0), b""), S, axis=0), "it is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES)
def test_nodes_that_are_not_understood_are_told(case: str, tmp_path: Path) -> None:
    content, message = NODES[case]
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    line = one_line(run("compare", path, path), 2)
    assert line.startswith(f"{path}: ") and message in line


def test_parameters_must_be_finite(tmp_path: Path) -> None:
    source = opened(tmp_path / "x.onnx", linear(["q", "s"], Q, f32("s", np.full(4, np.nan)), axis=0))
    with pytest.raises(DataError, match="q: a number of s is not finite"):
        found_in(source)["q"].decode(reader(source), 0, 4)
    source.close()


@settings(max_examples=400)
@given(st.data())
def test_nothing_but_errors_of_ours(data: st.DataObject) -> None:
    """Any bytes of a good file changed, cut or added: read or refused."""
    path = data.draw(st.sampled_from(sorted(GOLDEN.glob("*.onnx"))))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(raw) - 1, data.draw(st.sampled_from([60, 3000, 20_000])))))
        how = data.draw(st.sampled_from(["change", "cut", "add"]))
        if how == "change":
            raw[at] = data.draw(st.integers(0, 255))
        elif how == "cut" and len(raw) > at + 1:
            del raw[at : at + data.draw(st.integers(1, 5))]
        else:
            raw[at:at] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = opened(Path(folder) / path.name, bytes(raw))
            for found in found_in(source).values():
                rows = int(np.prod(found.shape[:-1]))
                assert found.decode(reader(source), rows // 2, rows).shape == (rows - rows // 2, found.shape[-1])
            source.close()
        except QuantcliError as error:
            assert error.place


def test_many_fields_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.stores.protobuf.MOST_FIELDS", 1000)
    with pytest.raises(DataError, match="more than 1000 fields"):
        opened(tmp_path / "x.onnx", model(*[field(2, "n")] * 1000, GOOD))


def test_much_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.stores.protobuf.ALL_TEXT", 1000)
    with pytest.raises(DataError, match="more than 1000 bytes of text"):
        opened(tmp_path / "x.onnx", model(GOOD, more=field(14, field(1, "k") + field(2, "v" * 500)) * 3))


def test_many_elements_one_by_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.stores.onnx_tensors.MOST_ELEMENTS", 100)
    with pytest.raises(DataError, match="more than 100 bytes of elements"):
        opened(tmp_path / "x.onnx", model(tensor("w", I8, (200,), None, field(5, bytes(200)))))
    opened(tmp_path / "x.onnx", model(tensor("w", FLOAT, (50,), None, field(4, bytes(200))))).close()


# ---- on the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--bits", "4", "--group-size", "32"), ("--bits", "2", "--group-size", "16"),
                                   ("--bits", "8", "--group-size", "-1", "--asymmetric")], ids=" ".join)  # fmt: skip
def test_what_quantcli_exports_is_read_as_it_decodes_it(flags: tuple[str, ...], tmp_path: Path) -> None:
    native, out = tmp_path / "native", tmp_path / "out.onnx"
    assert run("quantize", ROOT / "sample_models" / "tiny-llama", *flags, "-o", native).code == 0
    assert run("export", native, *to("onnx"), "-o", out).code == 0
    done = run("compare", native, out, "--json")
    assert done.code == 0, done.err
    quantized = [t for t in done.json["tensors"] if t["disposition"] == "quantized"]
    assert len(quantized) == 14 and all(t["exact"] for t in quantized)


def test_floats_are_quantized_and_quantized_files_are_not(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    (tmp_path / "a.onnx").write_bytes(model(f32("w", weights)))
    save(tmp_path / "a.safetensors", {"w": weights})
    for name in ("a.onnx", "a.safetensors"):
        done = run("quantize", tmp_path / name, "--bits", "4", "--no-default-keep", "-o", tmp_path / f"{name}.q", "-q")
        assert done.code == 0, done.err
    ours, theirs = load(tmp_path / "a.onnx.q"), load(tmp_path / "a.safetensors.q")
    assert ours == theirs and "w_packed" in ours
    assert run("compare", tmp_path / "a.onnx", tmp_path / "a.safetensors").code == 0
    (tmp_path / "b.onnx").write_bytes(NBITS)
    assert "quantized already" in one_line(run("quantize", tmp_path / "b.onnx"), 1)


def test_memory_is_not_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    size = 1 << 28
    own = b"".join([field(1, size // 4), field(2, 1), field(8, "w")]) + varint(9 << 3 | 2) + varint(size)
    graph = varint(5 << 3 | 2) + varint(len(own) + size) + own
    start = field(1, 10) + varint(7 << 3 | 2) + varint(len(graph) + size) + graph
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    tracemalloc.start()
    source = open_source(str(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    source.close()


def test_a_container_has_no_graph(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(model(f32("w", np.random.default_rng(0).normal(size=(64, 128))), node("MatMul", ["x", "w"])))
    assert run("quantize", path, "-o", tmp_path / "out.safetensors", "-q").code == 0
    assert run("quantize", path, "--to", "onnx", "--container", "-o", out, "-q").code == 0
