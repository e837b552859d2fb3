"""Presets that config.json chooses: for which models, what they keep, and that they change nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, run, save

import quantcli
from quantcli.planning.kinds import preset_of

GENERATES = "Qwen3VLForConditionalGeneration"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape, np.float32) * 0.02).astype(BF16)


def folder(name: str, config: dict[str, Any], names: list[str], **files: str) -> Path:
    """A model folder whose tensors are matrices of 128 rows and columns."""
    Path(name).mkdir()
    save(Path(name) / "model.safetensors", {n: weight(128, 128) for n in names})
    for file, text in {"config.json": json.dumps(config), **files}.items():
        (Path(name) / file).write_text(text)
    return Path(name)


def layer(prefix: str) -> list[str]:
    return [f"{prefix}.self_attn.{n}_proj.weight" for n in "qkvo"]


def dispositions(ran: Any) -> dict[str, tuple[str, str]]:
    return {t["name"]: (t["reason"], t["note"]) for t in ran.json["tensors"]}


@pytest.mark.parametrize(("config", "preset"), [
    ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "llm"),
    ({"model_type": "unheard_of", "architectures": ["UnheardOfForCausalLM"]}, "llm"),
    ({"model_type": "qwen3_vl", "architectures": [GENERATES]}, "llm"),
    ({"model_type": "deepseek_v3"}, "llm"),
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "llm"),
    ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, None),
    ({"model_type": "bert", "architectures": ["BertModel"]}, "embedding"),
    ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, None),
    ({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, "cnn"),
    ({"architecture": "resnet50", "num_classes": 1000}, "cnn"),
    ({"architecture": "vit_base_patch16_224"}, None),
    ({"_class_name": "FluxTransformer2DModel"}, "diffusion"),
    ({"_class_name": "UNet2DConditionModel"}, "diffusion"),
    ({"_class_name": "AutoencoderKL"}, None),
    ({"model_type": ["llama"], "architectures": "x", "_class_name": 3}, None),
    ({}, None),
])  # fmt: skip
def test_the_preset_of_a_model(config: dict[str, Any], preset: str | None) -> None:
    assert preset_of({"config.json": json.dumps(config).encode()}.get) == preset


def test_sentence_transformers_and_what_is_damaged() -> None:
    config = json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}).encode()
    assert preset_of({"config.json": config, "modules.json": b"[]"}.get) == "embedding"
    assert preset_of({"config.json": b"{"}.get) is None
    assert preset_of(lambda name: None) is None


SEEING = ["visual.blocks.0.attn.qkv.weight", "model.vision_tower.encoder.layers.0.q.weight", "audio_tower.fc.weight",
          "multi_modal_projector.linear_1.weight", "model.embed_vision.embedding_projection.weight"]  # fmt: skip
FURTHER = ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight", "model.layers.2.eh_proj.weight",
           "model.layers.2.shared_head.head.weight", *layer("model.layers.2")]  # fmt: skip


@pytest.fixture
def model() -> Path:
    """A language model of two layers that sees and hears, with layers behind the last one (DeepSeek, GLM, Qwen)."""
    config = {"model_type": "qwen3_vl", "architectures": [GENERATES],
              "text_config": {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}}  # fmt: skip
    return folder("model", config, [*layer("model.layers.0"), *layer("model.layers.1"), *SEEING, *FURTHER])


@pytest.mark.parametrize("words", [["--to", "native"], ["--to", "native", "--bits", "8"], []])
def test_what_a_preset_keeps(words: list[str], model: Path) -> None:
    """Towers, projectors and draft layers, each with the reason; the schemes are those that were asked for."""
    ran = run("quantize", model, *words, "-o", "out", "--json")
    assert ran.code == 0 and ran.json["preset"] == "llm"
    found = dispositions(ran)
    notes = {n: found[n][1] for n in (*SEEING, *FURTHER)}
    assert {reason for n, (reason, _) in found.items() if n in notes} == {"preset"}
    assert {notes[n] for n in FURTHER} == {"predicts further tokens"}
    assert notes[SEEING[3]] == "joins sight and language" and notes[SEEING[0]] == "sees or hears"
    schemes = {t["scheme"] for t in ran.json["tensors"] if t["name"].startswith("model.layers.0")}
    assert schemes == {"w8g128" if "8" in words else "w4g128"}
    table = run("quantize", model, *words, "-o", "out", "--force").out
    assert "kept: preset" in table and "preset" in table.splitlines()[4]


EXPERTS = [f"experts.{n}.{word}.weight" for n in range(2) for word in ("gate_proj", "up_proj", "down_proj")]
PUBLISHED = ["embed.weight", "head.weight", "layers.0.attn.wq_a.weight", "layers.0.attn.wo_a.weight",
             "layers.0.attn.indexer.wq_b.weight", *(f"layers.0.ffn.experts.{n}.w{i}.weight" for n in (0, 1)
             for i in (1, 2, 3)), *(f"mtp.0.ffn.experts.0.w{i}.weight" for i in (1, 2, 3))]  # fmt: skip


def test_draft_layers_with_experts() -> None:
    """DeepSeek V3: the layer behind the last is no layer of the model in transformers, so that its experts stay while
    those of the model are packed."""
    names = [f"model.layers.{n}.mlp.{expert}" for n in (0, 1) for expert in EXPERTS]
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 1}
    source = folder("model", config, names)
    ran = run("quantize", source, "--to", "compressed-tensors", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    found = dispositions(ran)
    assert {found[n] for n in names[:6]} == {("default", "")}
    assert {found[n] for n in names[6:]} == {("preset", "predicts further tokens")}
    ignore = json.loads(Path("out/config.json").read_text())["quantization_config"]["ignore"]
    assert {n.removesuffix(".weight") for n in names[6:]} <= set(ignore)
    planned = run("plan", source, "--target-bpw", "11", "--json")
    assert planned.code == 0, planned.err


def test_names_of_deepseek_v4() -> None:
    """As they are published, without the prefix of transformers: what is kept is ignored under the names there too."""
    config = {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"], "num_hidden_layers": 1}
    ran = run("quantize", folder("model", config, PUBLISHED), "--to", "compressed-tensors", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    notes = {name: note for name, (reason, note) in dispositions(ran).items() if reason == "preset"}
    assert notes == {
        "head.weight": "output head",
        "layers.0.attn.indexer.wq_b.weight": "selects what is attended to",
        **dict.fromkeys(PUBLISHED[-3:], "predicts further tokens"),
    }
    ignore = json.loads(Path("out/config.json").read_text())["quantization_config"]["ignore"]
    assert {"lm_head", "model.layers.0.self_attn.o_a_proj"} <= set(ignore)
    assert "model.layers.0.self_attn.compressor.indexer.q_b_proj" in ignore


@pytest.mark.parametrize(("names", "kept"), [
    (["blocks.0.ff.weight", "proj_out.weight"], {"proj_out.weight"}),
    (["single_transformer_blocks.0.proj_out.weight", "proj_out.weight", "x_embedder.weight"], {"x_embedder.weight"}),
    (["down_blocks.0.attentions.1.proj_out.weight", "conv_out.weight"], {"conv_out.weight"}),
])  # fmt: skip
def test_outputs_of_diffusion_models(names: list[str], kept: set[str]) -> None:
    """Those of blocks are quantized. diffusers, told to skip proj_out, skips those of blocks too, so the model's own is
    quantized beside them."""
    source = folder("unit", {"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.42.1"}, names)
    ran = run("quantize", source, "--to", "bnb-nf4", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert {name for name, (reason, _) in dispositions(ran).items() if reason == "preset"} == kept


@pytest.mark.parametrize("words", [["--no-default-keep"], ["--include", "*.weight"], ["--recipe", "r.yaml"]])
def test_who_says_what_is_quantized_gets_it(words: list[str], model: Path) -> None:
    Path("r.yaml").write_text("default: {bits: 4, group_size: 128}\n")
    ran = run("quantize", model, *words, "--to", "native", "-o", "out", "--json")
    reasons = {reason for reason, _ in dispositions(ran).values()}
    assert ran.json["preset"] == "" and not {"preset", "excluded"} & reasons
    assert ran.json["summary"]["coverage"] > 0.95


def test_an_override_has_the_last_word(model: Path) -> None:
    ran = run("quantize", model, "--override", "visual.*:bits=8", "--to", "native", "-o", "out", "--json")
    reasons = {name: reason for name, (reason, _) in dispositions(ran).items()}
    assert reasons[SEEING[0]] == "rule" and reasons[SEEING[1]] == "preset"


def test_recipes_make_the_same_bytes(model: Path) -> None:
    """Those that are saved, and those in headers; Python decides as the command does."""
    words = ["--bits", "3", "--group-size", "64", "--to", "native", "-q"]
    assert run("quantize", model, *words, "-o", "a").code == 0
    Path("header.yaml").write_text(run("inspect", "a", "--recipe").out)
    assert run("quantize", model, "--recipe", "header.yaml", "--to", "native", "-o", "b", "-q").code == 0
    assert run("quantize", model, *words, "-o", "c", "--save-recipe", "saved.yaml").code == 0
    assert run("quantize", model, "--recipe", "saved.yaml", "--to", "native", "-o", "d", "-q").code == 0
    said = list[str]()
    report = quantcli.quantize_file(model, "e", bits=3, group_size=64, to="native", say=said.append)
    files = {name: (Path(name) / "model.safetensors").read_bytes() for name in "abcde"}
    assert files["a"] == files["b"] == files["e"] and files["c"] == files["d"]
    assert said == [] and report.preset == "llm"
    assert {t.reason for t in report.tensors if t.name in SEEING} == {"preset"}
    planned = quantcli.plan(model, bits=3, group_size=64, to="native")
    assert [t.reason for t in planned.tensors] == [t.reason for t in report.tensors]


def test_a_budget_keeps_what_the_preset_keeps(model: Path) -> None:
    ran = run("plan", model, "--target-bpw", "12.5", "-o", "p.yaml", "--json")
    assert ran.code == 0 and "preset llm, from config.json" in ran.err
    assert "preset: llm" in Path("p.yaml").read_text()
    found = dispositions(run("quantize", model, "--recipe", "p.yaml", "-o", "out", "--json"))
    assert {found[n][0] for n in SEEING} == {"preset"}


@pytest.mark.parametrize(("rule", "words"), [
    ("{match: a, keep: true, preset: x}", "'x' is not a preset"), ("{match: a, bits: 4, preset: llm}", "keep tensors"),
    ("{match: a, keep: true, preset: [1]}", "is not a preset"),
])  # fmt: skip
def test_rules_with_invalid_presets(rule: str, words: str, model: Path) -> None:
    Path("r.yaml").write_text(f"rules:\n  - {rule}\n")
    ran = run("quantize", model, "--recipe", "r.yaml", "-o", "out")
    assert ran.code == 2 and words in ran.err and len(ran.err.splitlines()) == 1


def test_a_network_of_convolutions(here: None) -> None:
    source = folder("in", {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]},
                    ["resnet.embedder.embedder.convolution.weight", "classifier.1.weight",
                     "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"])  # fmt: skip
    ran = run("quantize", source, "--to", "native", "-o", "out", "--json")
    assert [t["reason"] for t in ran.json["tensors"]].count("preset") == 2
    assert ran.json["preset"] == "cnn"


def test_a_preset_that_is_not_chosen_is_said() -> None:
    """Expressions of presets are slow on names as long as these, which no model of transformers has."""
    long = "m." + "a" * 600 + ".weight"
    source = folder("long", {"model_type": "qwen3_vl", "architectures": [GENERATES]}, ["visual.q.weight", long])
    said = "no preset is chosen, because the name m.aaa"
    ran = run("quantize", source, "--dry-run", "--json")
    assert said in ran.err and "has 609 characters, more than 512; --recipe llm takes" in ran.err
    assert ran.json["preset"] == "" and said not in run("quantize", source, "--dry-run", "--recipe", "llm").err


CHECKPOINTS = {
    "flux": ["double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_mod.lin.weight", "img_in.weight",
             "time_in.in_layer.weight", "final_layer.linear.weight"],
    "wan": ["blocks.0.cross_attn.q.weight", "blocks.0.ffn.0.weight", "text_embedding.0.weight", "head.head.weight",
            "time_projection.1.weight"],
    "qwen": ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.img_mod.1.weight", "img_in.weight",
             "proj_out.weight", "norm_out.linear.weight"],
    "sdxl": ["model.diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_q.weight",
             "model.diffusion_model.middle_block.1.proj_in.weight", "model.diffusion_model.time_embed.0.weight",
             "first_stage_model.decoder.mid.attn_1.q.weight", "conditioner.embedders.0.model.resblocks.0.mlp.weight"],
}  # fmt: skip


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_single_files_of_diffusion_models(model: str) -> None:
    """By their names, which are those that ComfyUI has: two matrices of each are quantized, three are kept."""
    save(Path("one.safetensors"), {name: weight(128, 128) for name in CHECKPOINTS[model]})
    for to in ("comfyui:int8_convrot", "native"):
        ran = run("quantize", "one.safetensors", "--to", to, "-o", "out.safetensors", "--force", "--json")
        assert ran.code == 0 and ran.json["preset"] == "comfyui", ran.err
        found = [reason for reason, _ in dispositions(ran).values()]
        assert sorted(found) == ["default"] * 2 + ["preset"] * 3
    assert "preset comfyui, from the names of tensors" in run("plan", "one.safetensors", "--target-bpw", "12").err


def test_other_files_have_no_preset() -> None:
    save(Path("one.safetensors"), {n: weight(128, 128) for n in ["blocks.0.attn.qkv.weight", "time_in.weight"]})
    assert run("quantize", "one.safetensors", "-o", "out.safetensors", "--json").json["preset"] == ""
    config = {"model_type": "unheard-of"}
    source = folder("model", config, CHECKPOINTS["flux"])
    assert run("quantize", source, "-o", "out", "--to", "native", "--json").json["preset"] == ""
