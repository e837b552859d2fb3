"""Files for ComfyUI: every kind decoded here from its bytes, what comfy-kitchen wrote moved as it is, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layout_parts import hadamard
from making import BF16, GOLDEN_FILES, Stored, load, metadata_of, one_line, run, run_process, save
from strategies import gaussian

KINDS = ("float8_tensorwise", "fp8_scaled", "int8_tensorwise", "int8_convrot", "mxfp8", "nvfp4")
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SHAPES = {
    "model.diffusion_model.a": (160, 512),
    "model.diffusion_model.b": (96, 328),
    "model.diffusion_model.c": (32, 70),
}
KEY = "_quantization_metadata"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.standard_normal(shape) for name, shape in SHAPES.items()}
    weights["model.diffusion_model.a.weight"][:, 3] *= 50
    bias = {"model.diffusion_model.a.bias": rng.standard_normal(160)}
    tensors = {name: value.astype(BF16) for name, value in {**weights, **bias}.items()}
    return save(tmp_path_factory.mktemp("model") / "model.safetensors", tensors)


def written(model: Path, place: Path, *options: object) -> Path:
    out = place / "out.safetensors"
    done = run("quantize", model, *options, "-o", out, "--no-default-keep")
    assert done.code == 0, done.err
    return out


def swizzled(scale: Stored, rows: int, groups: int) -> np.ndarray:
    """The bytes of scales (rows, groups) out of their tiles, one by one."""
    raw, across = np.frombuffer(scale.data, np.uint8), -(-groups // 4)
    assert len(raw) == -(-rows // 128) * across * 512
    return np.array([
        [raw[(r // 128 * across + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4] for c in range(groups)]
        for r in range(rows)
    ])  # fmt: skip


def decoded(tensors: dict[str, Stored], module: str, said: dict[str, Any]) -> np.ndarray:
    """A weight as comfy-kitchen's layouts define it."""
    codes, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
    rows = codes.shape[0]
    if said["format"] == "int8_tensorwise":
        assert (codes.dtype, scale.dtype, scale.shape) == ("I8", "F32", (rows, 1))
        values = codes.array.astype(np.float64)
        if said.get("convrot"):
            size = said["convrot_groupsize"]
            values = (values.reshape(-1, size) @ hadamard(size)).reshape(rows, -1)
        return np.asarray(values.astype(np.float32) * scale.array)
    if said["format"] == "float8_e4m3fn":
        assert (codes.dtype, scale.dtype, scale.shape) == ("F8_E4M3", "F32", ())
        return np.asarray(codes.array.astype(np.float32) * scale.array)
    if said["format"] == "mxfp8":
        assert (codes.dtype, scale.dtype, codes.shape[1] % 32) == ("F8_E4M3", "U8", 0)
        exponents = swizzled(scale, rows, codes.shape[1] // 32).astype(np.int32) - 127
        return np.asarray(codes.array.astype(np.float32) * np.repeat(np.ldexp(np.float32(1), exponents), 32, axis=1))
    assert (codes.dtype, scale.dtype, codes.shape[1] % 8) == ("U8", "F8_E4M3", 0)
    nibbles = np.stack([codes.array >> 4, codes.array & 15], axis=2).reshape(rows, -1)
    own = swizzled(scale, rows, nibbles.shape[1] // 16).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    overall = tensors[f"{module}.weight_scale_2"]
    assert (overall.dtype, overall.shape) == ("F32", ())
    return np.asarray(LEVELS[nibbles] * np.repeat(own * overall.array, 16, axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, model: Path, tmp_path: Path) -> None:
    out = written(model, tmp_path, "--to", f"comfyui:{kind}")
    tensors, originals = load(out), load(model)
    headers = json.loads(metadata_of(out).get(KEY, '{"layers": {}}'))["layers"]
    report = {t["name"]: t for t in run("compare", model, out, "--json").json["tensors"]}
    assert run("dequantize", out, "--dtype", "float32", "-o", tmp_path / "floats.safetensors").code == 0
    floats = load(tmp_path / "floats.safetensors")
    for module, (rows, cols) in SHAPES.items():
        if kind == "fp8_scaled":
            assert f"{module}.comfy_quant" not in tensors and not headers
            tensors[f"{module}.weight_scale"] = tensors[f"{module}.scale_weight"]
            said = {"format": "float8_e4m3fn"}
        else:
            said = json.loads(tensors[f"{module}.comfy_quant"].data)
            assert headers[module] == said
        whole = decoded(tensors, module, said)
        assert not whole[:, cols:].any() and said.get("orig_shape", [rows, cols]) == [rows, cols]
        np.testing.assert_array_equal(floats[f"{module}.weight"].array, whole[:, :cols])
        original = originals[f"{module}.weight"].array.astype(np.float64)
        error = original - whole[:, :cols]
        sqnr = 10 * np.log10((original**2).sum() / (error**2).sum())
        assert report[f"{module}.weight"]["sqnr_db"] == pytest.approx(sqnr, abs=1e-6)
    assert tensors["model.diffusion_model.a.bias"] == originals["model.diffusion_model.a.bias"]


def test_the_report_is_of_weights_that_are_rotated_back(model: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out.safetensors", []
    for kind in ("int8_convrot", "int8_tensorwise"):
        done = run("quantize", model, "--to", f"comfyui:{kind}", "-o", out, "--force", "--json", "--no-default-keep")
        assert done.code == 0, done.err
        found = {t["name"]: t for t in done.json["tensors"]}
        seen.append(found["model.diffusion_model.a.weight"])
        again = {t["name"]: t for t in run("compare", model, out, "--json").json["tensors"]}
        for name, tensor in found.items():
            assert tensor["scheme"] == again[name]["scheme"]
            for key in ("sqnr_db", "max_abs_error") if tensor["scheme"] else ():
                assert tensor[key] == pytest.approx(again[name][key], rel=1e-6), (name, key)
    assert seen[0]["sqnr_db"] > seen[1]["sqnr_db"] + 10  # a column of large weights
    names = [found[f"{m}.weight"]["scheme"] for m in SHAPES]
    assert names == ["w8c", "w8c", "w8c"]


def test_rows_that_are_not_whole_rotations(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done = run("quantize", model, "--to", "comfyui:int8_convrot", "-o", out, "--json", "--no-default-keep")
    found = {t["name"].split(".")[-2]: t for t in done.json["tensors"] if t["scheme"]}
    assert [found[n]["scheme"] for n in "abc"] == ["w8c-rot256", "w8c", "w8c"]  # 328 and 70 are no multiples of 16
    assert "rows of 328 are not a multiple of 16" in found["b"]["note"] and not found["a"]["note"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_with_any_threads_and_kernels(kind: str, model: Path, tmp_path: Path) -> None:
    expected = written(model, tmp_path, "--to", f"comfyui:{kind}", "--threads", 1).read_bytes()
    assert written(model, tmp_path, "--to", f"comfyui:{kind}", "--force", "--threads", 7).read_bytes() == expected
    out = tmp_path / "numpy.safetensors"
    options = ("--to", f"comfyui:{kind}", "-o", out, "--no-default-keep")
    assert run_process("quantize", model, *options, QUANTCLI_KERNELS="numpy").code == 0
    assert out.read_bytes() == expected


def test_scaled_fp8_has_a_mark_for_every_model(tmp_path: Path) -> None:
    names = ["model.diffusion_model.x", "model.diffusion_model.y", "text_encoders.t5xxl.transformer.z", "w"]
    tensors = {f"{n}.weight": np.random.default_rng(0).standard_normal((64, 64)).astype(BF16) for n in names}
    out = written(save(tmp_path / "in.safetensors", tensors), tmp_path, "--to", "comfyui:fp8_scaled")
    marks = {n: t for n, t in load(out).items() if n.endswith("scaled_fp8")}
    assert set(marks) == {"model.diffusion_model.scaled_fp8", "text_encoders.t5xxl.scaled_fp8", "scaled_fp8"}
    assert {(t.dtype, t.shape) for t in marks.values()} == {("F8_E4M3", (0,))}


def test_types_mix_by_rule(model: Path, tmp_path: Path) -> None:
    out = written(model, tmp_path, "--to", "comfyui:nvfp4", "--override", "*.b:int8_tensorwise", "--override",
                  "*.c:FLOAT8_TENSORWISE")  # fmt: skip
    layers = json.loads(metadata_of(out)[KEY])["layers"]
    assert [v["format"] for v in layers.values()] == ["nvfp4", "int8_tensorwise", "float8_e4m3fn"]
    out = written(model, tmp_path, "--to", "comfyui", "--scheme", "INT8_CONVROT", "--force")
    assert [v.get("convrot") for v in json.loads(metadata_of(out)[KEY])["layers"].values()] == [True, None, None]


KITCHEN = {"float8_e4m3fn-20": "float8_tensorwise", "nvfp4-144": "nvfp4", "mxfp8-160": "mxfp8"}


@pytest.mark.parametrize("name", KITCHEN)
def test_codes_of_comfy_kitchen_are_moved(name: str, tmp_path: Path) -> None:
    source, out = GOLDEN_FILES / "decoded" / f"comfy-{name}.safetensors", tmp_path / "out.safetensors"
    done = run("export", source, "--to", "comfyui", "-o", out, "--json")
    assert done.code == 0, done.err
    before, after = load(source), load(out)
    for part in ("weight", "weight_scale", "weight_scale_2"):
        if f"m.{part}" in before:
            assert after[f"m.{part}"].data == before[f"m.{part}"].data, part
    assert json.loads(after["m.comfy_quant"].data)["format"] == name.split("-")[0]


@pytest.mark.parametrize("scheme", ["NVFP4A16", "MXFP8A16", "FP8_DYNAMIC"])
@pytest.mark.parametrize("target", ["compressed-tensors", "modelopt"])
def test_codes_of_other_layouts_are_moved(target: str, scheme: str, tmp_path: Path) -> None:
    weights = {"m.weight": np.random.default_rng(1).standard_normal((64, 256)).astype(BF16)}
    source, other = save(tmp_path / "in.safetensors", weights), tmp_path / "other"
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    done = run("quantize", source, "--scheme", scheme, "--to", target, "-o", other, "--no-default-keep")
    assert done.code == 0, done.err
    done = run("export", other, "--to", "comfyui", "-o", tmp_path / "out", "--json")
    if scheme == "FP8_DYNAMIC":  # a scale for every row
        assert "one scale per channel" in one_line(done, 2) or "inputs quantized to fp8" in done.err
        return
    assert done.code == 0, done.err
    both = [load(next(path.glob("*.safetensors"))) for path in (other, tmp_path / "out")]
    assert run("compare", other, tmp_path / "out", "--json").json["summary"]["max_abs_error"] == 0, both


@pytest.mark.parametrize(("options", "message"), [
    (["--to", "comfyui:int4"], "comfyui has no file type 'int4'"),
    (["--to", "comfyui:float8_e4m3fn"], "did you mean float8_tensorwise?"),
    (["--to", "comfyui:nvfp4", "--bits", "8"], "comfyui:nvfp4 gives every tensor a type of its own"),
    (["--scheme", "INT8_CONVROT"], "rotated columns (w8c-rot256) are stored in ComfyUI's layout only"),
    (["--scheme", "INT8_CONVROT", "--to", "compressed-tensors"], "rotations of 256 columns"),
    (["--to", "comfyui", "--scheme", "FP8_DYNAMIC"], "inputs quantized to fp8"),
    (["--to", "comfyui:fp8_scaled", "--override", "*.b:bits=8,format=int"], "comfyui:fp8_scaled cannot store it"),
    (["--to", "comfyui", "--override", "*.b:rotation=8"], "8 is not one of 0, 4, 16"),
    (["--to", "comfyui", "--override", "*.b:granularity=tensor,rotation=16"], "with a scale per row"),
])  # fmt: skip
def test_refusals(options: list[str], message: str, model: Path, tmp_path: Path) -> None:
    done = run("quantize", model, *options, "-o", tmp_path / "x.safetensors", "--no-default-keep")
    assert done.code in (1, 2) and message in one_line(done, done.code)
    assert not (tmp_path / "x.safetensors").exists()


def test_rows_that_cannot_be_filled_up_are_kept(tmp_path: Path) -> None:
    tensors = {
        f"{n}.weight": np.ones((n_rows, 64), BF16) for n, n_rows in (("a", 72), ("b", 64), ("word_embedding", 64))
    }
    source = save(tmp_path / "in.safetensors", tensors)
    done = run("quantize", source, "--to", "comfyui:mxfp8", "-o", tmp_path / "x.safetensors", "--json",
               "--no-default-keep")  # fmt: skip
    found = {t["name"]: t for t in done.json["tensors"]}
    assert found["b.weight"]["scheme"] == "mxfp8"
    assert "its 72 rows are not a multiple of 32" in found["a.weight"]["note"]
    assert "ComfyUI takes embeddings" in found["word_embedding.weight"]["note"]


def test_importances_are_of_columns_that_are_not_rotated(model: Path, tmp_path: Path) -> None:
    importance = save(tmp_path / "i.safetensors", {"model.diffusion_model.a.weight": np.ones(512, np.float32)})
    done = run("quantize", model, "--to", "comfyui:int8_convrot", "--importance", importance, "-o", tmp_path / "x")
    assert "its columns are rotated" in one_line(done, 2)


@pytest.mark.parametrize(("words", "kind"), [
    (["--scheme", "FP8_DYNAMIC"], "float8_tensorwise"), (["--scheme", "FP8"], "float8_tensorwise"),
    (["--scheme", "NVFP4"], "nvfp4"), (["--scheme", "MXFP4"], "nvfp4"), (["--scheme", "W4A16"], "nvfp4"),
    (["--scheme", "W8A8"], "int8_tensorwise"), (["--type", "nf4"], "nvfp4"), (["--type", "fp4"], "nvfp4"),
    (["--bits", "6"], "int8_tensorwise"), (["--type", "fp8-e4m3", "--group-size", "32"], "mxfp8"),
])  # fmt: skip
def test_what_it_does_not_store_is_refused_with_its_own_nearest(tmp_path: Path, words: list[str], kind: str) -> None:
    save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, 64)})
    done = run("quantize", tmp_path / "m.safetensors", *words, "--to", "comfyui", "-o", tmp_path / "out.safetensors")
    assert f"use --to comfyui:{kind}, the nearest that it stores, or --scheme" in one_line(done, 2)


def test_four_bits_are_nvfp4(tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, 64)})
    found = []
    for words in (["comfyui", "--bits", "4"], ["comfyui:nvfp4"]):
        out = tmp_path / f"{len(words)}.safetensors"
        assert run("quantize", tmp_path / "m.safetensors", "--to", *words, "-o", out, "-q").code == 0
        found.append(load(out)["a.weight"])
    assert found[0] == found[1]
