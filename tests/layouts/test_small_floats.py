"""Small floats with scales of a byte, of MLX and compressed-tensors, written out here value by value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import Parts, changed, check_every_piece, decoded, floats, found_in, only, without

from quantcli.errors import DataError

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


def e4m3(raw: np.ndarray) -> np.ndarray:
    values: np.ndarray = raw.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


def made(mode: str, rows: int, groups: int) -> tuple[bytes, bytes, np.ndarray]:
    """Bytes of codes, bytes of scales, and what they stand for."""
    bits, group = MODES[mode]
    rng = np.random.default_rng(rows)
    if bits == 4:
        u = rng.integers(0, 16, (rows, groups * group))
        raw = bytes(int(low) | int(high) << 4 for row in u for low, high in zip(row[::2], row[1::2]))
        values = np.array(E2M1)[u]
    else:
        u = rng.integers(0, 127, (rows, groups * group)) + 128 * rng.integers(0, 2, (rows, groups * group))
        raw, values = u.astype(np.uint8).tobytes(), e4m3(u)
    exponents = rng.integers(100, 140, (rows, groups)) if mode != "nvfp4" else rng.integers(1, 127, (rows, groups))
    scale = e4m3(exponents) if mode == "nvfp4" else 2.0 ** (exponents - 127)
    expected = np.array([[values[o, i] * scale[o, i // group] for i in range(groups * group)] for o in range(rows)])
    return raw, exponents.astype(np.uint8).tobytes(), expected.astype(np.float32)


def mlx(mode: str, rows: int = 7, groups: int = 4) -> tuple[Parts, np.ndarray]:
    raw, scale, expected = made(mode, rows, groups)
    parts: Parts = {"m.weight": ("U32", (rows, len(raw) // rows // 4), raw), "m.scales": ("U8", (rows, groups), scale)}
    return parts, expected


def ct(mode: str, rows: int = 7, groups: int = 4) -> tuple[Parts, np.ndarray]:
    raw, scale, expected = made(mode, rows, groups)
    name, dtype = ("m.weight", "F8_E4M3") if mode == "mxfp8" else ("m.weight_packed", "U8")
    parts: Parts = {
        name: (dtype, (rows, len(raw) // rows), raw),
        "m.weight_scale": ("F8_E4M3" if mode == "nvfp4" else "U8", (rows, groups), scale),
    }
    if mode == "nvfp4":
        parts["m.weight_global_scale"] = floats(np.array([4.0]), "F32")
        expected = expected / 4
    return parts, expected


def quantization(**said: Any) -> dict[str, Any]:
    return {"quantization": said}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_mlx(mode: str) -> None:
    parts, expected = mlx(mode)
    bits, group = MODES[mode]
    for config in (
        {},
        quantization(bits=bits, group_size=group, mode=mode),
        quantization(bits=4, group_size=64, m={"bits": bits, "group_size": group, "mode": mode}),
    ):
        found = only(found_in(parts, config))
        assert (found.name, found.shape, found.scheme, found.bits) == ("m.weight", (7, group * 4), mode, bits)
        assert {p.name for p in found.parts} == set(parts)
        check_every_piece(found, parts, expected)


@pytest.mark.parametrize("mode", MODES)
def test_formats_of_compressed_tensors(mode: str) -> None:
    parts, expected = ct(mode)
    found = only(found_in(parts))
    assert (found.name, found.shape, found.scheme) == ("m.weight", (7, MODES[mode][1] * 4), mode)
    assert {p.name for p in found.parts} == set(parts)
    check_every_piece(found, parts, expected)


def test_more_dimensions_in_mlx() -> None:
    parts, expected = mlx("mxfp4", 6, 2)
    parts = {name: (dtype, (2, 3, shape[1]), raw) for name, (dtype, shape, raw) in parts.items()}
    found = only(found_in(parts))
    assert found.shape == (2, 3, 64)
    check_every_piece(found, parts, expected)


MLX, NV, MX4, MX8 = mlx("mxfp4")[0], ct("nvfp4")[0], ct("mxfp4")[0], ct("mxfp8")[0]
ONE = floats(np.ones(1), "F32")
WRONG: dict[str, tuple[Parts, Any, str]] = {
    "mlx mode": (MLX, quantization(mode="nvfp4"), "those of mxfp4, but config.json says nvfp4"),
    "mlx affine": (MLX, quantization(mode="affine", bits=4), "config.json says affine, 4"),
    "mlx bits": (MLX, quantization(bits=8), "config.json says mxfp4, 8"),
    "mlx group": (MLX, quantization(group_size=16), "config.json says mxfp4, 16"),
    "mlx off": (MLX, quantization(m=False), "says it is not"),
    "mlx rows": (changed(MLX, "m.scales", shape=(6, 4)), {}, "match no mode of MLX"),
    "mlx groups": (changed(MLX, "m.scales", shape=(7, 3)), {}, "match no mode of MLX"),
    "mlx vector": (changed(MLX, "m.weight", shape=(16,)), {}, "match no mode of MLX"),
    "mlx global": ({**MLX, "m.global_scale": ONE}, {}, "global_scale beside one-byte scales"),
    "nv no global": (without(NV, "m.weight_global_scale"), {}, "m.weight_global_scale is missing"),
    "nv globals": ({**NV, "m.weight_global_scale": floats(np.ones(7), "F32")}, {}, "global_scale is not supported"),
    "nv groups": (changed(NV, "m.weight_scale", shape=(7, 2)), {}, "do not match groups of 16 of 7 x 64"),
    "mx rows": (changed(MX4, "m.weight_scale", shape=(6, 4)), {}, "do not match groups of 32"),
    "mx dimensions": (changed(MX4, "m.weight_scale", shape=(28,)), {}, "1 dimensions"),
    "mx six": (changed(MX4, "m.weight_packed", shape=(7, 96)), {}, "MXFP6"),
    "mx global": ({**MX4, "m.weight_global_scale": ONE}, {}, "global_scale is not supported"),
    "mx zeros": ({**MX4, "m.weight_zero_point": ("I8", (7, 4), bytes(28))}, {}, "zero points"),
    "mx empty": (changed(MX4, "m.weight_scale", shape=(7, 0)), {}, "is empty"),
    "fp8 in fp8": (changed(MX8, "m.weight_scale", dtype="F8_E4M3"), {}, "is F8_E4M3"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_malformed_is_told(case: str) -> None:
    parts, config, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        found_in(parts, config)
    assert message in str(caught.value)


@pytest.mark.parametrize(("parts", "name", "raw"), [
    (MLX, "m.scales", b"\xff"), (mlx("nvfp4")[0], "m.scales", b"\x7f"), (NV, "m.weight_scale", b"\xff"),
    (MX8, "m.weight_scale", b"\xff"), (NV, "m.weight_global_scale", b"\0\0\xc0\x7f"),
])  # fmt: skip
def test_parameters_must_be_numbers(parts: Parts, name: str, raw: bytes) -> None:
    dtype, shape, held = parts[name]
    parts = {**parts, name: (dtype, shape, raw + held[len(raw) :])}
    with pytest.raises(DataError, match="not finite"):
        decoded(only(found_in(parts)), parts)


@pytest.mark.parametrize("overall", [0, 1e-40])
def test_a_global_scale_of_nothing_is_refused(overall: float) -> None:
    parts = {**NV, "m.weight_global_scale": floats(np.array([overall]), "F32")}
    with pytest.raises(DataError, match="over its global_scale is not finite"):
        decoded(only(found_in(parts)), parts)


@settings(max_examples=300)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    """Any part of another shape, dtype or content: decoded or refused."""
    parts = dict(data.draw(st.sampled_from([MLX, mlx("mxfp8")[0], NV, MX4, MX8])))
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        dtype = data.draw(st.sampled_from([parts[name][0], "U32", "F16", "U8", "F32", "F8_E4M3"]))
        size = st.integers(0, 8) | st.sampled_from([14, 16, 32, 64, 128])
        shape = data.draw(st.just(parts[name][1]) | st.lists(size, max_size=3).map(tuple))
        parts = changed(parts, name, dtype=dtype, shape=shape)
        raw = data.draw(st.binary(max_size=24)) + parts[name][2]
        parts[name] = (dtype, shape, raw[: len(parts[name][2])])
    said = st.none() | st.sampled_from(["mxfp4", "mxfp8", "affine", 4, 8, 16, 32])
    config = data.draw(st.dictionaries(st.sampled_from(["mode", "bits", "group_size"]), said))
    try:
        for found in found_in(parts, quantization(**config)):
            rows = int(np.prod(found.shape[:-1]))
            assert decoded(found, parts).size == np.prod(found.shape)
            assert decoded(found, parts, rows // 2).shape[0] == rows - rows // 2
    except DataError as error:
        assert error.place


@given(st.dictionaries(st.sampled_from(["m.weight", "m.weight_scale", "m.scales", "m.weight_packed", "m.bias"]),
                       st.sampled_from(["F32", "F16", "U8"]), min_size=1))  # fmt: skip
def test_bytes_beside_floats_are_left_alone(dtypes: dict[str, str]) -> None:
    """Small floats are claimed only where codes and scales both are of their dtypes and names."""
    if "m.weight_packed" in dtypes:
        return
    sizes = {"F32": 4, "F16": 2, "U8": 1}
    assert found_in({name: (dtype, (4, 4), bytes(16 * sizes[dtype])) for name, dtype in dtypes.items()}) == []
