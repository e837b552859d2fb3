"""bitsandbytes' layouts, written out here value by value; what is malformed; what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import Parts, changed, check_every_piece, decoded, floats, found_in, only, without
from making import ROOT, one_line, raw_tensors, run

from quantcli.errors import DataError

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
FP4 = [v / 12 * sign for sign in (1, -1) for v in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
LEVELS = {"nf4": NF4, "fp4": FP4}


def four_bits(
    kind: str, shape: tuple[int, ...], block: int, seed: int = 0, *, dtype: str = "U8", **state: Any
) -> tuple[Parts, np.ndarray]:
    """A weight and what it stands for."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    u = rng.integers(0, 16, n + n % 2)
    u[n:] = 0
    largest = rng.uniform(0.1, 3, -(-n // block)).astype(np.float32)
    said = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": list(shape), **state}
    raw = bytes(int(a) << 4 | int(b) for a, b in zip(u[::2], u[1::2]))
    size = {"U8": 1, "BF16": 2, "F32": 4}[dtype]
    parts: Parts = {
        "m.weight": (dtype, (len(raw) // size, 1), raw),
        "m.weight.absmax": floats(largest, "F32"),
        "m.weight.quant_map": floats(np.array(LEVELS[kind]), "F32"),
        f"m.weight.quant_state.bitsandbytes__{kind}": described(said),
    }
    values = np.array([np.float32(LEVELS[kind][int(code)]) * largest[i // block] for i, code in enumerate(u[:n])])
    return parts, values.astype(np.float32).reshape(-1, shape[-1])


def described(state: Any) -> tuple[str, tuple[int, ...], bytes]:
    raw = state if isinstance(state, bytes) else json.dumps(state).encode()
    return "U8", (len(raw),), raw


def nested(seed: int = 0) -> tuple[Parts, np.ndarray]:
    """A weight whose largest magnitudes are codes, in blocks of 3 of them."""
    parts, _ = four_bits("nf4", (8, 40), 32, seed, nested_blocksize=3, nested_dtype="float32", nested_offset=0.25)
    rng = np.random.default_rng(seed)
    codes, levels, outer = rng.integers(0, 256, 10), rng.normal(size=256), rng.uniform(0.5, 2, 4)
    parts["m.weight.absmax"] = ("U8", (10,), bytes(codes.tolist()))
    parts["m.weight.nested_quant_map"] = floats(levels, "F32")
    parts["m.weight.nested_absmax"] = floats(outer, "F32")
    largest = [np.float32(levels[c]) * np.float32(outer[i // 3]) + np.float32(0.25) for i, c in enumerate(codes)]
    raw = parts["m.weight"][2]
    u = [nibble for byte in raw for nibble in (byte >> 4, byte & 15)]
    values = np.array([np.float32(NF4[code]) * largest[i // 32] for i, code in enumerate(u)], np.float32)
    return parts, values.reshape(8, 40)


def eight_bits() -> tuple[Parts, np.ndarray]:
    rng = np.random.default_rng(0)
    q, largest = rng.integers(-127, 128, (37, 10)), rng.uniform(0.1, 2, 37).astype(np.float32)
    parts: Parts = {
        "m.weight": ("I8", (37, 10), q.astype(np.int8).tobytes()),
        "m.SCB": floats(largest, "F32"),
        "m.weight_format": ("U8", (), b"\0"),
    }
    return parts, (q / 127 * largest[:, None]).astype(np.float32)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits(kind: str) -> None:
    for shape, block, dtype in [((37, 64), 64, "U8"), ((9, 53), 64, "U8"), ((40, 10), 32, "BF16"),
                                ((3, 4, 24), 16, "F32"), ((50,), 64, "U8")]:  # fmt: skip
        parts, expected = four_bits(kind, shape, block, dtype=dtype)
        found = only(found_in(parts))
        assert (found.name, found.shape, found.bits) == ("m.weight", shape, 4)
        assert found.scheme == f"{'nf4' if kind == 'nf4' else 'bnb-fp4'}g{block}"
        assert {p.name for p in found.parts} == set(parts)
        check_every_piece(found, parts, expected)


def test_the_first_of_two_codes_is_in_the_high_bits() -> None:
    parts, _ = four_bits("nf4", (2, 2), 4)
    parts |= {"m.weight": ("U8", (2, 1), b"\x0f\x78"), "m.weight.absmax": floats(np.array([2.0]), "F32")}
    expected = np.array([[-2, 2], [0, 2 * NF4[8]]], np.float32)
    np.testing.assert_array_equal(decoded(only(found_in(parts)), parts), expected)


def test_nested_largest_magnitudes() -> None:
    parts, expected = nested()
    found = only(found_in(parts))
    assert found.scheme == "nf4g32-double" and {p.name for p in found.parts} == set(parts)
    check_every_piece(found, parts, expected)


def test_int8() -> None:
    parts, expected = eight_bits()
    for given_parts in (parts, without(parts, "m.weight_format")):
        for reading in (True, False):
            found = only(found_in(given_parts, reading=reading))
            assert (found.name, found.shape, found.scheme, found.bits) == ("m.weight", (37, 10), "w8c", 8)
            np.testing.assert_allclose(decoded(found, parts), expected, rtol=3e-7)
        check_every_piece(found, parts, decoded(found, parts))


def test_only_the_bytes_of_these_rows_are_read() -> None:
    parts, _ = four_bits("nf4", (64, 128), 32)
    found, sizes = only(found_in(parts)), []

    def counted(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        assert count == 1
        sizes.append(size)
        return np.frombuffer(parts[name][2][start : start + size], np.uint8)

    found.decode(counted, 40, 41)
    assert sum(sizes) == 64 + 4 * 4


# ---- malformed --------------------------------------------------------------------------------------------------

FOUR, NESTED, EIGHT = four_bits("nf4", (37, 64), 64)[0], nested()[0], eight_bits()[0]
STATE = "m.weight.quant_state.bitsandbytes__nf4"
GOOD = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [37, 64]}
TURNED = floats(np.array(NF4[::-1]), "F32")


def stated(**changes: Any) -> Parts:
    return {**FOUR, STATE: described({**GOOD, **changes})}


WRONG: dict[str, tuple[Parts, str]] = {
    "no codes": (without(FOUR, "m.weight"), "m.weight is missing"),
    "no absmax": (without(FOUR, "m.weight.absmax"), "m.weight.absmax is missing"),
    "no map": (without(FOUR, "m.weight.quant_map"), "m.weight.quant_map is missing"),
    "codes of integers": (changed(FOUR, "m.weight", dtype="I64"), "is I64"),
    "too few codes": (changed(FOUR, "m.weight", shape=(37, 31)), "1147 bytes of codes do not match the shape [37, 64]"),
    "other map": ({**FOUR, "m.weight.quant_map": TURNED}, "quant_map differs from the levels of nf4"),
    "map of nothing": ({**FOUR, "m.weight.quant_map": floats(np.full(16, np.nan), "F32")}, "not finite"),
    "short map": (changed(FOUR, "m.weight.quant_map", shape=(8,)), "8 levels instead of 16"),
    "other kind": ({**without(FOUR, STATE), "m.weight.quant_state.bitsandbytes__af4": described(GOOD)}, "af4"),
    "two kinds": ({**FOUR, STATE.replace("nf4", "fp4"): described(GOOD)}, "described twice"),
    "fp4 called nf4": (stated(quant_type="fp4"), "does not describe a weight of nf4"),
    "no JSON": ({**FOUR, STATE: described(b"{")}, "not valid JSON"),
    "twice in JSON": ({**FOUR, STATE: described(b'{"blocksize":64,"blocksize":64}')}, "duplicate key"),
    "JSON of JSON": ({**FOUR, STATE: described(b"[" * 40_000)}, "nested too deeply"),
    "a list": ({**FOUR, STATE: described([1])}, "does not describe"),
    "long": ({**FOUR, STATE: described(b" " * 70_000)}, "70000 bytes is not a description"),
    "not bytes": (changed(FOUR, STATE, dtype="F32"), "is not a description"),
    "no block": (stated(blocksize=0), "blocksize 0 is not a whole number"),
    "half a block": (stated(blocksize=64.0), "blocksize 64.0 is not a whole number"),
    "other block": (stated(blocksize=128), "absmax [37] does not match 19 blocks"),
    "no shape": (stated(shape=None), "shape None is not valid for a weight"),
    "empty shape": (stated(shape=[]), "shape [] is not valid for a weight"),
    "negative shape": (stated(shape=[-37, -64]), "is not valid for a weight"),
    "huge shape": (stated(shape=[1 << 62, 1 << 62, 1 << 62]), "bytes of codes do not match"),
    "true shape": (stated(shape=[True, 37 * 64]), "is not valid for a weight"),
    "nested without map": (without(NESTED, "m.weight.nested_quant_map"), "m.weight.nested_quant_map is missing"),
    "nested without absmax": (without(NESTED, "m.weight.nested_absmax"), "m.weight.nested_absmax is missing"),
    "nested in floats": ({**NESTED, "m.weight.absmax": floats(np.ones(10), "F32")}, "is F32"),
    "nested in words": ({**FOUR, "m.weight.absmax": ("U8", (37,), bytes(37))}, "nested_blocksize None"),
    "nested blocks": (changed(NESTED, "m.weight.nested_absmax", shape=(3,)), "do not match 10 blocks"),
    "int8 rows": (changed(EIGHT, "m.SCB", shape=(36,)), "SCB [36] does not match codes [37, 10]"),
    "int8 dtype": (changed(EIGHT, "m.SCB", dtype="F16"), "is F16"),
    "int8 order": ({**EIGHT, "m.weight_format": ("U8", (), b"\2")}, "weight_format 2 (col_turing)"),
    "int8 orders": (changed(EIGHT, "m.weight_format", shape=(2,)), "does not match"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_malformed_is_told(case: str) -> None:
    parts, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        found_in(parts)
    assert message in str(caught.value)
    assert caught.value.place[0].startswith("m.weight")


def test_offsets_and_largest_magnitudes_must_be_finite() -> None:
    for offset in (None, "1", 1e39, 10**400, True):
        state = {"quant_type": "nf4", "blocksize": 32, "shape": [8, 40], "nested_blocksize": 3, "nested_offset": offset}
        with pytest.raises(DataError, match="nested_offset"):
            found_in({**NESTED, STATE: described(state)})
    bad = {**FOUR, "m.weight.absmax": floats(np.full(37, np.inf), "F32")}
    with pytest.raises(DataError, match="not finite"):
        decoded(only(found_in(bad)), bad)
    bad = {**NESTED, "m.weight.nested_absmax": floats(np.full(4, 3e38), "F32")}
    bad["m.weight.nested_quant_map"] = floats(np.full(256, 2.0), "F32")
    with pytest.raises(DataError, match="not finite"):
        decoded(only(found_in(bad)), bad)


def test_without_reading_the_shape_cannot_be_told() -> None:
    with pytest.raises(DataError, match="data is not available"):
        found_in(FOUR, reading=False)


@settings(max_examples=300)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    """Any part of another shape, dtype or content: decoded or refused."""
    parts = dict(data.draw(st.sampled_from([FOUR, NESTED, EIGHT])))
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        dtype = data.draw(st.sampled_from([parts[name][0], "I32", "F16", "I8", "U8", "F32"]))
        shape = data.draw(st.just(parts[name][1]) | st.lists(st.integers(0, 70), max_size=3).map(tuple))
        parts = changed(parts, name, dtype=dtype, shape=shape)
        raw = data.draw(st.binary(max_size=24)) + parts[name][2]
        parts[name] = (dtype, shape, raw[: len(parts[name][2])])
    key = STATE if STATE in parts else None
    if key and data.draw(st.booleans()):
        values = st.none() | st.integers(-2, 100) | st.text(max_size=3) | st.lists(st.integers(-1, 70), max_size=3)
        fields = ["quant_type", "blocksize", "shape", "nested_blocksize", "nested_offset"]
        parts[key] = described({**GOOD, **data.draw(st.dictionaries(st.sampled_from(fields), values))})
    try:
        for found in found_in(parts):
            rows = int(np.prod(found.shape[:-1]))
            assert decoded(found, parts).size == np.prod(found.shape)
            assert decoded(found, parts, rows // 2).shape[0] == rows - rows // 2
    except DataError as error:
        assert error.place


# ---- what is not meant ------------------------------------------------------------------------------------------

NAMES = ["m.weight", "m.weight.absmax", "m.weight.quant_map", "m.SCB", "m.weight_format", "m.weight_scale", "m.bias",
         "m.weight.nested_absmax", "quant_state", "m.weight.quant_state"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["F32", "F16", "BF16", "U8"]), min_size=1))
def test_tensors_without_a_description_are_left_alone(dtypes: dict[str, str]) -> None:
    """A weight is claimed only where bitsandbytes describes it, or where signed bytes have an SCB."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
    assert found_in({name: (dtype, (4, 4), bytes(16 * sizes[dtype])) for name, dtype in dtypes.items()}) == []


def test_signed_bytes_without_an_scb_are_left_alone() -> None:
    assert found_in(without(EIGHT, "m.SCB")) == []
    assert found_in(without(EIGHT, "m.weight")) == []


# ---- on the command line ----------------------------------------------------------------------------------------


def test_what_quantcli_exports_is_read_as_it_decodes_it(tmp_path: Path) -> None:
    native, out = tmp_path / "native", tmp_path / "out"
    model = ROOT / "sample_models" / "tiny-llama"
    assert run("quantize", model, "--type", "nf4", "--group-size", "64", "--to", "native", "-o", native).code == 0
    assert run("export", native, "--to", "bnb-nf4", "-o", out).code == 0
    done = run("compare", native, out, "--json")
    assert done.code == 0, done.err
    quantized = [t for t in done.json["tensors"] if t["disposition"] == "quantized"]
    assert len(quantized) == 14 and all(t["scheme"] == "nf4g64" and t["exact"] for t in quantized)


@pytest.mark.parametrize("case", ["other map", "huge shape", "JSON of JSON", "int8 order"])
def test_errors_are_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_tensors(WRONG[case][0]))
    line = one_line(run("compare", path, path), 2)
    assert str(path) in line and WRONG[case][1] in line
