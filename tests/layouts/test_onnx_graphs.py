"""Models with a graph: what is written computes what the graph computes with the weights that are read back."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import one_line, run
from onnx_parts import Graph, f32, field, model, op, opset, read_model, run_graph, tensor, value, varint

import quantcli.layouts.onnx.rewrite as rewriting
from quantcli.models import open_model

MULTIPLY, LOOK_UP = "com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized"
DECODE, DECODE_ANY = "DequantizeLinear", "com.microsoft.DequantizeLinear"


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def written(path: Path, *graph: bytes, version: int = 17, ir: int = 8, more: bytes = b"") -> Path:
    content = model(*graph, more=opset(version) + more)
    path.write_bytes(field(1, ir) + content[2:])
    return path


def quantized(path: Path, *options: object, keep: bool = False) -> tuple[Path, dict[str, Any]]:
    out = path.with_name("out.onnx")
    words = [] if keep else ["--no-default-keep"]
    done = run("quantize", path, "-o", out, "--force", "--json", *words, *options)
    assert done.code == 0, done.err
    return out, json.loads(done.out)


def with_decoded(graph: Graph, out: Path, turned: dict[str, bool], prefix: str = "") -> Graph:
    """The float graph with the weights that quantcli decodes; turned: matrices that are read as [out, in]."""
    with open_model(str(out)) as found:
        for name in graph.tensors:
            view = found.get(f"{prefix}{name}")
            if view is not None and view.scheme is not None:
                decoded = view.read(0, view.info.numel).reshape(view.info.shape)
                graph.tensors[name] = decoded.T if turned.get(name) else decoded
        for node in graph.nodes:
            if node.operator == "Constant" and f"{prefix}{node.outputs[0]}" in found:
                view = found[f"{prefix}{node.outputs[0]}"]
                decoded = view.read(0, view.info.numel).reshape(view.info.shape)
                node.attributes["value"] = decoded.T if turned.get(node.outputs[0]) else decoded
            for key, inner in node.attributes.items():
                if isinstance(inner, Graph):
                    with_decoded(inner, out, turned, f"{prefix}{node.outputs[0]}/{key}/")
    return graph


CASES: dict[str, tuple[Callable[[], list[bytes]], dict[str, bool], list[str], list[str]]] = {
    "MatMul": (
        lambda: [op("MatMul", ["x", "w"], ["y"]), f32("w", weights(48, 21))],
        {"w": True}, [MULTIPLY], [],
    ),
    "a constant": (
        lambda: [op("Constant", [], ["w"], value=weights(48, 48)), op("MatMul", ["x", "w"], ["y"])],
        {"w": True}, [MULTIPLY], [],
    ),
    "a bias behind": (
        lambda: [op("Gemm", ["x", "w", "b"], ["y"], transB=1), f32("w", weights(64, 48)), f32("b", weights(64))],
        {}, [MULTIPLY, "Add"], ["b"],
    ),
    "a scaled product": (
        lambda: [op("Gemm", ["x", "w"], ["y"], alpha=0.5), f32("w", weights(48, 64))],
        {}, [DECODE_ANY, "Constant", "Reshape", "Gemm"], [],
    ),
    "one weight, three nodes": (
        lambda: [op("Identity", ["w"], ["v"]), op("MatMul", ["x", "w"], ["a"]), op("MatMul", ["a", "v"], ["b"]),
                 op("MatMul", ["b", "w"], ["y"]), f32("w", weights(48, 48)), value(13, "w"), value(13, "a")],
        {"w": True}, [MULTIPLY] * 3, [],
    ),
    "a transpose before": (
        lambda: [op("Transpose", ["w"], ["v"], perm=[1, 0]), op("MatMul", ["x", "v"], ["y"]),
                 f32("w", weights(64, 48))],
        {}, [MULTIPLY], [],
    ),
    "on the left": (
        lambda: [op("Transpose", ["x"], ["a"]), op("MatMul", ["w", "a"], ["y"]), f32("w", weights(64, 48))],
        {}, ["Constant", "Reshape", "Transpose", "MatMul"], [],
    ),
    "it is added too": (
        lambda: [op("MatMul", ["x", "w"], ["a"]), op("MatMul", ["a", "v"], ["b"]), op("Add", ["b", "v"], ["y"]),
                 f32("w", weights(48, 48)), f32("v", weights(48, 48))],
        {"w": True}, [MULTIPLY, "MatMul", "Add"], ["v"],
    ),
    "it is given out": (
        lambda: [op("MatMul", ["x", "w"], ["a"]), op("MatMul", ["a", "v"], ["y"]), f32("w", weights(48, 48)),
                 f32("v", weights(48, 64)), value(12, "w")],
        {"v": True}, ["MatMul", MULTIPLY], ["w"],
    ),
    "it can be replaced": (
        lambda: [op("MatMul", ["x", "w"], ["a"]), op("MatMul", ["a", "v"], ["y"]), f32("w", weights(48, 48)),
                 f32("v", weights(48, 64)), value(11, "w")],
        {"v": True}, ["MatMul", MULTIPLY], ["w"],
    ),
    "names that are taken": (
        lambda: [op("MatMul", ["x", "w"], ["a"]), op("Add", ["a", "w_scale"], ["y_product"]),
                 op("Gemm", ["y_product", "v", "w_quantized"], ["y"]), f32("w", weights(48, 48)),
                 f32("v", weights(48, 64)), f32("w_scale", weights(48)), f32("w_quantized", weights(64))],
        {"w": True, "v": True}, [MULTIPLY, "Add", MULTIPLY, "Add"], ["w_scale", "w_quantized"],
    ),
}  # fmt: skip
"""Nodes and tensors; the matrices that are read transposed; operators of the output; what is kept."""

SCHEMES = {
    "w4g32": ["--bits", "4", "--group-size", "32"],
    "w8c": ["--bits", "8", "--group-size", "-1"],
    "w4g16-asym": ["--bits", "4", "--group-size", "16", "--asymmetric"],
    "w2g16-asym": ["--bits", "2", "--group-size", "16", "--asymmetric"],
    "w4 of everything": ["--bits", "4", "--group-size", "16", "--override", "*:bits=4"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_products(case: str, scheme: str, tmp_path: Path) -> None:
    make, turned, operators, kept = CASES[case]
    path = written(tmp_path / "in.onnx", *make(), value(11, "x"), value(12, "y"))
    out, report = quantized(path, *SCHEMES[scheme])
    graph, sets, ir = read_model(out)
    assert sets == {"": 17, "com.microsoft": 1}
    linear = {DECODE, DECODE_ANY, "Constant", "Reshape"}
    assert [o for o in graph.operators if o not in linear] == [o for o in operators if o not in linear]
    four = any(t["scheme"] and t["scheme"].startswith("w4") for t in report["tensors"])
    assert ir == 8 or (ir == 10 and four and not {DECODE, DECODE_ANY}.isdisjoint(graph.operators))
    floats, _, _ = read_model(path)
    assert (graph.inputs, graph.outputs) == (floats.inputs, floats.outputs)
    assert {t["name"] for t in report["tensors"] if t["disposition"] == "kept"} == set(kept)
    assert all(np.array_equal(graph.tensors[name], floats.tensors[name]) for name in kept)
    x = weights(48, 48, seed=7)
    found = run_graph(graph, {"x": x})
    expected = run_graph(with_decoded(floats, out, turned), {"x": x})
    for name in graph.outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max())


def test_what_is_reported_is_what_compare_measures(tmp_path: Path) -> None:
    for name, (make, *_) in CASES.items():
        path = written(tmp_path / "in.onnx", *make())
        out, report = quantized(path, "--bits", "4", "--group-size", "32")
        rows = {t["name"]: t["sqnr_db"] for t in report["tensors"]}
        for words in (["compare", path, out], ["report", out, "--against", path]):
            done = run(*words, "--json")
            assert done.code == 0, (name, done.err)
            seen = {t["name"]: t["sqnr_db"] for t in done.json["tensors"]}
            assert seen == {n: v if v is None else pytest.approx(v, rel=1e-7) for n, v in rows.items()}


def test_other_bits_than_were_asked_for_are_said_before_the_table(tmp_path: Path) -> None:
    nodes = [op("Conv", ["x", "k"], ["z"]), f32("k", weights(24, 4, 3, 3)), op("MatMul", ["z", "m"], ["y"])]
    path = written(tmp_path / "in.onnx", *nodes, f32("m", weights(64, 32)))
    done = run("quantize", path, "-o", tmp_path / "out.onnx", "--bits", "4", "--no-default-keep")
    assert done.code == 0
    assert "1 tensor: 8 bits instead of 4, as onnxruntime's tools give all but matrices" in done.err


@pytest.mark.parametrize("flags", [[], ["--asymmetric"], ["--override", "*:bits=4"]], ids=" ".join)
@pytest.mark.parametrize(("shape", "version", "operator"), [
    ((24, 4, 3, 3), 11, DECODE_ANY), ((24, 4, 3, 3), 13, DECODE), ((33, 5, 3, 3), 21, DECODE),
    ((8, 128, 3, 3), 17, DECODE), ((64, 1, 5, 5), 12, DECODE_ANY),
])  # fmt: skip
def test_convolutions(shape: tuple[int, ...], version: int, operator: str, flags: list[str], tmp_path: Path) -> None:
    nodes = [op("Conv", ["x", "k"], ["y"]), f32("k", weights(*shape))]
    path = written(tmp_path / "in.onnx", *nodes, version=version)
    out, report = quantized(path, "--bits", "4", *flags)
    (row,) = report["tensors"]
    four = "--override" in flags
    assert row["scheme"].startswith("w4" if four else "w8")
    assert four or row["note"].startswith("8 bits instead of 4, as onnxruntime's tools give")
    graph, sets, ir = read_model(out)
    expected_operator = DECODE_ANY if four and version < 21 else operator
    assert graph.operators[0] == expected_operator and sets[""] == version and ir == (10 if four else 8)
    x = weights(1, shape[1], 6, 6, seed=3)
    found = run_graph(graph, {"x": x})["y"]
    expected = run_graph(with_decoded(read_model(path)[0], out, {}), {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flags", [["--group-size", "32"], ["--bits", "8"], ["--asymmetric", "--group-size", "16"]],
                         ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("cols", [48, 40, 51])
def test_rows_that_are_looked_up(cols: int, flags: list[str], tmp_path: Path) -> None:
    nodes = [op("Gather", ["tokens.embed", "x"], ["y"]), f32("tokens.embed", weights(30, cols))]
    path = written(tmp_path / "in.onnx", *nodes)
    out, report = quantized(path, *flags, keep=True)
    graph, _, _ = read_model(out)
    assert graph.operators == [LOOK_UP]
    assert cols != 51 or report["tensors"][0]["scheme"].startswith("w8")
    x = np.array([[3, 0], [29, 7]])
    expected = run_graph(with_decoded(read_model(path)[0], out, {}), {"x": x})["y"]
    np.testing.assert_allclose(run_graph(graph, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["Transpose", "Gemm"])
@pytest.mark.parametrize("cols", [64, 50])
def test_a_head_that_is_the_embedding(how: str, cols: int, tmp_path: Path) -> None:
    """Its codes are stored once; rows that end between blocks are looked up in them."""
    head = [op("Transpose", ["e"], ["et"]), op("MatMul", ["a", "et"], ["y"])]
    head = head if how == "Transpose" else [op("Gemm", ["a", "e"], ["y"], transB=1)]
    path = written(tmp_path / "in.onnx", op("Gather", ["e", "x"], ["a"]), *head, f32("e", weights(40, cols)))
    out, _ = quantized(path, "--bits", "4", "--group-size", "32")
    graph, _, _ = read_model(out)
    assert (MULTIPLY in graph.operators) == (LOOK_UP in graph.operators) == (cols == 64)
    assert sum(t.nbytes for t in graph.tensors.values()) < 40 * cols * (0.8 if cols == 64 else 1.3)
    x = np.array([5, 39])
    expected = run_graph(with_decoded(read_model(path)[0], out, {}), {"x": x})["y"]
    np.testing.assert_allclose(run_graph(graph, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_branches_and_what_they_see_of_the_graph_around_them(tmp_path: Path) -> None:
    def branch(seed: int) -> bytes:
        return b"".join([op("Constant", [], ["w"], value=weights(48, 32, seed=seed)), op("MatMul", ["x", "w"], ["m"]),
                         op("Identity", ["m"], ["n"]), op("MatMul", ["n", "v"], ["o"]), value(12, "o")])  # fmt: skip

    nodes = [op("If", ["c"], ["y"], then_branch=branch(1), else_branch=branch(2)), f32("v", weights(32, 64))]
    path = written(tmp_path / "in.onnx", *nodes)
    out, report = quantized(path, "--bits", "8")
    assert [t["name"] for t in report["tensors"]] != [] and all(t["scheme"] for t in report["tensors"])
    for choice in (True, False):
        given = {"x": weights(4, 48, seed=4), "c": np.array(choice)}
        expected = run_graph(with_decoded(read_model(path)[0], out, {"w": True, "v": True}), given)["y"]
        np.testing.assert_allclose(run_graph(read_model(out)[0], given)["y"], expected, rtol=1e-4, atol=1e-4)


def test_functions_hold_constants(tmp_path: Path) -> None:
    body = [op("Constant", [], ["w"], value=weights(48, 64)), op("MatMul", ["a", "w"], ["b"])]
    function = field(1, "lin") + field(10, "lib") + field(4, "a") + field(5, "b") + opset(17)[0:0]
    function += b"".join(field(7, node[2:] if node[1] < 128 else node[3:]) for node in map(_as_field_1, body))
    path = written(tmp_path / "in.onnx", op("lin", ["x"], ["c"], "lib"), op("MatMul", ["c", "v"], ["y"]),
                   f32("v", weights(64, 32)), more=field(25, function))  # fmt: skip
    out, report = quantized(path, "--bits", "8")
    assert {t["name"]: t["scheme"] for t in report["tensors"]} == {"lib/lin/w": "w8g128", "v": "w8g128"}
    done = run("compare", path, out, "--json")
    assert done.code == 0 and done.json["summary"]["sqnr_db"] == pytest.approx(report["summary"]["sqnr_db"], rel=1e-7)


def _as_field_1(node: bytes) -> bytes:
    assert node[0] == 10
    return node


def test_old_files_whose_initializers_are_inputs(tmp_path: Path) -> None:
    nodes = [op("MatMul", ["x", "w"], ["a"]), op("Add", ["a", "b"], ["y"]), f32("w", weights(48, 64)),
             f32("b", weights(64)), *(value(11, name) for name in ("x", "w", "b")), value(12, "y")]  # fmt: skip
    path = written(tmp_path / "in.onnx", *nodes, version=9, ir=3)
    out, _ = quantized(path, "--bits", "4")
    graph, sets, ir = read_model(out)
    assert (graph.inputs, ir, sets[""]) == (["x"], 4, 9)
    x = weights(3, 48, seed=2)
    expected = run_graph(with_decoded(read_model(path)[0], out, {"w": True}), {"x": x})["y"]
    np.testing.assert_allclose(run_graph(graph, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_has_scales_of_its_own(tmp_path: Path) -> None:
    half = weights(48, 64).astype(np.float16)
    path = written(tmp_path / "in.onnx", op("MatMul", ["x", "w"], ["y"]), tensor("w", 10, half.shape, half.tobytes()))
    out, report = quantized(path, "--bits", "4", "--scale-dtype", "float32")
    assert read_model(out)[0].tensors["w_scale"].dtype == np.float16
    assert "scales in float16" in report["tensors"][0]["note"]
    done = run("compare", path, out, "--json")
    assert done.json["tensors"][0]["sqnr_db"] == pytest.approx(report["tensors"][0]["sqnr_db"], rel=1e-7)


def test_a_tensor_is_not_followed_for_ever(tmp_path: Path) -> None:
    """Each pair of nodes doubles the ways through the graph."""
    nodes = [f32("w0", weights(32, 64))]
    for i in range(30):
        nodes += [op("Identity", [f"w{i}"], [f"a{i}"]), op("Concat", [f"w{i}", f"a{i}"], [f"w{i + 1}"], axis=0)]
    nodes += [op("MatMul", ["x", "w30"], ["y"]), op("MatMul", ["x", "v"], ["z"]), f32("v", weights(32, 64))]
    path = written(tmp_path / "in.onnx", *nodes)
    _, report = quantized(path)
    assert {t["name"]: t["reason"] for t in report["tensors"]} == {"w0": "target", "v": "default"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_graphs_are_written_or_refused(data: st.DataObject) -> None:
    """Any bytes of a good file changed, cut or added: no error that is not ours."""
    make, *_ = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "in.onnx", *make(), value(11, "x"), value(12, "y"))
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, min(len(raw) - 1, 200)))
            how = data.draw(st.sampled_from(["change", "cut", "add"]))
            if how == "change":
                raw[at] = data.draw(st.integers(0, 255))
            elif how == "cut":
                del raw[at : at + data.draw(st.integers(1, 5))]
            else:
                raw[at:at] = data.draw(st.binary(max_size=4))
        path.write_bytes(raw)
        done = run("quantize", path, "-o", Path(folder) / "out.onnx", "--no-default-keep", "-q")
        assert done.code in (0, 1, 2) and "internal error" not in done.err, done
        if done.code == 0:
            assert run("inspect", Path(folder) / "out.onnx").code == 0


# ---- files ------------------------------------------------------------------------------------------------------


def large(path: Path) -> Path:
    nodes = [
        op("MatMul", ["x", "w"], ["a"]),
        op("Add", ["a", "b"], ["c"]),
        op("MatMul", ["c", "v"], ["d"]),
        op("Gemm", ["d", "u", "s"], ["y"]),
        op("Constant", [], ["u"], value=weights(96, 64)),
        *(f32(n, weights(*s)) for n, s in {"w": (300, 96), "b": (40, 96), "v": (96, 96), "s": (64,)}.items()),
    ]
    return written(path, *[nodes[4], *nodes[:4], *nodes[5:]])  # fmt: skip


def test_threads_do_not_matter(tmp_path: Path) -> None:
    path, found = large(tmp_path / "in.onnx"), set()
    for threads in (1, 2, 7):
        out, _ = quantized(path, "--threads", threads, "--asymmetric")
        found.add(out.read_bytes())
    assert len(found) == 1


def test_what_is_excluded_is_as_it_was(tmp_path: Path) -> None:
    """Matrices that are read transposed are written as they were."""
    path = large(tmp_path / "in.onnx")
    out, report = quantized(path, "--exclude", "w", "--exclude", "u")
    assert [t["reason"] for t in report["tensors"] if t["name"] in "wu"] == ["excluded"] * 2
    before, after = read_model(path)[0], read_model(out)[0]
    assert np.array_equal(before.tensors["w"], after.tensors["w"])
    assert np.array_equal(before.nodes[0].attributes["value"], after.nodes[0].attributes["value"])


@pytest.mark.parametrize("asked", [[], ["--exclude", "w"]])
def test_a_second_file(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one file would be larger than protobuf reads, tensors are in another; shapes and the like are not."""
    path, x = large(tmp_path / "in.onnx"), {"x": weights(40, 300, seed=1)}
    out, whole = quantized(path, *asked)
    expected = run_graph(read_model(out)[0], x)["y"]
    monkeypatch.setattr(rewriting, "LIMIT", 20_000)
    out, report = quantized(path, *asked)
    graph, _, _ = read_model(out)
    assert np.array_equal(run_graph(graph, x)["y"], expected)
    data = out.with_name("out.onnx.data")
    assert report["summary"]["bytes_out"] == out.stat().st_size + data.stat().st_size and out.stat().st_size < 20_000
    assert report["summary"]["sqnr_db"] == whole["summary"]["sqnr_db"]
    assert run("compare", path, out).code == 0
    # and a file in two parts is a source
    again, _ = quantized(path, *asked)
    monkeypatch.setattr(rewriting, "LIMIT", 1 << 30)
    line = one_line(run("quantize", again, "-o", tmp_path / "again.onnx"), 1)
    assert "quantized already" in line
    monkeypatch.setattr(rewriting, "LIMIT", 100)
    line = one_line(run("quantize", path, "-o", out, "--force"), 1)
    assert "its graph alone" in line


def test_a_plan_has_the_bytes(tmp_path: Path) -> None:
    path = large(tmp_path / "in.onnx")
    plan = run("quantize", path, "-o", tmp_path / "out.onnx", "--dry-run", "--json").json
    out, report = quantized(path, keep=True)
    assert plan["summary"]["bytes_out"] == report["summary"]["bytes_out"] == out.stat().st_size
    size = out.stat().st_size + 3000
    done = run("quantize", path, "--to", "onnx", "--target-size", f"{size}B", "-o", tmp_path / "fit.onnx", "-q")
    assert done.code == 0, done.err
    assert (tmp_path / "fit.onnx").stat().st_size <= size


def test_memory_is_not_that_of_a_matrix(tmp_path: Path) -> None:
    """Nor of one that is read transposed."""
    rows, cols = 1 << 12, 1 << 13
    size = rows * cols * 4
    own = field(1, rows) + field(1, cols) + field(2, 1) + field(8, "w") + varint(9 << 3 | 2) + varint(size)
    graph = op("MatMul", ["x", "w"], ["y"]) + varint(5 << 3 | 2) + varint(len(own) + size) + own
    start = field(1, 8) + opset(17) + varint(7 << 3 | 2) + varint(len(graph) + size) + graph
    path = tmp_path / "x.onnx"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    tracemalloc.start()
    done = run("quantize", path, "-o", tmp_path / "out.onnx", "-q", "--calibration", "minmax", "--threads", "1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.code == 0 and peak < 40 << 20
