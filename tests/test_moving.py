"""Codes of other tools' files in the layouts of others: numbers are those that the tools' own libraries decode, which
wrote the files under golden/, or are put together here from arrays."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layout_parts import Parts, codes, dense, floats, folder, made_by_a_tool, plain, scales, values, words, written
from making import GOLDEN_FILES, ROOT, load, one_line, run, save

from quantcli import Scheme
from quantcli.dtypes import from_float32, to_float32
from quantcli.layouts.held import Moved, in_order, joined, offsets_of, scheme_of
from quantcli.layouts.reader import Held
from quantcli.models import open_model
from quantcli.tensors import packing
from quantcli.tensors.rows import TileSpan, grouping_of

WRITTEN = [p for p in sorted((GOLDEN_FILES / "layouts").glob("*.safetensors")) if not p.stem.startswith("comfy")]
"""All but those whose description is in the header of the file."""
MATRICES = ("awq", "gptq", "compressed-tensors", "mlx")
TARGETS = (*MATRICES, "gguf", "onnx")
LLAMA = ROOT / "sample_models" / "tiny-llama"


def output_of(target: str, place: Path) -> list[object]:
    """Options for a target, with an output."""
    single = {"gguf": ".gguf", "onnx": ".onnx"}.get(target)
    found: list[object] = ["--to", target, "-o", f"{place}{single or ''}", "--json"]
    return [*found, *(["--container"] if single else [])]


# ---- files of other tools -------------------------------------------------------------------------------------------

EXACT = {
    "awq-g16": ("awq", "compressed-tensors", "onnx"),
    "gptq-w2": ("gptq", "compressed-tensors", "onnx"),
    "gptq-w3": ("gptq", "compressed-tensors"),
    "gptq-w8": ("gptq", "compressed-tensors", "onnx"),
    "mlx-w2": ("mlx",),
    "mlx-w6": ("mlx",),
    "w4g24": ("compressed-tensors",),
    "w4g16-asym": ("compressed-tensors", "onnx"),
    "old-w3g10-asym": ("compressed-tensors",),
    "w8t-asym": ("compressed-tensors", "onnx"),
    "int-w8c": ("compressed-tensors", "onnx"),
}
"""Targets that hold the codes of files exactly, some of them."""


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.stem)
def test_what_is_lossless_is_what_the_library_decodes(path: Path, tmp_path: Path) -> None:
    parts, config, expected = written(path)
    source, held = folder(tmp_path / "source", parts, config), values(tmp_path / "source")
    lossless = []
    for target in TARGETS:
        output = output_of(target, tmp_path / target)
        done = run("export", source, *output)
        if done.code:
            assert "--requantize" in one_line(done, done.code), done.err
            assert not Path(str(output[3])).exists()
            continue
        name, weight = next(iter(values(output[3]).items()))
        same = np.array_equal(weight, held[name])
        assert done.json["lossless"] is same
        if same:
            lossless.append(target)
            np.testing.assert_allclose(weight, expected, rtol=1e-6 if path.stem.startswith("mlx") else 0)
        else:
            assert target in ("mlx", "gguf") or path.stem == "bnb-int8"
            assert target == "onnx" or done.json["sqnr_db"] > 60
    assert set(EXACT.get(path.stem, ())) <= set(lossless)


FLOATS = {
    "comfy-float8_e4m3fn-20": {"compressed-tensors": "fp8-e4m3t", "fp8-blocks": "fp8-e4m3b128x128",
                               "modelopt": "fp8-e4m3c"},
    "comfy-mxfp8-160": {"compressed-tensors": "mxfp8", "modelopt": "mxfp8"},
    "comfy-nvfp4-144": {"compressed-tensors": "nvfp4", "modelopt": "nvfp4"},
    "ct-fp8-channel": {"compressed-tensors": "fp8-e4m3c", "modelopt": "fp8-e4m3c"},
    "ct-fp8-tensor": {"compressed-tensors": "fp8-e4m3t", "fp8-blocks": "fp8-e4m3b128x128", "modelopt": "fp8-e4m3c"},
    "ct-mxfp4": {"compressed-tensors": "mxfp4", "modelopt": "nvfp4"},
    "ct-mxfp8": {"compressed-tensors": "mxfp8", "modelopt": "mxfp8"},
    "ct-nvfp4": {"compressed-tensors": "nvfp4", "modelopt": "nvfp4"},
    "mistral": {"compressed-tensors": "fp8-e4m3t", "fp8-blocks": "fp8-e4m3b128x128", "modelopt": "fp8-e4m3c"},
    "modelopt-fp8": {"compressed-tensors": "fp8-e4m3t", "fp8-blocks": "fp8-e4m3b128x128", "modelopt": "fp8-e4m3t"},
    "modelopt-fp8-blocks": {"compressed-tensors": "fp8-e4m3b16x16"},
    "modelopt-mxfp8": {"compressed-tensors": "mxfp8", "modelopt": "mxfp8"},
    "modelopt-nvfp4": {"compressed-tensors": "nvfp4", "modelopt": "nvfp4"},
    "torchao-float8-bf16": {"compressed-tensors": "fp8-e4m3c", "modelopt": "fp8-e4m3c"},
    "v3": {"compressed-tensors": "fp8-e4m3b16x16"},
    "v4-fp8": {"compressed-tensors": "fp8-e4m3b16x16"},
}  # fmt: skip
"""What files in golden/decoded become, which the tools' libraries decoded, by target; others are refused."""


@pytest.mark.parametrize("name", FLOATS)
def test_small_floats_are_moved_as_they_are(name: str, tmp_path: Path) -> None:
    parts, config, (dtype, expected) = made_by_a_tool(GOLDEN_FILES / "decoded" / f"{name}.safetensors")
    source = folder(tmp_path / "source", parts, config)
    before = values(source)
    for target in ("compressed-tensors", "fp8-blocks", "modelopt"):
        done = run("export", source, "--to", target, "-o", tmp_path / target, "--json")
        if target not in FLOATS[name]:
            assert f"{target} cannot store it" in one_line(done, 2) and "--requantize" in done.err
            continue
        assert done.code == 0, done.err
        after = values(tmp_path / target)
        [key] = [t["name"] for t in done.json["tensors"] if t["scheme"]]
        with open_model(str(tmp_path / target)) as model:
            assert model[key].scheme == FLOATS[name][target]
        if not done.json["lossless"]:  # the inverse of a scale of the tensor, rounded
            assert "nvfp4" in name and done.json["sqnr_db"] > 130
            np.testing.assert_allclose(after[key], before[key], rtol=2e-7)
            continue
        np.testing.assert_array_equal(after[key], before[key])
        rounded, wanted = from_float32(after[key], dtype).ravel(), expected.ravel()
        found, made = (to_float32(v.view(np.uint8), dtype) for v in (rounded, wanted))
        np.testing.assert_array_equal(found, made)


def test_what_inputs_are_quantized_to_moves_along(tmp_path: Path) -> None:
    """As far as the target says it: their measured scales too."""
    weights = np.random.default_rng(1).normal(0, 0.02, (128, 128)).astype(np.float32)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "torch_dtype": "float16"}')
    key = "model.layers.0.mlp.down_proj.weight"
    save(model / "model.safetensors", {key: weights})
    measured = {key.replace("weight", "input_scale"): np.array([0.37], np.float32)}
    save(tmp_path / "s.safetensors", measured)
    given = ["--activation-scales", tmp_path / "s.safetensors"]
    for scheme in ("FP8_DYNAMIC", "FP8", "NVFP4", "W8A8", "FP8_BLOCK"):
        out = tmp_path / scheme
        own = given if scheme in ("FP8", "NVFP4") else []
        assert run("quantize", model, "--scheme", scheme, *own, "-o", out, "-q").code == 0
        assert run("export", out, "--to", "compressed-tensors", "-o", tmp_path / f"{scheme}-2", "-q").code == 0
        one, two = (load(folder / "model.safetensors") for folder in (out, tmp_path / f"{scheme}-2"))
        assert one == two
        one, two = (json.loads((f / "config.json").read_text()) for f in (out, tmp_path / f"{scheme}-2"))
        assert one["quantization_config"] == two["quantization_config"]
    for scheme, algorithm in {"FP8_DYNAMIC": "FP8_PER_CHANNEL_PER_TOKEN", "FP8": "FP8", "NVFP4": "NVFP4"}.items():
        ran = run("export", tmp_path / scheme, "--to", "modelopt", "-o", tmp_path / f"{scheme}-m", "--json")
        config = json.loads((tmp_path / f"{scheme}-m" / "config.json").read_text())["quantization_config"]
        assert ran.code == 0 and ran.json["lossless"] and config["quant_algo"] == algorithm
        held = load(tmp_path / f"{scheme}-m" / "model.safetensors")
        if scheme != "FP8_DYNAMIC":
            [value] = np.frombuffer(held[key.replace("weight", "input_scale")].data, "<f4")
            assert value == pytest.approx(0.37, rel=1e-6) and "left out" not in ran.err
    ran = run("export", tmp_path / "W8A8", "--to", "gptq", "-o", tmp_path / "gptq", "--json")
    assert ran.code == 0 and ran.json["lossless"]
    assert "gptq does not say how inputs are quantized (int8): that is left out" in ran.err
    native = tmp_path / "native"
    assert run("quantize", model, "--scheme", "W8A8", "--to", "native", "-o", native, "-q").code == 0
    assert run("export", native, "--to", "gptq", "-o", tmp_path / "gptq2", "-q").code == 0
    assert load(tmp_path / "gptq2" / "model.safetensors") == load(tmp_path / "gptq" / "model.safetensors")
    whole = ["--scheme", "FP8_DYNAMIC", "--override", "*:granularity=tensor", "--to", "compressed-tensors"]
    assert run("quantize", model, *whole, "-o", tmp_path / "whole", "-q").code == 0
    for target in ("fp8-blocks", "comfyui"):
        ran = run("export", tmp_path / "whole", "--to", target, "-o", tmp_path / f"whole-{target}", "--json")
        assert ran.code == 0 and ran.json["lossless"]
        assert f"{target} does not say how inputs are quantized (fp8): that is left out" in ran.err


@pytest.mark.parametrize("path", [p for p in WRITTEN if p.stem[:3] in ("fp8", "bnb", "mlx")], ids=lambda p: p.stem)
def test_other_codes_are_quantized_again_on_request(path: Path, tmp_path: Path) -> None:
    parts, config, expected = written(path)
    source = folder(tmp_path / "source", parts, config)
    done = run("export", source, *output_of("onnx", tmp_path / "out"), "--requantize")
    if done.code:
        assert "none of its weights" in done.err or "do not fit" in one_line(done, 1)
        return
    [tensor] = [t for t in done.json["tensors"] if t["scheme"]]
    weight = values(f"{tmp_path / 'out'}.onnx")[tensor["name"]]
    if tensor["disposition"] == "requantized":
        noise = np.square(weight.astype(np.float64) - expected).sum()
        assert 10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise) > 5


def test_groups_that_are_not_runs_of_inputs_are_refused(tmp_path: Path) -> None:
    parts, config, _ = written(GOLDEN_FILES / "layouts" / "gptq-w4.safetensors")
    name = next(n for n in parts if n.endswith("g_idx"))
    order = np.frombuffer(parts[name][2], "<i4")
    own = {**parts, name: (*parts[name][:2], np.ascontiguousarray(order[::-1]).tobytes())}
    source = folder(tmp_path / "source", own, config)
    assert "(desc_act)" in one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "out", "-q"), 2)


# ---- what zero points there are -------------------------------------------------------------------------------------


def mlx(bits: int, rows: int, cols: int, bias: np.ndarray, scale: np.ndarray, dtype: str = "F16") -> Parts:
    rng = random.Random(bits)
    stream = [dense(row, bits) for row in codes(rng, rows, cols, bits)]
    return {"m.weight": words("U32", stream), "m.scales": floats(scale, dtype), "m.biases": floats(bias, dtype)}


def config_of(bits: int) -> dict[str, Any]:
    return {"quantization": {"group_size": 32, "bits": bits}}


@pytest.mark.parametrize("bits", [4, 8])
def test_biases_of_mlx_that_are_zero_points(bits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    scale = (rng.integers(1, 128, (32, 2)) / 4096).astype(np.float32) * rng.choice([-1, 1], (32, 2))
    scale[3, 1] = 0
    symmetric, zeros = -(2.0 ** (bits - 1)) * scale, rng.integers(0, 2**bits, (32, 2))
    near = symmetric.copy()
    near[5, 0] += 1 / 4096
    cases = {"sym": symmetric, "zeros": -zeros * scale, "near": near}
    for name, bias in cases.items():
        source = folder(tmp_path / name, mlx(bits, 32, 64, bias, scale, "F32"), config_of(bits))
        done = run("export", source, *output_of("compressed-tensors", tmp_path / f"{name}-out"))
        if name == "near":
            assert "float offsets" in one_line(done, 2)
            continue
        [tensor] = done.json["tensors"]
        assert (tensor["exported_scheme"], tensor["lossless"]) == (
            f"w{bits}g32{'' if name == 'sym' else '-asym'}", True
        )  # fmt: skip
        np.testing.assert_array_equal(values(tmp_path / f"{name}-out")["m.weight"], values(source)["m.weight"])


def test_scales_of_float32_are_not_taken_for_lossless(tmp_path: Path) -> None:
    """u * scale + bias rounds twice where (u - z) * scale rounds once."""
    scale = np.random.default_rng(0).uniform(0.01, 0.02, (32, 2)).astype(np.float32)
    source = folder(tmp_path / "f32", mlx(4, 32, 64, -8 * scale, scale, "F32"), config_of(4))
    assert "float offsets" in one_line(run("export", source, *output_of("awq", tmp_path / "out")), 2)
    native, out = tmp_path / "n.safetensors", tmp_path / "n.mlx"
    weights = np.random.default_rng(1).normal(0, 0.02, (32, 64)).astype(np.float32)
    save(tmp_path / "w.safetensors", {"m.weight": weights})
    run("quantize", tmp_path / "w.safetensors", "--group-size", 32, "--scale-dtype", "float32", "-o", native)
    report = run("export", native, *output_of("mlx", out)).json
    assert not report["lossless"] and report["sqnr_db"] > 120
    assert not np.array_equal(values(out)["m.weight"], values(native)["m.weight"])


def test_a_model_stays_of_one_scheme(tmp_path: Path) -> None:
    """One weight has zero points, so all have."""
    rng = random.Random(3)
    parts: Parts = {}
    for name, zero in (("a", 8), ("b", 7)):
        u, s = codes(rng, 32, 64, 4), scales(rng, 32, 2)
        columns = list(zip(*(dense(row, 4) for row in u)))
        parts |= {
            f"{name}.qweight": words("I32", [list(line) for line in columns]),
            f"{name}.qzeros": words("I32", [dense([zero] * 32, 4)] * 2),
            f"{name}.scales": floats(np.ascontiguousarray(s.T), "F16"),
        }
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True,
                                      "checkpoint_format": "gptq_v2"}}  # fmt: skip
    source = folder(tmp_path / "both", parts, config)
    report = run("export", source, *output_of("compressed-tensors", tmp_path / "out")).json
    assert [t["exported_scheme"] for t in report["tensors"]] == ["w4g32-asym"] * 2 and report["lossless"]
    alone = folder(tmp_path / "one", {n: p for n, p in parts.items() if n.startswith("a.")}, config)
    report = run("export", alone, *output_of("compressed-tensors", tmp_path / "one-out")).json
    assert [t["exported_scheme"] for t in report["tensors"]] == ["w4g32"]


# ---- codes as writers take them -------------------------------------------------------------------------------------


def held_of(u: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, bits: int, group: int) -> Held:
    return Held(
        bits=bits,
        group=group,
        offsets="" if zero is None else "int",
        scale_dtype="F32",
        packed=lambda first, last: packing.pack(u[first:last], bits),
        params=lambda first, last: (scale[first:last], None if zero is None else zero[first:last]),
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_parts_of_rows(bits: int) -> None:
    rng = np.random.default_rng(bits)
    u = rng.integers(0, 1 << bits, (40, 192)).astype(np.uint8)
    scale, zero = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 1 << bits, (40, 6)).astype(np.float32)
    held = held_of(u, scale, zero, bits, 32)
    scheme = scheme_of(held, offsets_of(held, 40, 192))
    assert scheme.name == f"w{bits}g32-asym"
    moved = Moved(held, scheme, grouping_of((40, 192), scheme))
    for span in (TileSpan(0, 40, 0, 192), TileSpan(3, 5, 32, 96), TileSpan(39, 1, 160, 32)):
        cut = np.s_[span.row : span.row + span.rows, span.col : span.col + span.cols]
        np.testing.assert_array_equal(packing.unpack(moved.packed(span), span.rows, span.cols, bits), u[cut])
        params, groups = moved.params(span), np.s_[cut[0], span.col // 32 : (span.col + span.cols) // 32]
        np.testing.assert_array_equal(params.scale, scale[groups])
        assert params.zero is not None
        np.testing.assert_array_equal(params.zero, zero[groups])


def test_rows_of_several_weights_and_of_heads() -> None:
    rng = np.random.default_rng(0)
    u, scale = rng.integers(0, 16, (24, 64)).astype(np.uint8), rng.normal(size=(24, 2)).astype(np.float32)
    held = held_of(u, scale, None, 4, 32)
    order = [*range(8, 12), *range(8), *range(20, 24)]
    both = joined([(held, 8, 4), (held, 0, 8), (held, 20, 4)])
    pairs = np.arange(24).reshape(3, 2, 4).swapaxes(1, 2).reshape(-1)  # halves of heads of 8 rows, alternating
    back = in_order(held_of(u[pairs], scale[pairs], None, 4, 32), np.argsort(pairs), 8)
    assert isinstance(back, Held)
    for made, rows in ((both, order), (back, list(range(24)))):
        for first, last in ((0, len(rows)), (3, 9), (11, 12), (5, len(rows))):
            np.testing.assert_array_equal(
                packing.unpack(made.packed(first, last), last - first, 64, 4), u[rows[first:last]]
            )
            np.testing.assert_array_equal(made.params(first, last)[0], scale[rows[first:last]])


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample Llama as other tools have it."""
    place = tmp_path_factory.mktemp("models")
    for target, more in (("awq", ["--asymmetric"]), ("gptq", []), ("mlx", ["--keep-embeddings"])):
        options = ["--bits", 4, "--group-size", 32, *more, "--to", target, "-o", place / target]
        assert not run("quantize", LLAMA, *options).code
    options = ["--bits", 4, "--group-size", 32, "--to", "gguf", "--keep-embeddings", "-o", place / "model.gguf"]
    assert not run("quantize", LLAMA, *options).code
    (place / "gptq" / "quantize_config.json").write_text('{"bits": 4}')
    return place


CHAIN = [("awq", "gptq"), ("awq", "compressed-tensors"), ("gptq", "awq"), ("gptq", "mlx"), ("gptq", "gguf"),
         ("mlx", "awq"), ("mlx", "compressed-tensors"), ("mlx", "gguf"), ("model.gguf", "mlx"), ("model.gguf", "awq"),
         ("model.gguf", "compressed-tensors")]  # fmt: skip


@pytest.mark.parametrize(("name", "target"), CHAIN)
def test_models_go_from_tool_to_tool(name: str, target: str, models: Path, tmp_path: Path) -> None:
    """Of a GGUF the rows of q and k go back to where a checkpoint has them."""
    out = tmp_path / ("out.gguf" if target == "gguf" else "out")
    report = run("export", models / name, "--to", target, "-o", out, "--json").json
    assert report["lossless"] and {t["disposition"] for t in report["tensors"]} == {"exported", "kept"}
    compared = run("compare", models / name, out, "--json").json
    assert not compared["tensors"] or all(t["mse"] == 0 for t in compared["tensors"] if t["mse"] is not None)
    assert len(compared["tensors"]) == 21


def test_the_folder_tells_of_its_own_quantization_only(models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "gptq" / "config.json").read_text())
    config["text_config"] = {"hidden_size": 64, "quantization_config": config["quantization_config"]}
    (models / "gptq" / "config.json").write_text(json.dumps(config))
    report = run("export", models / "gptq", "--to", "mlx", "-o", tmp_path / "out", "--json").json
    now = json.loads((tmp_path / "out" / "config.json").read_text())
    assert now["quantization_config"] == now["quantization"] == report["config"]["quantization"]
    assert now["text_config"] == {"hidden_size": 64} and now["vocab_size"] == config["vocab_size"]
    assert not (tmp_path / "out" / "quantize_config.json").exists()
    assert any("quantize_config.json" in line for line in report["warnings"])


@pytest.mark.parametrize("target", ["awq", "compressed-tensors", "mlx"])
def test_the_same_bytes_on_any_number_of_threads(target: str, models: Path, tmp_path: Path) -> None:
    def made(threads: int) -> dict[str, bytes]:
        out = tmp_path / f"{threads}"
        assert not run("export", models / "gptq", "--to", target, "-o", out, "--threads", threads, "-q").code
        return {file.name: file.read_bytes() for file in sorted(out.iterdir())}

    assert made(1) == made(2) == made(7)


def test_one_width_for_a_target_that_has_one(models: Path, tmp_path: Path) -> None:
    """A GGUF with a head of 8 bits: GPTQ has 4 bits for all."""
    mixed = tmp_path / "mixed.gguf"
    run("quantize", LLAMA, "--bits", 4, "--group-size", 32, "--to", "gguf", "-o", mixed)
    assert "--requantize" in one_line(run("export", mixed, "--to", "gptq", "-o", tmp_path / "out", "-q"), 2)
    report = run("export", mixed, "--to", "gptq", "-o", tmp_path / "out", "--requantize", "--json").json
    found = {t["name"]: (t["disposition"], t["exported_scheme"]) for t in report["tensors"]}
    assert found["lm_head.weight"] == ("requantized", "w4g32")
    assert found["model.embed_tokens.weight"] == ("decoded", None)
    assert found["model.layers.0.mlp.up_proj.weight"] == ("exported", "w4g32")


def test_scales_of_activations_are_named(models: Path, tmp_path: Path) -> None:
    parts, config, _ = written(GOLDEN_FILES / "layouts" / "int-w8c.safetensors")
    module = next(n for n in parts if n.endswith("weight")).removesuffix("weight")
    number = ("F32", (1,), np.float32(1).tobytes())
    source = folder(tmp_path / "static", {**parts, f"{module}input_scale": number}, config)
    done = run("export", source, "--to", "compressed-tensors", "-o", tmp_path / "out")
    assert f"left out, scales of activations or caches: {module}input_scale" in done.err


def test_plain_codes_by_hand(tmp_path: Path) -> None:
    """A GPTQ weight written out here, as Q4_0 blocks read here."""
    rng = random.Random(9)
    u, s = codes(rng, 32, 64, 4), scales(rng, 32, 2).astype(np.float16).astype(np.float64)
    columns = list(zip(*(dense(row, 4) for row in u)))
    parts: Parts = {
        "m.qweight": words("I32", [list(line) for line in columns]),
        "m.qzeros": words("I32", [dense([7] * 32, 4)] * 2),  # the first version stores one less
        "m.scales": floats(np.ascontiguousarray(s.T), "F16"),
    }
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}}
    source = folder(tmp_path / "source", parts, config)
    run("export", source, *output_of("gguf", tmp_path / "out"))
    raw = (tmp_path / "out.gguf").read_bytes()[-32 * 2 * 18 :]
    blocks = np.frombuffer(raw, np.dtype([("d", "<f2"), ("qs", "u1", 16)]))
    nibbles = np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], 1).astype(np.float32)
    found = ((nibbles - 8) * blocks["d"].astype(np.float32)[:, None]).reshape(32, 64)
    np.testing.assert_array_equal(found, plain(u, None, s, 32, 8))


def test_schemes_that_codes_have_are_those_of_the_command_line() -> None:
    for group, kind, name in ((128, "", "w4g128"), ("channel", "int", "w4c-asym"), (32, "float", "w4g32-float")):
        held = Held(bits=4, group=group, offsets=kind, scale_dtype="F16", packed=None, params=None)  # type: ignore[arg-type]
        assert scheme_of(held, kind).name == name and isinstance(scheme_of(held, kind), Scheme)


# ---- MXFP4 ----------------------------------------------------------------------------------------------------------

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)
E2M1 = np.concatenate([LEVELS, -LEVELS])


def of_mxfp4(raw: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The numbers of bytes of two codes (..., cols / 2) with exponents (..., cols / 32)."""
    found = np.stack([E2M1[raw & 15], E2M1[raw >> 4]], axis=-1).reshape(*exponents.shape, 32)
    return (found * np.exp2(exponents - 127.0)[..., None]).reshape(*raw.shape[:-1], -1)


def mxfp4(shapes: dict[str, tuple[int, int]], low: int = 112, high: int = 128) -> tuple[Parts, dict[str, np.ndarray]]:
    """Weights as compressed-tensors has them, and their numbers."""
    rng, parts, expected = np.random.default_rng(0), Parts(), {}
    for name, (rows, cols) in shapes.items():
        raw = rng.integers(0, 256, (rows, cols // 2)).astype(np.uint8)
        scale = rng.integers(low, high, (rows, cols // 32)).astype(np.uint8)
        parts[f"{name}.weight_packed"] = ("U8", raw.shape, raw.tobytes())
        parts[f"{name}.weight_scale"] = ("U8", scale.shape, scale.tobytes())
        expected[f"{name}.weight"] = of_mxfp4(raw, scale)
    return parts, expected


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, small floats as float64."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    types = {"U8": "u1", "F32": "<f4", "F8_E4M3": ml_dtypes.float8_e4m3fn}
    found = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            first, last = (8 + size + at for at in entry["data_offsets"])
            values = np.frombuffer(raw[first:last], types[entry["dtype"]]).reshape(entry["shape"])
            found[name] = values if entry["dtype"] == "U8" else values.astype(np.float64)
    return found


def of_nvfp4(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A weight as compressed-tensors or ModelOpt has it."""
    if f"{name}_packed" in stored:
        raw, overall = stored[f"{name}_packed"], 1 / stored[f"{name}_global_scale"]
    else:
        raw, overall = stored[name], stored[f"{name}_scale_2"]
    scale = stored[f"{name}_scale"] * overall
    return (np.stack([E2M1[raw & 15], E2M1[raw >> 4]], axis=-1).reshape(*scale.shape, 16) * scale[..., None]).reshape(
        len(raw), -1
    )


CT_MXFP4 = {"quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}}
NV = {"compressed-tensors": ["--scheme", "NVFP4A16"], "modelopt": []}
PLACE = "model.layers.0"
JOINED = {f"{PLACE}.self_attn.{m}_proj": (32, 64) for m in "qkv"} | {f"{PLACE}.mlp.down_proj": (64, 96)}


@pytest.mark.parametrize("target", NV)
def test_mxfp4_as_nvfp4(target: str, tmp_path: Path) -> None:
    parts, expected = mxfp4(JOINED)
    exponents = np.frombuffer(parts[f"{PLACE}.self_attn.k_proj.weight_scale"][2], np.uint8)
    raised = np.minimum(exponents + 2, 129).astype(np.uint8)  # one of three reaches further than the others
    packed = np.frombuffer(parts[f"{PLACE}.self_attn.k_proj.weight_packed"][2], np.uint8).reshape(32, 32)
    parts[f"{PLACE}.self_attn.k_proj.weight_scale"] = ("U8", (32, 2), raised.tobytes())
    expected[f"{PLACE}.self_attn.k_proj.weight"] = of_mxfp4(packed, raised.reshape(32, 2))
    source = folder(tmp_path / "source", parts, CT_MXFP4)
    report = run("export", source, "--to", target, *NV[target], "-o", tmp_path / "out", "--json").json
    assert report["lossless"] and {t["exported_scheme"] for t in report["tensors"]} == {"nvfp4"}
    stored = arrays(tmp_path / "out" / "model.safetensors")
    for name, weight in expected.items():
        np.testing.assert_array_equal(of_nvfp4(stored, name), weight)
    overall = [v.item() for n, v in stored.items() if n.endswith(("_global_scale", "_scale_2"))]
    assert len(overall) == 4 and len(set(overall[:3])) == 1 and overall[3] != overall[0]
    for name, values_read in values(tmp_path / "out").items():
        np.testing.assert_array_equal(values_read, expected[name])


@pytest.mark.parametrize("target", NV)
def test_scales_of_mxfp4_that_e4m3_has_not(target: str, tmp_path: Path) -> None:
    for high, fits in ((127 + 9, True), (127 + 10, False)):  # 18 powers of two, and one more
        parts, expected = mxfp4(JOINED, 127, 128)
        raw = np.array(np.frombuffer(parts[f"{PLACE}.self_attn.q_proj.weight_packed"][2], np.uint8)).reshape(32, 32)
        scale = np.full((32, 2), 127, np.uint8)
        scale[7, 1], scale[8, 0] = high, 127 - 8
        parts[f"{PLACE}.self_attn.q_proj.weight_scale"] = ("U8", (32, 2), scale.tobytes())
        source = folder(tmp_path / f"{high}", parts, CT_MXFP4)
        done = run("export", source, "--to", target, *NV[target], "-o", tmp_path / f"{high}-out", "--json")
        if fits:
            assert done.json["lossless"]
            continue
        refusal = one_line(done, 2)
        assert "2^-8 to 2^10" in refusal and "--requantize makes it nvfp4" in refusal
        assert not (tmp_path / f"{high}-out").exists()
        again = ["--to", target, *NV[target], "-o", tmp_path / "again", "--requantize", "--json"]
        found = {t["name"]: t["disposition"] for t in run("export", source, *again).json["tensors"]}
        assert list(found.values()) == ["requantized"] * 3 + ["exported"]
        stored = arrays(tmp_path / "again" / "model.safetensors")
        overall = [v.item() for n, v in stored.items() if n.endswith(("_global_scale", "_scale_2"))]
        assert len(set(overall[:3])) == 1
        raw[8, :16] &= 0x88  # a group of zeros of both signs may have any scale
        parts[f"{PLACE}.self_attn.q_proj.weight_packed"] = ("U8", (32, 32), raw.tobytes())
        source = folder(tmp_path / "zeros", parts, CT_MXFP4)
        done = run("export", source, "--to", target, *NV[target], "-o", tmp_path / "zeros-out", "--json")
        assert done.json["lossless"]
        weight = of_nvfp4(arrays(tmp_path / "zeros-out" / "model.safetensors"), f"{PLACE}.self_attn.q_proj.weight")
        np.testing.assert_array_equal(weight, of_mxfp4(raw, scale))
        assert expected


@pytest.mark.parametrize("exponents", [(0, 0), (0, 17), (237, 254), (254, 254), (117, 134)])
def test_mxfp4_of_any_size_as_nvfp4(exponents: tuple[int, int], tmp_path: Path) -> None:
    parts, expected = mxfp4({"m": (32, 64)}, exponents[0], exponents[1] + 1)
    source = folder(tmp_path / "source", parts, CT_MXFP4)
    for target, more in NV.items():
        done = run("export", source, "--to", target, *more, "-o", tmp_path / target, "--json")
        assert done.json["lossless"]
        stored = arrays(tmp_path / target / "model.safetensors")
        assert all(np.isfinite(v).all() for v in stored.values())
        np.testing.assert_array_equal(of_nvfp4(stored, "m.weight"), expected["m.weight"])


def test_mxfp4_of_several_tools(tmp_path: Path) -> None:
    """MLX's words are the same bytes; OpenAI's files have all experts of a layer in one."""
    parts, expected = mxfp4({"m": (32, 64)})
    codes, scale = parts["m.weight_packed"][2], parts["m.weight_scale"][2]
    quantization = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    sources: dict[str, tuple[Parts, dict[str, Any]]] = {
        "compressed-tensors": (parts, CT_MXFP4),
        "mlx": (
            {"m.weight": ("U32", (32, 8), codes), "m.scales": ("U8", (32, 2), scale)},
            {"quantization": quantization},
        ),
        "modelopt": (
            {"m.weight": ("U8", (32, 32), codes), "m.weight_scale": ("U8", (32, 2), scale)},
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "MXFP4"}},
        ),
    }
    for tool, (own, config) in sources.items():
        source = folder(tmp_path / tool, own, config)
        for target in ("compressed-tensors", "modelopt", "gguf"):
            output = output_of(target, tmp_path / f"{tool}-{target}")
            assert run("export", source, *output).json["lossless"]
            np.testing.assert_array_equal(values(output[3])["m.weight"], expected["m.weight"])
        moved = arrays(tmp_path / f"{tool}-compressed-tensors" / "model.safetensors")
        assert moved["m.weight_packed"].tobytes() == codes and moved["m.weight_scale"].tobytes() == scale
        back = output_of("compressed-tensors", tmp_path / f"{tool}-back")
        assert run("export", tmp_path / f"{tool}-gguf.gguf", *back).json["lossless"]
        back_again = arrays(tmp_path / f"{tool}-back" / "model.safetensors")
        np.testing.assert_array_equal(back_again["m.weight_packed"], moved["m.weight_packed"])
    native = tmp_path / "native"
    save(tmp_path / "w.safetensors", {"m.weight": expected["m.weight"].astype(np.float32)})
    run("quantize", tmp_path / "w.safetensors", "--scheme", "MXFP4A16", "--to", "native", "-o", native)
    for target, more in NV.items():
        assert run("export", native, "--to", target, *more, "-o", tmp_path / f"n-{target}", "--json").json["lossless"]
        np.testing.assert_array_equal(values(tmp_path / f"n-{target}")["m.weight"], values(native)["m.weight"])


def gpt_oss(path: Path, inner: int = 96) -> tuple[Path, dict[str, np.ndarray]]:
    """A layer of experts, gate and up in alternating rows, and the numbers of gate, up and down."""
    rng, parts, numbers = np.random.default_rng(5), Parts(), []
    for name, (rows, cols) in {"gate_up_proj": (2 * inner, 64), "down_proj": (64, inner)}.items():
        raw = rng.integers(0, 256, (3, rows, cols // 32, 16)).astype(np.uint8)
        scale = rng.integers(100, 140, (3, rows, cols // 32)).astype(np.uint8)
        place = f"model.layers.0.mlp.experts.{name}"
        parts[f"{place}_blocks"] = ("U8", raw.shape, raw.tobytes())
        parts[f"{place}_scales"] = ("U8", scale.shape, scale.tobytes())
        parts[f"{place}_bias"] = ("BF16", (3, rows), bytes(3 * rows * 2))
        numbers.append(of_mxfp4(raw.reshape(3, rows, -1), scale))
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    expected = {"gate": numbers[0][:, ::2], "up": numbers[0][:, 1::2], "down": numbers[1]}
    return folder(path, parts, config), expected


def test_experts_of_gpt_oss_as_mxfp4(tmp_path: Path) -> None:
    """transformers has them transposed, and llama.cpp as they are stored, gate and up apart."""
    source, expected = gpt_oss(tmp_path / "source")
    done = run("export", source, *output_of("gguf", tmp_path / "out"))
    assert done.json["lossless"], done.err
    found = values(tmp_path / "out.gguf")
    for part, weight in expected.items():
        np.testing.assert_array_equal(found[f"model.layers.0.mlp.experts.{part}_proj.weight"], weight)
    refusal = one_line(run("export", source, "--to", "modelopt", "-o", tmp_path / "no", "-q"), 2)
    assert "its groups are not runs of its rows; --requantize" in refusal
    refusal = one_line(run("export", source, "--to", "compressed-tensors", "-o", tmp_path / "no", "-q"), 2)
    assert "neither vLLM nor transformers loads the experts of gpt_oss quantized in this layout" in refusal


@pytest.mark.parametrize("inner", [64, 96])
def test_square_experts_are_transposed_before_they_are_quantized_again(inner: int, tmp_path: Path) -> None:
    """A transposed matrix may have the shape of what it is made of, as the last one of gpt-oss has."""
    source, expected = gpt_oss(tmp_path / "source", inner)
    run("export", source, *output_of("mlx", tmp_path / "out"), "--requantize")
    found = values(tmp_path / "out")
    for part, weight in expected.items():
        again = found[f"model.layers.0.mlp.experts.{part}_proj.weight"]
        assert np.linalg.norm(again - weight) < 0.15 * np.linalg.norm(weight), part


def test_a_scheme_for_codes_of_mxfp4_alone(models: Path, tmp_path: Path) -> None:
    asked = ["--to", "compressed-tensors", "--scheme", "nvfp4a16", "-o", tmp_path / "out", "-q"]
    assert "--scheme NVFP4A16 is for weights of MXFP4" in one_line(run("export", models / "awq", *asked), 2)


@pytest.mark.parametrize("target", NV)
def test_nvfp4_is_the_same_on_any_number_of_threads(target: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", mxfp4(JOINED)[0], CT_MXFP4)

    def made(threads: int) -> bytes:
        out = tmp_path / f"{threads}"
        assert not run("export", source, "--to", target, *NV[target], "-o", out, "--threads", threads, "-q").code
        return (out / "model.safetensors").read_bytes()

    assert made(1) == made(2) == made(7)
