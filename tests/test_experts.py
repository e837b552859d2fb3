"""Experts in every form in which checkpoints store them, and in every form in which loaders want them. What is expected
is cut out of the stored arrays with numpy; that loaders want just that was seen with mlx-lm 0.32.2, transformers 5.23,
vLLM 0.32 and llama.cpp: `make peers` loads such models for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from making import BF16, one_line, run, save
from strategies import gaussian

from quantcli.api import compare, plan, quantize_file
from quantcli.experts import arranged
from quantcli.models import open_model
from quantcli.stores import Source, open_source
from quantcli.stores import stacked as bands

COUNT, INNER, HIDDEN = 3, 48, 64
SPLIT = ("gate_proj", "up_proj", "down_proj")
Arrays = dict[str, np.ndarray]


def experts(seed: int = 0) -> Arrays:
    """Gate, up and down of all experts, as [E, out, in]."""
    shapes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    return {n: gaussian(COUNT, *shape, seed=seed + i).astype(BF16) for i, (n, shape) in enumerate(shapes.items())}


def straight(prefix: str, each: Arrays) -> Arrays:
    both = np.concatenate([each["gate_proj"], each["up_proj"]], 1)
    return {f"{prefix}.gate_up_proj": both, f"{prefix}.down_proj": each["down_proj"]}


def transposed(prefix: str, each: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(values.swapaxes(1, 2)) for name, values in straight(prefix, each).items()}


def alternating(prefix: str, each: Arrays) -> Arrays:
    found = transposed(prefix, each)
    both = np.empty_like(found[f"{prefix}.gate_up_proj"])
    both[..., ::2], both[..., 1::2] = (each[n].swapaxes(1, 2) for n in ("gate_proj", "up_proj"))
    biases = {"gate_up_proj_bias": (COUNT, 2 * INNER), "down_proj_bias": (COUNT, HIDDEN)}
    more = {f"{prefix}.{n}": gaussian(*shape, seed=i).astype(BF16) for i, (n, shape) in enumerate(biases.items())}
    return {**found, f"{prefix}.gate_up_proj": both, **more}


def flat(prefix: str, each: Arrays) -> Arrays:
    parts = each["gate_proj"], each["up_proj"], each["down_proj"].swapaxes(1, 2)
    return {f"{prefix}.{n}": part.reshape(-1, HIDDEN) for n, part in zip(("w1", "v1", "w2"), parts)}


def single(prefix: str, each: Arrays, words: tuple[str, ...] = SPLIT) -> Arrays:
    pairs = list(zip(words, each.values()))
    return {f"{prefix}.{e}.{word}.weight": values[e] for e in range(COUNT) for word, values in pairs}


QWEN, LLAMA4, OSS = "model.layers.0.mlp.experts", "model.layers.0.feed_forward.experts", "model.layers.0.mlp.experts"
DBRX, MIXTRAL = "transformer.blocks.0.ffn.experts.mlp", "model.layers.0.block_sparse_moe.experts"
STORED: dict[str, tuple[str, Arrays, dict[str, Any]]] = {
    "qwen3-moe": (QWEN, straight(QWEN, experts()), {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}),
    "llama4": (LLAMA4, transposed(LLAMA4, experts()), {
        "model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"]}),
    "gpt-oss": (OSS, alternating(OSS, experts()), {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}),
    "dbrx": (DBRX, flat(DBRX, experts()), {
        "model_type": "dbrx", "architectures": ["DbrxForCausalLM"], "ffn_config": {"moe_num_experts": COUNT}}),
    "mixtral": (QWEN, straight(QWEN, experts()), {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}),
    "single": (QWEN, single(QWEN, experts()), {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}),
}  # fmt: skip


def made(folder: Path, tensors: Arrays, config: dict[str, Any], prefix: str = QWEN) -> Path:
    folder.mkdir()
    router = prefix.removesuffix(".mlp").removesuffix(".experts")
    save(folder / "model.safetensors", {f"{router}.gate.weight": gaussian(32, HIDDEN), **tensors}, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def folder_of(name: str, tmp_path: Path) -> Path:
    prefix, tensors, config = STORED[name]
    return made(tmp_path / name, tensors, config, prefix)


def read(source: Source, steps: tuple[int, ...] = (1 << 20,)) -> Arrays:
    """All tensors, in pieces of so many bytes one after another."""
    found = {}
    for info in source.infos():
        raw, at, number = bytearray(info.nbytes), 0, 0
        while at < len(raw):
            size = min(steps[number % len(steps)], len(raw) - at)
            source.read(info.name, at, memoryview(raw)[at : at + size])
            at, number = at + size, number + 1
        found[info.name] = np.frombuffer(raw, {"BF16": BF16, "F32": np.float32}[info.dtype]).reshape(info.shape)
    return found


def wanted(name: str, target: str | None) -> Arrays:
    """What a loader has to find of the experts of a folder."""
    prefix, stored, _ = STORED[name]
    each = experts()
    words = {"dbrx": ("w1", "v1", "w2")}.get(name, SPLIT)
    stack = dict(zip(words, each.values()))
    if target in ("compressed-tensors", "awq", "gptq", "bnb-nf4"):
        return single(MIXTRAL, each, ("w1", "w3", "w2")) if name == "mixtral" else single(prefix, each)
    if target == "mlx" and name == "dbrx":
        return single(prefix.removesuffix(".mlp"), each, words)
    if target == "mlx" and name not in ("llama4", "gpt-oss"):
        prefix = f"{(MIXTRAL if name == 'mixtral' else prefix).removesuffix('.experts')}.switch_mlp"
    if target is None and name in ("qwen3-moe", "mixtral", "single"):
        return stored
    biases = {}
    if name == "gpt-oss":
        both = stored[f"{prefix}.gate_up_proj_bias"]
        named = zip(SPLIT, (both[:, ::2], both[:, 1::2], stored[f"{prefix}.down_proj_bias"]))
        biases = {f"{prefix}.{word}.bias": values for word, values in named}
    return {**{f"{prefix}.{word}.weight": values for word, values in stack.items()}, **biases}


CASES = [(name, target) for name in STORED for target in (None, "mlx")]
CASES += [(name, "compressed-tensors") for name in ("qwen3-moe", "llama4", "mixtral", "single")]
CASES += [("qwen3-moe", "gguf"), ("single", "gguf"), ("llama4", "awq"), ("llama4", "bnb-nf4"),
          ("qwen3-moe", "gptq")]  # fmt: skip


@pytest.mark.parametrize("band", [1 << 12, bands.BAND])
@pytest.mark.parametrize(("name", "target"), CASES)
def test_experts_are_arranged_for_every_target(
    name: str, target: str | None, band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bands of a few rows, and read in pieces that begin and end anywhere, they are the same."""
    monkeypatch.setattr(bands, "BAND", band)
    source = open_source(str(folder_of(name, tmp_path)))
    found = arranged(source, target)
    expected = wanted(name, target)
    for steps in ((1 << 20,), (1000, 37, 1, 4099)):
        values = read(found, steps)
        assert len(values) == len(expected) + 1  # the router
        for key, value in expected.items():
            assert values[key].shape == value.shape
            assert np.array_equal(values[key].view(np.uint16), value.view(np.uint16)), key
    assert sum(found.stored_bytes()) == sum(source.stored_bytes())
    assert bool(found.arranged) == (found is not source)
    source.close()


@pytest.mark.parametrize(("name", "target"), [c for c in CASES if c[1] not in ("gguf", "awq", "gptq", "bnb-nf4")])
def test_quantized_experts_decode_to_what_was_stored(name: str, target: str | None, tmp_path: Path) -> None:
    """8 bits in groups along the input; compare finds them under whatever names they have."""
    source, out = folder_of(name, tmp_path), tmp_path / "out"
    report = quantize_file(source, out, bits=8, group_size=32 if target == "mlx" else 16, to=target or "native")
    kept = [t.name for t in report.tensors if t.scheme is None]
    expected = wanted(name, target)
    bias = [n for n in expected if "bias" in n]
    narrow = [n for n in expected if (target == "mlx" and "down" in n) or n.endswith("w2.weight")]
    assert {n for n in kept if "experts" in n or "switch" in n} <= {*bias, *narrow}  # 48 is no multiple of 32
    with open_model(str(out)) as model:
        for key, value in expected.items():
            decoded = model[key].read(0, value.size).reshape(value.shape)
            assert np.abs(decoded - value.astype(np.float32)).max() < 0.04, key
    again = compare(source, out)
    assert {t.name for t in again.tensors} >= set(expected)
    assert again.comparison is None or not again.comparison.vanished


def test_the_same_bytes_on_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND", 1 << 12)
    source = folder_of("gpt-oss", tmp_path)
    for threads in (1, 2, 7):
        quantize_file(source, tmp_path / f"t{threads}", bits=4, group_size=16, to="native", threads=threads)
    first, *others = ((tmp_path / f"t{n}" / "model.safetensors").read_bytes() for n in (1, 2, 7))
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("change", "target", "why"),
    [
        (
            {"model_type": "something_new", "architectures": ["NewForCausalLM"]},
            "mlx",
            "rows are the gate's cannot be told",
        ),
        ({"model_type": "something_new", "architectures": ["NewForCausalLM"]}, "native", "rows are the gate's"),
        ({"model_type": "qwen3_moe"}, "native", "is not the shape of experts of qwen3_moe"),
    ],
)
def test_experts_that_cannot_be_told_apart_are_kept(
    change: dict[str, Any], target: str, why: str, tmp_path: Path
) -> None:
    prefix, tensors, config = STORED["llama4"]
    more = {"model.layers.0.self_attn.q_proj.weight": gaussian(HIDDEN, HIDDEN)}
    source = made(tmp_path / "in", {**tensors, **more}, {**config, **change}, prefix)
    rows = {t.name: t for t in plan(source, bits=4, group_size=32, to=target).tensors}
    for name in tensors:
        assert rows[name].disposition == "kept" and why in rows[name].note
        assert rows[name].reason == "experts"
    assert rows["model.layers.0.self_attn.q_proj.weight"].scheme == "w4g32"


def test_half_of_the_experts_is_kept(tmp_path: Path) -> None:
    prefix, tensors, config = STORED["qwen3-moe"]
    both = {n: v for n, v in tensors.items() if "gate_up" in n}
    source = made(tmp_path / "in", {**both, "model.layers.0.q.weight": gaussian(HIDDEN, HIDDEN)}, config, prefix)
    rows = {t.name: t for t in plan(source, bits=4, group_size=32, to="native").tensors}
    assert rows[f"{prefix}.gate_up_proj"].note == "down_proj of these experts is missing"


def test_a_file_without_a_config_keeps_the_rows_it_has(tmp_path: Path) -> None:
    """[E, out, in] needs no splitting in the native layout; [E, in, out] would."""
    for name, scheme in (("qwen3-moe", "w4g16"), ("llama4", None)):
        tensors = STORED[name][1]
        path = tmp_path / f"{name}.safetensors"
        save(path, {**tensors, "q.weight": gaussian(HIDDEN, HIDDEN)})
        rows = {t.name: t for t in plan(path, bits=4, group_size=16).tensors}
        assert {rows[n].scheme for n in tensors} == {scheme}


@pytest.mark.parametrize(("name", "ways"), [("gpt-oss", "--to gguf, --to mlx or --to native"),
                                            ("dbrx", "--to mlx or --to native")])  # fmt: skip
def test_experts_that_no_loader_takes_are_refused(name: str, ways: str, tmp_path: Path) -> None:
    """As with schemes that no loader takes: a folder of transformers is written for its loaders, or as it is asked."""
    source = folder_of(name, tmp_path)
    why = "neither vLLM nor transformers loads the experts of "
    ran = run("quantize", source, "--to", "compressed-tensors", "--group-size", "16", "--dry-run")
    assert ran.code == 1 and why in ran.err
    for command in (["quantize", source, "-o", tmp_path / "out"], ["plan", source, "--target-bpw", "6"]):
        line = one_line(run(*command), 2)
        assert f"no loader would know what the folder holds: {why}" in line
        assert line.endswith(f"use {ways} for quantcli alone")
    assert not (tmp_path / "out").exists()
    ran = run("quantize", source, "--group-size", "16", "--dry-run", "--to", "native", "--json")
    assert ran.code == 0 and ran.json["summary"]["coverage"] > 0.9


def test_experts_that_every_loader_reads_wrong_are_refused(tmp_path: Path) -> None:
    source, layout = folder_of("qwen3-moe", tmp_path), ("--to", "compressed-tensors", "--dry-run")
    ran = run("quantize", source, *layout, "--scheme", "FP8_DYNAMIC", "--group-size", "16")
    assert ran.code == 2 and "loads no experts in fp8-e4m3g16, nor does vLLM" in ran.err and "--to native" in ran.err
    ran = run("quantize", source, *layout, "--scheme", "NVFP4A16")
    assert ran.code == 0 and "decodes experts in nvfp4 to wrong numbers; vLLM does" in ran.err


def test_the_report_and_the_terminal_say_what_was_done(tmp_path: Path) -> None:
    source = folder_of("llama4", tmp_path)
    loaded = run("quantize", source, "--to", "compressed-tensors", "--group-size", "16", "-o", tmp_path / "loaded")
    assert loaded.code == 0 and "as vLLM loads them" not in loaded.err
    ran = run("quantize", source, "--to", "awq", "--group-size", "16", "-o", tmp_path / "out")
    said = f"3 experts transposed and split: {LLAMA4}.{{down_proj,gate_up_proj}} -> {LLAMA4}.N."
    assert said in ran.out and "as vLLM loads them" in " ".join(ran.err.split())
    report = run("quantize", source, "--to", "mlx", "-o", tmp_path / "mlx", "--group-size", "32", "--json").json
    assert report["arranged"].startswith("3 experts transposed and arranged")


def test_experts_that_are_decoded_one_by_one(tmp_path: Path) -> None:
    """transformers stacks those of most models while it loads floats, but not of Llama 4 (transformers 5.23,
    conversion_mapping.py)."""
    for name, told in (("llama4", True), ("qwen3-moe", False)):
        source, codes, out = folder_of(name, tmp_path), tmp_path / f"{name}-codes", tmp_path / f"{name}-floats"
        run("quantize", source, "--to", "compressed-tensors", "--group-size", "16", "-o", codes, "-q")
        ran = run("dequantize", codes, "-o", out, "--json")
        line = "experts are decoded one by one, as they are stored: transformers"
        assert ran.code == 0 and (line in ran.err) == told == any(line in w for w in ran.json["warnings"])
        assert line not in run("dequantize", codes, "-o", f"{out}.safetensors").err


def test_sweep_and_plan_see_the_same_experts(tmp_path: Path) -> None:
    source = folder_of("gpt-oss", tmp_path)
    swept = run("sweep", source, "--bits", "4", "--group-size", "16", "--json")
    planned = run("plan", source, "--target-bpw", "6", "--to", "native", "--json")
    assert swept.code == 0 and planned.code == 0, swept.err + planned.err
    assert f"{OSS}.gate_proj.weight" in {t["name"] for t in planned.json["tensors"]}


def test_a_plan_chooses_among_groups_that_suit_all_experts(tmp_path: Path) -> None:
    """groups of 64 are whole in gate and up and not in down, and loaders take one scheme for all experts"""
    source, asked = folder_of("qwen3-moe", tmp_path), ("--target-bpw", "8", "--bits", "2,4,8")
    ran = run("plan", source, *asked, "--group-size", "16,64", "--json")
    assert ran.code == 0, ran.err
    assert {t["scheme"][2:] for t in ran.json["tensors"] if t["scheme"]} == {"g16"}
    ran = run("plan", source, *asked, "--group-size", "64")
    assert ran.code == 2 and "experts have several schemes" in ran.err


def llama_folder(tmp_path: Path, kind: str) -> Path:
    """A model of one layer that llama.cpp runs, whose experts are stacked as transformers 5 has them."""
    config: dict[str, Any] = {
        "architectures": [kind], "model_type": {"Qwen3MoeForCausalLM": "qwen3_moe"}.get(kind, "qwen2_moe"),
        "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 96, "max_position_embeddings": 64,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": kind == "Qwen3MoeForCausalLM",
        "shared_expert_intermediate_size": 96, "tie_word_embeddings": True,
        "num_local_experts" if kind == "Qwen3MoeForCausalLM" else "num_experts": COUNT,  # as transformers 5 saves them
    }  # fmt: skip
    layer = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
    shapes |= {"model.embed_tokens.weight": (96, HIDDEN), "model.norm.weight": (HIDDEN,), f"{layer}.mlp.gate.weight":
               (COUNT, HIDDEN), f"{layer}.input_layernorm.weight": (HIDDEN,),
               f"{layer}.post_attention_layernorm.weight": (HIDDEN,)}  # fmt: skip
    shapes |= {f"{QWEN}.gate_up_proj": (COUNT, 128, HIDDEN), f"{QWEN}.down_proj": (COUNT, HIDDEN, 64)}
    if kind == "Qwen3MoeForCausalLM":
        shapes |= {f"{layer}.self_attn.{n}_norm.weight": (32,) for n in "qk"}
    else:
        shapes |= {f"{layer}.self_attn.{n}_proj.bias": (HIDDEN,) for n in "qkv"}
        shared = {"gate": (96, HIDDEN), "up": (96, HIDDEN), "down": (HIDDEN, 96)}
        shapes |= {f"{layer}.mlp.shared_expert.{n}_proj.weight": shape for n, shape in shared.items()}
        shapes |= {f"{layer}.mlp.shared_expert_gate.weight": (1, HIDDEN)}
    folder = tmp_path / kind
    folder.mkdir()
    weights = {n: gaussian(*shape, seed=i).astype(BF16) for i, (n, shape) in enumerate(shapes.items())}
    save(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("kind", "shared"), [("Qwen3MoeForCausalLM", False), ("Qwen2MoeForCausalLM", True)])
def test_a_gguf_of_experts(kind: str, shared: bool, tmp_path: Path) -> None:
    """Keys, names, shapes and dtypes as convert_hf_to_gguf.py of llama.cpp writes them."""
    source, out = llama_folder(tmp_path, kind), tmp_path / "out.gguf"
    quantize_file(source, out, to="gguf", bits=8)
    with open_model(str(out)) as model:
        keys, own = model.source.keys, f"qwen{2 if shared else 3}moe"
        assert keys["general.architecture"] == own
        assert (keys[f"{own}.expert_count"], keys[f"{own}.expert_used_count"]) == (COUNT, 2)
        assert keys[f"{own}.expert_feed_forward_length"] == 64
        assert keys.get(f"{own}.expert_shared_feed_forward_length") == (96 if shared else None)
        for name, shape in (("gate", (COUNT, 64, HIDDEN)), ("up", (COUNT, 64, HIDDEN)), ("down", (COUNT, HIDDEN, 64))):
            view = model[f"blk.0.ffn_{name}_exps.weight"]
            assert view.info.shape == shape and view.scheme is not None
        assert model["blk.0.ffn_gate_inp.weight"].info.dtype == "F32"
        assert ("blk.0.ffn_gate_inp_shexp.weight" in model, "blk.0.ffn_up_shexp.weight" in model) == (shared, shared)
    found = {t.name: t for t in compare(source, out).tensors}
    assert min(found[f"{QWEN}.{word}.weight"].sqnr_db or 0.0 for word in SPLIT) > 40


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob: llama.cpp always adds the weights of chosen experts up to 1"),
        ({"mlp_only_layers": [0]}, "llama.cpp supports such models only with experts in all layers"),
        ({"num_experts": 5}, "but [5, 64, 64] by config.json"),
    ],
)
def test_experts_that_llama_cpp_runs_otherwise_are_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    source = llama_folder(tmp_path, "Qwen3MoeForCausalLM")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    ran = run("quantize", source, "--to", "gguf", "--dry-run")
    assert ran.code != 0 and why in ran.err


def test_one_importance_matrix_for_all_experts_of_a_tensor(tmp_path: Path) -> None:
    """llama.cpp gives columns of every expert; a tensor of all of them has one number for each column, their mean."""
    source, weights = llama_folder(tmp_path, "Qwen3MoeForCausalLM"), tmp_path / "importance.npz"
    each = np.abs(gaussian(COUNT, HIDDEN, seed=9)) + 0.1
    for name, values in (("a", each), ("b", each.mean(0))):
        np.savez(weights, **{f"{QWEN}.gate_proj.weight": values})
        quantize_file(source, tmp_path / f"{name}.gguf", to="gguf", bits=4, importance=weights, calibration="mse")
    with open_model(str(tmp_path / "a.gguf")) as a, open_model(str(tmp_path / "b.gguf")) as b:
        name = "blk.0.ffn_gate_exps.weight"
        assert np.array_equal(a[name].read(0, 3 * 64 * 64), b[name].read(0, 3 * 64 * 64))


def test_codes_that_experts_are_decoded_from_are_reported(tmp_path: Path) -> None:
    """Of stacked ones the codes of all, where they are of one scheme; and the values are those of the decoded ones."""
    codes: Arrays = {}
    for name, values in single(QWEN, experts()).items():
        codes[name] = values.astype(ml_dtypes.float8_e4m3fn)
        codes[f"{name}_scale_inv"] = np.full((1, 1), 0.5, np.float32)
    config = {**STORED["single"][2], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    source = made(tmp_path / "m", codes, config)
    ran = run("quantize", source, "--to", "mlx", "--group-size", "32", "--bits", "4", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    schemes = {t["name"]: t["source_scheme"] for t in ran.json["tensors"] if "switch_mlp" in t["name"]}
    assert len(schemes) == 3 and set(schemes.values()) == {"fp8-e4m3b128x128"}
    with open_model(str(source)) as model:
        assert {model[n].scheme for n in single(QWEN, experts())} == {"fp8-e4m3b128x128"}


@pytest.mark.parametrize(("name", "target"), [
    *((name, target) for name in ("single", "llama4") for target in ("native", "compressed-tensors", "mlx")),
    ("gpt-oss", "native"), ("gpt-oss", "mlx"),
])  # fmt: skip
def test_the_original_is_decoded_and_arranged_as_it_was_for_the_target(name: str, target: str, tmp_path: Path) -> None:
    """report --against, verify --source and compare measure what quantize did; of a published model (`single`, in FP8)
    too."""
    source = folder_of(name, tmp_path)
    if name == "single":
        codes: Arrays = {}
        for key, values in STORED[name][1].items():
            codes |= {key: values.astype(ml_dtypes.float8_e4m3fn), f"{key}_scale_inv": np.full((1, 1), 0.5, np.float32)}
        config = {**STORED[name][2], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
        source = made(tmp_path / "fp8", codes, config)
    out, words = tmp_path / "out", ["--bits", "4", "--group-size", "32" if target == "mlx" else "16"]
    made_of = run("quantize", source, *words, "--to", target, "-o", out, "--json")
    assert made_of.code == 0, made_of.err
    cost = made_of.json["summary"]["sqnr_db"]
    reported, compared = run("report", out, "--against", source, "--json"), run("compare", source, out, "--json")
    assert reported.code == 0 and compared.code == 0, reported.err + compared.err
    assert reported.json["summary"]["sqnr_db"] == pytest.approx(cost)
    assert compared.json["summary"]["sqnr_db"] == pytest.approx(cost)
    assert not compared.json["comparison"]["new"] and not compared.json["comparison"]["vanished"]
    verified = run("verify", out, "--source", source)
    assert verified.code == 0, verified.out


@pytest.mark.parametrize("words", [["--target-bpw", "15"], ["--save-recipe", "r.yaml"]])
def test_a_recipe_of_all_schemes_keeps_the_reason_of_experts(
    words: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """They are not what somebody excluded: the warning about kept weights names them."""
    monkeypatch.chdir(tmp_path)
    source = folder_of("gpt-oss", tmp_path)
    more = {"model.layers.0.self_attn.q_proj.weight": gaussian(HIDDEN, HIDDEN).astype(BF16)}
    save(source / "more.safetensors", more)
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    (source / "more.safetensors").rename(source / "model-00002-of-00002.safetensors")
    group = ["--group-size", "32"] if "--save-recipe" in words else []
    options = ["--to", "compressed-tensors", *group, "--no-default-keep", "-o", "out", "--json"]
    ran = run("quantize", source, *options, *words)
    assert ran.code == 0, ran.err
    reasons = {t["name"]: t["reason"] for t in ran.json["tensors"] if ".experts.gate_up_proj" in t["name"]}
    assert "target" in reasons.values() and "excluded" not in reasons.values()


@pytest.mark.parametrize("target", ["mlx", "compressed-tensors", "native"])
def test_a_plan_for_a_target_names_its_experts(target: str, tmp_path: Path) -> None:
    """The recipe has the names, the sizes and the target of what quantize then writes with it."""
    source, recipe = folder_of("mixtral", tmp_path), tmp_path / "recipe.yaml"
    groups = "32" if target == "mlx" else "16"
    ran = run("plan", source, "--to", target, "--target-bpw", "11.5", "--bits", "4,8", "--group-size", groups,
              "-o", recipe, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    found, text = ran.json, recipe.read_text()
    assert f"\nto: {target}\n" in text
    names = {t["name"] for t in found["tensors"]}
    assert names <= set(wanted("mixtral", None if target == "native" else target)), names
    done = run("quantize", source, "--recipe", recipe, "-o", tmp_path / "out", "--json", "-q")
    assert done.code == 0, done.err
    written = {t["name"]: t["scheme"] for t in done.json["tensors"]}
    assert {t["name"]: t["scheme"] for t in found["tensors"]} == {n: written[n] for n in names}
    assert done.json["summary"]["bytes_out"] == found["bytes_out"]
