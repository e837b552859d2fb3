"""ComfyUI's layouts, written out here value by value; descriptions that say more; what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import (
    FLOATS,
    Parts,
    changed,
    check_every_piece,
    decoded,
    floats,
    found_in,
    hadamard,
    kept,
    only,
    without,
)
from making import ROOT, one_line, raw_tensors, run

from quantcli.errors import DataError

KEY = "_quantization_metadata"


def header(**said: Any) -> dict[str, Any]:
    return {KEY: {"m": said}}


def described(said: Any) -> tuple[str, tuple[int, ...], bytes]:
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    return "U8", (len(raw),), raw


def int8(scale: np.ndarray) -> tuple[Parts, np.ndarray]:
    q = np.random.default_rng(0).integers(-128, 128, (37, 10))
    parts: Parts = {"m.weight": ("I8", (37, 10), q.astype(np.int8).tobytes()), "m.weight_scale": floats(scale, "F32")}
    return parts, q.astype(np.float32) * scale.astype(np.float32).reshape(-1, 1)


def awq(rows: int, cols: int, group: int, dtype: str = "BF16") -> tuple[Parts, np.ndarray]:
    rng = np.random.default_rng(rows)
    u = rng.integers(0, 16, (rows, cols))
    scale, zeros = rng.normal(size=(cols // group, rows)), rng.normal(size=(cols // group, rows))
    raw = bytes(int(low) | int(high) << 4 for row in u for low, high in zip(row[::2], row[1::2]))
    parts: Parts = {
        "m.weight": ("I8", (rows, cols // 2), raw),
        "m.weight_scale": floats(scale, dtype),
        "m.weight_zeros": floats(zeros, dtype),
    }
    s, z = kept(scale, dtype), kept(zeros, dtype)
    return parts, np.array([[np.float32(int(u[o, i]) - 8) * s[i // group, o] + z[i // group, o] for i in range(cols)]
                            for o in range(rows)], np.float32)  # fmt: skip


ROWS = np.random.default_rng(1).uniform(0.001, 0.1, 37)


@pytest.mark.parametrize("scale", [ROWS, ROWS.reshape(37, 1), np.array(0.02), np.array([0.02])], ids=lambda s: s.shape)
def test_int8(scale: np.ndarray) -> None:
    parts, expected = int8(scale)
    own = {**parts, "m.comfy_quant": described({"format": "int8_tensorwise", "per_row": True})}
    for given_parts, config in [(parts, header(format="int8_tensorwise")), (own, {})]:
        found = only(found_in(given_parts, config))
        assert (found.name, found.shape, found.bits) == ("m.weight", (37, 10), 8)
        assert found.scheme == ("w8c" if scale.size > 1 else "w8t")
        assert {p.name for p in found.parts} == set(given_parts)
        check_every_piece(found, given_parts, expected)


@pytest.mark.parametrize(
    ("kind", "dtype", "known"),
    [("float8_e4m3fn", "F8_E4M3", ml_dtypes.float8_e4m3fn), ("float8_e5m2", "F8_E5M2", ml_dtypes.float8_e5m2)],
)
def test_8_bit_floats(kind: str, dtype: str, known: Any) -> None:
    raw = np.random.default_rng(0).normal(size=(5, 30)).astype(known)
    parts: Parts = {"m.weight": (dtype, (5, 30), raw.tobytes()), "m.weight_scale": floats(np.array(0.25), "F32")}
    expected = raw.astype(np.float32) * np.float32(0.25)
    check_every_piece(only(found_in(parts, header(format=kind))), parts, expected)
    held = {**parts, "m.weight": ("U8", (5, 30), raw.tobytes())}
    found = only(found_in(held, header(format=kind)))
    assert found.scheme == f"fp8-{kind[7:11]}t"
    check_every_piece(found, held, expected)
    older = {"m.weight": parts["m.weight"], "m.scale_weight": parts["m.weight_scale"]}
    check_every_piece(only(found_in(older)), older, expected)
    with pytest.raises(DataError, match="are not supported"):
        found_in({**older, "m.scale_weight": floats(np.ones(5), "F32")})


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("size", [4, 16, 64, 1024])
def test_rotated_columns(size: int, within: bool) -> None:
    q = np.random.default_rng(size).integers(-128, 128, (7, 2 * size)).astype(np.int8)
    scale = np.random.default_rng(1).uniform(0.001, 0.1, (7, 1)).astype(np.float32)
    parts: Parts = {"m.weight": ("I8", q.shape, q.tobytes()), "m.weight_scale": floats(scale, "F32")}
    said = {"convrot": True, "convrot_groupsize": size}
    description = {"format": "int8_tensorwise", **({"params": said} if within else said)}
    whole = (q.reshape(7, 2, size).astype(np.float64) @ hadamard(size)).reshape(7, -1)
    found = only(found_in({**parts, "m.comfy_quant": described(description)}))
    assert found.scheme == f"w8c-rot{size}"
    check_every_piece(found, {**parts, "m.comfy_quant": described(description)}, whole.astype(np.float32) * scale)
    off = {**description, "convrot": False, "params": None}
    check_every_piece(only(found_in(parts, header(**off))), parts, q.astype(np.float32) * scale)


def test_awq() -> None:
    for rows, cols, group, said in [(40, 192, 64, {"group_size": 64}), (3, 90, 18, {}), (7, 64, 64, {})]:
        parts, expected = awq(rows, cols, group)
        found = only(found_in(parts, header(format="awq_w4a16", **said)))
        assert (found.name, found.shape, found.bits) == ("m.weight", (rows, cols), 4)
        assert found.scheme == ("w4c-float" if group == cols else f"w4g{group}-float")
        check_every_piece(found, parts, expected)


# ---- malformed --------------------------------------------------------------------------------------------------

INT8, AWQ = int8(ROWS.reshape(37, 1))[0], awq(40, 192, 64)[0]
PLAIN, PACKED = header(format="int8_tensorwise"), header(format="awq_w4a16")
WRONG: dict[str, tuple[Parts, Any, str]] = {
    "rotated": (INT8, header(format="int8_tensorwise", convrot=True), "256 of its columns are rotated together, of"),
    "rotated by 8": (INT8, header(format="int8_tensorwise", convrot=True, convrot_groupsize=8), "8 columns are not"),
    "rotated by text": (INT8, header(format="int8_tensorwise", convrot=True, convrot_groupsize="4"), "'4' columns are"),
    "rotated within": (INT8, header(format="int8_tensorwise", params={"convrot": True}), "256 of its columns"),
    "unknown within": (INT8, header(format="int8_tensorwise", params={"shuffled": 3}), "with shuffled"),
    "floats rotated": (INT8, header(format="float8_e4m3fn", convrot=True), "float8_e4m3fn with convrot"),
    "something new": (INT8, header(format="int8_tensorwise", shuffled="x"), "with shuffled"),
    "format": (INT8, header(format="convrot_w4a4"), "format convrot_w4a4 is not supported"),
    "no format": (INT8, header(), "format none is not supported".replace("none", "None")),
    "format of a number": (INT8, header(format=3), "is not text"),
    "a word": (INT8, {KEY: {"m": "int8"}}, "not an object"),
    "no weight": (without(INT8, "m.weight"), PLAIN, "m.weight is missing"),
    "no scale": (without(INT8, "m.weight_scale"), PLAIN, "m.weight_scale is missing"),
    "scales": (changed(INT8, "m.weight_scale", shape=(36, 1)), PLAIN, "do not match"),
    "scales turned": (changed(INT8, "m.weight_scale", shape=(1, 37)), PLAIN, "do not match"),
    "floats as int8": ({**INT8, "m.weight": floats(np.ones((37, 10)), "F16")}, PLAIN, "is F16"),
    "bytes as floats": (INT8, header(format="float8_e4m3fn"), "is I8"),
    "own and header": ({**INT8, "m.comfy_quant": described({"format": "float8_e4m3fn"})}, PLAIN, "contradicts"),
    "no JSON": ({**INT8, "m.comfy_quant": described(b"{")}, {}, "not valid JSON"),
    "deep": ({**INT8, "m.comfy_quant": described(b"[" * 60_000)}, {}, "nested too deeply"),
    "long": ({**INT8, "m.comfy_quant": described(b" " * 70_000)}, {}, "70000 bytes is not a description"),
    "zeros alone": (AWQ, {}, "without a description of their format"),
    "no zeros": (without(AWQ, "m.weight_zeros"), PACKED, "m.weight_zeros is missing"),
    "zeros": (changed(AWQ, "m.weight_zeros", shape=(3, 39)), PACKED, "do not match"),
    "groups": (changed(changed(AWQ, "m.weight_scale", shape=(5, 40)), "m.weight_zeros", shape=(5, 40)), PACKED,
               "do not match"),
    "group size": (AWQ, header(format="awq_w4a16", group_size=32), "says groups of 32"),
    "group text": (AWQ, header(format="awq_w4a16", group_size="64"), "is not from 1 to"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_malformed_is_told(case: str) -> None:
    parts, config, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        found_in(parts, config)
    assert message in str(caught.value)


def test_parameters_must_be_finite() -> None:
    for parts, name, config in [(INT8, "m.weight_scale", PLAIN), (AWQ, "m.weight_zeros", PACKED)]:
        dtype, shape, raw = parts[name]
        bad = np.array([np.nan], FLOATS[dtype]).tobytes()
        bad_parts = {**parts, name: (dtype, shape, bad + raw[len(bad) :])}
        with pytest.raises(DataError, match="not finite"):
            decoded(only(found_in(bad_parts, config)), bad_parts)


def test_without_reading_a_description_is_refused() -> None:
    with pytest.raises(DataError, match="data is not available"):
        found_in({**INT8, "m.comfy_quant": described({"format": "int8_tensorwise"})}, reading=False)
    assert len(found_in(INT8, PLAIN, reading=False)) == 1


@settings(max_examples=300)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    """Any part of another shape, dtype or content, any description: decoded or refused."""
    parts = dict(data.draw(st.sampled_from([INT8, AWQ])))
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), max_size=2, unique=True)):
        dtype = data.draw(st.sampled_from([parts[name][0], "F16", "I8", "U8", "F32", "F8_E4M3"]))
        shape = data.draw(st.just(parts[name][1]) | st.lists(st.integers(0, 40), max_size=3).map(tuple))
        parts = changed(parts, name, dtype=dtype, shape=shape)
        raw = data.draw(st.binary(max_size=24)) + parts[name][2]
        parts[name] = (dtype, shape, raw[: len(parts[name][2])])
    values = st.none() | st.booleans() | st.integers(0, 70) | st.sampled_from(["awq_w4a16", "int8_tensorwise", "x"])
    said = data.draw(st.dictionaries(st.sampled_from(["format", "group_size", "convrot"]), values) | values)
    if data.draw(st.booleans()):
        parts["m.comfy_quant"] = described(said)
    try:
        for found in found_in(parts, data.draw(st.sampled_from([{}, {KEY: {"m": said}}, PLAIN, PACKED]))):
            rows = int(np.prod(found.shape[:-1]))
            assert decoded(found, parts).size == np.prod(found.shape)
            assert decoded(found, parts, rows // 2).shape[0] == rows - rows // 2
    except DataError as error:
        assert error.place


def test_tensors_without_a_description_are_left_alone() -> None:
    assert found_in({"m.weight": ("U8", (4, 4), bytes(16)), "m.weight_scale": floats(np.ones((2, 4)), "F32")}) == []
    assert found_in({"m.weight": ("F8_E4M3", (4, 4), bytes(16)), "m.bias": floats(np.ones(4), "F32")}) == []
    assert found_in({"m.weight": floats(np.ones((4, 4)), "F16"), "m.scale_weight": floats(np.ones(1), "F32")}) == []


# ---- on the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--group-size", "-1"), ("--group-size", "0")])
def test_what_quantcli_exports_is_read_as_it_decodes_it(flags: tuple[str, ...], tmp_path: Path) -> None:
    native, out = tmp_path / "native", tmp_path / "out"
    model = ROOT / "sample_models" / "tiny-llama"
    assert run("quantize", model, "--bits", "8", *flags, "-o", native).code == 0
    assert run("export", native, "--to", "comfyui", "-o", out).code == 0
    (out / "config.json").unlink()  # ComfyUI has none: the header alone tells
    done = run("compare", native, out, "--json")
    assert done.code == 0, done.err
    quantized = [t for t in done.json["tensors"] if t["disposition"] == "quantized"]
    assert len(quantized) == 14 and all(t["scheme"] == "w8c" and t["exact"] for t in quantized)


@pytest.mark.parametrize(("said", "message"), [
    ({"layers": {"m": {"format": "int8_tensorwise", "convrot": True}}}, "m.weight: 256 of its columns are rotated"),
    ({"layers": []}, "_quantization_metadata: its layers are not an object"),
    ([1], "_quantization_metadata: its layers are not an object"),
    ("{", "_quantization_metadata: it is not valid JSON"),
    ({"layers": {"n": {"format": "int8_tensorwise"}}}, "n.weight: n.weight is missing"),
])  # fmt: skip
def test_headers_are_read(said: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {KEY: said if isinstance(said, str) else json.dumps(said)}
    path.write_bytes(raw_tensors(INT8, metadata))
    line = one_line(run("compare", path, path), 2)
    assert str(path) in line and message in line
