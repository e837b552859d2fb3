"""The families of GGUF: of what transformers saves of a small model of each, every tensor gets the gguf package's name
and the shape that its config.json tells; rows, sums and transposed matrices are those of brute force."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import GOLDEN_FILES, one_line, run, save
from strategies import gaussian

from quantcli.errors import DataError
from quantcli.experts import arranged
from quantcli.layouts.gguf.families import families
from quantcli.layouts.gguf.general import pooling
from quantcli.layouts.gguf.model import GgufModel, model_of
from quantcli.layouts.gguf.names import gguf_name, hf_names
from quantcli.layouts.gguf.rows import APART, KEYS, QUERIES
from quantcli.layouts.gguf.text_encoders import config_of
from quantcli.matching import under_one_name
from quantcli.models import open_model
from quantcli.stores.files import InputFile
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo

CASES: Mapping[str, Any] = json.loads((GOLDEN_FILES / "gguf" / "families.json").read_text())
"""Written by peers/write_families.py."""

LAST = tuple(f"{name}.weight" for name in ("down_proj", "dense", "fc2", "c_proj", "4h_to_h", "mlp.Wo", "wo", "w2"))
"""How last matrices of layers are called."""


class Saved(Source):
    """Names and shapes of a checkpoint, and its config.json."""

    path, kind = "model", "safetensors"

    def __init__(self, shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> None:
        self.metadata, self.config = {}, json.dumps(config).encode()
        self._infos = [TensorInfo(name, "F32", tuple(shape)) for name, shape in shapes.items()]

    def beside(self, name: str) -> bytes | None:
        return self.config if name == "config.json" else None

    def infos(self) -> Sequence[TensorInfo]:
        return self._infos

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        raise AssertionError("no weight is read")

    def close(self) -> None:
        return

    def files(self) -> Sequence[InputFile]:
        return []


def made(case: str, **changes: Any) -> GgufModel:
    """The model of a case with another config.json."""
    found = CASES[case]
    config = {**found["config"], **changes}
    return model_of(config, arranged(Saved(found["shapes"], config), "gguf").infos())


@pytest.mark.parametrize("case", CASES)
def test_names_are_those_of_the_gguf_package(case: str) -> None:
    found, model = CASES[case], made(case)
    assert model.architecture == found["architecture"]
    told = {}
    for tensor in model.tensors:
        stem, _, end = tensor.source.rpartition(".")
        stem, end = (stem, f".{end}") if end in ("weight", "bias") else (tensor.source, "")
        if stem in found["names"]:
            told[tensor.name] = found["names"][stem] + end
    assert all(name in (theirs, f"{theirs}.weight", f"{theirs}.bias") for name, theirs in told.items())
    unknown = {t.name for t in model.tensors} - told.keys()
    assert all(name.endswith(("ffn_gate_inp.weight", "ffn_gate_inp.bias", "exp_probs_b.bias")) for name in unknown)
    left = [n for n in found["shapes"] if n not in {t.source for t in model.tensors} and "experts" not in n]
    assert all(any(part in name for part in ("pooler", "kv_b_proj", "block_sparse_moe", "visual")) for name in left)


@pytest.mark.parametrize("family", families(), ids=lambda f: f.architecture)
def test_names_go_both_ways(family: Any) -> None:
    names = [f"{family.layers}.3.{module}" for module in family.layer] + list(family.modules)
    for name in names:
        ours = gguf_name(f"{name}.weight", family) or gguf_name(name, family)
        assert ours is not None and {name, f"{name}.weight"} & set(hf_names(ours, family))


@pytest.mark.parametrize("case", CASES)
def test_a_missing_or_another_tensor_is_refused(case: str) -> None:
    found = CASES[case]
    infos = list(arranged(Saved(found["shapes"], found["config"]), "gguf").infos())
    lost = next(info for info in infos if info.name.endswith(LAST))
    with pytest.raises(DataError, match="is missing"):
        model_of(found["config"], [i for i in infos if i.name != lost.name])
    with pytest.raises(DataError, match="by config"):
        other = [TensorInfo(i.name, i.dtype, (1, *i.shape[1:])) if i.name == lost.name else i for i in infos]
        model_of(found["config"], other)
    with pytest.raises(DataError, match="has no such tensor"):
        model_of(found["config"], [*infos, TensorInfo("more.weight", "F32", (2, 2))])


@pytest.mark.parametrize(("case", "change", "words"), [
    ("gemma2", {"query_pre_attn_scalar": 128}, "query_pre_attn_scalar: llama.cpp would take 64, not 128"),
    ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types: llama.cpp supports such models only with each 6"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}}, "llama.cpp takes 10000"),
    ("smollm3", {"no_rope_layers": [1] * 5}, "no_rope_layers: llama.cpp leaves each 4th layer"),
    ("olmo3", {"layer_types": ["full_attention"] * 5}, "layer_types"),
    ("gpt-oss", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    ("llama4", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
    ("llama4", {"use_qk_norm": False}, "use_qk_norm"),
    ("falcon", {"alibi": True}, "alibi: llama.cpp does not support True"),
    ("gpt2", {"activation_function": "relu"}, "activation_function: llama.cpp does not support 'relu'"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("nomic", {"hidden_act": "gelu"}, "hidden_act"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
     "long_factor: it is not a list of 16 numbers"),
    ("qwen3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' is not supported"),
    ("smollm3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' is not supported"),
    ("cohere2", {"layer_types": ["full_attention"] * 5}, "llama.cpp supports such models only with each 4"),
    ("cohere2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("command-r", {"use_qk_norm": True}, "use_qk_norm: llama.cpp norms queries and keys from 64 layers on"),
    ("exaone4", {"sliding_window": 32}, "sliding_window: llama.cpp has a window with 64 layers"),
    ("ernie4_5moe", {"moe_layer_end_index": 1}, "moe_layer_end_index"),
    ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads: llama.cpp supports such models only with as many"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
    ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("dots1", {"n_group": 2}, "n_group: llama.cpp does not support 2"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("nemotron", {"head_dim": 64}, "head_dim: llama.cpp wants heads of 256 rows together, not 512"),
    ("qwen2vl", {"text_config": {**CASES["qwen2vl"]["config"]["text_config"], "rope_parameters": {}}}, "mrope_section"),
    ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
    ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj: llama.cpp does not support 'gated-silu'"),
    ("granite", {"attention_multiplier": -1}, "attention_multiplier: -1 is not a number above 0"),
])  # fmt: skip
def test_what_llama_cpp_would_run_otherwise_is_refused(case: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        made(case, **change)
    assert words in str(error.value)


def test_keys_of_families() -> None:
    gemma = made("gemma3").keys
    assert gemma["gemma3.attention.sliding_window"] == 32 and gemma["gemma3.attention.key_length"] == 64
    mla = made("deepseek3").keys
    wanted = ("key_length", "value_length", "key_length_mla", "head_count_kv")
    assert [mla[f"deepseek2.attention.{n}"] for n in wanted] == [
        48, 32, 48, 1]  # fmt: skip
    assert (mla["deepseek2.expert_gating_func"], mla["deepseek2.expert_group_count"]) == (2, 2)
    assert made("deepseek2").keys["deepseek2.expert_gating_func"] == 1
    assert made("deepseek3", model_type="kimi_k2").keys == mla  # as transformers saves it, without scoring_func
    assert made("falcon-40b").keys["falcon.attention.head_count_kv"] == 2
    assert made("glm4").keys["glm4.rope.dimension_count"] == 16
    assert made("bert").keys["tokenizer.ggml.token_type_count"] == 2
    assert made("lfm2").keys["lfm2.attention.head_count_kv"] == [2, 0, 2, 0]
    assert made("hunyuan-dense").keys["hunyuan-dense.rope.freq_base"] == pytest.approx(1e4 * 50 ** (32 / 30))
    assert made("qwen2vl").keys["qwen2vl.rope.dimension_sections"] == [6, 5, 5, 0]
    assert made("glm4moe").keys["glm4moe.expert_weights_scale"] == 1.5
    assert made("t5").keys["t5encoder.attention.key_length"] == 64


def test_a_model_that_sees_gives_the_part_that_reads(tmp_path: Path) -> None:
    found = CASES["gemma3"]
    names = {n.replace("model.", "model.language_model.", 1): s for n, s in found["shapes"].items()}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": found["config"]}
    infos = [TensorInfo(n, "F32", tuple(s)) for n, s in {**names, "model.vision_tower.x.weight": [2, 2]}.items()]
    model = model_of(config, infos)
    assert [t.name for t in model.tensors] == [t.name for t in made("gemma3").tensors]
    assert any("mmproj" in note for note in model.notes) and any("model.vision_tower.x" in note for note in model.notes)


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    found = CASES["glm4moe"]
    more = {name.replace(".2.", ".3."): shape for name, shape in found["shapes"].items() if ".layers.2." in name}
    shapes = {**found["shapes"], **more, "model.layers.3.eh_proj.weight": [2, 4]}
    source = Saved(shapes, {**found["config"], "num_nextn_predict_layers": 1})
    model = model_of(json.loads(source.config), arranged(source, "gguf").infos())
    assert [t.name for t in model.tensors] == [t.name for t in made("glm4moe").tensors]
    assert any("predict further tokens" in note for note in model.notes)


def test_an_encoder_without_config_is_known_by_its_tensors(tmp_path: Path) -> None:
    infos, config = list[TensorInfo](), dict[str, Any]()
    for case in ("t5", "t5-relu"):
        shapes = CASES[case]["shapes"]
        infos = [TensorInfo(name, "F16", tuple(shape)) for name, shape in shapes.items()]
        config = config_of(infos) or {}
        alone, whole = model_of(config, infos), made(case)
        assert alone.tensors == whole.tensors and alone.keys == whole.keys
    decoder = [*infos, TensorInfo("decoder.final_layer_norm.weight", "F16", (256,))]
    assert "decoder.final_layer_norm" in model_of(config, decoder).notes[0]
    twice = [*infos, TensorInfo("encoder.embed_tokens.weight", "F16", tuple(shapes["shared.weight"]))]
    assert len(model_of(config, twice).tensors) == len(infos)
    assert config_of([TensorInfo("shared.weight", "F16", (8, 8))]) is None
    clips: dict[str, Any] = {
        "clip": {"text_model.encoder.layers.0.self_attn.q_proj.weight": (64, 64)},
        "open-clip": {"transformer.resblocks.0.attn.in_proj_weight": (192, 64)},
    }
    for name, words in (
        ("umt5", "UMT5 only with the tokenizer in the file; name the folder"),
        ("clip", "no CLIP text encoder from a GGUF; ComfyUI loads CLIP from safetensors"),
        ("open-clip", "no CLIP text encoder from a GGUF; ComfyUI loads CLIP from safetensors"),
    ):
        shapes = CASES[name]["shapes"] if name in CASES else clips[name]
        save(tmp_path / f"{name}.safetensors", {n: np.ones(s, np.float16) for n, s in shapes.items()})
        line = one_line(run("quantize", tmp_path / f"{name}.safetensors", "--to", "gguf", "-o", tmp_path / "x.gguf"), 2)
        assert words in line


def test_a_umt5_without_vocabulary_is_not_for_comfyui(tmp_path: Path) -> None:
    folder = tmp_path / "umt5"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CASES["umt5"]["config"]))
    save(folder / "model.safetensors", {n: np.ones(s, np.float16) for n, s in CASES["umt5"]["shapes"].items()})
    ran = run("quantize", folder, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert ran.code == 0 and "runs it on token ids only: there is no tokenizer.json" in ran.err
    assert "does not load this one: put spiece.model beside config.json" in ran.err


# ---- rows -------------------------------------------------------------------------------------------------------


def test_orders_of_rows() -> None:
    heads, kv, size = 6, 2, 4
    rows = [(g, kind, i) for g in range(kv) for kind in ("q0", "q1", "q2", "k", "v") for i in range(size)]
    expected = [r for r in rows if r[1][0] == "q"] + [r for r in rows if r[1] == "k"] + [r for r in rows if r[1] == "v"]
    assert [rows[i] for i in APART.source(len(rows), heads, kv)] == expected
    assert QUERIES.units(heads, kv) == 6 and KEYS.units(heads, kv) == APART.units(heads, kv) == 2
    halves = [h * size + i + half * size // 2 for h in range(kv) for i in range(size // 2) for half in (0, 1)]
    assert KEYS.source(kv * size, heads, kv).tolist() == halves


# ---- files ------------------------------------------------------------------------------------------------------


def neox(folder: Path) -> dict[str, np.ndarray]:
    """A GPT-NeoX of two heads of 32 rows."""
    config = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 64, "vocab_size": 96,
              "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 128, "rotary_pct": 0.5,
              "max_position_embeddings": 64}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (96, 64), "embed_out.weight": (96, 64)}
    layer = "gpt_neox.layers.0"
    for name, shape in {f"{layer}.attention.query_key_value": (192, 64), f"{layer}.attention.dense": (64, 64),
                        f"{layer}.mlp.dense_h_to_4h": (128, 64), f"{layer}.mlp.dense_4h_to_h": (64, 128),
                        f"{layer}.input_layernorm": (64,), f"{layer}.post_attention_layernorm": (64,),
                        "gpt_neox.final_layer_norm": (64,)}.items():  # fmt: skip
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    folder.mkdir()
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def read(path: Path, name: str) -> np.ndarray:
    with open_model(str(path)) as model:
        return model[name].read(0, model[name].info.numel).reshape(model[name].info.shape)


def test_fused_rows_and_biases_lie_apart(tmp_path: Path) -> None:
    tensors = neox(tmp_path / "m")
    out = tmp_path / "m.gguf"
    kept = ["--include", "*.dense_4h_to_h", "--bits", "8"]
    assert run("quantize", tmp_path / "m", *kept, "--to", "gguf", "-o", out, "-q").code == 0
    for end in ("weight", "bias"):
        fused = tensors[f"gpt_neox.layers.0.attention.query_key_value.{end}"]
        heads = fused.reshape(2, 3, 32, *fused.shape[1:])
        expected = np.concatenate([heads[:, i].reshape(64, *fused.shape[1:]) for i in range(3)])
        np.testing.assert_array_equal(read(out, f"blk.0.attn_qkv.{end}"), expected)
    four = tmp_path / "four.gguf"
    assert run("quantize", tmp_path / "m", "--bits", "4", "--to", "gguf", "-o", four, "-q").code == 0
    with open_model(str(tmp_path / "m")) as a, open_model(str(four)) as b:
        before, after, note = under_one_name(a, b)
        name = "gpt_neox.layers.0.attention.query_key_value.weight"
        one, other = (side[name].read(1000, 9000) for side in (before, after))
        assert "rows of attn_qkv are reordered" in note and set(before) == set(after)
        assert 0 < np.abs(one - other).max() < 0.6


def test_threads_do_not_matter_and_export_moves_codes(tmp_path: Path) -> None:
    neox(tmp_path / "m")
    for n in (1, 3):
        out = tmp_path / f"{n}.gguf"
        assert run("quantize", tmp_path / "m", "--bits", "4", "--to", "gguf", "-o", out, "--threads", n, "-q").code == 0
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()
    asked = ["--bits", "4", "--group-size", "32", "--scale-dtype", "float16", "--to", "native"]
    assert run("quantize", tmp_path / "m", *asked, "-o", tmp_path / "native", "-q").code == 0
    assert run("export", tmp_path / "native", "--to", "gguf", "-o", tmp_path / "moved.gguf", "-q").code == 0
    name = "blk.0.attn_qkv.weight"
    np.testing.assert_array_equal(read(tmp_path / "moved.gguf", name), read(tmp_path / "1.gguf", name))


def test_matrices_of_gpt2_are_transposed_before_they_are_quantized(tmp_path: Path) -> None:
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2,
              "n_positions": 32, "vocab_size": 96}  # fmt: skip
    sizes = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 256), "mlp.c_proj": (256, 64)}
    tensors = {
        "wte.weight": gaussian(96, 64),
        "wpe.weight": gaussian(32, 64, seed=1),
        "h.0.attn.bias": np.ones((1, 1, 32, 32), np.float32),
    }
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors |= {f"{name}.weight": gaussian(64, seed=2), f"{name}.bias": gaussian(64, seed=3)}
    for i, (name, shape) in enumerate(sizes.items()):
        tensors |= {f"h.0.{name}.weight": gaussian(*shape, seed=i + 4), f"h.0.{name}.bias": gaussian(shape[1])}
    folder = tmp_path / "m"
    folder.mkdir()
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.gguf"
    ran = run("quantize", folder, "--bits", "8", "--to", "gguf", "-o", out)
    assert ran.code == 0 and "4 matrices arranged" in ran.out and "h.0.attn.bias left out" in ran.err
    found = read(out, "blk.0.ffn_up.weight")
    assert found.shape == (256, 64) and np.abs(found - tensors["h.0.mlp.c_fc.weight"].T).max() < 0.03
    np.testing.assert_array_equal(read(out, "position_embd.weight"), tensors["wpe.weight"])
    compared = run("compare", folder, out, "--json").json
    assert {t["name"] for t in compared["tensors"] if not t["exact"]} == {
        "wte.weight", *(f"h.0.{name}.weight" for name in sizes)}  # fmt: skip
    line = one_line(run("quantize", out, "--requantize", "--bits", "4", "--to", "mlx", "-o", tmp_path / "x"), 2)
    assert "llama.cpp's names for gpt2" in line


def test_norms_of_gemma_are_one_larger(tmp_path: Path) -> None:
    found = CASES["gemma"]
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 96}
    config = {**found["config"], **small, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    shapes = {"model.embed_tokens.weight": (96, 64), "model.norm.weight": (64,)}
    for name, shape in {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
                        "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64),
                        "mlp.down_proj": (64, 96), "input_layernorm": (64,),
                        "post_attention_layernorm": (64,)}.items():  # fmt: skip
        shapes[f"model.layers.0.{name}.weight"] = shape
    tensors = {name: gaussian(*shape, seed=i).astype(np.float16) for i, (name, shape) in enumerate(shapes.items())}
    folder = tmp_path / "m"
    folder.mkdir()
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.gguf"
    assert run("quantize", folder, "--bits", "8", "--to", "gguf", "-o", out, "-q").code == 0
    for name, ours in (("model.norm", "output_norm"), ("model.layers.0.input_layernorm", "blk.0.attn_norm")):
        expected = tensors[f"{name}.weight"].astype(np.float32) + 1
        np.testing.assert_array_equal(read(out, f"{ours}.weight"), expected)
    with open_model(str(folder)) as a, open_model(str(out)) as b:
        before, after, _ = under_one_name(a, b)
        np.testing.assert_allclose(
            after["model.norm.weight"].read(0, 64), before["model.norm.weight"].read(0, 64), atol=1e-6
        )


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    neox(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    line = one_line(run("quantize", tmp_path / "m", "--to", "gguf", "-o", tmp_path / "out.gguf"), 1)
    assert "llama.cpp has no such tokenizer: tokenizer.json: its model is WordLevel" in line and "move" in line
    assert not (tmp_path / "out.gguf").exists()


def test_models_have_names(tmp_path: Path) -> None:
    neox(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())

    def name() -> Any:
        out = tmp_path / "out.gguf"
        assert run("quantize", tmp_path / "m", "--to", "gguf", "-o", out, "-q", "--force").code == 0
        with open_model(str(out)) as model:
            return model.source.keys.get("general.name")

    assert name() is None
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n\n# Small Model 7B \n\n## Use\n")
    assert name() == "Small Model 7B"
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "_name_or_path": "someone/small-7b/"}))
    assert name() == "small-7b"


def test_long_names_are_shortened_in_containers(tmp_path: Path) -> None:
    long = [
        "model.language_model.encoder.layers.0.self_attention.output." + end for end in ("gate.weight", "up.weight")
    ]
    save(tmp_path / "m.safetensors", {name: gaussian(64, 64, seed=i) for i, name in enumerate(long)})
    ran = run("quantize", tmp_path / "m.safetensors", "--to", "gguf", "--container", "-o", tmp_path / "out.gguf")
    assert ran.code == 0 and f"names of 63 bytes: {long[1]} is " in ran.err and "1 more" in ran.err
    with open_model(str(tmp_path / "out.gguf")) as model:
        assert {name[-12:] for name in model} == {name[-12:] for name in long}
        assert all(len(name.encode()) == 63 for name in model)


def test_how_sentence_transformers_pools_goes_into_the_file() -> None:
    files = {"1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}}

    def beside(name: str) -> bytes | None:
        return json.dumps(files[name]).encode() if name in files else None

    assert pooling(made("bert"), beside) == {"bert.pooling_type": 1}
    assert pooling(made("qwen3"), beside) == {}
    files["1_Pooling/config.json"] |= {"pooling_mode_cls_token": True}
    assert pooling(made("nomic"), beside) == {}
    files.clear()
    assert pooling(made("nomic"), beside) == {}


def test_experts_and_convolutions_of_lfm2(tmp_path: Path) -> None:
    """A convolution becomes a matrix, which is said with its shape; experts are stacked, their bias is F32."""
    found = CASES["lfm2moe"]
    folder, out = tmp_path / "m", tmp_path / "out.gguf"
    folder.mkdir()
    tensors = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(found["shapes"].items())}
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(found["config"]))
    ran = run("quantize", folder, "--bits", "8", "--to", "gguf", "-o", out)
    assert ran.code == 0 and "conv.conv.weight -> model.layers.1.conv.conv.weight [256, 3]" in ran.out
    np.testing.assert_array_equal(read(out, "blk.1.shortconv.conv.weight")[:, None], tensors[CONVOLUTION])
    bias = read(out, "blk.1.exp_probs_b.bias")
    np.testing.assert_array_equal(bias, tensors["model.layers.1.feed_forward.expert_bias"])
    gates = read(out, "blk.2.ffn_gate_exps.weight")
    last = tensors["model.layers.2.feed_forward.experts.3.w1.weight"]
    assert gates.shape == (4, 96, 256) and np.abs(gates[3] - last).max() < 0.03


CONVOLUTION = "model.layers.1.conv.conv.weight"
