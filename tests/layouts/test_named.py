"""Schemes by name, and what compressed-tensors, transformers' fp8 and ModelOpt have in a folder for each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_parts import TABLES, tile_of
from making import GOLDEN_FILES, ROOT, header_of, load, one_line, raw_tensors, run, save
from safetensors.numpy import load_file
from strategies import gaussian

import quantcli
from quantcli import Scheme
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import F32, Kernels, QuantParams, row_bytes
from quantcli.models import open_model
from quantcli.naming import of_checkpoint
from quantcli.planning.named import fields, stored_by, usual_names

LLAMA = ROOT / "sample_models" / "tiny-llama"
GOLDEN: dict[str, Any] = json.loads((GOLDEN_FILES / "named.json").read_text())
"""What llm-compressor writes of the sample model; peers/write_named.py wrote it."""


def tensors_of(folder: Path) -> dict[str, list[Any]]:
    """Dtype and shape of every tensor of a folder."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header = header_of(path)
        found |= {name: [e["dtype"], e["shape"]] for name, e in header.items() if name != "__metadata__"}
    return dict(sorted(found.items()))


def decoded(folder: Path) -> dict[str, np.ndarray]:
    """The quantized weights of a folder as its readers decode them, before they are rounded to a dtype."""
    with open_model(str(folder)) as found:
        views = {n: v for n, v in of_checkpoint(found).items() if v.scheme is not None}
        return {n: np.concatenate([v.read(*run) for run in v.blocks]).reshape(v.info.shape) for n, v in views.items()}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_names_dtypes_shapes_and_configuration_are_those_of_llm_compressor(name: str, tmp_path: Path) -> None:
    assert run("quantize", LLAMA, "--scheme", name, "-o", tmp_path / "out", "-q").code == 0
    assert tensors_of(tmp_path / "out") == GOLDEN[name]["tensors"]
    own, theirs = config_of(tmp_path / "out"), GOLDEN[name]["config"]
    group, other = (next(iter(c["config_groups"].values())) for c in (own, theirs))
    assert len(own["config_groups"]) == 1 and group == other
    kept = {"config_groups", "version", "transform_config", "global_compression_ratio", "kv_cache_scheme"}
    kept |= {"moe_sparsity_config"}
    own["ignore"].sort()  # theirs is sorted as it was given
    assert {k: v for k, v in own.items() if k not in kept} == {k: v for k, v in theirs.items() if k not in kept}


@pytest.mark.parametrize("to", ["compressed-tensors", "native"])
@pytest.mark.parametrize(
    "name", [name for name in usual_names() if name not in ("FP8", "NVFP4") and name[0] not in "QI"]
)
def test_a_folder_decodes_to_what_was_made(name: str, to: str, tmp_path: Path) -> None:
    """The reader of the layout, which is tested with files of the library, gets the numbers of the array interface."""
    folder = model_of(tmp_path, hidden=256)
    assert run("quantize", folder, "--scheme", name, "--to", to, "-o", tmp_path / "out", "-q").code == 0
    back, original = decoded(tmp_path / "out"), load_file(folder / "model.safetensors")
    for key in ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        wanted = quantcli.quantize(original[key], **(fields(name) or {})).dequantize()
        np.testing.assert_array_equal(back[key], wanted)


def model_of(folder: Path, hidden: int, rows: int = 256) -> Path:
    """A Llama of one layer."""
    made = folder / "model"
    made.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "torch_dtype": "float32",
    }
    (made / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    names = [f"{layer}self_attn.{n}_proj.weight" for n in "qkvo"] + [f"{layer}mlp.{n}_proj.weight" for n in
             ("gate", "up", "down")]  # fmt: skip
    save(made / "model.safetensors", {n: gaussian(rows, hidden, seed=i) * 0.02 for i, n in enumerate(names)})
    return made


def test_names_in_recipes_rules_and_overrides(tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=256)
    (tmp_path / "r.yaml").write_text("default: NVFP4A16\nrules:\n  - {match: '*.down_proj', scheme: FP8_DYNAMIC}\n")
    words = ["--recipe", tmp_path / "r.yaml", "--override", "*.o_proj:W8A8", "--save-recipe", tmp_path / "s.yaml"]
    assert run("quantize", folder, *words, "-o", tmp_path / "out", "-q").code == 0
    config = config_of(tmp_path / "out")
    assert config["format"] == "mixed-precision"
    formats = {g["format"]: (g["targets"], g["input_activations"]) for g in config["config_groups"].values()}
    assert set(formats) == {"nvfp4-pack-quantized", "float-quantized", "int-quantized"}
    assert formats["float-quantized"][0] == ["model.layers.0.mlp.down_proj"]
    assert formats["nvfp4-pack-quantized"][1] is None and formats["int-quantized"][1]["type"] == "int"
    assert run("quantize", folder, "--recipe", tmp_path / "s.yaml", "-o", tmp_path / "again", "-q").code == 0
    same = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "again")]
    assert same[0] == same[1]


def test_joined_weights_have_one_global_scale_in_every_shard(tmp_path: Path) -> None:
    """vLLM takes the largest for all and rescales nothing: they must be equal, also where shards divide them."""
    folder = model_of(tmp_path, hidden=64, rows=64)
    weights = load_file(folder / "model.safetensors")
    weights = {n: w * (30 if "k_proj" in n or "up_proj" in n else 1) for n, w in weights.items()}
    save(folder / "model.safetensors", weights)
    for limit in ((), ("--max-shard-size", "30000")):
        out = tmp_path / f"out{len(limit)}"
        assert run("quantize", folder, "--scheme", "NVFP4A16", *limit, "-o", out, "-q").code == 0
        stored: dict[str, Any] = {}
        for path in out.glob("*.safetensors"):
            stored |= load(path)
        ends = {n.split(".")[-2]: v.data for n, v in stored.items() if n.endswith("global_scale")}
        found = {n: float(np.frombuffer(data, "<f4")[0]) for n, data in ends.items()}
        assert found["q_proj"] == found["k_proj"] == found["v_proj"] and found["gate_proj"] == found["up_proj"]
        assert found["o_proj"] != found["q_proj"]


@pytest.mark.parametrize(("words", "said"), [
    (["--scheme", "FP8"], "a file of them with --activation-scales, or use --scheme FP8_DYNAMIC, which needs none"),
    (["--scheme", "NVFP4"], "a file of them with --activation-scales, or use --scheme NVFP4A16, which needs none"),
    (["--scheme", "Q4_K_M"], "'Q4_K_M' is a type of files, not of tensors; write --to gguf:Q4_K_M"),
    (["--scheme", "fp8-scaled"], "write --to comfyui:fp8_scaled"),
    (["--scheme", "W8A16", "--to", "modelopt"], "use --scheme MXFP8A16, the nearest that it stores"),
    (["--scheme", "W4A17"], "'W4A17' is not a scheme; did you mean W4A16?"),
    (["--scheme", "FP8_DYNAMIC", "--to", "gguf"], "gguf cannot store it: the format fp8-e4m3"),
    (["--scheme", "W8A8", "--to", "gptq"], "gptq cannot store it: inputs quantized to int8"),
    (["--type", "fp4", "--to", "compressed-tensors"], "fp4 with scales that are floats"),
    (["--scheme", "NVFP4A16", "--group-size", "32"], "groups of 32"),
    (["--scheme", "FP8_DYNAMIC", "--to", "fp8-blocks"], "fp8-blocks cannot store it: inputs quantized to fp8"),
    (["--scheme", "NVFP4A16", "--override", "*.down_proj:MXFP8A16", "--to", "modelopt"], "names one for all"),
    (["--scheme", "NVFP4A16", "--bits", "3"], "--bits: fp4 has 4 bits, not 3"),
])  # fmt: skip
def test_refused_in_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=64, rows=64)
    to = [] if "--to" in words else ["--to", "compressed-tensors"]
    assert said in one_line(run("quantize", folder, *words, *to, "-o", tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "way"), [
    (["W8A8", "--to", "gptq"], "--scheme W8A16"),
    (["W4AFP8", "--to", "awq"], "--scheme W4A16"),
    (["NVFP4", "--to", "gguf"], "--scheme MXFP4"),
    (["FP8_DYNAMIC", "--to", "gptq"], "--scheme W8A16"),
    (["FP8_BLOCK", "--to", "modelopt"], "--scheme FP8_DYNAMIC"),
    (["FP8_DYNAMIC", "--to", "bnb-nf4"], "--type nf4 --group-size -1"),
])  # fmt: skip
def test_the_nearest_that_a_target_stores_is_named(words: list[str], way: str, tmp_path: Path) -> None:
    """It is taken, when it is asked for."""
    folder = model_of(tmp_path, hidden=256)
    line = one_line(run("quantize", folder, "--scheme", *words, "-o", tmp_path / "out"), 2)
    assert line.endswith(f"use {way}, the nearest that it stores"), line
    to = ["--to", words[2], "-o", f"{tmp_path / 'out'}.gguf" if words[2] == "gguf" else tmp_path / "out"]
    to += ["--container"] if words[2] == "gguf" else []
    assert run("quantize", folder, *way.split(), *to, "-q").code == 0


@pytest.mark.parametrize(("words", "way"), [
    (["--scheme", "NVFP4A16", "--group-size", "32"], "--scheme NVFP4A16"),
    (["--scheme", "MXFP4", "--group-size", "16"], "--scheme MXFP4"),
    (["--scheme", "W8A8", "--bits", "9"], "--scheme W8A16"),
    (["--scheme", "NVFP4A16", "--scale-dtype", "float16"], "--scheme NVFP4A16"),
    (["--scheme", "W4A16_ASYM", "--zero-point", "float"], "--scheme W4A16_ASYM"),
    (["--override", "*.down_proj:MXFP8,group-size=64"], "--scheme MXFP8"),
    (["--type", "nf4", "--group-size", "64"], "--to bnb-nf4"),
    (["--type", "codebook"], "--scheme W4A16"),
])  # fmt: skip
def test_folders_that_no_loader_would_understand_are_refused(words: list[str], way: str, tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=256)
    line = one_line(run("quantize", folder, *words, "-o", tmp_path / "out"), 2)
    assert "no loader would know what the folder holds: compressed-tensors cannot store" in line
    assert line.endswith(f"use {way}, or --to native for quantcli alone"), line
    assert not (tmp_path / "out").exists()
    assert run("quantize", folder, *words, "--to", "native", "-o", tmp_path / "out", "-q").code == 0


def test_listed_names_are_those_of_which_nothing_is_left_out(tmp_path: Path) -> None:
    """llama.cpp and mlx-lm decide how they compute with inputs: a name that says it gives a warning, and is not listed.
    MXFP4, MXFP8 and NVFP4 are also what these call their own formats."""
    folder, said = model_of(tmp_path, hidden=128), "has schemes of weights alone"
    for target in ("gguf", "mlx"):
        listed = stored_by(target)
        assert not {"W4A8", "W4AFP8", "W8A8", "INT8"} & {*listed} and {"W8A16", "MXFP4"} <= {*listed}
        for name in ("W4A16", "MXFP4", "W8A8"):
            words = ["--to", target, *(["--container"] if target == "gguf" else [])]
            ran = run("quantize", folder, "--scheme", name, *words, "--dry-run")
            assert ran.code == 0 and (said in ran.err) == (name not in listed), (target, name)
    assert {"MXFP8", "NVFP4"} <= {*stored_by("mlx")} and "W8A8" in stored_by("compressed-tensors")


def test_inputs_in_groups_need_rows_of_whole_groups(tmp_path: Path) -> None:
    """vLLM, SGLang and transformers divide inputs into groups of 128 without a rest."""
    folder = model_of(tmp_path, hidden=64)
    ran = run("quantize", folder, "--scheme", "FP8_BLOCK", "-o", tmp_path / "out")
    assert ran.code == 1 and "rows of 64 are not whole groups of 128, in which inputs are quantized" in ran.err
    assert "FP8_DYNAMIC has no such groups" in ran.err
    assert run("quantize", folder, "--scheme", "FP8_DYNAMIC", "-o", tmp_path / "dynamic", "-q").code == 0
    words = ["--type", "fp8-e4m3", "--granularity", "block"]
    assert run("quantize", folder, *words, "-o", tmp_path / "out", "-q").code == 0


@pytest.mark.parametrize(("words", "said"), [
    (["FP8_DYNAMIC"], []),
    (["MXFP4A16"], ["mxfp4: SGLang 0.5.23 does not load such weights"]),
    (["W8A8", "--group-size", "64"], ["w8g64 with inputs in int8: neither vLLM 0.32 nor SGLang 0.5.23 loads"]),
    (["W3A16"], ["3 bits: vLLM 0.32 loads", "w3g128: SGLang"]),
    (["W4A16", "--override", "*.down_proj:W4AFP8"], ["fp8: SGLang", "several schemes: transformers 5.23 loads"]),
    (["W4A16", "--override", "*.down_proj:W8A16"], ["loads them as they are, but not with dequantize=True"]),
    (["W4A16_ASYM", "--override", "*.down_proj:W8A8"], ["some with zero points: transformers 5.23 does not load"]),
])  # fmt: skip
def test_what_runtimes_do_not_load_is_said(words: list[str], said: list[str], tmp_path: Path) -> None:
    ran = run("quantize", model_of(tmp_path, hidden=256), "--scheme", *words, "--dry-run")
    lines = [line for line in ran.err.splitlines() if "warning" not in line and "model_type" not in line]
    assert ran.code == 0 and len(lines) == len(said), ran.err
    assert all(part in line for part, line in zip(said, lines)), lines


def test_blocks_that_runtimes_cannot_join_are_said(tmp_path: Path) -> None:
    ran = run("quantize", model_of(tmp_path, hidden=128, rows=192), "--scheme", "FP8_BLOCK", "--dry-run")
    assert ran.code == 0 and "vLLM and SGLang do not load this model: they join q, k and v" in ran.err
    assert "has 192 rows, not whole blocks" in ran.err


def test_rows_that_do_not_fill_groups_are_kept_and_said(tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=72, rows=64)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"] = gaussian(64, 64)
    save(folder / "model.safetensors", weights)
    ran = run("quantize", folder, "--scheme", "NVFP4A16", "-o", tmp_path / "out", "--json")
    kept = {t["name"]: t["note"] for t in ran.json["tensors"] if t["reason"] == "target"}
    assert len(kept) == 6 and set(kept.values()) == {"compressed-tensors cannot store it: a short last group of 8"}
    assert "model.layers.0.self_attn.q_proj" in config_of(tmp_path / "out")["ignore"]


def test_blocks_of_transformers(tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=256)
    assert run("quantize", folder, "--to", "fp8-blocks", "-o", tmp_path / "out", "-q").code == 0
    assert config_of(tmp_path / "out") == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "modules_to_not_convert": config_of(tmp_path / "out")["modules_to_not_convert"],
    }  # fmt: skip
    made = tensors_of(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert made[name] == ["F8_E4M3", [256, 256]] and made[f"{name}_scale_inv"] == ["F32", [2, 2]]
    original = load_file(folder / "model.safetensors")[name]
    scheme = Scheme(format="fp8-e4m3", granularity="block", calibration="mse", scale_dtype="float32")
    wanted = quantcli.quantize(original, scheme).dequantize()
    np.testing.assert_array_equal(decoded(tmp_path / "out")[name], wanted)


def test_blocks_that_transformers_would_divide_otherwise_are_kept(tmp_path: Path) -> None:
    """It divides rows evenly among the scales: 200 rows of two scales it would take for blocks of 100."""
    folder = model_of(tmp_path, hidden=128, rows=200)
    ran = run("quantize", folder, "--to", "fp8-blocks", "-o", tmp_path / "out", "--json")
    assert ran.code == 1 and "200 x 128 is not a whole number of blocks of 128 x 128" in ran.err


@pytest.mark.parametrize(("name", "algorithm"), [
    ("NVFP4A16", "W4A16_NVFP4"), ("MXFP8A16", "MXFP8"), ("FP8_DYNAMIC", "FP8_PER_CHANNEL_PER_TOKEN"),
])  # fmt: skip
def test_modelopt(name: str, algorithm: str, tmp_path: Path) -> None:
    folder = model_of(tmp_path, hidden=64, rows=64)
    words = [] if name == "NVFP4A16" else ["--scheme", name]
    assert run("quantize", folder, "--to", "modelopt", *words, "-o", tmp_path / "out", "-q").code == 0
    said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == config_of(tmp_path / "out")["quant_algo"] == algorithm
    weight = "model.layers.0.self_attn.o_proj.weight"
    made = tensors_of(tmp_path / "out")
    wanted = {
        "NVFP4A16": {"": ["U8", [64, 32]], "_scale": ["F8_E4M3", [64, 4]], "_scale_2": ["F32", []]},
        "MXFP8A16": {"": ["F8_E4M3", [64, 64]], "_scale": ["U8", [64, 2]]},
        "FP8_DYNAMIC": {"": ["F8_E4M3", [64, 64]], "_scale": ["F32", [64]]},
    }[name]
    assert {n.removeprefix(weight): v for n, v in made.items() if n.startswith(weight)} == wanted
    own = {**(fields(name) or {}), **({"scale_dtype": "float32"} if name == "FP8_DYNAMIC" else {})}
    found = quantcli.quantize(load_file(folder / "model.safetensors")[weight], **own).dequantize()
    np.testing.assert_array_equal(decoded(tmp_path / "out")[weight], found)


def test_native_files_are_exported_without_loss(tmp_path: Path) -> None:
    """The scale of a tensor is a power of two: multiplied or divided by, it is the same."""
    folder = model_of(tmp_path, hidden=64, rows=64)
    shutil.copytree(folder, tmp_path / "copy")
    assert run("quantize", folder, "--scheme", "NVFP4A16", "--to", "native", "-o", tmp_path / "n", "-q").code == 0
    for target in ("compressed-tensors", "modelopt"):
        ran = run("export", tmp_path / "n", "--to", target, "-o", tmp_path / target, "--json")
        assert ran.code == 0, ran
        direct = tmp_path / f"direct-{target}"
        assert run("quantize", folder, "--scheme", "NVFP4A16", "--to", target, "-o", direct, "-q").code == 0
        made = {n: bytes(v.data) for n, v in load(tmp_path / target / "model.safetensors").items()}
        assert made == {n: bytes(v.data) for n, v in load(direct / "model.safetensors").items()}


def test_measured_scales_of_inputs(tmp_path: Path) -> None:
    """They are stored as each tool has them, one for weights that are joined; a model that has them gives them too."""
    folder = model_of(tmp_path, hidden=64, rows=64)
    sizes = {"q": 0.5, "k": 0.125, "v": 0.25, "o": 2.0}
    scales = {f"model.layers.0.self_attn.{n}_proj.input_scale": np.array([v], np.float32) for n, v in sizes.items()}
    scales |= {f"model.layers.0.mlp.{n}_proj.input_scale": np.array([4.0], np.float32) for n in ("gate", "up", "down")}
    save(tmp_path / "s.safetensors", scales)
    words = ["quantize", folder, "--activation-scales", tmp_path / "s.safetensors", "--scheme"]
    plain, inverse = ("input_scale", 1), ("input_global_scale", -1)
    ends = {("FP8", "compressed-tensors"): plain, ("NVFP4", "compressed-tensors"): inverse}
    ends |= {(name, "modelopt"): plain for name in ("FP8", "NVFP4")}
    for (name, target), (end, power) in ends.items():
        out = tmp_path / f"{name}-{target}"
        assert run(*words, name, "--to", target, "-o", out, "-q").code == 0
        stored = load(out / "model.safetensors")
        for n, value in {**dict.fromkeys("qkv", 0.5), "o": 2.0}.items():
            tensor = stored[f"model.layers.0.self_attn.{n}_proj.{end}"]
            assert tensor.dtype == "F32" and np.frombuffer(tensor.data, "<f4").tolist() == [value**power]
        assert run("dequantize", out, "-o", tmp_path / f"d{name}-{target}", "-q").code == 0
    again = tmp_path / "again"
    words[3] = tmp_path / "NVFP4-compressed-tensors"
    assert run(*words, "NVFP4", "--to", "compressed-tensors", "-o", again, "-q").code == 0
    assert load(again / "model.safetensors") == load(tmp_path / "NVFP4-compressed-tensors" / "model.safetensors")
    assert "native files do not hold" in one_line(run(*words, "FP8", "--to", "native", "-o", tmp_path / "n"), 2)
    save(tmp_path / "s.safetensors", dict(list(scales.items())[:3]))
    words[3] = tmp_path / "s.safetensors"
    line = one_line(run(*words, "FP8", "-o", tmp_path / "n"), 2)
    assert "has no model.layers.0.mlp.down_proj.input_scale" in line and "FP8_DYNAMIC" in line
    assert "no scheme here has measured scales" in one_line(run(*words, "W8A8", "-o", tmp_path / "n"), 2)
    words[3] = folder
    assert "it holds no scales of inputs" in one_line(run(*words, "FP8", "-o", tmp_path / "n"), 2)


STORED = sorted((GOLDEN_FILES / "named").glob("*.safetensors"))
"""Two layers of the sample model as llm-compressor stores them, and what they were; peers/write_named.py wrote them."""


def in_parts(path: Path, tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    """A folder with the stored tensors and llm-compressor's configuration, its tensors, and the original weights."""
    held = load(path)
    folder = tmp_path / "stored"
    folder.mkdir()
    originals = {n: np.frombuffer(t.data, "<f4").reshape(t.shape) for n, t in held.items() if n.startswith("original.")}
    stored = {n: t for n, t in held.items() if n not in originals}
    (folder / "model.safetensors").write_bytes(raw_tensors({n: (t.dtype, t.shape, t.data) for n, t in stored.items()}))
    config = {**json.loads((LLAMA / "config.json").read_text()), "quantization_config": GOLDEN[path.stem]["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, stored, {n.removeprefix("original."): v for n, v in originals.items()}


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_what_llm_compressor_stored_is_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    """Its codes and scales, read and written again: names, dtypes, shapes, bytes, and the configuration's group."""
    folder, stored, _ = in_parts(path, tmp_path)
    ran = run("export", folder, "--to", "compressed-tensors", "-o", tmp_path / "out", "--json")
    assert ran.code == 0 and ran.json["lossless"], ran
    assert load(tmp_path / "out" / "model.safetensors") == stored
    own, theirs = (next(iter(config_of(f)["config_groups"].values())) for f in (tmp_path / "out", folder))
    assert own == theirs


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_the_same_scales_give_the_codes_of_llm_compressor(path: Path, table: Kernels, tmp_path: Path) -> None:
    """All of them: it divides in float32 here, and rounds as the kernel does, ties to even; a zero may have a sign."""
    folder, _, originals = in_parts(path, tmp_path)
    scheme = Scheme(**{**(fields(path.stem) or {}), **({"grid": "full"} if path.stem == "W8A8" else {})})
    with open_model(str(folder)) as model:
        for name, weights in originals.items():
            held, (rows, cols) = model[name].held(), weights.shape
            assert not isinstance(held, str)
            group = held.group if isinstance(held.group, int) else cols
            book = fixed_codebook(scheme) if scheme.family != "int" else None
            params = QuantParams(np.ascontiguousarray(held.params(0, rows)[0]), None, book)
            packed = np.zeros(rows * row_bytes(cols, scheme.bits), np.uint8)
            table.encode(tile_of(weights, F32, group), params, code_grid(scheme), packed)
            ours, theirs = (
                table.decode(codes, (rows, cols), group, params, code_grid(scheme))
                for codes in (packed, held.packed(0, rows))
            )
            np.testing.assert_array_equal(ours, theirs)
