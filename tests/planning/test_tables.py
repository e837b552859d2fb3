"""Embeddings and output heads by target: as llama-quantize and mlx-lm's convert have them, kept elsewhere, and
--keep-embeddings and --no-keep-embeddings to say otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from making import BF16, ROOT, run, save
from strategies import gaussian

import quantcli
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile

TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj")  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(tied: bool | None = False, head: bool = True, **config: Any) -> Path:
    """A Llama of 256 columns and 1024 words."""
    folder = Path("model")
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(TABLES[: 1 + head], (1024, 256))
    for i in range(2):
        shapes |= {f"model.layers.{i}.{name}.weight": (256, 256) for name in MATRICES}
        shapes |= {f"model.layers.{i}.{n}_layernorm.weight": (256,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (256,)
    tensors = {n: gaussian(*shape, seed=i).astype(BF16) for i, (n, shape) in enumerate(shapes.items())}
    save(folder / "model.safetensors", tensors)
    said = {**CONFIG, "tie_word_embeddings": tied, **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    return folder


def inside(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of the tensors of a GGUF, and its keys."""
    source = open_source(str(path))
    assert isinstance(source, GgufFile)
    types = {i.name: source.blocks[i.name].type.name if i.name in source.blocks else i.dtype for i in source.infos()}
    source.close()
    return types, dict(source.keys)


def made(*words: Any, source: Path = Path("model")) -> dict[str, str]:
    """The scheme of every table, or why it is kept."""
    ran = run("quantize", source, *words, "-o", "out", "--force", "--json")
    assert ran.code == 0, ran.err
    return {t["name"]: t["scheme"] or t["reason"] for t in ran.json["tensors"] if t["name"] in TABLES}


@pytest.mark.parametrize(("words", "types"), [
    (["--bits", 4], ("Q4_0", "Q8_0")), (["--bits", 4, "--asymmetric"], ("Q4_1", "Q8_0")),
    (["--bits", 5], ("Q5_0", "Q8_0")), (["--bits", 5, "--asymmetric"], ("Q5_1", "Q8_0")),
    (["--bits", 8], ("Q8_0", "Q8_0")), (["--bits", 4, "--calibration", "auto"], ("Q4_0", "Q8_0")),
    (["--keep-embeddings"], ("BF16", "BF16")), (["--no-keep-embeddings"], ("Q4_0", "Q8_0")),
    (["--no-default-keep"], ("Q4_0", "Q4_0")), (["--no-default-keep", "--keep-embeddings"], ("BF16", "BF16")),
    (["--override", "lm_head:bits=5"], ("Q4_0", "Q5_0")), (["--exclude", "lm_head"], ("Q4_0", "BF16")),
    (["--include", "*.layers.*"], ("BF16", "BF16")), (["--group-size", -1], ("Q4_0", "Q8_0")),
])  # fmt: skip
def test_llama_cpp(words: list[Any], types: tuple[str, str]) -> None:
    """The embedding has the type of the file, the output 8 bits; the file is named for its layers."""
    model()
    made(*words, "--to", "gguf")
    found, keys = inside(Path("out"))
    assert (found["token_embd.weight"], found["output.weight"]) == types
    layer = found["blk.0.ffn_up.weight"]
    known = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
    assert keys["general.file_type"] == known[layer]


@pytest.mark.parametrize("head", [False, True])
def test_llama_cpp_with_one_table_for_both(head: bool) -> None:
    """It gets what the output gets; a head beside it is left out, and quantized in no case."""
    model(tied=True, head=head)
    assert made("--to", "gguf") == {
        "model.embed_tokens.weight": "w8g32",
        **({"lm_head.weight": "left-out"} if head else {}),
    }
    found, keys = inside(Path("out"))
    assert found["token_embd.weight"] == "Q8_0" and "output.weight" not in found
    assert keys["general.file_type"] == 2  # as its layers are


def test_what_is_left_out_counts_in_no_figure() -> None:
    """Bits per weight and coverage are those of the file, so that a budget in bits per weight is that of its weights:
    those of a head that is left out are no room for others."""
    model(tied=True)
    for words in ([], ["--target-bpw", 6.5]):
        ran = run("quantize", "model", "--to", "gguf", "-o", "out", "--force", "--json", *words)
        file = run("report", "out", "--json")
        assert ran.code == file.code == 0, ran.err
        said, real = ran.json["summary"], file.json["summary"]
        for figure in ("parameters", "tensors", "quantized", "coverage", "bits_per_weight", "bytes_out"):
            assert said[figure] == real[figure], figure
        head = next(t for t in ran.json["tensors"] if t["name"] == "lm_head.weight")
        assert (head["disposition"], head["bytes_out"], head["scheme"]) == ("left out", 0, None)
    assert 6 < real["bits_per_weight"] <= 6.5
    shown = run("quantize", "model", "--to", "gguf", "-o", "out", "--force").out
    assert "kept: 5 norm; left out: 1, which the target does not use" in shown
    assert any(line.split() == ["lm_head.weight", "1024x256", "left", "out", "-", "-", "-", "0.000", "0", "B"]
               for line in shown.splitlines())  # fmt: skip


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_parts_that_a_target_leaves_out_fail_no_check(target: str) -> None:
    """llama.cpp and mlx-lm have no layer behind the last, which predicts further tokens; one of the model that is
    missing is an error still."""
    source = model(num_hidden_layers=1, num_nextn_predict_layers=1)  # of two
    ran = run("quantize", source, "--to", target, "-o", "out", "--json")
    drafts = {t["name"] for t in ran.json["tensors"] if t["disposition"] == "left out"}
    assert drafts == {f"model.layers.1.{n}.weight" for n in (*MATRICES, "input_layernorm", "post_attention_layernorm")}
    report = run("report", "out", "--against", source, "--json")
    assert report.code == 0 and "and 8 more are not in it" in report.err, report.err
    assert report.json["summary"]["parameters"] == ran.json["summary"]["parameters"]
    assert run("verify", "out", "--source", source).code == 0
    (source / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": False}))
    assert run("report", "out", "--against", source).code == 2
    assert run("verify", "out", "--source", source).code == 1


def test_mlx() -> None:
    """Bits and groups of the model, 64 where nothing is said."""
    model()
    assert made("--to", "mlx") == dict.fromkeys(TABLES, "w4g64")
    config = json.loads(Path("out/config.json").read_text())["quantization"]
    assert config == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert made("--to", "mlx", "--bits", 3, "--group-size", 32) == dict.fromkeys(TABLES, "w3g32")
    assert made("--to", "mlx", "--keep-embeddings") == {TABLES[0]: "embedding", TABLES[1]: "lm-head"}


@pytest.mark.parametrize(("tied", "words", "head"), [
    (True, [], "lm-head"), (None, [], "lm-head"), (True, ["--no-keep-embeddings"], "target"),
    (None, ["--no-default-keep"], "target"), (False, [], "w4g64"),
])  # fmt: skip
def test_mlx_with_one_table_for_both(tied: bool | None, words: list[str], head: str) -> None:
    """mlx-lm drops lm_head.weight of tied models, not its scales: it stays as it is."""
    model(tied=tied)
    assert made("--to", "mlx", *words) == {TABLES[0]: "w4g64", TABLES[1]: head}


def test_models_that_mlx_lm_has_rules_for() -> None:
    model(model_type="granite", architectures=["GraniteForCausalLM"])
    assert made("--to", "mlx") == {TABLES[0]: "w4g64", TABLES[1]: "w8g64"}
    said = json.loads(Path("out/config.json").read_text())["quantization"]
    assert said["lm_head"] == {"group_size": 64, "bits": 8} and said["bits"] == 4


@pytest.mark.parametrize("target", ["compressed-tensors", "awq", "gptq", "native", "bnb-nf4", "comfyui"])
def test_who_keeps_both(target: str) -> None:
    model()
    assert made("--to", target) == {TABLES[0]: "embedding", TABLES[1]: "lm-head"}


def test_what_is_asked_for_and_no_loader_takes() -> None:
    """Embeddings in a folder for transformers: kept, and the reason is the target; the native layout takes them."""
    model()
    assert made("--to", "compressed-tensors", "--no-keep-embeddings") == {TABLES[0]: "target", TABLES[1]: "w4g128"}
    assert made("--to", "native", "--no-keep-embeddings") == dict.fromkeys(TABLES, "w4g128")
    Path("r.yaml").write_text("keep_embeddings: false\nto: native\ndefault: {bits: 5}\n")
    assert made("--recipe", "r.yaml") == dict.fromkeys(TABLES, "w5g128")
    assert made("--recipe", "r.yaml", "--keep-embeddings") == {TABLES[0]: "embedding", TABLES[1]: "lm-head"}


@pytest.mark.parametrize(("target", "reason"), [
    ("compressed-tensors", "target"), ("bnb-nf4", "target"), ("awq", "target"), ("native", "w4g128"),
])  # fmt: skip
def test_a_head_that_transformers_ties_is_never_quantized_for_it(target: str, reason: str) -> None:
    """transformers 5.23 stops at such a folder, for a quantized layer has no weight to tie: tried with a Llama."""
    model(tied=True)
    assert made("--to", target, "--no-keep-embeddings")[TABLES[1]] == reason


@pytest.mark.parametrize("target", ["gguf", "mlx", "native"])
@pytest.mark.parametrize("words", [[], ["--keep-embeddings"], ["--no-keep-embeddings"]])
def test_recipes_and_python_make_the_same(target: str, words: list[str]) -> None:
    source = model()
    ends = {"gguf": ".gguf"}.get(target, "")
    asked = {"--keep-embeddings": True, "--no-keep-embeddings": False}.get(words[0]) if words else None
    assert run("quantize", source, *words, "--to", target, "-o", f"a{ends}", "-q").code == 0
    assert run("quantize", source, *words, "--to", target, "-o", f"b{ends}", "-q", "--save-recipe", "r").code == 0
    assert run("quantize", source, "--recipe", "r", "--to", target, "-o", f"c{ends}", "-q").code == 0
    quantcli.quantize_file(source, f"d{ends}", to=target, keep_embeddings=asked)
    paths = [Path(f"{n}{ends}") for n in "abcd"]
    files = [(p / "model.safetensors" if p.is_dir() else p).read_bytes() for p in paths]
    assert files[0] == files[3] and files[1] == files[2]
    if target != "native":  # whose header holds the recipe, as it was given
        assert files[0] == files[1]


def test_a_budget_chooses_for_them_too() -> None:
    """Fewer bits than the target's tools take, where that is asked for."""
    model()
    for target, bits in (("gguf", 5.2), ("mlx", 4.9)):
        ran = run("quantize", "model", "--target-bpw", bits, "--to", target, "-o", f"out-{target}", "--json")
        assert ran.code == 0 and ran.json["summary"]["bits_per_weight"] <= bits
    line = run("quantize", "model", "--target-bpw", 4.6, "--keep-embeddings", "--to", "mlx", "-o", "x").err
    assert "4.6 bits per weight cannot be met" in line and "leave out --keep-embeddings" in line
    assert "lm_head.weight 2" in line or "model.embed_tokens.weight 2" in line


def test_a_container_has_no_tools() -> None:
    ran = run(
        "quantize", ROOT / "sample_models" / "tiny-llama", "--to", "gguf", "--container", "-o", "x.gguf", "--json"
    )
    assert {t["reason"] for t in ran.json["tensors"] if t["name"] in TABLES} == {"embedding", "lm-head"}
