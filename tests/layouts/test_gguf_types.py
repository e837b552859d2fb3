"""Types of GGUF and file types of llama.cpp: bytes that decode to what was measured, and mixes as llama-quantize has
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, GOLDEN_FILES, ROOT, load, one_line, run, save
from strategies import gaussian

import quantcli
from quantcli.layouts.gguf.mixes import FILE_TYPES, mix
from quantcli.layouts.gguf.types import FIELDS, INSTEAD, scheme_of
from quantcli.models import open_model
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile
from quantcli.tensors.info import TensorInfo

MIXES = json.loads((GOLDEN_FILES / "gguf_mixes.json").read_text())
"""The types that llama-quantize gives the tensors of small models; written by peers/write_gguf_mixes.py."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def types_of(path: str) -> dict[str, str]:
    source = open_source(path)
    assert isinstance(source, GgufFile)
    found = {i.name: source.blocks[i.name].type.name for i in source.infos() if i.name in source.blocks}
    source.close()
    return found


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_every_type_decodes_to_what_was_measured(kind: str) -> None:
    """The reader, which golden blocks of the gguf package prove, has the numbers of the arrays."""
    weights = gaussian(48, 1024, seed=1).astype(np.float32)
    weights[3], weights[5, :256], weights[7, 300] = 0, 0.25, 40
    save(Path("in.safetensors"), {"w": weights.astype(BF16)})
    ran = run("quantize", "in.safetensors", "--scheme", kind, "--to", "gguf", "--container", "-o", "out.gguf", "--json")
    assert ran.code == 0, ran.err
    assert types_of("out.gguf") == {"w": kind}
    exact = weights.astype(BF16).astype(np.float32)
    made = quantcli.quantize(exact, scheme_of(kind))
    assert run("dequantize", "out.gguf", "-o", "back.safetensors", "--dtype", "float32").code == 0
    back = load("back.safetensors")["w"].array
    np.testing.assert_array_equal(back, made.dequantize())
    assert np.abs(back[3]).max() < 1e-7  # IQ4 has no level 0
    error = float(((exact.astype(np.float64) - back) ** 2).sum())
    wanted = 10 * np.log10(float((exact.astype(np.float64) ** 2).sum()) / error)
    assert ran.json["tensors"][0]["sqnr_db"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kernels", ["native", "numpy"])
def test_the_same_file_with_any_kernels_and_threads(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("in.safetensors"), {"w": gaussian(700, 2048, seed=2).astype(np.float16)})
    found = set()
    monkeypatch.setenv("QUANTCLI_KERNELS", kernels)
    for threads in (1, 2, 7):
        words = ["--scheme", "Q4_K", "--to", "gguf", "--container", "-o", "o.gguf", "--force", "--threads", threads]
        assert run("quantize", "in.safetensors", *words).code == 0
        found.add(Path("o.gguf").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("kind", sorted(FILE_TYPES))
@pytest.mark.parametrize("model", sorted(MIXES))
def test_mixes_are_those_of_llama_quantize(model: str, kind: str) -> None:
    golden = MIXES[model]
    others = {name: own for own, names in golden["others"][kind].items() for name in names}
    infos = [TensorInfo(name, "F32", tuple(shape)) for name, shape in golden["shapes"].items()]
    quantized = [i for i in infos if len(i.shape) > 1 and not i.name.endswith(("_norm.weight", "ffn_gate_inp.weight"))]
    falcon = model == "falcon"
    if falcon:  # which names alone do not tell from others
        quantized = [TensorInfo(_of_falcon(i.name), i.dtype, i.shape) for i in quantized]
    found = mix(kind, quantized, tied=model == "tied", weighted=False)
    for info in quantized:
        name = next(n for n in golden["shapes"] if not falcon or _of_falcon(n) == info.name) if falcon else info.name
        assert found[info.name] == others.get(name, golden["most"][kind]), name


def _of_falcon(name: str) -> str:
    """The name in a checkpoint of a Falcon."""
    words = {"attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
             "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}  # fmt: skip
    whole = {"token_embd.weight": "transformer.word_embeddings.weight", "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    _, layer, module, end = [*name.split("."), "", "", ""][:4]
    return f"transformer.h.{layer}.{words.get(module, module)}.{end}"


def test_importances_change_the_first_layers() -> None:
    golden = MIXES["llama"]["shapes"]
    infos = [TensorInfo(n, "F32", tuple(s)) for n, s in golden.items() if len(s) > 1]
    plain, weighted = (mix("Q4_0", infos, tied=False, weighted=w) for w in (False, True))
    changed = {name for name in plain if plain[name] != weighted[name]}
    assert changed == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"} and weighted["blk.0.ffn_down.weight"] == "Q4_1"


def llama(folder: str, hidden: int) -> None:
    """A checkpoint of a Llama of two layers."""
    path = Path(folder)
    path.mkdir()
    config = json.loads((ROOT / "sample_models" / "tiny-llama" / "config.json").read_text())
    sizes = {"hidden_size": hidden, "intermediate_size": 512, "head_dim": hidden // 4}
    (path / "config.json").write_text(json.dumps(config | sizes))
    rng, kv = np.random.default_rng(0), hidden // 2
    tensors: dict[str, Any] = {"model.norm.weight": np.ones(hidden)}
    for name, shape in {"model.embed_tokens": (128, hidden), "lm_head": (128, hidden)}.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape)
    for layer in (0, 1):
        shapes = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (512, hidden), "mlp.up_proj": (512, hidden),
            "mlp.down_proj": (hidden, 512),
        }  # fmt: skip
        for module, shape in shapes.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = rng.standard_normal(shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(hidden)
    save(path / "model.safetensors", {name: values.astype(np.float16) for name, values in tensors.items()})


def test_a_file_type_by_its_name() -> None:
    llama("model", 256)
    assert run("quantize", "model", "--to", "gguf:q4-k-m", "-q").code == 0
    types = types_of("model-Q4_K_M.gguf")
    assert types["token_embd.weight"] == "Q4_K" and types["output.weight"] == "Q6_K"
    with open_model("model-Q4_K_M.gguf") as opened:
        keys = opened.source.keys
    assert keys["general.file_type"] == 15 and keys["general.quantization_version"] == 2
    words = ["--override", "*.v_proj:Q8_0", "--save-recipe", "r.yaml", "-o", "a.gguf"]
    assert run("quantize", "model", "--to", "gguf:Q4_K_M", *words).code == 0
    assert types_of("a.gguf")["blk.0.attn_v.weight"] == "Q8_0" and types_of("a.gguf")["blk.0.attn_q.weight"] == "Q4_K"
    assert run("quantize", "model", "--recipe", "r.yaml", "-o", "b.gguf").code == 0
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


def test_rows_that_are_not_whole_super_blocks() -> None:
    llama("model", 96)
    ran = run("quantize", "model", "--to", "gguf:Q4_K_S", "-o", "a.gguf", "--json")
    types = types_of("a.gguf")
    assert types["blk.0.attn_q.weight"] == INSTEAD["Q4_K"] and types["blk.0.ffn_down.weight"] == "Q4_K"
    notes = {t["name"]: t["note"] for t in ran.json["tensors"]}
    assert "Q5_0 instead of Q4_K" in notes["model.layers.0.self_attn.q_proj.weight"]
    assert run("plan", "model", "--target-bpw", "6", "--to", "gguf", "-q").code == 0


def test_widths_that_only_super_blocks_have() -> None:
    llama("model", 256)
    for bits, kind in ((2, "Q2_K"), (3, "Q3_K"), (6, "Q6_K")):
        assert run("quantize", "model", "--bits", bits, "--to", "gguf", "-o", f"{bits}.gguf").code == 0
        assert types_of(f"{bits}.gguf")["blk.0.attn_q.weight"] == kind


def test_blocks_have_scales_of_their_own_where_no_group_size_is_asked() -> None:
    """Not one for each 128 weights, which is the default elsewhere and costs 2 dB here."""
    llama("model", 256)
    reported = [
        run("quantize", "model", *words, "-o", f"{i}.gguf", "--json").json["summary"]["sqnr_db"]
        for i, words in enumerate((["--to", "gguf:IQ4_NL"], ["--to", "gguf", "--type", "iq4"]))
    ]
    assert reported[0] == pytest.approx(reported[1], abs=0.5)
    for name, words in {"a": "bits=8", "b": "bits=8,group-size=32"}.items():
        rule = ["--override", f"*.v_proj.weight:{words}"]
        assert run("quantize", "model", "--to", "gguf:Q4_K_M", *rule, "-o", f"{name}.gguf", "-q").code == 0
    assert run("compare", "a.gguf", "b.gguf", "--json").json["summary"]["exact"]


def test_a_size_target_chooses_among_types() -> None:
    llama("model", 256)
    assert run("quantize", "model", "--target-bpw", "4.6", "--to", "gguf", "-o", "a.gguf").code == 0
    assert len(set(types_of("a.gguf").values())) > 2
    assert Path("a.gguf").stat().st_size * 8 <= 4.6 * sum(
        a.array.size for a in load("model/model.safetensors").values()
    )


def test_shards() -> None:
    """Files of a limited size, which are the whole file when they are read together."""
    llama("model", 256)
    words = ["quantize", "model", "--to", "gguf:Q4_K_M", "--max-shard-size", "250kB", "-o"]
    assert run("quantize", "model", "--to", "gguf:Q4_K_M", "-o", "whole.gguf").code == 0
    ran = run(*words, "a.gguf")
    assert ran.code == 0 and "the first a-00001-of-" in ran.err
    files = sorted(Path().glob("a-*.gguf"))
    assert len(files) > 2 and all(file.stat().st_size <= 250_000 for file in files) and not Path("a.gguf").exists()
    assert files[-1].name == f"a-{len(files):05d}-of-{len(files):05d}.gguf"
    assert "the output exists" in one_line(run(*words, "a.gguf", "-q"), 2)
    parts, whole = open_source(str(files[0])), open_source("whole.gguf")
    assert [i.name for i in parts.infos()] == [i.name for i in whole.infos()]
    for info in whole.infos():
        held = [bytearray(info.nbytes) for _ in range(2)]
        for source, buffer in zip((parts, whole), held):
            source.read(info.name, 0, memoryview(buffer))
        assert held[0] == held[1], info.name
    parts.close()
    whole.close()
    big = run("quantize", "model", "--to", "gguf:Q4_K_M", "--max-shard-size", "10MB", "-o", "one.gguf")
    assert big.code == 0 and Path("one.gguf").exists()


@pytest.mark.parametrize(("words", "why"), [
    (["--to", "gguf", "--max-shard-size", "1MB", "-o", "-"], "standard output is one file"),
    (["--to", "gguf:Q4_K"], "did you mean Q4_K_S?"),
    (["--to", "gguf:"], "gguf has no file type ''"),
    (["--to", "mlx:Q4_K_M"], "mlx has no file type"),
    (["--to", "gguf:Q4_K_M", "--bits", "3"], "--bits: gguf:Q4_K_M gives every tensor a type of its own; leave it out"),
    (["--to", "gguf:Q4_K_M", "--scheme", "W8A8"], "--scheme: "),
    (["--to", "gguf:Q4_K_M", "--percentile", "99"], "--percentile: gguf:Q4_K_M gives every tensor a type of its own"),
    (["--to", "gguf:Q4_K_M", "--target-bpw", "5"], "Q4_K_M decides the types of all tensors itself"),
    (["--scheme", "Q4_K"], "super-blocks (q4_k) are stored in GGUF only"),
    (["--scheme", "Q6_K", "--to", "mlx"], "scales in super-blocks, which only GGUF has"),
    (["--scheme", "Q4_K", "--group-size", "64", "--to", "gguf"], "no type of GGUF has such super-blocks"),
    (["--bits", "7", "--to", "gguf"], "7 bits"),
])  # fmt: skip
def test_what_is_refused(words: list[str], why: str) -> None:
    llama("model", 256)
    assert why in one_line(run("quantize", "model", *words), 2)
    assert not list(Path().glob("*.gguf"))


def test_float16_that_does_not_hold_the_scales() -> None:
    save(Path("in.safetensors"), {"w": gaussian(8, 512, seed=3).astype(np.float32) * 1e9})
    ran = run("quantize", "in.safetensors", "--scheme", "Q4_K", "--to", "gguf", "--container", "-o", "out.gguf", "-q")
    assert "float16 does not hold the scale of a super-block" in one_line(ran, 1)


def test_one_bit_is_refused(tmp_path: Path) -> None:
    """with the type that is nearest, embedding and head too"""
    model = ROOT / "sample_models" / "tiny-llama"
    line = one_line(run("quantize", model, "--bits", 1, "--to", "gguf", "-o", tmp_path / "x.gguf"), 2)
    assert "gguf cannot store it: 1 bit" in line and "use --scheme Q2_K" in line
    typed = ["quantize", model, "--bits", 4, "--override", "*.0.*:bits=8", "--to", "gptq", "--group-size", 64]
    assert "give all weights the same bits" in one_line(run(*typed, "-o", tmp_path / "x"), 2)


def test_notes_of_a_mix(tmp_path: Path) -> None:
    """of one type for all weights a line tells that file types mix; of several none does"""
    path = tmp_path / "x.gguf"
    model = ROOT / "sample_models" / "tiny-llama"
    words = "has the types that llama-quantize gives each tensor"
    for more, said in ((), True), (("--override", "*.0.*:Q8_0"), False):
        ran = run("quantize", model, "--to", "gguf", "--bits", 4, *more, "-o", path, "--force")
        assert ran.code == 0 and (words in ran.err) == said
