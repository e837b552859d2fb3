"""Folders of several models: pipelines of diffusers, and sentence-transformers whose model lies in a subfolder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents
from making import BF16, load, one_line, run, save
from pipelines import TEXT, UNET, VAE, pipeline, text, weights
from strategies import gaussian

import quantcli
from quantcli.errors import QuantcliError
from quantcli.folders import write as folders
from quantcli.passes import quantize as passes


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return pipeline(Path("pipe"))


def test_each_component_as_it_is_alone(source: Path) -> None:
    """the bytes of its weights are those of a run on its folder; all other files are copied; one report over all"""
    ran = run("quantize", source, "--bits", "8", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    found, before = contents(Path("out")), contents(source)
    assert set(found) == set(before)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        assert run("quantize", source / name, "--bits", "8", "-o", name, "-q").code == 0
        alone = {f"{name}/{n}": data for n, data in contents(Path(name)).items() if n != "README.md"}
        assert {n: data for n, data in found.items() if n.startswith(f"{name}/")} == alone
    for name in set(found) - {"README.md"}:
        if not name.startswith(("unet/", "text_encoder")):
            assert found[name] == before[name]
    tensors = {t["name"]: t for t in ran.json["tensors"]}
    assert set(tensors) == {
        *(f"unet/{n}" for n in UNET), *(f"vae/{n}" for n in VAE),
        *(f"{e}/{n}" for e in ("text_encoder", "text_encoder_2") for n in TEXT),
    }  # fmt: skip
    assert tensors["vae/decoder.attention.to_q.weight"]["reason"] == "component"
    assert "autoencoder" in tensors["vae/decoder.attention.to_q.weight"]["note"]
    assert tensors["unet/up_blocks.0.attentions.0.to_q.weight"]["scheme"] == "w8g128"
    sizes = {n: len(data) for n, data in found.items() if n.endswith(".safetensors")}
    assert ran.json["summary"]["bytes_out"] == sum(sizes.values())
    assert ran.json["summary"]["bytes_in"] == sum(len(d) for n, d in before.items() if n.endswith(".safetensors"))
    assert {f["name"] for f in ran.json["files"]} == set(before)
    card = found["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n") and card.endswith("# Original model card\n\n# Tiny\n")
    assert "- `unet`: This is quantcli's own layout" in card and "- `text_encoder`: compressed-tensors" in card


def test_each_component_is_written_for_its_own_loader(source: Path) -> None:
    """transformers gets compressed-tensors; diffusers, which would load what it does not know at random, refuses"""
    ran = run("quantize", source, "-o", "out")
    assert "unet: written in quantcli's own layout, which diffusers refuses to load" in ran.err
    methods = {
        name: json.loads(Path("out", name, "config.json").read_text())
        .get("quantization_config", {})
        .get("quant_method")
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    assert methods == {
        "unet": "quantcli", "vae": None, "text_encoder": "compressed-tensors", "text_encoder_2": "compressed-tensors"
    }  # fmt: skip
    assert run("verify", "out/unet").code == 0 and run("verify", "out/text_encoder").code == 0
    assert run("dequantize", "out/unet", "-o", "floats").code == 0
    assert set(load(Path("floats/diffusion_pytorch_model.safetensors"))) == set(UNET)


def test_bitsandbytes_for_all(source: Path) -> None:
    ran = run("quantize", source, "--to", "bnb-nf4", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    for name, file in (("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        config = json.loads(Path("out", name, "config.json").read_text())["quantization_config"]
        assert config["quant_method"] == "bitsandbytes"
        assert any(".quant_state.bitsandbytes__nf4" in n for n in load(Path("out", name, file)))
    skipped = json.loads(Path("out/unet/config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert skipped == ["time_embedding.linear_1"]  # the preset keeps it


@pytest.mark.parametrize("words", [[], ["--to", "bnb-nf4"], ["--to", "native", "--max-shard-size", "20kB"]])
def test_sizes_are_known_before(words: list[str], source: Path) -> None:
    before = run("quantize", source, *words, "--dry-run", "--json")
    assert before.code == 0 and not Path("pipe-w4g128").exists()
    after = run("quantize", source, *words, "-o", "out", "--json")
    told = before.json
    assert told["summary"]["bytes_out"] == after.json["summary"]["bytes_out"]
    assert told["summary"]["bytes_out"] == sum(f.stat().st_size for f in Path("out").rglob("*.safetensors"))
    assert {t["name"]: t["bytes_out"] for t in told["tensors"]} == {
        t["name"]: t["bytes_out"] for t in after.json["tensors"]
    }


@pytest.mark.parametrize("words", [[], ["--max-shard-size", "12kB"]])
@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_an_interrupted_run_goes_on(at: int, words: list[str], source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """to the same bytes; finished files of every component are taken over; the destination is not there before"""
    asked = ["quantize", source, "-o", "out", *words]
    assert run("quantize", source, "-o", "whole", "-q", *words).code == 0
    write_part, calls = passes.write_part, list[Any]()

    def failing(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) > at:
            raise QuantcliError("no space left on device", place=["out"])
        return write_part(*args, **more)

    monkeypatch.setattr(folders, "write_part", failing)
    assert run(*asked).code == 1 and not Path("out").exists()
    if at:
        Path(".out.quantcli-partial/folder/unet/stray").write_bytes(b"stray")
    monkeypatch.setattr(folders, "write_part", write_part)
    again = run(*asked, "--resume")
    assert again.code == 0, again.err
    assert (f"resumed after {at} finished file" in again.err) == bool(at)
    assert contents(Path("out")) == contents(Path("whole"))
    monkeypatch.undo()
    assert not Path(".out.quantcli-partial").exists()


def test_an_existing_folder(source: Path) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("x")
    assert "the output exists" in one_line(run("quantize", source, "-o", "out"), 2)
    save(source / "unet/diffusion_pytorch_model.safetensors", {"a.weight": np.full((64, 64), np.nan, np.float32)})
    assert run("quantize", source, "-o", "out", "--force").code == 1
    assert contents(Path("out")) == {"mine.txt": b"x"}
    save(source / "unet/diffusion_pytorch_model.safetensors", weights(UNET, 1))
    assert run("quantize", source, "-o", "out", "--force").code == 0
    assert not Path("out/mine.txt").exists() and Path("out/unet/config.json").exists()


def test_the_same_bytes_at_any_number_of_threads(source: Path) -> None:
    run("quantize", source, "-o", "out", "-q")
    run("quantize", source / "model_index.json", "-o", "again", "--threads", "1", "-q")
    assert contents(Path("out")) == contents(Path("again"))


def test_from_python(source: Path) -> None:
    """the same as the command"""
    run("quantize", source, "-o", "out", "-q")
    report = quantcli.quantize_file(source, "again", bits=4)
    assert contents(Path("again")) == contents(Path("out"))
    assert quantcli.plan(source, bits=4).summary.bytes_out == report.summary.bytes_out


def test_variants(source: Path) -> None:
    """the one that is asked for is taken everywhere, and written under the names that loaders look for"""
    plain = contents(source)
    pipeline(source, variant="fp16")
    assert run("quantize", source, "-o", "out", "-q").code == 0
    ran = run("quantize", source, "--variant", "fp16", "-o", "fp16", "--json")
    assert set(contents(Path("fp16"))) == set(contents(Path("out"))) == set(plain)
    left = {f["name"] for f in ran.json["files"] if f["disposition"] == "left out"}
    assert left == {n for n in plain if n.endswith((".safetensors", ".index.json"))}
    assert "no component has this variant; there is fp16" in one_line(run("quantize", source, "--variant", "x"), 2)


# ---- patterns ---------------------------------------------------------------------------------------------------


def schemes(*words: object) -> dict[str, str | None]:
    ran = run("quantize", *words, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    return {t["name"]: t["scheme"] for t in ran.json["tensors"]}


def test_patterns_may_name_a_component(source: Path) -> None:
    q, fc1 = "unet/up_blocks.0.attentions.0.to_q.weight", "text_encoder/text_model.encoder.layers.0.mlp.fc1.weight"
    found = schemes(source, "--override", "unet/*.to_q:bits=8", "--override", "re:text_encoder/.*fc1:keep")
    assert found[q] == "w8g128" and found[fc1] is None and found[fc1.replace("encoder/", "encoder_2/")] == "w4g128"
    found = schemes(source, "--exclude", "*.to_q")
    assert found[q] is None and found[fc1] == "w4g128"
    found = schemes(source, "--include", "text_encoder*/*")
    assert {n.partition("/")[0] for n, scheme in found.items() if scheme} == {"text_encoder", "text_encoder_2"}
    found = schemes(source, "--include", "vae/*", "--to", "native")
    assert {n.partition("/")[0] for n, scheme in found.items() if scheme} == {"vae"}
    found = schemes(source, "--override", "vae/decoder.attention.*:bits=8")
    assert found["vae/decoder.attention.to_q.weight"] == "w8g128" and found[q] == "w4g128"


@pytest.mark.parametrize("words", [
    [], ["--to", "native", "--override", "unet/*.to_q:bits=8", "--override", "re:text_encoder/.*fc1:keep"],
    ["--include", "vae/*", "--include", "*fc1*"], ["--to", "bnb-nf4"], ["--no-default-keep", "--bits", "3"],
])  # fmt: skip
def test_a_saved_recipe_makes_the_same_again(words: list[str], source: Path) -> None:
    """Schemes of every component, those that are kept whole and those that are named too; same bytes but for headers,
    which hold the request."""
    ran = run("quantize", source, *words, "--save-recipe", "r.yaml", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    again = run("quantize", source, "--recipe", "r.yaml", "-o", "again", "--json")
    assert again.code == 0, again.err
    schemes = [{t["name"]: t["scheme"] for t in one.json["tensors"]} for one in (ran, again)]
    assert schemes[0] == schemes[1]
    for path in Path("out").rglob("*.safetensors"):
        ours, theirs = load(path), load(Path("again") / path.relative_to("out"))
        assert {n: t.data for n, t in ours.items()} == {n: t.data for n, t in theirs.items()}
    if not words:
        assert "match: 're:unet/" in Path("r.yaml").read_text()  # what the preset keeps


@pytest.mark.parametrize(("words", "said"), [
    (["--include", "unet/nothing"], "'unet/nothing' matches no tensor; near it: unet/"),
    (["--exclude", "*.to_p"], "'*.to_p' matches no tensor"),
    (["--to", "gguf"], "a pipeline is a folder of models"),
    (["--to", "compressed-tensors"], "diffusers does not load compressed-tensors; use --to bnb-nf4"),
    (["--to", "mlx"], "does not load mlx"),
    (["--target-bpw", "5"], "5 bits per weight cannot be met: the smallest pipeline these options allow has "),
    (["--save-recipe", "pipe/model_index.json"], "pipe/model_index.json"),
    (["-o", "-"], "a pipeline is written as a folder"),
    (["-o", "out.safetensors"], "a pipeline is written as a folder"),
    (["--override", "vae/norm:keep"], "'vae/norm' matches no tensor"),
    (["--exclude", "*"], "every component of this pipeline is kept"),
    (["--resume", "--digest", "none"], "resuming needs digests to recognize the source"),
])  # fmt: skip
def test_what_a_pipeline_does_not_take(words: list[str], said: str, source: Path) -> None:
    ran = run("quantize", source, *words)
    assert ran.code in (1, 2) and said in ran.err, ran.err
    assert sorted(os.listdir()) == ["pipe"]


@pytest.mark.parametrize(("value", "said"), [
    ({"../unet": ["diffusers", "UNet2DConditionModel"]}, "'../unet' is not the name of a subfolder"),
    ({"unet": ["diffusers", 1]}, "model_index.json names no folder with weights"),
    ([], "it is not an object"),
])  # fmt: skip
def test_damaged_lists_of_components(value: Any, said: str, source: Path) -> None:
    text(source / "model_index.json", value)
    assert said in one_line(run("quantize", source, "-o", "out"), 1)


def test_a_component_that_cannot_be_read_is_told_with_its_folder(source: Path) -> None:
    (source / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    assert "unet" in one_line(run("quantize", source, "-o", "out"), 1)
    (source / "unet/diffusion_pytorch_model.safetensors").unlink()
    (source / "elsewhere").mkdir()
    (source / "elsewhere/model.safetensors").write_bytes(b"")
    os.rmdir(source / "unet") if not os.listdir(source / "unet") else None
    ran = run("quantize", source, "-o", "out", "-q")
    assert ran.code == 0 and Path("out/elsewhere/model.safetensors").exists()


def test_a_damaged_component_is_refused_though_it_is_kept(source: Path) -> None:
    """It was copied unread: an output that does not load."""
    [weights] = (source / "vae").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    line = one_line(run("quantize", source, "-o", "out"), 1)
    assert str(weights.relative_to(source)) in line
    assert not Path("out").exists()


@pytest.mark.parametrize("command", [("dequantize",), ("export", "--to", "bnb-nf4")])
def test_a_damaged_component_that_holds_no_codes_is_refused(source: Path, command: tuple[str, ...]) -> None:
    """It was copied unread, with a warning."""
    assert run("quantize", source, "-o", "quantized", "-q").code == 0
    [weights] = Path("quantized/vae").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    line = one_line(run(*command, "quantized", "-o", "out"), 1)
    assert str(weights) in line
    assert not Path("out").exists()


def test_a_component_with_nothing_to_quantize_is_kept_whole(source: Path) -> None:
    """with the reason, where others are quantized"""
    save(source / "text_encoder/model.safetensors", {"encoder.norm.weight": gaussian(64).astype(BF16)})
    ran = run("quantize", source, "-o", "out", "--json")
    assert ran.code == 0
    kept = next(t for t in ran.json["tensors"] if t["name"].startswith("text_encoder/"))
    assert kept["reason"] == "component" and "nothing to quantize" in kept["note"]
    found = contents(Path("out"))
    assert found["text_encoder/model.safetensors"] == (source / "text_encoder/model.safetensors").read_bytes()


# ---- sentence-transformers --------------------------------------------------------------------------------------


def test_sentence_transformers_with_its_model_in_a_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("model")
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    text(source / "modules.json", listed)
    text(source / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    text(source / "0_Transformer/config.json", {"model_type": "bert", "architectures": ["BertModel"]})
    (source / "2_Dense").mkdir()
    save(source / "0_Transformer/model.safetensors", {"encoder.layer.0.attention.self.query.weight": gaussian(64, 128)})
    save(source / "2_Dense/model.safetensors", {"linear.weight": gaussian(32, 64)})
    ran = run("quantize", source, "--bits", "8", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    tensors = {t["name"]: t for t in ran.json["tensors"]}
    assert tensors["0_Transformer/encoder.layer.0.attention.self.query.weight"]["scheme"] == "w8g128"
    assert tensors["2_Dense/linear.weight"]["note"] == "sentence-transformers loads Dense in floating point"
    assert contents(Path("out"))["2_Dense/model.safetensors"] == (source / "2_Dense/model.safetensors").read_bytes()


# ---- what diffusers' loader of bitsandbytes does ----------------------------------------------------------------


def model(folder: Path, kind: str, **shapes: tuple[int, ...]) -> Path:
    text(folder / "config.json", {"_class_name": kind, "_diffusers_version": "0.42.1"})
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    save(folder / "diffusion_pytorch_model.safetensors", weights(names, 7))
    return folder


def test_a_kept_layer_that_would_hide_others_is_refused(tmp_path: Path) -> None:
    """diffusers skips every module whose own name, without what it is in, is on the list"""
    shapes = {"proj_out__weight": (64, 64), "blocks__0__proj_out__weight": (64, 64), "blocks__0__ff__weight": (64, 64)}
    source = model(tmp_path / "m", "FluxTransformer2DModel", **shapes)
    ran = run("quantize", source, "--to", "bnb-nf4", "--exclude", "proj_out", "--include", "*", "--dry-run")
    assert "with proj_out kept, its loader would not decode blocks.0.proj_out either" in one_line(ran, 2)
    assert run("quantize", source, "--to", "bnb-nf4", "--exclude", "*proj_out", "--dry-run").code == 0


def test_layers_that_diffusers_keeps_in_float32(tmp_path: Path) -> None:
    shapes = {"condition_embedder__time_embedder__linear_1__weight": (64, 64), "blocks__0__ff__weight": (64, 64)}
    source = model(tmp_path / "m", "WanTransformer3DModel", **shapes)
    ran = run("quantize", source, "--to", "bnb-nf4", "--dry-run", "--json", "--include", "*")
    kept = next(t for t in ran.json["tensors"] if "time_embedder" in t["name"])
    assert kept["reason"] == "target" and "diffusers never quantizes this layer" in kept["note"]
    ran = run("quantize", source, "--to", "compressed-tensors", "--dry-run")
    assert "diffusers does not load compressed-tensors; use --to bnb-nf4" in one_line(ran, 2)


def test_verify_does_not_call_a_pipeline_damaged(source: Path) -> None:
    assert "pipe: it holds no quantized tensor; inspect shows any file" in one_line(run("verify", source), 2)
