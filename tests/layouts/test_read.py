"""Layouts against files of their own library, against native files, and against the layouts written out here
value by value."""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import (
    FLOATS,
    GOLDEN,
    Parts,
    changed,
    check_every_piece,
    codes,
    decoded,
    dense,
    down,
    floats,
    found_in,
    kept,
    only,
    padded,
    plain,
    reader,
    scales,
    without,
    words,
    written,
)
from making import ROOT, one_line, run

import quantcli
from quantcli.errors import DataError
from quantcli.layouts import reader as layouts
from quantcli.layouts.reader import Read

# ---- compressed-tensors -----------------------------------------------------------------------------------------


def group_config(**weights: Any) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
    }


def packed_parts(
    rows: int,
    cols: int,
    bits: int,
    groups: int,
    *,
    symmetric: bool,
    dtype: str = "F32",
    pack: Callable[[list[int], int], list[int]] = dense,
    seed: int = 0,
) -> tuple[Parts, np.ndarray]:
    """A pack-quantized weight and what it stands for."""
    rng = random.Random(seed)
    u, s, z = codes(rng, rows, cols, bits), scales(rng, rows, groups), codes(rng, rows, groups, bits)
    parts: Parts = {
        "m.weight_packed": words("I32", [pack(row, bits) for row in u]),
        "m.weight_scale": floats(s, dtype),
        "m.weight_shape": ("I64", (2,), struct.pack("<2q", rows, cols)),
    }
    if not symmetric:
        parts["m.weight_zero_point"] = words("I32", down(z, pack, bits))
    return parts, plain(u, None if symmetric else z, kept(s, dtype), cols // groups, 1 << (bits - 1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_quantized_of_any_width(bits: int, symmetric: bool) -> None:
    for rows, cols, groups in [(37, 128, 4), (5, 331, 1), (70, 96, 6), (64, 66, 66)]:
        parts, expected = packed_parts(rows, cols, bits, groups, symmetric=symmetric, dtype="BF16", seed=rows)
        found = only(found_in(parts))
        assert (found.name, found.shape, found.bits, found.unit) == ("m.weight", (rows, cols), bits, 1)
        assert found.scheme == f"w{bits}" + ("c" if groups == 1 else f"g{cols // groups}") + "-asym" * (not symmetric)
        assert {p.name for p in found.parts} == set(parts)
        check_every_piece(found, parts, expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_pack_quantized_of_whole_codes(bits: int, symmetric: bool) -> None:
    parts, expected = packed_parts(37, 640, bits, 5, symmetric=symmetric, pack=padded)
    config = group_config(num_bits=bits, strategy="group", group_size=128)
    found = only(found_in(parts, config))
    assert found.bits == bits
    check_every_piece(found, parts, expected)
    if bits < 7:  # seven bits, four to a word, are also eight bits
        assert only(found_in(parts)).bits == bits


def test_the_version_tells_whole_codes_where_both_fit() -> None:
    for bits, cols in [(3, 20), (5, 12), (6, 10), (7, 8), (4, 20)]:
        for version, pack in [("0.17.1", padded), ("0.13.0.a20260101", padded), ("0.18.0", dense), ("0.9", padded),
                              ("1.0.0", dense), ("unknown", dense), (None, dense)]:  # fmt: skip
            parts, expected = packed_parts(37, cols, bits, 1, symmetric=True, pack=pack)
            config = group_config(num_bits=bits, strategy="channel")
            config["quantization_config"]["version"] = version
            check_every_piece(only(found_in(parts, config)), parts, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized_with_one_scale(bits: int, symmetric: bool) -> None:
    parts, _ = packed_parts(33, 75, bits, 1, symmetric=True)
    u = np.array(codes(random.Random(0), 33, 75, bits))
    parts["m.weight_scale"] = floats(np.array([0.013]), "F16")
    zero = 0 if symmetric else -2
    if not symmetric:
        parts["m.weight_zero_point"] = ("I8", (1,), struct.pack("b", zero))
    expected = (u - (1 << (bits - 1)) - zero).astype(np.float32) * np.float32(np.float16(0.013))
    found = only(found_in(parts))
    assert found.scheme == f"w{bits}t" + "-asym" * (not symmetric)
    check_every_piece(found, parts, expected)


def test_the_worked_examples_of_packed_words() -> None:
    parts: Parts = {
        "m.weight_packed": words("I32", [[1985229328, 152]]),
        "m.weight_scale": floats(np.array([[2.0]]), "F32"),
        "m.weight_shape": ("I64", (2,), struct.pack("<2q", 1, 10)),
    }
    config = group_config(num_bits=4, strategy="channel")
    np.testing.assert_array_equal(decoded(only(found_in(parts, config)), parts), [np.arange(-8, 2) * 2.0])
    parts["m.weight_packed"] = words("I32", [[0x08FAC688, 0x0000001A]])  # before release 0.18
    assert padded([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], 3) == [0x08FAC688, 0x0000001A]
    assert dense([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], 3) == [0x88FAC688, 0x00000006]


def test_zero_points_packed_down_the_rows_as_in_the_example() -> None:
    zeros = [[0, 0], [2, 0], [4, 0], [6, 0], [8, 0], [10, 0], [12, 0], [14, 0], [0, 0], [2, 0]]
    assert [w[0] for w in down(zeros, dense, 4)] == [0xECA86420, 0x00000020]


def test_unpacked_zero_points_and_a_group_for_every_column() -> None:
    parts, _ = packed_parts(37, 96, 4, 3, symmetric=True)
    rng = random.Random(0)
    u, s = codes(rng, 37, 96, 4), scales(rng, 37, 3)
    parts["m.weight_zero_point"] = ("I8", (37, 3), bytes(i % 5 for i in range(111)))
    z = [[8 + (o * 3 + g) % 5 for g in range(3)] for o in range(37)]
    check_every_piece(only(found_in(parts)), parts, plain(u, z, kept(s, "F32"), 32))
    index = [i * 7 % 3 for i in range(96)]
    parts["m.weight_g_idx"] = ("I32", (96,), struct.pack("<96i", *index))
    expected = np.array(
        [[np.float32(u[o][i] - z[o][g]) * np.float32(s[o, g]) for i, g in enumerate(index)] for o in range(37)]
    )
    check_every_piece(only(found_in(parts)), parts, expected)
    del parts["m.weight_zero_point"]
    parts["m.weight_g_idx"] = ("I32", (96,), struct.pack("<96i", *[-1] * 96))
    check_every_piece(only(found_in(parts)), parts, plain(u, None, kept(s, "F32"), 32, 8))
    parts["m.weight_g_idx"] = ("I32", (96,), struct.pack("<96i", *[3] * 96))
    with pytest.raises(DataError, match=r"m\.weight: g_idx names a group"):
        decoded(only(found_in(parts)), parts)


def test_packed_shapes_without_reading_follow_from_config() -> None:
    parts, expected = packed_parts(37, 96, 4, 6, symmetric=False)
    config = group_config(num_bits=4, strategy="group", group_size=16, symmetric=False)
    found = only(found_in(parts, config, reading=False))
    assert found.shape == (37, 96)
    check_every_piece(found, parts, expected)
    with pytest.raises(DataError, match=r"do not give the number of columns.*config\.json"):
        found_in(parts, reading=False)
    parts, _ = packed_parts(5, 331, 4, 1, symmetric=True)
    found = only(found_in(parts, group_config(num_bits=4, strategy="channel"), reading=False))
    with pytest.raises(DataError, match=r"its shape is \[5, 331\], not \[5, 336\]"):
        decoded(found, parts)


def test_config_chooses_by_module_and_by_what_fits() -> None:
    parts, expected = packed_parts(4, 20, 4, 1, symmetric=True)  # 4 bits or padded 5 and 6
    groups = {"a": {"targets": ["m"], "weights": {"num_bits": 4}}, "b": {"targets": ["n"], "weights": {"num_bits": 5}}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    check_every_piece(only(found_in(parts, config)), parts, expected)
    groups["a"]["targets"] = ["re:.*"]
    assert only(found_in(parts, config)).bits == 4
    groups["a"]["weights"] = {"num_bits": 8}
    with pytest.raises(DataError, match=r"not what config\.json says"):
        found_in(parts, config)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_integers_one_to_a_byte(groups: int, symmetric: bool) -> None:
    rng = random.Random(groups)
    q, s = np.array(codes(rng, 37, 52, 8)) - 128, scales(rng, 37, groups)
    z = np.array(codes(rng, 37, groups, 4)) - 8
    parts: Parts = {"m.weight": ("I8", (37, 52), q.astype(np.int8).tobytes()), "m.weight_scale": floats(s, "F16")}
    if not symmetric:
        parts["m.weight_zero_point"] = ("I8", (37, groups), z.astype(np.int8).tobytes())
    expected = plain(q.tolist(), None if symmetric else z.tolist(), kept(s, "F16"), 52 // groups)
    found = only(found_in(parts))
    assert found.scheme == ("w8c" if groups == 1 else "w8g13") + "-asym" * (not symmetric)
    check_every_piece(found, parts, expected)
    del parts["m.weight_scale"]
    parts["m.weight_scale"] = floats(np.array(0.25), "F32")
    if symmetric:
        check_every_piece(only(found_in(parts)), parts, (q * 0.25).astype(np.float32))


@pytest.mark.parametrize(("dtype", "known"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_8_bit_floats(dtype: str, known: Any) -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(37, 50)).astype(known)
    q = raw.astype(np.float32)
    s = scales(random.Random(0), 37, 1)
    name = f"fp{dtype.lower().replace('_', '-')[1:]}"
    parts: Parts = {"m.weight": (dtype, (37, 50), raw.tobytes()), "m.weight_scale": floats(s, "F32")}
    assert only(found_in(parts)).scheme == f"{name}c"
    check_every_piece(only(found_in(parts)), parts, q * s.astype(np.float32))
    s = scales(random.Random(0), 3, 4)
    parts["m.weight_scale"] = floats(s, "BF16")
    config = group_config(num_bits=8, type="float", strategy="block", block_structure=[16, 14])
    config["quantization_config"]["format"] = "float-quantized"
    each = [[kept(s, "BF16")[o // 16, i // 14] for i in range(50)] for o in range(37)]
    assert only(found_in(parts, config)).scheme == f"{name}b16x14"
    check_every_piece(only(found_in(parts, config)), parts, q * np.array(each, np.float32))


# ---- what compressed-tensors itself writes and reads ------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda p: p.stem)
def test_the_library_decodes_the_same(path: Path) -> None:
    parts, config, expected = written(path)
    for said in (config, {}):
        if not said and path.stem.startswith(("fp8b", "mlx-w", "gptq", "comfy-awq-g64", "comfy-convrot-64", "old")):
            continue  # the shapes do not tell
        found = only(found_in(parts, said))
        assert found.shape == expected.shape
        if path.stem.startswith("mlx-w"):  # whether it rounds between its product and its sum is MLX's to choose
            np.testing.assert_allclose(decoded(found, parts), expected, rtol=0, atol=5e-7)
        else:
            check_every_piece(found, parts, expected.reshape(-1, expected.shape[-1]))


def test_there_are_files_of_the_library() -> None:
    assert len(list(GOLDEN.glob("*.safetensors"))) == 54


# ---- native files without their header --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--bits", "4", "--group-size", "64"),
        ("--bits", "3", "--group-size", "16"),
        ("--bits", "5", "--group-size", "32", "--asymmetric"),
        ("--bits", "8", "--granularity", "channel", "--asymmetric"),
    ],
    ids=" ".join,
)
def test_native_files_decode_as_quantcli_decodes_them(options: tuple[str, ...], tmp_path: Path) -> None:
    done = run("quantize", str(ROOT / "sample_models" / "tiny-llama"), "-o", str(tmp_path / "q"), *options)
    assert done.code == 0, done.err
    parts: Parts = {}
    for shard in sorted((tmp_path / "q").glob("*.safetensors")):
        parts |= {
            name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
            for name, entry in safetensors.deserialize(shard.read_bytes())
        }
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    with quantcli.open(str(tmp_path / "q")) as model:
        quantized = {name: tensor for name, tensor in model.items() if tensor.scheme is not None}
        for said, reading in [(config, True), ({}, True), (config, False)]:
            found = {f.name: f for f in found_in(parts, said, reading=reading)}
            assert found.keys() == quantized.keys()
            for name, tensor in quantized.items():
                assert found[name].shape == tensor.shape
                np.testing.assert_array_equal(decoded(found[name], parts), tensor.numpy())


# ---- MLX --------------------------------------------------------------------------------------------------------


def mlx_parts(rows: int, cols: int, bits: int, group: int, dtype: str = "F16") -> tuple[Parts, np.ndarray]:
    rng = random.Random(bits)
    u, s, b = codes(rng, rows, cols, bits), scales(rng, rows, cols // group), scales(rng, rows, cols // group)
    parts: Parts = {
        "m.weight": words("U32", [dense(row, bits) for row in u]),
        "m.scales": floats(s, dtype),
        "m.biases": floats(b, dtype),
    }
    s, b = kept(s, dtype), kept(b, dtype)
    expected = np.array([[np.float32(code) * s[o, i // group] + b[o, i // group] for i, code in enumerate(row)]
                         for o, row in enumerate(u)], np.float32)  # fmt: skip
    return parts, expected


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits: int, group: int) -> None:
    parts, expected = mlx_parts(11, 256, bits, group, "BF16" if group == 64 else "F32")
    for key in ("quantization", "quantization_config"):
        found = only(found_in(parts, {key: {"bits": bits, "group_size": group}}))
        assert (found.name, found.shape, found.bits) == ("m.weight", (11, 256), bits)
        assert found.scheme == f"w{bits}g{group}-float"
        check_every_piece(found, parts, expected)
    for mode in ("affine", "mxfp4"):  # mlx-lm's gpt-oss: what a module does not say is the default, not that of others
        own = {"bits": 8, "group_size": 16, "mode": mode, "m": {"bits": bits, "group_size": group}}
        check_every_piece(only(found_in(parts, {"quantization": own})), parts, expected)
    check_every_piece(only(found_in(parts, {"quantization": {"group_size": group}})), parts, expected)
    alone = [(b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128) if b * g == bits * group]
    if len(alone) == 1:
        check_every_piece(only(found_in(parts)), parts, expected)
    else:
        with pytest.raises(DataError, match=r"m\.weight: the shapes fit .*config\.json"):
            found_in(parts)


def test_mlx_with_more_dimensions_and_other_names() -> None:
    parts, expected = mlx_parts(12, 128, 4, 32)
    for name, (dtype, shape, raw) in list(parts.items()):
        parts[name] = (dtype, (3, 4, shape[1]), raw)
    parts["m.qbiases"] = parts.pop("m.biases")
    config = {"quantization_config": {"quant_method": "metal", "bits": 4, "group_size": 32}}
    found = only(found_in(parts, config))
    assert found.shape == (3, 4, 128)
    check_every_piece(found, parts, expected)


# ---- GPTQ -------------------------------------------------------------------------------------------------------


def gptq_parts(
    rows: int, cols: int, bits: int, index: list[int], version: int, seed: int = 0, dtype: str = "F16"
) -> tuple[Parts, np.ndarray]:
    rng = random.Random(seed)
    groups = max(index) + 1
    u, z, s = codes(rng, rows, cols, bits), codes(rng, groups, rows, bits), scales(rng, groups, rows)
    mask = (1 << bits) - 1
    parts: Parts = {
        "m.qweight": words("I32", down([list(c) for c in zip(*u)], dense, bits)),
        "m.qzeros": words("I32", [dense([(v - (version == 1)) & mask for v in row], bits) for row in z]),
        "m.scales": floats(s, dtype),
        "m.g_idx": ("I32", (cols,), struct.pack(f"<{cols}i", *index)),
    }
    s = kept(s, dtype)
    expected = np.array(
        [[np.float32(u[o][i] - z[g][o]) * s[g, o] for i, g in enumerate(index)] for o in range(rows)], np.float32
    )
    return parts, expected


def gptq_config(bits: int, group: int, version: int, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": False,
                                    "checkpoint_format": ["gptq", "gptq_v2"][version - 1], **more}}  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, version: int) -> None:
    for rows, cols, group in [(64, 96, 32), (32, 64, 16), (96, 64, -1), (64, 160, 64)]:
        size = cols if group == -1 else group
        parts, expected = gptq_parts(rows, cols, bits, [i // size for i in range(cols)], version)
        found = only(found_in(parts, gptq_config(bits, group, version)))
        assert (found.name, found.shape, found.bits) == ("m.weight", (rows, cols), bits)
        assert found.scheme == (f"w{bits}g{group}-asym" if group > 0 else f"w{bits}c-asym")
        check_every_piece(found, parts, expected)
        del parts["m.g_idx"]
        check_every_piece(only(found_in(parts, gptq_config(bits, group, version))), parts, expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_in_order_of_activation(bits: int) -> None:
    index = [i * 5 % 96 // 32 for i in range(96)]
    parts, expected = gptq_parts(32, 96, bits, index, 2, dtype="BF16")
    found = only(found_in(parts, gptq_config(bits, 32, 2, desc_act=True, sym=True)))
    assert found.scheme == f"w{bits}g32", "zero points are the middle code"
    check_every_piece(found, parts, expected)
    check_every_piece(only(found_in(parts, gptq_config(7, 64, 2, dynamic={"+:m": {"bits": bits}}))), parts, expected)


def test_gptq_zero_points_of_the_example() -> None:
    parts, _ = gptq_parts(32, 32, 4, [0] * 32, 1)
    for version, word in [(1, 0x77777777), (2, 0x88888888)]:
        parts["m.qzeros"] = words("I32", [[word] * 4])
        parts["m.qweight"] = words("I32", [[0x88888888] * 32] * 4)
        assert not decoded(only(found_in(parts, gptq_config(4, -1, version))), parts).any()


def test_gptq_larger_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantcli.layouts.stored.PIECE", 200)
    for bits in (3, 4):
        parts, expected = gptq_parts(64, 160, bits, [i // 32 for i in range(160)], 2)
        check_every_piece(only(found_in(parts, gptq_config(bits, 32, 2))), parts, expected)


# ---- AWQ --------------------------------------------------------------------------------------------------------


def nibbles(values: list[int]) -> list[int]:
    """Words of eight values in AWQ's order."""
    return [
        sum(values[start + held] << (4 * j) for j, held in enumerate([0, 2, 4, 6, 1, 3, 5, 7]))
        for start in range(0, len(values), 8)
    ]


def awq_parts(rows: int, cols: int, group: int) -> tuple[Parts, np.ndarray]:
    rng = random.Random(rows)
    u, z, s = codes(rng, rows, cols, 4), codes(rng, cols // group, rows, 4), scales(rng, cols // group, rows)
    parts: Parts = {
        "m.qweight": words("I32", [nibbles(list(column)) for column in zip(*u)]),
        "m.qzeros": words("I32", [nibbles(row) for row in z]),
        "m.scales": floats(s, "F16"),
    }
    return parts, plain(u, [list(c) for c in zip(*z)], kept(s, "F16").T, group)


@pytest.mark.parametrize("config", [{}, {"quant_method": "awq"}, {"quant_method": "awq", "bits": 4, "version": "gemm"}])
def test_awq(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for piece, (rows, cols, group) in itertools.product([1 << 20, 100], [(40, 64, 32), (8, 130, 130), (64, 60, 20)]):
        monkeypatch.setattr("quantcli.layouts.stored.PIECE", piece)
        parts, expected = awq_parts(rows, cols, group)
        found = only(found_in(parts, {"quantization_config": config}))
        assert (found.name, found.shape, found.bits) == ("m.weight", (rows, cols), 4)
        assert found.scheme == ("w4c-asym" if group == cols else f"w4g{group}-asym")
        check_every_piece(found, parts, expected)


def test_awq_order_of_the_example() -> None:
    assert nibbles(list(range(8))) == [0x75316420]
    parts: Parts = {
        "m.qweight": words("I32", [[0x75316420]]),
        "m.qzeros": words("I32", [[0x88888888]]),
        "m.scales": floats(np.ones((1, 8)), "F16"),
    }
    np.testing.assert_array_equal(decoded(only(found_in(parts)), parts)[:, 0], np.arange(-8, 0))


# ---- together ---------------------------------------------------------------------------------------------------


def test_layouts_leave_other_tensors_alone() -> None:
    other: Parts = {
        "a.weight": floats(np.ones((2, 2)), "F32"),
        "b.weight": ("I8", (2, 2), b"1234"),
        "c.scales": floats(np.ones((2, 2)), "F32"),
        "d_scale": floats(np.ones(1), "F32"),
    }
    assert found_in(other) == []
    assert layouts.find({}, {}) == []


ORDINARY = [
    "weight",
    "bias",
    "scale",
    "scales",
    "biases",
    "weight_scale",
    "weight_zeros",
    "weight_zero_point",
    "g_idx",
    "weight_shape",
    "running_mean",
    "SCB",
    "weight.absmax",
    "weight.quant_map",
    "weight_format",
    "scale_weight",
    "weight_scale_inv",
    "weight_global_scale",
    "global_scale",
    "logit_scale",
    "num_batches_tracked",
]


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([f"{module}.{name}" for module in ("m", "layers.0.n") for name in ORDINARY]),
                       st.sampled_from(["F32", "F16", "BF16", "I64"]), min_size=1))  # fmt: skip
def test_ordinary_tensors_are_not_claimed(dtypes: dict[str, str]) -> None:
    """What is found is decoded, so nothing may be found of a model in floating point, whatever its names."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
    assert found_in({name: (dtype, (4, 4), bytes(16 * sizes[dtype])) for name, dtype in dtypes.items()}) == []


def test_the_sample_models_are_not_claimed() -> None:
    for path in [*(ROOT / "sample_models").glob("*.safetensors"), *(ROOT / "sample_models").glob("*/*.safetensors")]:
        with quantcli.open(str(path)) as model:
            assert layouts.find({name: tensor.stored.info for name, tensor in model.items()}, {}) == []


def test_layouts_beside_one_another() -> None:
    parts: Parts = {}
    makers = [packed_parts(32, 64, 4, 1, symmetric=True)[0], mlx_parts(4, 64, 3, 32)[0], awq_parts(8, 64, 64)[0]]
    for i, made in enumerate(makers):
        parts |= {name.replace("m.", f"m{i}."): value for name, value in made.items()}
    found = found_in(parts)
    assert sorted(f.name for f in found) == ["m0.weight", "m1.weight", "m2.weight"]
    claimed = [p.name for f in found for p in f.parts]
    assert len(claimed) == len(set(claimed)) and set(claimed) == set(parts)


def counted(read: Read, sizes: list[int]) -> Read:
    """The same, that notes how much is read each time."""

    def noted(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        sizes.append(size * count)
        return read(name, start, size, count, step)

    return noted


def test_only_the_bytes_of_these_rows_are_read() -> None:
    parts, _ = packed_parts(64, 128, 4, 4, symmetric=False)
    mlx, _ = mlx_parts(64, 128, 4, 32)
    config = {"quantization": {"bits": 4, "group_size": 32}}
    for tensors, limit, said in [(parts, 64 + 16 + 4 * 4 * 4, {}), (mlx, 64 + 8 + 8, config)]:
        sizes: list[int] = []
        only(found_in(tensors, said)).decode(counted(reader(tensors), sizes), 40, 41)
        assert sum(sizes) == limit


# ---- malformed --------------------------------------------------------------------------------------------------


CT = packed_parts(37, 96, 4, 6, symmetric=False)[0]
MLX = mlx_parts(4, 128, 4, 32)[0]
GPTQ = gptq_parts(32, 64, 4, [i // 32 for i in range(64)], 1)[0]
AWQ = awq_parts(16, 64, 32)[0]
BYTES: Parts = {"m.weight": ("I8", (4, 8), bytes(32)), "m.weight_scale": floats(np.ones((4, 2)), "F32")}
MLX_CONFIG = {"quantization": {"bits": 4, "group_size": 32}}
GPTQ_CONFIG = gptq_config(4, 32, 1)
AWQ_CONFIG = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}


WRONG: dict[str, tuple[Parts, Any, str]] = {
    "ct scale missing": (without(CT, "m.weight_scale"), {}, "m.weight_scale is missing"),
    "ct scale dtype": (changed(CT, "m.weight_scale", dtype="I32"), {}, "is I32"),
    "ct scale rows": (changed(CT, "m.weight_scale", shape=(36, 6)), {}, "do not match"),
    "ct scale groups": (changed(without(CT, "m.weight_zero_point"), "m.weight_scale", shape=(37, 5)), {}, "one size"),
    "ct words": (changed(CT, "m.weight_packed", shape=(37, 40)), {}, "fits no bit width"),
    "ct bytes": (changed(CT, "m.weight_packed", dtype="U8"), {}, "packed bytes with F32 scales are not supported"),
    "ct one dimension": (changed(CT, "m.weight_packed", shape=(37,)), {}, "1 dimension"),
    "ct empty": (changed(CT, "m.weight_packed", shape=(0, 12)), {}, "is empty"),
    "ct zero points": (changed(CT, "m.weight_zero_point", shape=(37, 6)), {}, "zero points"),
    "ct shape of zeros": (changed(CT, "m.weight_shape"), {}, "its shape"),
    "ct convolution": ({**CT, "m.weight_shape": ("I64", (3,), struct.pack("<3q", 37, 24, 4))}, {}, "its shape"),
    "ct long shape": (changed(CT, "m.weight_shape", shape=(5000,)), {}, "5000 dimensions"),
    "ct shape and codes": ({**CT, "m.weight_shape": ("I64", (2,), struct.pack("<2q", 37, 1 << 60))}, {}, "no bit"),
    "ct other bits": (CT, group_config(num_bits=8, strategy="group", group_size=16), "not what config.json says"),
    "ct other group": (CT, group_config(num_bits=4, strategy="group", group_size=32), "not what config.json says"),
    "ct no zero points": (without(CT, "m.weight_zero_point"), group_config(num_bits=4, symmetric=False), "is missing"),
    "ct codebook": ({**CT, "m.weight_codebook": floats(np.ones(16), "F32")}, {}, "a codebook"),
    "ct twice": ({**CT, "m.weight": floats(np.ones((2, 2)), "F32")}, {}, "both packed and unpacked"),
    "ct format": (CT, {"quantization_config": {"quant_method": "compressed-tensors", "format": "marlin-24",
                       "config_groups": {"a": {"targets": ["Linear"]}}}}, "marlin-24"),
    "ct g_idx": ({**CT, "m.weight_g_idx": ("I32", (5,), bytes(20))}, {}, "g_idx"),
    "bytes scale": (changed(BYTES, "m.weight_scale", shape=(4, 3)), {}, "one size"),
    "bytes scale rows": (changed(BYTES, "m.weight_scale", shape=(3, 2)), {}, "do not match"),
    "bytes scaled by bytes": (changed(BYTES, "m.weight_scale", dtype="U8"), {}, "is U8"),
    "bytes zero": ({**BYTES, "m.weight_zero_point": ("I8", (4, 1), bytes(4))}, {}, "zero points"),
    "bytes group": (BYTES, group_config(num_bits=8, strategy="group", group_size=2), "contradict config.json"),
    "bytes block": (BYTES, group_config(strategy="block", block_structure="2x4"), "how large its blocks"),
    "bytes blocks": (BYTES, group_config(strategy="block", block_structure=[2, 2]), "blocks of 2 x 2"),
    "mlx no biases": (without(MLX, "m.biases"), MLX_CONFIG, "m.biases is missing"),
    "mlx no scales": (without(MLX, "m.scales"), MLX_CONFIG, "m.scales is missing"),
    "mlx biases of bytes": (changed(MLX, "m.scales", dtype="U8"), {}, "biases beside one-byte scales"),
    "mlx mode": (MLX, {"quantization": {"bits": 4, "group_size": 32, "mode": "nvfp4"}}, "nvfp4"),
    "mlx bits": (MLX, {"quantization": {"bits": 7, "group_size": 32}}, "7 bits"),
    "mlx group": (MLX, {"quantization": {"bits": 4, "group_size": 64}}, "not hold codes of 4 bits"),
    "mlx not quantized": (MLX, {"quantization": {"bits": 4, "group_size": 32, "m": False}}, "says it is not"),
    "mlx module": (MLX, {"quantization": {"m": 3}}, "not an object"),
    "mlx biases": (changed(MLX, "m.biases", shape=(4, 3)), MLX_CONFIG, "do not match"),
    "mlx words": (changed(MLX, "m.weight", shape=(4, 17)), MLX_CONFIG, "not hold codes"),
    "mlx text": (MLX, {"quantization": {"bits": "4"}}, "is not from 1 to 8"),
    "gptq no config": (GPTQ, {}, "config.json"),
    "gptq zeros missing": (without(GPTQ, "m.qzeros"), GPTQ_CONFIG, "m.qzeros is missing"),
    "gptq scales missing": (without(GPTQ, "m.scales"), GPTQ_CONFIG, "m.scales is missing"),
    "gptq scales": (changed(GPTQ, "m.scales", shape=(2, 31)), GPTQ_CONFIG, "do not match"),
    "gptq dimensions": (changed(GPTQ, "m.scales", shape=(64,)), GPTQ_CONFIG, "1 dimensions"),
    "gptq zeros": (changed(GPTQ, "m.qzeros", shape=(3, 4)), GPTQ_CONFIG, "do not match"),
    "gptq words": (changed(GPTQ, "m.qweight", shape=(9, 32)), GPTQ_CONFIG, "not hold codes of 64 inputs"),
    "gptq bits": (GPTQ, gptq_config(8, 32, 1), "config.json says 8"),
    "gptq group": (GPTQ, gptq_config(4, 16, 1), "groups of 16"),
    "gptq no group": (GPTQ, gptq_config(4, 0, 1), "groups of 0"),
    "gptq version": (GPTQ, gptq_config(4, 32, 1, checkpoint_format="marlin"), "marlin"),
    "gptq method": (GPTQ, gptq_config(4, 32, 1, quant_method="other"), "GPTQ as other"),
    "gptq width": (changed(GPTQ, "m.qweight", dtype="I16"), GPTQ_CONFIG, "is I16"),
    "gptq bits unknown": (without(GPTQ, "m.g_idx"), {"quantization_config": {"quant_method": "gptq"}},
                          "several bit widths"),
    "gptq 5 bits": (without(GPTQ, "m.g_idx"), gptq_config(5, 32, 1), "5 bits"),
    "awq version": (AWQ, {"quantization_config": {"quant_method": "awq", "version": "gemv"}}, "gemv"),
    "awq bits": (AWQ, {"quantization_config": {"quant_method": "awq", "bits": 8}}, "8 bits"),
    "awq group": (AWQ, {"quantization_config": {"quant_method": "awq", "group_size": 64}}, "groups of 64"),
    "awq zeros missing": (without(AWQ, "m.qzeros"), AWQ_CONFIG, "m.qzeros is missing"),
    "awq zeros": (changed(AWQ, "m.qzeros", shape=(2, 3)), AWQ_CONFIG, "do not match"),
    "awq ragged": (changed(AWQ, "m.qweight", shape=(65, 2)), {}, "do not match"),
    "awq scales": (changed(AWQ, "m.scales", shape=(2, 15)), AWQ_CONFIG, "do not match"),
    "config": (CT, {"quantization_config": [1]}, "not an object"),
    "config groups": (CT, {"quantization_config": {"config_groups": []}}, "not an object"),
    "config strategy": (CT, group_config(num_bits=4, strategy=[1]), "is not text"),
    "config text": (GPTQ, {"quantization_config": {"quant_method": 3}}, "is not text"),
    "two layouts": ({**BYTES, **AWQ}, {}, "two ways"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_malformed_is_told(case: str) -> None:
    parts, config, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        found_in(parts, config)
    assert message in str(caught.value)
    assert caught.value.place[0] in ("m.weight", "config.json")


@pytest.mark.parametrize(
    ("parts", "name", "config"),
    [(CT, "m.weight_scale", {}), (MLX, "m.biases", MLX_CONFIG), (GPTQ, "m.scales", GPTQ_CONFIG), (AWQ, "m.scales", {})],
)
def test_parameters_must_be_finite(parts: Parts, name: str, config: dict[str, Any]) -> None:
    dtype, shape, raw = parts[name]
    size = FLOATS[dtype].itemsize
    parts = {**parts, name: (dtype, shape, np.array([np.nan], FLOATS[dtype]).tobytes() + raw[size:])}
    with pytest.raises(DataError, match="not finite"):
        decoded(only(found_in(parts, config)), parts)


def test_gptq_groups_must_exist() -> None:
    for index in ([2] * 64, [-1] * 64):
        parts = {**GPTQ, "m.g_idx": ("I32", (64,), struct.pack("<64i", *index))}
        with pytest.raises(DataError, match="g_idx"):
            decoded(only(found_in(parts, GPTQ_CONFIG)), parts)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
                        st.sampled_from(["bits", "group_size", "quant_method", "config_groups", "m", "weights"]),
                        inner, max_size=3), max_leaves=6)  # fmt: skip
WEIGHTS = st.dictionaries(
    st.sampled_from(["num_bits", "strategy", "group_size", "block_structure", "symmetric"]),
    JSON | st.sampled_from([4, 8, 16, "group", "block", "channel", "tensor", False]),
)


@settings(max_examples=400)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    """Any part of another shape, dtype or content, any config: decoded or refused."""
    parts, config = data.draw(
        st.sampled_from(
            [(CT, group_config(num_bits=4)), (MLX, MLX_CONFIG), (GPTQ, GPTQ_CONFIG), (AWQ, AWQ_CONFIG), (BYTES, {})]
        )
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), max_size=2, unique=True)):
        dtype = data.draw(st.sampled_from([parts[name][0], "I32", "U32", "F16", "I8", "U8", "F8_E4M3"]))
        size = st.integers(0, 5) | st.sampled_from([8, 12, 16, 32, 37, 64, 128])
        shape = data.draw(st.just(parts[name][1]) | st.lists(size, max_size=3).map(tuple))
        parts = changed(parts, name, dtype=dtype, shape=shape)
        raw = data.draw(st.binary(max_size=24)) + parts[name][2]
        parts[name] = (dtype, shape, raw[: len(parts[name][2])])
    key = data.draw(st.sampled_from([None, "quantization", "quantization_config"]))
    if key:
        config = {
            key: data.draw(
                JSON
                | st.dictionaries(
                    st.sampled_from(
                        ["bits", "group_size", "quant_method", "config_groups", "m", "mode", "format", "version"]
                    ),
                    JSON,
                )
            )
        }
    elif data.draw(st.booleans()):
        config = group_config(**data.draw(WEIGHTS))
    try:
        for found in found_in(parts, config, reading=data.draw(st.booleans())):
            rows = int(np.prod(found.shape[:-1]))
            assert decoded(found, parts).size == np.prod(found.shape)
            assert decoded(found, parts, rows // 2).shape[0] == rows - rows // 2
    except DataError as error:
        assert error.place


# ---- through the commands that read any file ------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mlx", "awq", "gptq"])
def test_files_of_other_tools_are_dequantized_and_reported_on(target: str, tmp_path: Path) -> None:
    """what dequantize writes is what compare decodes, and report measures it"""
    original, out, floats = ROOT / "sample_models" / "tiny-llama", tmp_path / "out", tmp_path / "d.safetensors"
    assert run("quantize", original, "--to", target, "--group-size", 32, "-o", out, "-q", "--keep-embeddings").code == 0
    ran = run("dequantize", out, "-o", floats, "--json")
    assert ran.code == 0 and json.loads(ran.out)["decoded"] == 14
    ran = run("compare", out, floats, "--json")
    assert json.loads(ran.out)["summary"]["exact"]
    ran = run("report", out, "--against", original, "--min-sqnr", 20, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and found["command"] == "report" and found["summary"]["quantized"] == 14
    other = json.loads(run("compare", original, out, "--json").out)
    assert found["summary"]["sqnr_db"] == other["summary"]["sqnr_db"]
    assert run("report", out, "--against", original, "--min-sqnr", 30, "-q").code == 1
    ran = run("report", out)
    assert (ran.code, ran.err) == (0, "") and "not measured" in ran.out and "--against ORIGINAL measures" in ran.out
    assert run("report", out, "--min-sqnr", 20, "-q").code == 1  # a gate that measured nothing fails
    assert "only supported for quantcli's own files" in one_line(
        run("report", out, "--against", original, "--theory"), 2
    )


def test_files_of_other_tools_are_inspected_as_what_they_stand_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    original = ROOT / "sample_models" / "tiny-llama"
    assert run("quantize", original, "--to", "gptq", "--group-size", 32, "-o", out, "-q").code == 0
    found = json.loads(run("inspect", out, "--json").out)
    assert found["quantized"] and sum(t["parameters"] for t in found["tensors"]) == 115_008
    assert {t["scheme"] for t in found["tensors"] if t["disposition"] == "quantized"} == {"w4g32"}
    statistics = json.loads(run("inspect", out, "--json", "--stats").out)["tensors"]
    assert all(abs(t["stats"]["mean"]) < 0.1 for t in statistics if t["scheme"])
    ran = run("inspect", GOLDEN / "gptq-w4.safetensors")
    assert ran.code == 0 and "shown as it is stored" in ran.err and "m.qweight" in ran.out
