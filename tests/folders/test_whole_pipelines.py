"""Commands beside quantize on whole pipelines: what they say and write of a component is what they do for it alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents
from making import load, one_line, run, save
from pipelines import TEXT, UNET, VAE, pipeline, text, weights
from strategies import gaussian

QUANTIZED = ("unet", "text_encoder", "text_encoder_2")
SHAPES = {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT}
NAMES = {f"{component}/{name}" for component, own in SHAPES.items() for name in own}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return pipeline(Path("pipe"))


@pytest.fixture
def out(source: Path) -> Path:
    assert run("quantize", source, "-o", "out", "-q").code == 0
    return Path("out")


def stored(folder: Path) -> int:
    """Bytes of all weights."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def tensors(ran: Any) -> dict[str, dict[str, Any]]:
    assert ran.code == 0, ran.err
    return {t["name"]: t for t in ran.json["tensors"]}


def floats(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of all components."""
    found = dict[str, np.ndarray]()
    for path in sorted(folder.rglob("*.safetensors")):
        own = {f"{path.parent.name}/{n}": t.array.astype(np.float64) for n, t in load(path).items()}
        assert not found.keys() & own
        found |= own
    return found


# ---- report and compare -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", [[], ["--against"]])
def test_a_report_has_what_those_of_the_components_have(against: list[str], source: Path, out: Path) -> None:
    """under the names of the pipeline; what is kept whole is named, and why"""
    ran = run("report", out, *against, *([source] if against else []), "--json")
    found = tensors(ran)
    assert set(found) == NAMES
    for name in QUANTIZED:
        alone = run("report", out / name, *against, *([source / name] if against else []), "--json")
        for tensor, own in tensors(alone).items():
            assert found[f"{name}/{tensor}"] == {**own, "name": f"{name}/{tensor}"}
        component = next(c for c in ran.json["components"] if c["name"] == name)
        for figure in ("coverage", "bits_per_weight", "sqnr_db", "bytes_in", "bytes_out", "parameters"):
            assert component[figure] == alone.json["summary"][figure], figure
    assert found["vae/decoder.conv_in.weight"]["reason"] == "component"
    kept = next(c for c in ran.json["components"] if c["name"] == "vae")
    assert kept["kept"].startswith("an autoencoder") and kept["quantized"] == 0
    summary = ran.json["summary"]
    assert summary["bytes_out"] == stored(out) and summary["bytes_in"] == stored(source)
    assert summary["parameters"] == sum(math.prod(shape) for own in SHAPES.values() for shape in own.values())
    printed = run("report", out).out
    assert "vae: kept whole, an autoencoder: small, and its errors are in every image" in printed
    assert "text_encoder_2" in printed.partition("\ncomponent")[2].partition("\ntensor")[0]


def test_the_total_is_over_the_weights_of_all(source: Path, out: Path) -> None:
    """as numpy adds it up from what dequantize writes"""
    ran = run("report", out, "--against", source, "--json")
    quantized = {name for name, t in tensors(ran).items() if t["disposition"] == "quantized"}
    assert run("dequantize", out, "-o", "floats", "-q").code == 0
    before, after = floats(source), floats(Path("floats"))
    power = sum((before[n] ** 2).sum() for n in quantized)
    error = sum(((before[n] - after[n]) ** 2).sum() for n in quantized)
    compared = run("compare", source, out, "--json")
    for found in (ran, compared):
        assert found.json["summary"]["sqnr_db"] == pytest.approx(10 * math.log10(power / error), abs=0.02)
    assert set(tensors(compared)) == NAMES
    assert tensors(compared)["vae/decoder.conv_in.weight"]["reason"] == "same"


def test_gates_are_over_the_whole(source: Path, out: Path) -> None:
    size = stored(out)
    assert run("report", out, "--max-size", f"{size}", "-q").code == 0
    assert run("report", out, "--max-size", f"{size - 1}", "-q").code == 1
    summary = run("report", out, "--json").json["summary"]
    assert run("report", out, "--min-sqnr", f"{summary['sqnr_db'] - 0.01}", "-q").code == 0
    assert run("report", out, "--against", source, "--min-sqnr", f"{summary['sqnr_db'] + 0.01}", "-q").code == 1
    ran = run("report", out, "--min-tensor-sqnr", "90")
    assert ran.code == 1 and "gate min-tensor-sqnr failed: " in ran.err and "text_encoder" in ran.err


def test_a_baseline_is_of_all_components(out: Path) -> None:
    Path("before.json").write_text(run("report", out, "--json").out)
    ran = run("report", out, "--baseline", "before.json", "--max-regression", "0.1", "--json")
    assert ran.code == 0 and ran.json["comparison"]["changes"] == []


def test_components_that_only_one_side_has(source: Path, out: Path) -> None:
    shutil.copytree(out, "less")
    shutil.rmtree("less/text_encoder_2")
    ran = run("compare", source, "less", "--json")
    assert set(ran.json["comparison"]["vanished"]) == {f"text_encoder_2/{n}" for n in TEXT}
    assert ran.json["summary"]["bytes_in"] == stored(source)
    assert "text_encoder_2 is only in pipe" in one_line(run("report", "less", "--against", source), 2)
    ran = run("verify", "less", "--source", source)
    assert ran.code == 1 and "text_encoder_2: it is missing here" in ran.out
    assert "model_index.json names text_encoder_2, and there is no such folder" in ran.out


# ---- verify -----------------------------------------------------------------------------------------------------


def test_verify(source: Path, out: Path) -> None:
    assert run("verify", out).code == 0
    ran = run("verify", out, "--source", source, "--json")
    assert ran.code == 0 and ran.json["tensors"] == len(NAMES) and ran.json["source"] == "pipe"


@pytest.mark.parametrize("place", ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_what_is_wrong_is_told_with_its_component(place: str, source: Path, out: Path) -> None:
    path = out / place
    data = bytearray(path.read_bytes())
    data[-2000] ^= 0x10
    path.write_bytes(data)
    ran = run("verify", out, "--source", source, "--json")
    assert ran.code == 1
    assert {f["tensor"].partition("/")[0] for f in ran.json["findings"]} == {path.parent.name}


def test_a_component_that_cannot_be_opened(out: Path) -> None:
    (out / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    ran = run("verify", out)
    assert ran.code == 1 and "structure: unet: " in ran.out
    (out / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "unet: it has a config.json, and no weights" in run("verify", out).out


# ---- inspect ----------------------------------------------------------------------------------------------------


def test_inspect(source: Path, out: Path) -> None:
    ran = run("inspect", out, "--json")
    assert set(tensors(ran)) == NAMES and ran.json["bytes"] == stored(out)
    parts = {c["name"]: c for c in ran.json["components"]}
    assert {n: c["kind"] for n, c in parts.items()} == {
        "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModel",
    }  # fmt: skip
    assert {n for n, c in parts.items() if c["quantized"]} == set(QUANTIZED)
    for name in parts:
        alone = run("inspect", out / name, "--json").json
        assert parts[name]["bytes"] == alone["bytes"] and parts[name]["tensors"] == len(alone["tensors"])
    assert set(run("inspect", source, "--names").out.split()) == NAMES
    stats = tensors(run("inspect", source, "--stats", "--json"))["unet/norm.weight"]["stats"]
    assert stats["max"] == load(source / "unet/diffusion_pytorch_model.safetensors")["norm.weight"].array.max()


# ---- dequantize and export --------------------------------------------------------------------------------------


def test_dequantize_rebuilds_the_pipeline(source: Path, out: Path) -> None:
    ran = run("dequantize", out, "-o", "floats", "--json")
    assert ran.code == 0 and ran.json["tensors"] == len(NAMES)
    assert any("vae: kept whole, it holds no quantized tensor" in line for line in ran.json["warnings"])
    found = contents(Path("floats"))
    sharded = {n for n in contents(out) if "-of-00003" in n or n.endswith(".index.json")}
    assert set(found) == set(contents(out)) - sharded | {"text_encoder_2/model.safetensors"}
    for name in QUANTIZED:
        assert run("dequantize", out / name, "-o", name, "-q").code == 0
        alone = {f"{name}/{n}": data for n, data in contents(Path(name)).items()}
        assert {n: data for n, data in found.items() if n.startswith(f"{name}/")} == alone
    for name in ("vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "model_index.json"):
        assert found[name] == (source / name).read_bytes()
    assert found["README.md"].endswith(b"# Tiny\n") and b"quantcli" not in found["README.md"]


def test_export_rebuilds_the_pipeline(source: Path) -> None:
    """moved exactly, to the bytes of an export of each component"""
    keep = ["--override", "*conv*:keep", "--override", "re:.*(embedding|norm).*:keep"]
    asked = ["--type", "nf4", "--group-size", "64", "--to", "native"]
    assert run("quantize", source, *asked, *keep, "-o", "nf4", "-q").code == 0
    ran = run("export", "nf4", "--to", "bnb-nf4", "-o", "moved", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["lossless"] and set(ran.json["config"]) == set(QUANTIZED)
    assert ran.json["bytes_out"] == stored(Path("moved"))
    found = contents(Path("moved"))
    for name in QUANTIZED:
        assert run("export", Path("nf4") / name, "--to", "bnb-nf4", "-o", name, "-q").code == 0
        alone = {f"{name}/{n}": data for n, data in contents(Path(name)).items()}
        assert {n: data for n, data in found.items() if n.startswith(f"{name}/")} == alone
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert found[vae] == (source / vae).read_bytes()
    assert run("compare", "nf4", "moved", "--min-sqnr", "100", "-q").code == 0


def test_codes_that_the_target_does_not_have(out: Path) -> None:
    line = one_line(run("export", out, "--to", "bnb-nf4", "-o", "moved"), 2)
    assert "out/text_encoder" in line or "out/unet" in line
    assert "--requantize makes it nf4" in line
    ran = run("export", out, "--to", "bnb-nf4", "-o", "moved", "--requantize", "--json")
    assert ran.code == 0 and not ran.json["lossless"]
    for name in QUANTIZED:
        config = json.loads(Path("moved", name, "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "bitsandbytes"


# ---- budgets and sweeps -----------------------------------------------------------------------------------------

PLAIN = ["--to", "native", "--override", "re:.*(embedding|norm|conv_in).*:keep"]


@pytest.mark.parametrize("words", [[], PLAIN, ["--override", "vae/*to_q*:bits=8"]])
def test_one_budget_for_all_components(words: list[str], source: Path) -> None:
    """which is kept to the byte, also by the recipe of a plan"""
    ran = run("quantize", source, "--dry-run", "--bits", "4", *words, "--json")
    target = ran.json["summary"]["bytes_out"] + 2000
    ran = run("quantize", source, "--target-size", target, *words, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert target - 2000 <= stored(Path("out")) == ran.json["summary"]["bytes_out"] <= target
    plan = run("plan", source, "--target-size", target, *words, "-o", "r.yaml", "--json")
    assert plan.json["bytes_out"] == stored(Path("out"))
    assert {n.partition("/")[0] for n in tensors(plan)} >= set(QUANTIZED)
    assert run("quantize", source, "--recipe", "r.yaml", "-o", "again", "-q").code == 0
    assert stored(Path("again")) == stored(Path("out"))
    schemes = {n: t["scheme"] for n, t in tensors(run("report", "again", "--json")).items()}
    assert {n: t["scheme"] for n, t in tensors(plan).items()}.items() <= schemes.items()
    assert run("verify", "out").code == 0


def test_a_budget_is_spent_where_it_helps_most(source: Path) -> None:
    """no exchange between two tensors, of two components or one, costs less in the same bytes"""
    ran = run("plan", source, "--target-bpw", "12", *PLAIN, "--bits", "3,4,8", "--group-size", "64", "--json")
    assert ran.code == 0 and ran.json["optimal"], ran.err
    assert ran.json["cost"] <= ran.json["uniform"]["cost"] if ran.json["uniform"] else True


def test_a_component_that_the_budget_leaves_as_it_is(source: Path) -> None:
    """is kept whole, and told"""
    save(source / "unet/diffusion_pytorch_model.safetensors", {"a.to_q.weight": gaussian(512, 512).astype("bfloat16")})
    whole = stored(source)
    ran = run("quantize", source, "--target-size", whole - 60000, *PLAIN, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    kept = {c["name"]: c["kept"] for c in ran.json["components"] if c["kept"]}
    assert kept.pop("vae").startswith("an autoencoder")
    assert set(kept.values()) <= {"the budget has room for all of it"} and stored(Path("out")) <= whole - 60000


def test_a_budget_out_of_reach_tells_what_takes_the_room(source: Path) -> None:
    line = one_line(run("plan", source, "--target-bpw", "2"), 2)
    assert "2 bits per weight cannot be met: the smallest pipeline these options allow has" in line
    assert "bits per weight (kept tensors " in line and "vae" in line and "(kept whole)" in line
    assert " kB" not in line and "bytes" not in line
    line = one_line(run("quantize", source, "--target-size", "20kB"), 2)
    assert "20 kB cannot be met: the smallest pipeline these options allow has" in line
    assert "are enough for all of it as it is" in one_line(run("plan", source, "--target-bpw", "32"), 2)


def test_one_scheme_for_all(source: Path) -> None:
    ran = run("plan", source, "--target-bpw", "13", *PLAIN, "--uniform-groups", "--json")
    assert ran.code == 0, ran.err
    assert len({t["scheme"] for t in ran.json["tensors"]} - {None}) == 1


def test_weights_by_a_file(source: Path) -> None:
    Path("w.yaml").write_text("'unet/*': 1000\n'*': 1\n")
    names = tensors(run("plan", source, "--target-bpw", "12", *PLAIN, "--weighting", "w.yaml", "--json"))
    assert any(n.startswith("unet/") for n in names)


def test_a_sweep_has_what_quantize_reports(source: Path) -> None:
    ran = run("sweep", source, "--bits", "4,8", "-o", "s.csv", "--json")
    assert ran.code == 0, ran.err
    assert Path("s.csv").read_text().startswith("source,scheme,bits,")
    for point in ran.json["points"]:
        made = run("quantize", source, "--bits", point["bits"], "--to", "native", "-o", "out", "--force", "--json").json
        for figure in ("bytes_out", "bits_per_weight", "sqnr_db"):
            assert point[figure] == pytest.approx(made["summary"][figure], rel=1e-12)
        worst = min((t for t in made["tensors"] if t["sqnr_db"] is not None), key=lambda t: t["sqnr_db"])
        assert point["worst_tensor"] == worst["name"]


# ---- variants ---------------------------------------------------------------------------------------------------


def test_variants_of_a_pipeline(source: Path) -> None:
    pipeline(source, variant="fp16")
    half = weights(UNET, 9)
    save(source / "unet/diffusion_pytorch_model.fp16.safetensors", half)
    assert run("quantize", source, "--variant", "fp16", "-o", "out", "-q").code == 0
    plain, other = (run("compare", source, "out", *words, "--json") for words in ([], ["--variant", "fp16"]))
    assert plain.json["summary"]["sqnr_db"] < 10 < other.json["summary"]["sqnr_db"]
    assert run("report", "out", "--against", source, "-q").code == 2
    assert run("report", "out", "--against", source, "--variant", "fp16", "-q").code == 0
    assert run("verify", "out", "--source", source, "--variant", "fp16", "-q").code == 0
    assert run("verify", "out", "--source", source, "-q").code == 1
    norm = tensors(run("inspect", source, "--variant", "fp16", "--stats", "--json"))["unet/norm.weight"]["stats"]
    assert norm["max"] == half["norm.weight"].astype(np.float32).max()
    said = one_line(run("compare", source, "out", "--variant", "bf16"), 2)
    assert "neither folder has this variant" in said
    assert "no component has this variant; there is fp16" in one_line(run("inspect", source, "--variant", "x"), 2)


def test_variants_of_one_folder(source: Path, out: Path) -> None:
    """of codes: for dequantize, export and report"""
    shutil.copytree(out / "text_encoder", "m")
    Path("m/model.safetensors").rename("m/model.int4.safetensors")
    save(Path("m/model.safetensors"), weights(TEXT, 3))
    export = ["export", "--to", "compressed-tensors", "-o", "b"]
    for words in (["report"], ["verify"], ["dequantize", "-o", "a"], export):
        assert "it holds no quantized tensor" in run(*words, "m").err, words
        ran = run(*words, "m", "--variant", "int4")
        assert ran.code == 0, ran.err
    assert set(load(Path("a/model.safetensors"))) == set(TEXT)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    (["export", "out", "--to", "gguf"], "this writes one file, and a pipeline is a folder of models"),
    (["export", "out", "--to", "onnx", "-o", "x.onnx"], "this writes one file, and a pipeline is a folder of models"),
    (["export", "out", "--to", "mlx", "-o", "x.mlx"], "does not load mlx; use --to bnb-nf4"),
    (["export", "out", "--to", "compressed-tensors"], "diffusers does not load compressed-tensors"),
    (["export", "out", "--to", "bnb-nf4", "-o", "x.safetensors"], "a pipeline is written as a folder"),
    (["export", "pipe", "--to", "bnb-nf4"], "it holds no quantized tensor"),
    (["dequantize", "out", "-o", "-"], "a pipeline is written as a folder"),
    (["dequantize", "out", "-o", "pipe"], "the output exists"),
    (["dequantize", "pipe"], "it holds no quantized tensor"),
    (["quantize", "pipe", "-o", "x.gguf"], "this writes one file, and a pipeline is a folder of models"),
    (["quantize", "pipe", "-o", "x.onnx"], "this writes one file, and a pipeline is a folder of models"),
    (["quantize", "pipe", "-o", "x.mlx"], "does not load mlx"),
    (["sweep", "pipe", "-o", "x.gguf"], "nothing is written as .gguf"),
    (["plan", "pipe", "--target-bpw", "9", "--to", "gguf"], "a pipeline is a folder of models"),
    (["plan", "pipe", "--target-bpw", "9", "--importance", "x.gguf"], "importances are those of one model"),
    (["sweep", "pipe", "--lora", "x"], "this is for one model, and a pipeline has several"),
    (["report", "pipe"], "it holds no quantized tensor"),
    (["inspect", "out", "--recipe"], "name the folder of a component: unet, vae, text_encoder, text_encoder_2"),
    (["compare", "pipe", "out/unet"], "pipe: this is a pipeline of several models, and out/unet is one model"),
    (["report", "out/unet", "--against", "pipe"], "pipe: this is a pipeline of several models"),
    (["verify", "out", "--source", "pipe/unet"], "out: this is a pipeline of several models"),
])  # fmt: skip
def test_what_a_pipeline_does_not_take(words: list[str], said: str, out: Path) -> None:
    ran = run(*words)
    assert ran.code in (1, 2) and said in ran.err and ran.err.count("\n") == 1, ran.err
    assert sorted(p.name for p in Path().iterdir()) == ["out", "pipe"]


def test_what_became_larger_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("m.safetensors"), {"a": gaussian(64, 64).astype(np.float32)})
    assert run("quantize", "m.safetensors", "--bits", "2", "-o", "q.safetensors", "-q").code == 0
    assert " times larger)" in run("compare", "q.safetensors", "m.safetensors").out
    assert " times smaller)" in run("report", "q.safetensors").out


# ---- sentence-transformers --------------------------------------------------------------------------------------


def test_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """whose dense layer is kept whole"""
    monkeypatch.chdir(tmp_path)
    source = Path("model")
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    text(
        source / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()],
    )
    text(source / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    text(source / "0_Transformer/config.json", {"model_type": "bert", "architectures": ["BertModel"]})
    (source / "2_Dense").mkdir()
    save(source / "0_Transformer/model.safetensors", {"encoder.layer.0.attention.self.query.weight": gaussian(64, 128)})
    save(source / "2_Dense/model.safetensors", {"linear.weight": gaussian(32, 64)})
    assert run("quantize", source, "--bits", "8", "-o", "out", "-q").code == 0
    ran = run("report", "out", "--against", source, "--json")
    assert [c["kept"] for c in ran.json["components"]] == ["", "sentence-transformers loads Dense in floating point"]
    assert run("verify", "out", "--source", source).code == 0
    assert run("dequantize", "out", "-o", "floats", "-q").code == 0
    assert contents(Path("floats"))["2_Dense/model.safetensors"] == (source / "2_Dense/model.safetensors").read_bytes()
    assert run("compare", source, "floats", "--min-sqnr", "40", "-q").code == 0
    assert run("plan", source, "--target-bpw", "14", "-q").code == 0


def test_modules_beside_a_model_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """where they are not part of what is looked at"""
    monkeypatch.chdir(tmp_path)
    source = Path("model")
    listed = [{"path": "", "type": "models.Transformer"}, {"path": "2_Dense", "type": "models.Dense"}]
    text(source / "modules.json", listed)
    text(source / "config.json", {"model_type": "bert", "architectures": ["BertModel"]})
    (source / "2_Dense").mkdir()
    save(source / "model.safetensors", {"encoder.layer.0.attention.self.query.weight": gaussian(64, 128)})
    save(source / "2_Dense/model.safetensors", {"linear.weight": gaussian(32, 64)})
    assert run("quantize", source, "--bits", "8", "-o", "out", "-q").code == 0
    for words in (["report", "out"], ["inspect", "out"], ["verify", "out"], ["compare", source, "out"]):
        ran = run(*words)
        assert ran.code == 0 and "out/2_Dense is not looked at: sentence-transformers loads Dense in" in ran.err, words
