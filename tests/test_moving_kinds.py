"""Codes that few layouts have, in those that have them: super-blocks of GGUF, NF4, float zero points of HQQ, and what
nodes of ONNX decode. Numbers are put together here from arrays, or those of the tools' libraries under golden/."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx_parts as onnx
import pytest
from gguf_parts import raw_gguf, raw_key, text
from layout_parts import Parts, folder, made_by_a_tool, values, written
from making import GOLDEN_FILES, one_line, run

from quantcli.models import open_model
from quantcli.stores import open_source
from quantcli.stores.gguf_types import TYPES


def bytes_of(path: object) -> dict[str, bytes]:
    with closing(open_source(str(path))) as source:
        found = {}
        for info in source.infos():
            raw = np.empty(info.nbytes, np.uint8)
            source.read(info.name, 0, raw.data)
            found[info.name] = raw.tobytes()
        return found


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def gguf_without(path: Path, ends: tuple[str, ...]) -> Path:
    """The blocks that the gguf package wrote, without those of some types."""
    source = GOLDEN_FILES / "gguf" / "blocks.gguf"
    numbers = {kind.name: number for number, kind in TYPES.items()}
    with open_model(str(source)) as opened:
        kinds = {name: (block.type.name, block.shape) for name, block in opened.source.blocks.items()}
    held = bytes_of(source)
    tensors = [
        (name, numbers[kind], shape, held[name]) for name, (kind, shape) in kinds.items() if not name.endswith(ends)
    ]
    path.write_bytes(raw_gguf([raw_key("general.architecture", 8, text("none"))], tensors))
    return path


def test_blocks_of_a_gguf_stay_as_they_are(tmp_path: Path) -> None:
    source = gguf_without(tmp_path / "all.gguf", ("TQ1_0", "TQ2_0"))
    report = run("export", source, "--to", "gguf", "-o", tmp_path / "out.gguf", "--json").json
    assert report["lossless"] and {t["disposition"] for t in report["tensors"]} == {"exported"}
    before, after = bytes_of(source), bytes_of(tmp_path / "out.gguf")
    assert before == after and len(before) == 19
    with open_model(str(source)) as one, open_model(str(tmp_path / "out.gguf")) as two:
        assert {n: b.type for n, b in one.source.blocks.items()} == {n: b.type for n, b in two.source.blocks.items()}


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS", "IQ4_NL"])
def test_only_gguf_has_its_super_blocks(kind: str, tmp_path: Path) -> None:
    others = tuple(k for k in TYPES_OF_BLOCKS if k != kind)
    source = gguf_without(tmp_path / "one.gguf", others)
    line = one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "out", "-q"), 2)
    assert ("super-blocks" in line or "iq4" in line) and "--requantize" in line


def ternary(qs: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The weights of TQ2_0, element by element as in ggml: of 256, 4 bits of 32 bytes after another."""
    found = np.empty((len(qs), 256), np.float32)
    for half in (0, 32):
        for place in range(4):
            for byte in range(32):
                code = (qs[:, half + byte] >> (2 * place)) & 3
                found[:, 4 * half + 32 * place + byte] = (code.astype(np.float32) - 1) * d
    return found


@pytest.mark.parametrize("target", ["compressed-tensors", "mlx", "gptq"])
def test_ternary_blocks_are_codes_of_two_bits(target: str, tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    codes = chance.integers(0, 3, (128, 64, 4), np.uint8)
    qs = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(2, dtype=np.uint8)
    d = chance.uniform(0.01, 0.1, 128).astype(np.float16)
    raw = np.concatenate([qs, d[:, None].view(np.uint8)], axis=1)
    (number,) = (n for n, kind in TYPES.items() if kind.name == "TQ2_0")
    source, keys = tmp_path / "in.gguf", [raw_key("general.architecture", 8, text("none"))]
    source.write_bytes(raw_gguf(keys, [("a.weight", number, (64, 512), raw.tobytes())]))
    report = run("export", source, "--to", target, "-o", tmp_path / "out.safetensors", "--json").json
    assert report["lossless"]
    expected = ternary(qs, d.astype(np.float32)).reshape(64, 512)
    np.testing.assert_array_equal(values(tmp_path / "out.safetensors")["a.weight"], expected)
    raw[5, 7] |= 3  # a code of 3
    source.write_bytes(raw_gguf(keys, [("a.weight", number, (64, 512), raw.tobytes())]))
    ran = run("export", source, "--to", target, "-o", tmp_path / "other.safetensors")
    assert ran.code == 1 and "a.weight: a code beyond 2" in ran.err and not (tmp_path / "other.safetensors").exists()


TYPES_OF_BLOCKS = tuple(kind.name for kind in TYPES.values())


# ---- NF4, and int8 of bitsandbytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bnb-nf4-bfloat16", "bnb-nf4-float16"])
def test_nf4_with_nested_scales_or_without(name: str, tmp_path: Path) -> None:
    """The second has an absmax of codes; what is written has the same numbers as float32."""
    parts, config, _ = made_by_a_tool(GOLDEN_FILES / "decoded" / f"{name}.safetensors")
    source = folder(tmp_path / "source", parts, config)
    report = run("export", source, "--to", "bnb-nf4", "-o", tmp_path / "out", "--json").json
    assert report["lossless"] and report["tensors"][0]["exported_scheme"] == "nf4g64"
    before, after = values(source), values(tmp_path / "out")
    np.testing.assert_array_equal(after["m.weight"], before["m.weight"])
    state = json.loads(bytes_of(tmp_path / "out")["m.weight.quant_state.bitsandbytes__nf4"])
    assert state["dtype"] == name.removeprefix("bnb-nf4-")
    assert "the format nf4" in one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "mlx", "-q"), 2)


def test_int8_of_bitsandbytes_has_scales_that_its_library_rounds_later(tmp_path: Path) -> None:
    parts, config, expected = written(GOLDEN_FILES / "layouts" / "bnb-int8.safetensors")
    source = folder(tmp_path / "source", parts, config)
    report = run("export", source, "--to", "compressed-tensors", "-o", tmp_path / "out", "--json").json
    assert not report["lossless"] and report["sqnr_db"] > 140
    np.testing.assert_allclose(values(tmp_path / "out")["m.weight"], expected, rtol=3e-7)


# ---- HQQ ----------------------------------------------------------------------------------------------------------


def hqq(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, group: int) -> Parts:
    """Codes (rows, cols) in groups along the rows, two or more to a byte by halves of all groups."""
    rows, cols = codes.shape
    count = 8 // bits
    fields = codes.reshape(count, -1, group).astype(np.uint8)
    packed = np.zeros(fields.shape[1:], np.uint8)
    for number in range(count):
        packed |= fields[number] << np.uint8(bits * (count - 1 - number))
    packing = {4: b"4bit_u8", 8: b"8bit_u8", 2: b"2bit_u8"}[bits]
    numbers = {"nbits": bits, "group_size": group, "axis": 1}
    return {
        "m.W_q": ("U8", packed.shape, packed.tobytes()),
        "m.scale": ("F16", (rows * cols // group, 1), scale.astype("<f2").tobytes()),
        "m.zero": ("F16", (rows * cols // group, 1), zero.astype("<f2").tobytes()),
        "m.shape": ("I64", (2,), np.array([rows, cols], "<i8").tobytes()),
        **{f"m.{key}": ("I32", (), np.int32(value).tobytes()) for key, value in numbers.items()},
        "m.packing": ("U8", (len(packing),), packing),
        "m.compute_dtype": ("U8", (13,), b"torch.float16"),
    }


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_float_zero_points_of_hqq_are_biases_of_mlx(bits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (32, 128))
    scale = rng.uniform(0.001, 0.01, (64, 1)).astype(np.float16)
    zero = rng.uniform(0, 2**bits - 1, (64, 1)).astype(np.float16)
    source = folder(tmp_path / "source", hqq(codes, scale, zero, bits, 64))
    report = run("export", source, "--to", "mlx", "-o", tmp_path / "mlx", "--json").json
    [tensor] = report["tensors"]
    assert tensor["exported_scheme"] == f"w{bits}g64-float" and not report["lossless"] and report["sqnr_db"] > 45
    exact = (codes.reshape(64, 64) - zero.astype(np.float64)) * scale.astype(np.float64)
    found = values(tmp_path / "mlx")["m.weight"].reshape(64, 64)
    half = np.abs(zero.astype(np.float64) * scale) * 2.0**-11  # of the bias, which float16 rounds
    assert (np.abs(found - exact) <= half + 1e-7).all()
    assert "float offsets" in one_line(run("export", source, "--to", "gptq", "-o", tmp_path / "q", "-q"), 2)
    if bits == 4:
        report = run("export", source, "--to", "gguf", "--container", "-o", tmp_path / "o.gguf", "--json").json
        assert report["tensors"][0]["exported_scheme"] == "w4g64-float" and report["sqnr_db"] > 45


def test_whole_zero_points_of_hqq_are_those_of_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 16, (32, 128)), rng.uniform(0.001, 0.01, (64, 1)).astype(np.float16)
    zero = rng.integers(0, 16, (64, 1))
    source = folder(tmp_path / "source", hqq(codes, scale, zero, 4, 64))
    exact = ((codes.reshape(64, 64) - zero) * scale.astype(np.float32)).reshape(32, 128)
    for target in ("awq", "gptq", "compressed-tensors"):
        report = run("export", source, "--to", target, "-o", tmp_path / target, "--json").json
        assert report["lossless"] and report["tensors"][0]["exported_scheme"] == "w4g64-asym"
        np.testing.assert_array_equal(values(tmp_path / target)["m.weight"], exact)


def test_groups_of_hqq_that_are_columns_are_refused(tmp_path: Path) -> None:
    parts, config, _ = made_by_a_tool(GOLDEN_FILES / "decoded" / "hqq-4-axis0-f16.safetensors")
    source = folder(tmp_path / "source", parts, config)
    line = one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "out", "-q"), 2)
    assert "(axis 0)" in line and "--requantize" in line


# ---- ONNX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", ["none", "whole", "floats"])
def test_matmulnbits_goes_where_its_codes_fit(zeros: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes, scale = rng.integers(0, 16, (32, 96)), rng.uniform(0.001, 0.01, (32, 3)).astype(np.float16)
    zero = {"none": np.full((32, 3), 8), "whole": rng.integers(0, 16, (32, 3)), "floats": rng.uniform(0, 15, (32, 3))}
    own = zero[zeros].astype(np.float16 if zeros == "floats" else np.uint8)
    inputs, more = ["x", "m.weight_Q4", "m.weight_scales"], b""
    if zeros == "whole":
        padded = np.zeros((32, 4), np.uint8)
        padded[:, :3] = own
        more = onnx.tensor("m.weight_zp", onnx.U8, (64,), onnx.nibbles(padded).tobytes())
    elif zeros == "floats":
        more = onnx.tensor("m.weight_zp", onnx.FLOAT16, (96,), own.tobytes())
    inputs += [] if zeros == "none" else ["m.weight_zp"]
    source = onnx.written(
        tmp_path / "model.onnx",
        onnx.node("MatMulNBits", inputs, "com.microsoft", K=96, N=32, bits=4, block_size=32),
        onnx.tensor("m.weight_Q4", onnx.U8, (32, 3, 16), onnx.nibbles(codes).tobytes()),
        onnx.tensor("m.weight_scales", onnx.FLOAT16, (96,), scale.tobytes()),
        more,
    )
    exact = (codes.reshape(32, 3, 32) - own.astype(np.float64)[:, :, None]) * scale.astype(np.float64)[:, :, None]
    name = {"none": "w4g32", "whole": "w4g32-asym", "floats": "w4g32-float"}[zeros]
    for target in ("compressed-tensors", "awq", "mlx"):
        done = run("export", source, "--to", target, "-o", tmp_path / target, "--json")
        if zeros == "floats" and target != "mlx":
            assert "float offsets" in one_line(done, 2)
            continue
        assert done.code == 0, done.err
        assert done.json["tensors"][0]["exported_scheme"] == name
        assert done.json["lossless"] == (zeros == "none" or (zeros == "whole" and target != "mlx"))
        found = values(tmp_path / target)["m.weight"].reshape(32, 3, 32)
        np.testing.assert_allclose(found, exact, rtol=0, atol=0 if done.json["lossless"] else 1e-4)


@pytest.mark.parametrize("kind", ["int8 per row", "int4 in blocks", "uint8 for the tensor"])
def test_what_dequantizelinear_decodes(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    inputs, attributes, zero = ["w_Q", "s"], dict[str, Any](), np.float32(0)
    if kind == "int8 per row":
        codes, scale = rng.integers(-128, 128, (32, 64)), rng.uniform(0.001, 0.01, (32, 1)).astype(np.float32)
        held, attributes = onnx.tensor("w_Q", onnx.I8, (32, 64), codes.astype(np.int8).tobytes()), {"axis": 0}
        more = onnx.f32("s", scale.ravel())
    elif kind == "int4 in blocks":
        codes, scale = rng.integers(-8, 8, (32, 64)), rng.uniform(0.001, 0.01, (32, 2)).astype(np.float32)
        held = onnx.tensor("w_Q", onnx.INT4, (32, 64), onnx.nibbles(codes & 15).tobytes())
        attributes, more = {"axis": 1, "block_size": 32}, onnx.f32("s", scale)
    else:
        codes, scale, zero = rng.integers(0, 256, (32, 64)), np.full((1, 1), 0.01, np.float32), np.float32(131)
        held = onnx.tensor("w_Q", onnx.U8, (32, 64), codes.astype(np.uint8).tobytes())
        more = onnx.f32("s", scale.reshape(())) + onnx.tensor("z", onnx.U8, (), b"\x83")
        inputs.append("z")
    source = onnx.written(tmp_path / "m.onnx", onnx.node("DequantizeLinear", inputs, **attributes), held, more)
    exact = (codes - zero) * np.repeat(scale, 64 // scale.shape[1], axis=1)
    report = run("export", source, "--to", "gguf", "--container", "-o", tmp_path / "out.gguf", "--json")
    if "tensor" in kind:
        assert "8 bits with zero points" in one_line(report, 2)
        return
    assert report.code == 0, report.err
    [found] = values(tmp_path / "out.gguf").values()
    np.testing.assert_allclose(found, exact, rtol=2e-3)


def test_matrices_that_are_stored_turned_are_refused(tmp_path: Path) -> None:
    source = GOLDEN_FILES / "onnx" / "dynamic.onnx"
    line = one_line(run("export", source, "--to", "compressed-tensors", "-o", tmp_path / "out", "-q"), 2)
    assert "[in, out]" in line and "--requantize" in line
