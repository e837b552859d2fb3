"""What loaders look for in models that are not Llamas: layers that have no tensor of their own, weights that no Linear
layer holds, names that differ between a file and the model. What is expected here was seen with transformers 5.23 and
4.57, compressed-tensors 0.20 and 0.13 and bitsandbytes 0.50.2: `make peers` loads these models for real."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from making import one_line, run, save
from strategies import gaussian

from quantcli import architectures

LINEAR, TABLE = (64, 64), (96, 64)

LLAMA = {"model.embed_tokens": TABLE, "model.layers.0.self_attn.q_proj": LINEAR, "model.layers.0.mlp.up_proj": LINEAR}
BERT = {
    "bert.embeddings.word_embeddings": TABLE,
    "bert.encoder.layer.0.attention.self.query": LINEAR,
    "bert.encoder.layer.0.output.dense": LINEAR,
    "cls.predictions.transform.dense": LINEAR,
}
WHISPER = {"model.decoder.embed_tokens": TABLE, "model.decoder.layers.0.fc1": LINEAR}
NEOX = {"gpt_neox.embed_in": TABLE, "gpt_neox.layers.0.attention.dense": LINEAR, "embed_out": TABLE}
GPT2 = {"transformer.wte": TABLE, "transformer.h.0.attn.c_attn": LINEAR, "transformer.h.0.mlp.c_fc": LINEAR}
T5 = {
    "shared": TABLE,
    "encoder.block.0.layer.0.SelfAttention.q": LINEAR,
    "encoder.block.0.layer.1.DenseReluDense.wi": LINEAR,
    "encoder.block.0.layer.1.DenseReluDense.wo": LINEAR,
}
MAMBA = {
    "backbone.embeddings": TABLE,
    "backbone.layers.0.mixer.in_proj": LINEAR,
    "backbone.layers.0.mixer.x_proj": LINEAR,
    "backbone.layers.0.mixer.dt_proj": LINEAR,
    "backbone.layers.0.mixer.out_proj": LINEAR,
}
MOE = {
    "model.embed_tokens": TABLE,
    "model.layers.0.self_attn.q_proj": LINEAR,
    "model.layers.0.mlp.gate": LINEAR,
    "model.layers.0.mlp.experts.0.up_proj": LINEAR,
    "model.layers.0.mlp.experts.0.gate_proj": LINEAR,
    "model.layers.0.mlp.experts.0.down_proj": LINEAR,
}
VIT = {"vit.encoder.layer.0.attention.attention.query": LINEAR, "vit.encoder.layer.0.output.dense": LINEAR}
FALCON = {"transformer.word_embeddings": TABLE, "transformer.h.0.mlp.dense_h_to_4h": LINEAR, "lm_head": TABLE}


def made(folder: Path, model_type: str, kind: str, modules: Mapping[str, tuple[int, ...]], **more: Any) -> Path:
    """A checkpoint of a type and class of model, with a matrix for every module."""
    folder.mkdir()
    weights = {f"{name}.weight": gaussian(*shape, seed=n) for n, (name, shape) in enumerate(modules.items())}
    save(folder / "model.safetensors", weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [kind], **more}))
    return folder


def quantized(source: Path, *options: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The quantization_config that is written, and the report's rows by name."""
    out = source.with_name("out")
    ran = run("quantize", source, "-o", out, "--group-size", "32", "--json", *options)
    assert ran.code == 0, ran.err
    config = json.loads((out / "config.json").read_text())
    return config["quantization_config"], {row["name"]: row for row in ran.json["tensors"]}


TIED = [
    ("llama", "LlamaForCausalLM", LLAMA, {"model.embed_tokens", "lm_head"}),
    ("qwen3", "Qwen3ForCausalLM", LLAMA, {"model.embed_tokens", "lm_head"}),
    ("gemma2", "Gemma2ForCausalLM", LLAMA, {"model.embed_tokens", "lm_head"}),
    ("bert", "BertForMaskedLM", BERT, {"bert.embeddings.word_embeddings", "cls.predictions.decoder"}),
    ("whisper", "WhisperForConditionalGeneration", WHISPER, {"model.decoder.embed_tokens", "proj_out"}),
    ("gpt_neox", "GPTNeoXForCausalLM", NEOX, {"gpt_neox.embed_in", "embed_out", "lm_head"}),
    ("no-such-type", "NoSuchModel", LLAMA, {"model.embed_tokens", "lm_head"}),
]


@pytest.mark.parametrize(("model_type", "kind", "modules", "ignored"), TIED, ids=[t[0] for t in TIED])
def test_heads_without_a_tensor_are_ignored(
    model_type: str, kind: str, modules: dict[str, tuple[int, ...]], ignored: set[str], tmp_path: Path
) -> None:
    """A head that shares the embedding's weights is a Linear layer of the model all the same: without its name in
    `ignore`, transformers makes a quantized layer of it that no tensor of the file fills."""
    source = made(tmp_path / "m", model_type, kind, modules)
    config, _ = quantized(source)
    assert set(config["ignore"]) == ignored and config["config_groups"]["group_0"]["targets"] == ["Linear"]


@pytest.mark.parametrize("target", ["bnb-nf4", "awq", "comfyui"])
@pytest.mark.parametrize(("model_type", "kind", "modules", "ignored"), TIED, ids=[t[0] for t in TIED])
def test_heads_without_a_tensor_in_other_targets(
    target: str, model_type: str, kind: str, modules: dict[str, tuple[int, ...]], ignored: set[str], tmp_path: Path
) -> None:
    key = {"bnb-nf4": "llm_int8_skip_modules", "awq": "modules_to_not_convert", "comfyui": "ignore"}[target]
    scheme = {"bnb-nf4": ["--type", "nf4", "--group-size", "64"], "comfyui": ["--bits", "8", "--group-size", "-1"]}
    config, _ = quantized(made(tmp_path / "m", model_type, kind, modules), "--to", target, *scheme.get(target, []))
    embeddings = {"model.embed_tokens", *BERT, *WHISPER, "gpt_neox.embed_in"} if target != "comfyui" else set()
    assert set(config[key]) == ignored - embeddings  # what embeddings are called matters to nobody there


KEPT = [
    ("mamba", "MambaForCausalLM", MAMBA, {"x_proj", "dt_proj", "out_proj"}, "compressed-tensors"),
    ("mamba", "MambaForCausalLM", MAMBA, {"x_proj", "dt_proj", "out_proj"}, "bnb-nf4"),
    ("t5", "T5ForConditionalGeneration", T5, {"wo"}, "bnb-nf4"),
    ("qwen2_moe", "Qwen2MoeForCausalLM", MOE, set(), "compressed-tensors"),
    ("qwen2_moe", "Qwen2MoeForCausalLM", MOE, {"0.up_proj", "0.gate_proj", "0.down_proj"}, "bnb-nf4"),
    ("falcon", "FalconForCausalLM", {**FALCON, **LLAMA}, {"dense_h_to_4h"}, "compressed-tensors"),
]


@pytest.mark.parametrize(
    ("model_type", "kind", "modules", "kept", "target"), KEPT, ids=[f"{k[0]}-{k[-1]}" for k in KEPT]
)
def test_weights_that_the_loader_does_not_take_are_kept(
    model_type: str, kind: str, modules: dict[str, tuple[int, ...]], kept: set[str], target: str, tmp_path: Path
) -> None:
    """What no Linear layer holds in the model would be initialized at random: it is kept, with the reason."""
    scheme = ["--type", "nf4", "--group-size", "64"] if target == "bnb-nf4" else []
    made(tmp_path / "m", model_type, kind, modules)
    _, rows = quantized(tmp_path / "m", "--to", target, *scheme, "--include", "*")  # without the preset
    found = {name for name, row in rows.items() if row["reason"] == "target"}
    assert {n for n in rows if any(n.endswith(f"{k}.weight") for k in kept)} == found
    assert all(target in rows[name]["note"] for name in found)


def test_kept_layers_that_are_read_from_outside_are_named(tmp_path: Path) -> None:
    """They are Linear layers, which transformers turns into quantized ones unless it is told not to."""
    scheme = ["--type", "nf4", "--group-size", "64"]
    config, _ = quantized(made(tmp_path / "m", "mamba", "MambaForCausalLM", MAMBA), "--to", "bnb-nf4", *scheme)
    mixer = {f"backbone.layers.0.mixer.{name}" for name in ("x_proj", "dt_proj", "out_proj")}
    assert set(config["llm_int8_skip_modules"]) == {*mixer, "lm_head"}


@pytest.mark.parametrize(("model_type", "kind", "modules", "why"), [
    ("gpt2", "GPT2LMHeadModel", GPT2, "transformers holds it in Conv1D"),
    ("t5", "T5ForConditionalGeneration", T5, "transformers reads this weight while it loads the model"),
    ("modernbert", "ModernBertModel", {"layers.0.attn.Wqkv": LINEAR}, "while it loads the model"),
    ("dinov2", "Dinov2Model", {"encoder.layer.0.mlp.fc1": LINEAR}, "cannot prepare this type of model"),
])  # fmt: skip
def test_models_without_any_weight_that_loads_are_refused(
    model_type: str, kind: str, modules: dict[str, tuple[int, ...]], why: str, tmp_path: Path
) -> None:
    source = made(tmp_path / "m", model_type, kind, modules)
    line = one_line(run("quantize", source, "-o", tmp_path / "out", "--group-size", "32"), 1)
    assert "nothing to quantize" in line and why in line and "--to native" in line
    assert not (tmp_path / "out").exists()


def test_a_packed_embedding_is_not_promised(tmp_path: Path) -> None:
    """--recipe embedding asks for the table of words, which transformers would fill at random"""
    config, rows = quantized(made(tmp_path / "m", "bert", "BertModel", BERT), "--recipe", "embedding")
    row = rows["bert.embeddings.word_embeddings.weight"]
    assert (row["disposition"], row["reason"]) == ("kept", "target") and "Embedding" in row["note"]
    assert "bert.embeddings.word_embeddings" in config["ignore"]
    native = run("quantize", tmp_path / "m", "-o", tmp_path / "native", "--recipe", "embedding", "--to", "native",
                 "--json")  # fmt: skip
    assert {r["name"]: r["disposition"] for r in native.json["tensors"]}[row["name"]] == "quantized"
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] is None  # at which transformers stops


def test_names_of_the_model_beside_those_of_the_file(tmp_path: Path) -> None:
    """transformers 5 renames the layers of a ViT while it loads them, and looks for the new names"""
    source = made(tmp_path / "m", "vit", "ViTForImageClassification", VIT)
    config, _ = quantized(source, "--exclude", "*.query")
    assert set(config["ignore"]) == {"vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"}
    (tmp_path / "out").rename(tmp_path / "first")
    mixed, _ = quantized(source, "--override", "*.query:bits=8")
    assert [g["targets"] for g in mixed["config_groups"].values()] == [
        ["vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"],
        ["vit.encoder.layer.0.output.dense", "vit.layers.0.mlp.fc2"],
    ]


def test_stacked_experts(tmp_path: Path) -> None:
    """transformers looks for their scheme in the group with a pattern for them, takes one for all, packed, and no zero
    points"""
    source = made(tmp_path / "m", "qwen2_moe", "Qwen2MoeForCausalLM", MOE)
    config, _ = quantized(source, "--override", "*.q_proj:bits=8")
    assert [g["targets"] for g in config["config_groups"].values()] == [
        ["model.layers.0.self_attn.q_proj"], [r"re:.*\.experts\.\d+\..*"],
    ]  # fmt: skip
    for options in (["--asymmetric"], ["--exclude", "*.experts.*"], ["--override", "*.experts.*.up_proj:bits=8"]):
        line = one_line(run("quantize", source, "-o", tmp_path / "x", "--group-size", "32", "-q", *options), 2)
        assert "experts" in line and "--to native" in line and not (tmp_path / "x").exists()


def test_a_note_names_unknown_types_of_model(tmp_path: Path) -> None:
    source = made(tmp_path / "m", "no-such-type", "NoSuchModel", LLAMA)
    ran = run("quantize", source, "-o", tmp_path / "out", "--group-size", "32")
    assert "model_type 'no-such-type', which quantcli does not know" in ran.err


def test_a_name_that_would_hide_a_quantized_layer_is_refused(tmp_path: Path) -> None:
    """bitsandbytes in transformers leaves alone whatever ends with the name of a layer that is kept"""
    modules = {**LLAMA, "head": TABLE, "model.layers.0.head": LINEAR}
    source = made(tmp_path / "m", "no-such-type", "NoSuchModel", modules)
    options = ["--type", "nf4", "--group-size", "64", "--to", "bnb-nf4", "-q"]
    line = one_line(run("quantize", source, "-o", tmp_path / "out", "--exclude", "head", *options), 2)
    assert "with head kept, its loader would not decode model.layers.0.head either" in line


def test_native_folders_are_exported_only_as_they_load(tmp_path: Path) -> None:
    source = made(tmp_path / "m", "mamba", "MambaForCausalLM", MAMBA)
    native = tmp_path / "native"
    assert run("quantize", source, "-o", native, "--group-size", "32", "--to", "native", "-q").code == 0
    line = one_line(run("export", native, "--to", "compressed-tensors", "-o", tmp_path / "ct", "-q"), 2)
    assert "backbone.layers.0.mixer" in line and "outside its layer" in line and "--requantize" in line
    assert run("export", native, "--to", "compressed-tensors", "-o", tmp_path / "ct", "--requantize", "-q").code == 0
    ignore = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"lm_head", "backbone.layers.0.mixer.dt_proj"} <= set(ignore)


def test_layers_that_gptq_keeps_are_exempt(tmp_path: Path) -> None:
    """vLLM and GPTQModel take every Linear layer of a block for a quantized one that no expression exempts"""
    source = made(tmp_path / "m", "llama", "LlamaForCausalLM", LLAMA)
    config, _ = quantized(source, "--to", "gptq", "--exclude", "*.q_proj")
    assert config["dynamic"] == {r"-:^model\.layers\.0\.self_attn\.q_proj$": {}}


def test_mlx_keeps_what_its_loader_turns(tmp_path: Path) -> None:
    source = made(tmp_path / "m", "gpt2", "GPT2LMHeadModel", {**GPT2, "lm_head": TABLE})
    words = ["--group-size", "32", "--to", "mlx", "--keep-embeddings"]
    line = one_line(run("quantize", source, "-o", tmp_path / "out", *words), 1)
    assert "mlx-lm transposes this matrix" in line


def test_a_budget_gives_all_experts_one_scheme(tmp_path: Path) -> None:
    more = {name.replace("layers.0", "layers.1"): shape for name, shape in MOE.items()}
    source = made(tmp_path / "m", "qwen2_moe", "Qwen2MoeForCausalLM", {**MOE, **more})
    ran = run("plan", source, "--target-bpw", "22.5", "--group-size", "32", "--json")
    schemes = {t["scheme"] for t in ran.json["tensors"] if ".experts." in t["name"]}
    assert len(schemes) == 1 and len({t["scheme"] for t in ran.json["tensors"]}) > 1


def test_a_folder_of_sentence_transformers_is_told_how_it_runs(tmp_path: Path) -> None:
    source = made(tmp_path / "m", "bert", "BertModel", BERT)
    (source / "modules.json").write_text("[]")
    ran = run("quantize", source, "-o", tmp_path / "out", "--group-size", "32")
    assert ran.code == 0 and "CompressedTensorsConfig(dequantize=True)" in ran.err


@pytest.mark.parametrize(("target", "options"), [("awq", []), ("compressed-tensors", []), ("bnb-nf4", [])])
def test_an_embedding_of_a_single_file_is_not_packed(target: str, options: list[str], tmp_path: Path) -> None:
    """Without a config.json names tell: no loader of these targets takes a quantized embedding"""
    model = save(tmp_path / "m.safetensors", {"embedding.weight": gaussian(256, 64), "layer.weight": gaussian(64, 64)})
    out = tmp_path / "out.safetensors"
    wanted = ["--no-default-keep", "--group-size", "64", *options]
    ran = run("quantize", model, "--to", target, "-o", out, "--json", *wanted)
    rows = {row["name"]: row for row in ran.json["tensors"]}
    assert (rows["embedding.weight"]["reason"], rows["layer.weight"]["disposition"]) == ("target", "quantized")
    alone = save(tmp_path / "alone.safetensors", {"embedding.weight": gaussian(256, 64)})
    line = one_line(run("quantize", alone, "--to", target, "--group-size", "64", "-o", tmp_path / "x", *options), 1)
    assert "Embedding" in line and "--to native" in line


@pytest.mark.parametrize(("target", "scheme"), [("bnb-nf4", "nf4g64"), ("comfyui", "w8c"), ("gguf", "w4g32")])
def test_a_target_implies_its_usual_scheme(target: str, scheme: str, tmp_path: Path) -> None:
    model = save(tmp_path / "m.safetensors", {"layer.weight": gaussian(64, 128)})
    options = ["--container"] if target == "gguf" else []
    ran = run("quantize", model, "--to", target, "--dry-run", "--json", *options)
    assert [row["scheme"] for row in ran.json["tensors"]] == [scheme]


def test_names_that_diffusers_looks_for_stay(tmp_path: Path) -> None:
    source = tmp_path / "unet"
    source.mkdir()
    save(source / "diffusion_pytorch_model.safetensors", {"a.weight": gaussian(64, 128)})
    (source / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    assert run("quantize", source, "--to", "bnb-nf4", "-o", tmp_path / "out", "-q").code == 0
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").is_file()


def test_an_unknown_type_is_read_as_its_class(tmp_path: Path) -> None:
    """Kimi K2 is a DeepSeek V3, of which vLLM loads experts of ModelOpt with measured scales of inputs alone."""
    names = ("gate_proj", "up_proj", "down_proj")
    experts = {f"model.layers.1.mlp.experts.{i}.{n}.weight": gaussian(64, 64) for i in range(2) for n in names}
    fates = []
    for model_type in ("deepseek_v3", "kimi_k2"):
        folder = tmp_path / model_type
        folder.mkdir()
        save(folder / "model.safetensors", {**experts, "model.layers.1.self_attn.o_proj.weight": gaussian(64, 64)})
        (folder / "config.json").write_text(
            json.dumps({"model_type": model_type, "architectures": ["DeepseekV3ForCausalLM"]})
        )
        ran = run("quantize", folder, "--to", "modelopt", "--scheme", "NVFP4A16", "--dry-run", "--json")
        assert ran.code == 0 and "does not know" not in ran.err, ran.err
        fates.append({t["name"]: t["reason"] for t in ran.json["tensors"]})
    assert fates[0] == fates[1] and {"default", "target"} == set(fates[0].values())


_TABLE = json.loads((Path(architectures.__file__).parent / "table.json").read_text(encoding="utf-8"))["types"]


def test_layers_that_project_embeddings_are_no_embeddings() -> None:
    """Linear layers in transformers' ALBERT, ELECTRA and Gemma 3n, of models that have embeddings of other names."""
    for name in (
        "encoder.embedding_hidden_mapping_in.weight", "electra.embeddings_project.weight",
        "embed_vision.multimodal_embedder.embedding_projection.weight", "model.layers.0.embed_proj.weight",
    ):  # fmt: skip
        assert architectures.EMBEDDING.search(name) is None, name
    assert architectures.EMBEDDING.search("unembedding_projection.weight")


def test_embeddings_of_transformers_are_not_taken_for_projections() -> None:
    """Modules whose class in transformers is an embedding's, where their name says that they are one."""
    modules = {
        module
        for kind in _TABLE.values()
        for module, holder in kind.get("other", {}).items()
        if holder.endswith("Embedding") and re.search(r"(?:embed\w*|embd|wte|wpe)$", module) and "patch" not in module
    }
    assert len(modules) > 100
    assert [m for m in sorted(modules) if architectures.EMBEDDING.search(f"{m}.weight") is None] == []
