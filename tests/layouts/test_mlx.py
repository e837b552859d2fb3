"""MLX: its modes of small floats, and folders that mlx-lm loads. golden/layouts has what mlx 0.32.4 itself makes of
weights, golden/mlx.json which matrices mlx-lm 0.32.2 can have quantized in models that transformers 5.23 saved, and
which keys of config.json it wants for them (tests/peers/write_mlx_names.py)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layout_parts import Parts, floats, folder, written
from making import BF16, GOLDEN_FILES, load, one_line, run, save
from strategies import gaussian

from quantcli.layouts.mlx.keys import completed
from quantcli.models import open_model

MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def values(path: Path) -> dict[str, np.ndarray]:
    """The numbers of all tensors."""
    with open_model(str(path)) as model:
        return {name: v.read(0, v.info.numel).reshape(v.info.shape).copy() for name, v in model.items()}


def raw(path: Path, name: str) -> bytes:
    return load(path)[name].data


def decibels(weights: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((weights.astype(float) ** 2).sum() / ((weights - found.astype(float)) ** 2).sum()))


# ---- modes of small floats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_modes_leave_no_more_error_than_mlx(mode: str, tmp_path: Path) -> None:
    bits, group = MODES[mode]
    _, _, expected = written(GOLDEN_FILES / "layouts" / f"mlx-{mode}.safetensors")
    weights = np.random.default_rng(bits + group).standard_normal((5, 128)).astype(np.float32)  # those mlx was given
    save(tmp_path / "w.safetensors", {"m.weight": weights})
    words = ["--to", "mlx", "--scheme", mode, "--no-default-keep", "-o", tmp_path / "out.safetensors", "--json"]
    report = run("quantize", tmp_path / "w.safetensors", *words).json
    stored = load(tmp_path / "out.safetensors")
    assert {n: (t.dtype, list(t.shape)) for n, t in stored.items()} == {
        "m.weight": ("U32", [5, 128 * bits // 32]), "m.scales": ("U8", [5, 128 // group]),
    }  # fmt: skip
    found = values(tmp_path / "out.safetensors")["m.weight"]
    np.testing.assert_array_equal(found, by_definition(stored["m.weight"].data, stored["m.scales"].data, mode, 5))
    (tensor,) = report["tensors"]
    assert tensor["scheme"] == mode and tensor["sqnr_db"] == pytest.approx(decibels(weights, found), abs=1e-6)
    assert decibels(weights, found) >= decibels(weights, expected) - 1e-9


def by_definition(codes: bytes, scale: bytes, mode: str, rows: int) -> np.ndarray:
    """What MLX makes of codes and scales, in the types of ml_dtypes."""
    bits, group = MODES[mode]
    held = np.frombuffer(codes, np.uint8)
    if bits == 4:
        held = np.stack([held & 15, held >> 4], axis=-1).reshape(-1)
    each = held.astype(np.uint8).view(ml_dtypes.float4_e2m1fn if bits == 4 else ml_dtypes.float8_e4m3fn)
    kind = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    by = np.frombuffer(scale, np.uint8).view(kind).astype(np.float32)
    found: np.ndarray = (each.astype(np.float32).reshape(-1, group) * by[:, None]).reshape(rows, -1)
    return found


@pytest.mark.parametrize("size", [1.0, 0.02, 1e-3, 1e-5])
def test_nvfp4_of_weights_of_any_size(size: float, tmp_path: Path) -> None:
    """There is no scale of the tensor: of weights far below 2^-9 nothing is left, which the report says."""
    save(tmp_path / "w.safetensors", {"m.weight": gaussian(64, 256, scale=size)})
    words = ["--to", "mlx", "--scheme", "NVFP4", "-o", tmp_path / "out.safetensors", "--json"]
    (tensor,) = run("quantize", tmp_path / "w.safetensors", *words).json["tensors"]
    found = values(tmp_path / "out.safetensors")["m.weight"]
    assert tensor["sqnr_db"] == pytest.approx(decibels(gaussian(64, 256, scale=size), found), abs=1e-6)
    least = {1.0: 21.5, 0.02: 20.8, 1e-3: 9.0, 1e-5: -1.0}[size]
    assert tensor["sqnr_db"] >= least


def test_names_of_schemes(tmp_path: Path) -> None:
    """MXFP4 and NVFP4 name weights and inputs elsewhere; MLX calls the weights alone so."""
    save(tmp_path / "w.safetensors", {"m.weight": gaussian(64, 64)})
    for name, mode in [("MXFP4", "mxfp4"), ("mxfp8", "mxfp8"), ("MXFP8A16", "mxfp8"), ("nvfp4", "nvfp4")]:
        done = run("quantize", tmp_path / "w.safetensors", "--to", "mlx", "--scheme", name, "-o", tmp_path / name, "-q")
        assert done.code == 0 and "inputs" not in done.err
        (found,) = [view.scheme for view in open_views(tmp_path / name)]
        assert found == mode
    done = run("quantize", tmp_path / "w.safetensors", "--to", "mlx", "--scheme", "W8A8", "-o", tmp_path / "8", "-q")
    assert done.code == 0 and "mlx has schemes of weights alone" in done.err


def open_views(path: Path) -> list[Any]:
    with open_model(str(path)) as model:
        return list(model.values())


def test_settings_of_a_mix(tmp_path: Path) -> None:
    """Most weights' settings are the model's; those of others have a mode too, which mlx-lm hands to each module."""
    (tmp_path / "src").mkdir()
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"]
    weights = {f"{name}.weight": gaussian(64, 64, seed=i).astype(BF16) for i, name in enumerate(names)}
    weights |= {"model.embed_tokens.weight": gaussian(64, 64, seed=7).astype(BF16)}
    save(tmp_path / "src" / "model.safetensors", weights, {"format": "pt"})
    (tmp_path / "src" / "config.json").write_text(json.dumps(LLAMA))
    rules = ["--override", "*.gate_proj:scheme=W8A16,group_size=64", "--override", "*.down_proj:scheme=NVFP4"]
    done = run("quantize", tmp_path / "src", "--to", "mlx", "--scheme", "mxfp4", *rules, "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {
        "group_size": 32, "bits": 4, "mode": "mxfp4",
        names[1]: {"group_size": 64, "bits": 8, "mode": "affine"},
        names[2]: {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    }  # fmt: skip
    schemes = {view.info.name: view.scheme for view in open_views(tmp_path / "out")}
    assert list(schemes.values()) == ["mxfp4", "w8g64-float", "nvfp4", "mxfp4"] or set(schemes) == set(weights)
    assert schemes["model.embed_tokens.weight"] == "mxfp4"


# ---- codes that are moved ---------------------------------------------------------------------------------------


MOVED = [(mode, "compressed-tensors") for mode in MODES] + [("mxfp8", "modelopt"), ("nvfp4", "modelopt")]
"""ModelOpt is written with NVFP4 in place of MXFP4."""


@pytest.mark.parametrize(("mode", "target"), MOVED)
@pytest.mark.parametrize("which", ["", "-all"])
def test_codes_of_mlx_move_and_come_back(mode: str, target: str, which: str, tmp_path: Path) -> None:
    parts, config, expected = written(GOLDEN_FILES / "layouts" / f"mlx-{mode}{which}.safetensors")
    scale = np.frombuffer(parts["m.scales"][2], np.uint8)
    if mode == "nvfp4":  # a scale that is no positive number has no place in searches, nor do tools write one
        usable = np.where((scale & 127) == 0, 1, scale & 127).astype(np.uint8)
        parts["m.scales"] = (*parts["m.scales"][:2], usable.tobytes())
        expected = by_definition(parts["m.weight"][2], usable.tobytes(), mode, len(expected))
    source = folder(tmp_path / "source", {n: p for n, p in parts.items() if n != "expected"}, config)
    report = run("export", source, "--to", target, "-o", tmp_path / "there", "--json").json
    assert report["lossless"]
    np.testing.assert_array_equal(values(tmp_path / "there")["m.weight"], expected)
    assert run("export", tmp_path / "there", "--to", "mlx", "-o", tmp_path / "back", "--json").json["lossless"]
    for name in ("m.weight", "m.scales"):
        assert raw(tmp_path / "back" / "model.safetensors", name) == parts[name][2]
    quantization = json.loads((tmp_path / "back" / "config.json").read_text())["quantization"]
    assert quantization == {"group_size": MODES[mode][1], "bits": MODES[mode][0], "mode": mode}


def nvfp4(path: Path, scale: np.ndarray, overall: float) -> Path:
    """A weight of compressed-tensors' NVFP4."""
    codes = np.random.default_rng(0).integers(1, 7, (32, 32)).astype(np.uint8) * 17
    parts: Parts = {
        "m.weight_packed": ("U8", (32, 32), codes.tobytes()),
        "m.weight_scale": ("F8_E4M3", (32, 4), scale.astype(ml_dtypes.float8_e4m3fn).tobytes()),
        "m.weight_global_scale": floats(np.array([1 / overall]), "F32"),
    }
    method = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    return folder(path, parts, {"quantization_config": method})


def test_nvfp4_with_a_scale_of_the_tensor(tmp_path: Path) -> None:
    """MLX has none: scales times it must be numbers of E4M3."""
    scale = np.full((32, 4), 96.0)
    source = nvfp4(tmp_path / "fits", scale, 2.0**-12)  # 1.5 * 2^-6
    assert run("export", source, "--to", "mlx", "-o", tmp_path / "out", "--json").json["lossless"]
    np.testing.assert_array_equal(values(tmp_path / "out")["m.weight"], values(source)["m.weight"])
    assert set(raw(tmp_path / "out" / "model.safetensors", "m.scales")) == {0x0C}
    scale[3, 1] = 104  # 1.625 * 2^-6 on a grid of 2^-9
    source = nvfp4(tmp_path / "apart", scale, 2.0**-13)
    refusal = one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "apart-out"), 2)
    assert "1 of 128 scales are none of E4M3" in refusal and "--requantize makes it" in refusal
    source = nvfp4(tmp_path / "odd", scale, 0.001)
    refusal = one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "odd-out"), 2)
    assert "128 of 128 scales are none of E4M3" in refusal
    assert run("export", source, "--to", "modelopt", "-o", tmp_path / "inverse", "-q").code == 0
    np.testing.assert_allclose(values(tmp_path / "inverse")["m.weight"], values(source)["m.weight"], rtol=3e-7)


@pytest.mark.parametrize("kind", ["F32", "F8_E8M0"])
def test_fp8_in_blocks_with_powers_of_two_is_mxfp8(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, exponents = rng.integers(0, 126, (96, 128)).astype(np.uint8), rng.integers(100, 130, (2, 2))
    if kind == "F32":
        scale = floats(np.exp2(exponents - 127.0), "F32")
    else:
        scale = ("F8_E8M0", (2, 2), exponents.astype(np.uint8).tobytes())
    parts: Parts = {"m.weight": ("F8_E4M3", (96, 128), codes.tobytes()), "m.weight_scale_inv": scale}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}
    source = folder(tmp_path / "source", parts, config)
    assert run("export", source, "--to", "mlx", "-o", tmp_path / "out", "--json").json["lossless"]
    stored = load(tmp_path / "out" / "model.safetensors")
    assert stored["m.weight"].data == codes.tobytes()
    each = np.repeat(np.repeat(exponents, 64, 0)[:96], 2, 1).astype(np.uint8)
    assert stored["m.scales"].data == each.tobytes()
    parts["m.weight_scale_inv"] = floats(np.exp2(exponents - 127.0) * 1.25, "F32")
    source = folder(tmp_path / "odd", parts, config)
    refusal = one_line(run("export", source, "--to", "mlx", "-o", tmp_path / "odd-out"), 2)
    assert "its scales are no powers of two" in refusal


# ---- models of mlx-lm -------------------------------------------------------------------------------------------


@cache
def models() -> Any:
    return json.loads((GOLDEN_FILES / "mlx.json").read_text())


NAMES = tuple(json.loads((GOLDEN_FILES / "mlx.json").read_text()))


def checkpoint(name: str, path: Path) -> Path:
    """A folder as transformers saves it, of random weights."""
    path.mkdir()
    shapes = models()[name]["tensors"]
    weights = {n: gaussian(*shape, seed=i, scale=0.05).astype(BF16) for i, (n, shape) in enumerate(shapes.items())}
    save(path / "model.safetensors", weights, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(models()[name]["config"]))
    return path


def in_mlx(module: str, known: dict[str, list[int]]) -> str:
    """The name that mlx-lm gives a module of a file, as its models rename them when they load one."""
    inner = module.replace("model.language_model.", "language_model.model.").replace("gpt_neox.layers.", "h.")
    names = (module, f"language_model.{module}", inner, f"model.{inner}", f"model.{inner.removeprefix('gpt_neox.')}")
    return next((n for n in names if n in known), module)


@pytest.mark.parametrize("scheme", ["w4", "mxfp4"])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_weights_have_a_place_in_the_model_of_mlx_lm(name: str, scheme: str, tmp_path: Path) -> None:
    source, known = checkpoint(name, tmp_path / "source"), models()[name]["modules"]
    words = ["--bits", 4, "--group-size", 32] if scheme == "w4" else ["--scheme", "mxfp4"]
    report = run("quantize", source, "--to", "mlx", *words, "-o", tmp_path / "out", "--json").json
    stored = load(tmp_path / "out" / "model.safetensors")
    found = {n.removesuffix(".scales") for n in stored if n.endswith(".scales")}
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    groups = {m: said[m]["group_size"] if m in said else said["group_size"] for m in found}
    sides = {m: (*stored[f"{m}.weight"].shape[:-1], stored[f"{m}.scales"].shape[-1] * groups[m]) for m in found}
    shapes = {in_mlx(m, known): list(shape) for m, shape in sides.items()}
    assert shapes == {module: known.get(module) for module in shapes}
    experts = {module for module, shape in known.items() if len(shape) == 3 and "unembed" not in module}
    assert experts - {m for m in experts if m.endswith("embed_q")} <= shapes.keys()
    least = {"qwen3_vl_moe": 0.1, "deepseek_v3": 0.85, "glm_moe_dsa": 0.75}  # a tower, small latents, an indexer
    assert report["summary"]["coverage"] > least.get(name, 0.9)


@pytest.mark.parametrize("name", NAMES)
def test_config_json_has_the_keys_that_mlx_lm_reads(name: str, tmp_path: Path) -> None:
    done = run("quantize", checkpoint(name, tmp_path / "in"), "--to", "mlx", "-o", tmp_path / "out")
    config, wanted = json.loads((tmp_path / "out" / "config.json").read_text()), models()[name]["added"]
    inner = wanted.get("text_config", {})
    assert {key: config[key] for key in wanted if key != "text_config"} == {
        key: value for key, value in wanted.items() if key != "text_config"
    }
    assert {key: config["text_config"][key] for key in inner} == inner
    before = models()[name]["config"]
    assert all(config[key] == value for key, value in before.items() if key not in {**wanted, "text_config": 0})
    assert "will not load" not in done.err
    assert ("added what mlx-lm reads" in done.err) or not completed(before).names


def test_config_json_that_mlx_lm_does_not_load(tmp_path: Path) -> None:
    experts = {f"model.layers.0.feed_forward.experts.{n}": np.stack([gaussian(64, 64)] * 2)
               for n in ("gate_up_proj", "down_proj")}  # fmt: skip
    save(tmp_path / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": gaussian(64, 64), **experts})
    for config, said in [
        ({"model_type": "llama4_text"}, "mlx-lm's models of llama4_text have no experts: it will not load"),
        ({"model_type": "nobody"}, "and has none of 'nobody' in 0.32.2"),
        ({"model_type": ["llama"]}, "mlx-lm loads folders of models whose model_type it knows"),
        ({"model_type": "qwen2", "hidden_size": 64}, "also want intermediate_size, num_attention_heads"),
        ({"model_type": "llama", "rope_parameters": {"full_attention": 3}}, "also want hidden_size"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        done = run("quantize", tmp_path, "--to", "mlx", "-o", tmp_path / "out", "--force")
        assert done.code == 0 and said in done.err
    plain = {"model_type": "minicpm3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    long = {**plain, "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0]}}
    assert ["rope_scaling" in completed(config).missing for config in (plain, long)] == [True, False]


def test_the_vocabulary_of_gemma_3_stands_beside_its_text() -> None:
    """mlx-lm takes it from there alone, and 262208 words where it is not: a model of others would not load."""
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 1024}}
    found = completed(config)
    assert found.added["vocab_size"] == 1024 and "vocab_size" in found.names and not found.missing
    assert "vocab_size" not in completed({**config, "vocab_size": 1024}).added
    assert "vocab_size" not in completed({**config, "model_type": "qwen2_5_vl"}).added  # which reads that of the text


def test_how_files_are_to_be_named_is_told_of_single_files(tmp_path: Path) -> None:
    """Folders have such names."""
    source, said = checkpoint("granite4", tmp_path / "in"), "from files named model*.safetensors"
    assert said not in run("quantize", source, "--to", "mlx", "-o", tmp_path / "out").err
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert said in run("quantize", source, "--to", "mlx", "-o", tmp_path / "one.safetensors").err


# ---- experts, and what mlx-lm changes ---------------------------------------------------------------------------


def alike(found: np.ndarray, weights: np.ndarray) -> bool:
    return found.shape == weights.shape and decibels(weights.astype(np.float32), found) > 15


def test_experts_of_granite_nemotron_and_gemma(tmp_path: Path) -> None:
    for name in ("granitemoe", "nemotron_h", "gemma4_text", "granite4", "lfm2_moe"):
        source = checkpoint(name, tmp_path / name)
        run("quantize", source, "--to", "mlx", "--bits", 4, "--group-size", 32, "-o", tmp_path / f"{name}-out", "-q")
    granite, out = values(tmp_path / "granitemoe"), values(tmp_path / "granitemoe-out")
    both, block = granite["model.layers.1.block_sparse_moe.input_linear.weight"], "model.layers.1.block_sparse_moe"
    assert alike(out[f"{block}.switch_mlp.gate_proj.weight"], both[:, :96])
    assert alike(out[f"{block}.switch_mlp.up_proj.weight"], both[:, 96:])
    assert alike(out[f"{block}.switch_mlp.down_proj.weight"], granite[f"{block}.output_linear.weight"])
    nemotron, out = values(tmp_path / "nemotron_h"), values(tmp_path / "nemotron_h-out")
    mixer = "backbone.layers.2.mixer"
    for word, old in (("fc1", "up_proj"), ("fc2", "down_proj")):
        each = np.stack([nemotron[f"{mixer}.experts.{e}.{old}.weight"] for e in range(4)])
        assert alike(out[f"{mixer}.switch_mlp.{word}.weight"], each)
    gemma, out = values(tmp_path / "gemma4_text"), values(tmp_path / "gemma4_text-out")
    both = gemma["model.layers.0.experts.gate_up_proj"]
    assert alike(out["model.layers.0.experts.switch_glu.gate_proj.weight"], both[:, :32])
    assert alike(out["model.layers.0.experts.switch_glu.up_proj.weight"], both[:, 32:])
    dense, out = values(tmp_path / "granite4"), values(tmp_path / "granite4-out")
    both = dense["model.layers.0.shared_mlp.input_linear.weight"]
    assert alike(out["model.layers.0.mlp.gate_proj.weight"], both[:96])
    assert alike(out["model.layers.0.mlp.up_proj.weight"], both[96:])
    lfm2, out = values(tmp_path / "lfm2_moe"), values(tmp_path / "lfm2_moe-out")
    for word, old in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        assert alike(
            out[f"model.layers.0.feed_forward.{word}.weight"], lfm2[f"model.layers.0.feed_forward.{old}.weight"]
        )
        each = np.stack([lfm2[f"model.layers.1.feed_forward.experts.{e}.{old}.weight"] for e in range(4)])
        assert alike(out[f"model.layers.1.feed_forward.switch_mlp.{word}.weight"], each)


def test_qwen3_next_is_written_as_mlx_lm_has_changed_it_and_read_as_it_was(tmp_path: Path) -> None:
    source = checkpoint("qwen3_next", tmp_path / "source")
    weights = {n: np.asarray(t) for n, t in values(source).items()}
    extra = {"mtp.fc.weight": gaussian(64, 128).astype(BF16), "mtp.norm.weight": gaussian(64).astype(BF16)}
    save(source / "model.safetensors", {n: w.astype(BF16) for n, w in weights.items()} | extra, {"format": "pt"})
    done = run("quantize", source, "--to", "mlx", "--group-size", 32, "--bits", 8, "-o", tmp_path / "mlx")
    assert "1 is added to norms" in done.err and "2 tensors are left out" in done.err
    stored = load(tmp_path / "mlx" / "model.safetensors")
    assert not any("mtp" in name for name in stored)
    convolution, norm = "model.layers.0.linear_attn.conv1d.weight", "model.layers.0.input_layernorm.weight"
    channels, _, width = weights[convolution].shape
    assert stored[convolution].shape == (channels, width, 1)
    before = weights[norm].astype(BF16)
    assert stored[norm].data == (before + BF16(1)).tobytes()  # in bfloat16, as mlx-lm adds it
    gated = "model.layers.0.linear_attn.norm.weight"
    assert stored[gated].data == weights[gated].astype(BF16).tobytes()  # a norm that it leaves as it is
    for target in ("compressed-tensors", "native"):
        words = ["--requantize", "--bits", 8, "--group-size", 32, "--to", target, "-o", tmp_path / target]
        done = run("quantize", tmp_path / "mlx", *words)
        assert done.code == 0 and "as they were before mlx-lm changed them" in done.err
        assert run("verify", tmp_path / target, "--source", tmp_path / "mlx").code == 0
        found = values(tmp_path / target)
        np.testing.assert_array_equal(found[convolution], weights[convolution])
        np.testing.assert_allclose(found[norm], before.astype(np.float32), atol=2**-8)
    names = set(weights) - {n for n in weights if n.startswith("mtp")}
    assert set(values(tmp_path / "compressed-tensors")) == names
    done = run("quantize", tmp_path / "mlx", "--requantize", "--to", "mlx", "--bits", 4, "-o", tmp_path / "again", "-q")
    again = load(tmp_path / "again" / "model.safetensors")
    assert again[norm].data == stored[norm].data and again[convolution].shape == (channels, width, 1)


SINGLE = ("qwen3_moe", "mixtral", "olmoe", "phimoe", "minimax_m2", "jamba", "nemotron_h", "qwen2_moe", "glm4_moe",
          "exaone_moe", "dots1", "afmoe", "laguna", "mellum")  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_stacks_of_mlx_lm_become_what_the_checkpoint_had(name: str, tmp_path: Path) -> None:
    source = checkpoint(name, tmp_path / "source")
    run("quantize", source, "--to", "mlx", "--bits", 8, "--group-size", 32, "-o", tmp_path / "mlx", "-q")
    words = ["--bits", 8, "--group-size", 32, "--to", "compressed-tensors", "-q", "-o"]
    done = run("quantize", tmp_path / "mlx", "--requantize", *words, tmp_path / "from-mlx")
    assert done.code == 0, done.err
    assert run("verify", tmp_path / "from-mlx", "--source", tmp_path / "mlx").code == 0
    run("quantize", source, *words, tmp_path / "direct")
    found, direct = load(tmp_path / "from-mlx" / "model.safetensors"), load(tmp_path / "direct" / "model.safetensors")
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in direct.items()}
    before, after = values(tmp_path / "direct"), values(tmp_path / "from-mlx")
    assert all(np.array_equal(before[n], after[n]) or decibels(before[n], after[n]) > 30 for n in before)


@pytest.mark.parametrize("name", ["granitemoe", "gemma4_text", "gpt_oss", "granite4", "lfm2_moe"])
def test_names_that_only_mlx_lm_has_are_refused_elsewhere(name: str, tmp_path: Path) -> None:
    source = checkpoint(name, tmp_path / "source")
    run("quantize", source, "--to", "mlx", "--bits", 8, "--group-size", 32, "-o", tmp_path / "mlx", "-q")
    words = ["--to", "compressed-tensors", "-o", tmp_path / "out"]
    again = ["quantize", tmp_path / "mlx", "--requantize"]
    for command in ([*again, *words], [*again, *words[2:]], ["export", tmp_path / "mlx", *words]):
        assert "is in mlx-lm's own arrangement" in one_line(run(*command), 2)
        assert not (tmp_path / "out").exists()
    assert run(*again, "--to", "native", "-o", tmp_path / "native", "-q").code == 0
