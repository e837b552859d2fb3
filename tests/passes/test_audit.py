"""Audits: files of every layout pass against their base, and doctored ones fail for the reason they were doctored."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from audit_parts import LLAMA, Arrays, as_gptq, audited, base, gptq, noisy, problems, quantized
from layout_parts import values
from making import BF16, GOLDEN_FILES, load, run, save
from onnx_parts import f32, op, tensor, written
from strategies import gaussian

from quantcli.models import open_model

TARGETS = {
    "compressed-tensors": (), "gptq": (), "awq": ("--group-size", "64"), "mlx": (), "gguf": (), "bnb-nf4": (),
    "gguf:Q4_K_M": (), "fp8-blocks": (), "native": (), "modelopt": ("--scheme", "NVFP4A16"),
    "compressed-tensors:w8": ("--bits", "8"),
}  # fmt: skip


def of_llama(folder: Path, source: Path, target: str) -> Path:
    out = folder / (f"{source.name}.gguf" if target.startswith("gguf") else f"{source.name}-out")
    to = target.removesuffix(":w8")
    ran = run("quantize", source, "--to", to, *TARGETS[target], "-o", out, "-q", "--force")
    assert ran.code == 0, ran
    return out


@pytest.fixture(scope="module")
def doctored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, the first two layers' up projections exchanged and a norm changed in a bit."""
    folder = tmp_path_factory.mktemp("audit") / "tiny"
    shutil.copytree(LLAMA, folder)
    up = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    files = {path: load(path) for path in folder.glob("*.safetensors")}
    every = {name: stored.array for found in files.values() for name, stored in found.items()}
    every[up[0]], every[up[1]] = every[up[1]], every[up[0]]
    norm = every["model.norm.weight"].copy()
    norm.view(np.uint16)[3] ^= 1
    every["model.norm.weight"] = norm
    for path, found in files.items():
        save(path, {name: every[name] for name in found}, {"format": "pt"})
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_made_of_the_base_is_consistent_in_every_layout(target: str, tmp_path: Path) -> None:
    code, found = audited(of_llama(tmp_path, LLAMA, target), LLAMA)
    assert code == 0, problems(found)
    assert {t["became"] for t in found["tensors"]} <= {"quantized", "equal", "cast"}
    codes = [t for t in found["tensors"] if t["became"] == "quantized"]
    assert len(codes) >= (4 if target == "fp8-blocks" else 12) and all(t["cosine"] > 0.98 for t in codes)
    if target != "native":
        assert found["layout"]


@pytest.mark.parametrize("target", TARGETS)
def test_exchanged_tensors_and_a_changed_bit_are_found_in_every_layout(
    target: str, doctored: Path, tmp_path: Path
) -> None:
    code, found = audited(of_llama(tmp_path, doctored, target), LLAMA)
    wrong = problems(found)
    up = {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}
    assert code == 1 and set(wrong) == {*up, "model.norm.weight"}
    kept = "its values are not those of the base"  # of blocks of 128, which these rows are too short for
    assert all("other weights" in wrong[n] or (target == "fp8-blocks" and kept in wrong[n]) for n in up)
    assert re.fullmatch(r"its values are not those of the base: \d+\.\d dB", wrong["model.norm.weight"])


METHODS = {
    "gptq": {"error feedback (GPTQ)", "error feedback (GPTQ) or other rounding"},
    "hqq": {"min-max scales, searched offsets (HQQ)"},
    "autoround": {"learned rounding (AutoRound), or weights that were changed a little"},
    "awq": {"scaled rows and columns (AWQ), min-max", "min-max"},
    "mlx": {"min-max scales that make 0 a code (MLX)"},
}
METHODS |= {
    "autoround-own": METHODS["autoround"],
    "autoround-own-zeros": METHODS["autoround"],
    "gptqmodel": METHODS["gptq"],
    "gptqmodel-desc-act": METHODS["gptq"],
    "autoawq": METHODS["awq"],
    "autoround-awq": METHODS["autoround"],
    "modelopt-awq": METHODS["awq"],
}
"""What made the models of golden/audits, by the tools' own code: llm-compressor 0.14's GPTQ and AWQ, which scales what
comes after a norm and between two matrices, but no o_proj; GPTQModel 7.2, also with desc_act, whose groups are not runs
of columns; AutoAWQ 0.2.9; ModelOpt 0.47, whose scales of inputs of o_proj and down_proj stay beside them; AutoRound
0.16 in the layouts of GPTQ and AWQ, 0.15 as its own loader reads them; HQQ 0.2.8; and MLX 0.32, whose scales of 6 bits
are near enough to those of min-max to have been taken for those of changed weights."""


@pytest.mark.parametrize("tool", METHODS)
def test_models_that_other_tools_made(tool: str, doctored: Path) -> None:
    """are consistent with their base, with the method by name, and not with another one, whose changes are named"""
    path = GOLDEN_FILES / "audits" / tool
    code, found = audited(path, LLAMA)
    assert code == 0, problems(found)
    assert {m["method"] for m in found["methods"]} == METHODS[tool]
    assert sum(t["became"] == "quantized" for t in found["tensors"]) == 14
    unsure = "; of 14 it is uncertain whether weights were changed a little"
    assert found["verdict"].endswith(unsure) == tool.startswith("autoround")
    plain = {n.split(".")[-2] for n, t in found["by_name"].items() if t["method"] == "min-max"}
    beside = {"awq": {"o_proj"}, "autoawq": {"o_proj"}, "modelopt-awq": {"o_proj", "down_proj"}}
    assert plain == beside.get(tool, set())
    code, found = audited(path, doctored)
    up = {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}
    assert code == 1 and problems(found).keys() == {*up, "model.norm.weight"}


def noise_of_a_percent(norm: np.ndarray) -> np.ndarray:
    noise: np.ndarray = np.random.default_rng(3).normal(size=norm.shape)
    return np.asarray(norm * (1 + 0.01 * noise))


@pytest.mark.parametrize("tool", ["awq", "autoawq", "modelopt-awq"])
@pytest.mark.parametrize("norm", ["0.input", "0.post_attention", "1.input", "1.post_attention"])
@pytest.mark.parametrize("change", [noise_of_a_percent, lambda norm: norm * 1.01, lambda norm: norm * 0.99])
def test_a_norm_that_took_scales_and_was_changed_by_a_percent(
    tool: str, norm: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """is named, and nothing else is: the codes of the layers behind it prove the scales that they were made with"""
    folder = tmp_path / tool
    shutil.copytree(GOLDEN_FILES / "audits" / tool, folder)
    tensors = {name: stored.array for name, stored in load(folder / "model.safetensors").items()}
    name = f"model.layers.{norm}_layernorm.weight"
    tensors[name] = change(tensors[name].astype(np.float32)).astype(tensors[name].dtype)
    save(folder / "model.safetensors", tensors, {"format": "pt"})
    code, found = audited(folder, LLAMA)
    assert code == 1 and problems(found).keys() == {name}
    assert "changed a little" in problems(found)[name]


@pytest.mark.parametrize(("tool", "ending"), [
    ("gptq", None), ("w4a8", "weight_scale"), ("torchao", "_weight_scale"), ("modelopt-awq", "weight_scale"),
    ("autoawq", "scales"),
])  # fmt: skip
def test_one_scale_that_was_changed(tool: str, ending: str | None, tmp_path: Path) -> None:
    """by a quarter is found among 384 groups; not after error feedback, which leaves the codes elsewhere anyway"""
    folder = tmp_path / tool
    shutil.copytree(GOLDEN_FILES / "audits" / tool, folder)
    stored = load(folder / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj."
    key = next(n for n in stored if n.startswith(name) and n.endswith(ending or "weight_scale"))
    tensors = {n: s.array for n, s in stored.items()}
    changed = tensors[key].astype(np.float32).reshape(-1)
    changed[len(changed) // 2 + 5] *= 1.25
    tensors[key] = changed.astype(tensors[key].dtype).reshape(tensors[key].shape)
    save(folder / "model.safetensors", tensors, stored_metadata(folder))
    code, found = audited(folder, LLAMA)
    assert code == (ending is not None)
    assert set(problems(found)) == ({f"{name}weight"} if ending else set())
    assert all("one group" in line for line in problems(found).values())


def stored_metadata(folder: Path) -> dict[str, str]:
    """What the header of a file says besides its tensors."""
    raw = (folder / "model.safetensors").read_bytes()
    said: dict[str, str] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    return said


MIN_MAX = ("bitsandbytes-fp4", "mlx-mxfp8", "mxfp4", "quanto", "torchao", "w4a8")
"""Models with the scales of largest weights: bitsandbytes 0.50's FP4; MLX 0.32's MXFP8 and llm-compressor 0.14's MXFP4,
which make powers of two by other rules than the OCP's; optimum-quanto 0.2, which rounds ranges to bfloat16 before it
divides them; torchao 0.18 and llm-compressor's W4A8, which hold a code of 4 bits in a byte."""


@pytest.mark.parametrize("tool", MIN_MAX)
def test_models_that_other_tools_made_with_min_max_scales(tool: str, doctored: Path) -> None:
    """are consistent with their base, and not with another one; every scale proves the method"""
    path = GOLDEN_FILES / "audits" / tool
    code, found = audited(path, LLAMA)
    codes = [t for t in found["tensors"] if t["became"] == "quantized"]
    assert code == 0, problems(found)
    assert len(codes) == 14 and {t["method"] for t in codes} == {"min-max"}
    assert all(t["nearest_share"] > 0.95 and t["minmax_scales_share"] > 0.98 for t in codes)
    assert {t["bits"] for t in codes} == {8 if tool == "mlx-mxfp8" else 4}
    code, found = audited(path, doctored)
    up = {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}
    assert code == 1 and problems(found).keys() == {*up, "model.norm.weight"}


def test_searched_powers_of_two_are_not_taken_for_a_rule(tmp_path: Path) -> None:
    """A search finds many of the scales that clip nothing, but not all."""
    for scheme in ("MXFP4", "MXFP8"):
        for options, method in (([], "searched scales"), (["--calibration", "minmax"], "min-max")):
            source, out = save(tmp_path / "a.safetensors", base()), tmp_path / "q.safetensors"
            assert run("quantize", source, "--scheme", scheme, *options, "-o", out, "-q", "--force").code == 0
            code, found = audited(out, source)
            assert code == 0 and {m["method"] for m in found["methods"]} == {method}, (scheme, options)


@pytest.mark.parametrize("target", ["gguf:Q4_K_M", "gguf:Q4_1"])
def test_rows_that_llama_cpp_has_in_another_order(target: str, tmp_path: Path) -> None:
    """q and k of Llama: the same methods as of the other layers, also where scales are in super-blocks."""
    folder, config = tmp_path / "llama", json.loads((LLAMA / "config.json").read_text())
    folder.mkdir()
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64, "vocab_size": 64}
    (folder / "config.json").write_text(
        json.dumps(config | sizes | {"num_attention_heads": 4, "num_key_value_heads": 4})
    )
    shapes = {f"self_attn.{n}_proj": (256, 256) for n in "qkvo"} | {
        **{f"mlp.{n}_proj": (256, 256) for n in ("gate", "up", "down")},
        **{f"{n}_layernorm": (256,) for n in ("input", "post_attention")},
    }
    names = {f"model.layers.0.{n}.weight": shape for n, shape in shapes.items()} | {
        "model.embed_tokens.weight": (64, 256), "lm_head.weight": (64, 256), "model.norm.weight": (256,),
    }  # fmt: skip
    save(folder / "model.safetensors", {n: gaussian(*s, seed=i).astype(BF16) for i, (n, s) in enumerate(names.items())})
    ran = run("quantize", folder, "--to", target, "-o", tmp_path / "q.gguf", "-q")
    assert ran.code == 0, ran
    code, found = audited(tmp_path / "q.gguf", folder)
    assert code == 0, problems(found)
    assert {t["method"] for t in found["tensors"] if t["became"] == "quantized"} == {"searched scales"}
    blocks = {t["scheme"] for n, t in found["by_name"].items() if "q_proj" in n or "k_proj" in n}
    assert blocks == {target[5:9]} and all(t["nearest_share"] > 0.95 for t in found["tensors"] if t["scheme"] in blocks)


def test_a_fault_of_a_tool_is_found() -> None:
    """AutoAWQ 0.2.9 on a processor: the scales of its trials stay in the weights, and norms make up for the last ones
    alone."""
    code, found = audited(GOLDEN_FILES / "audits" / "autoawq-fault", LLAMA)
    wrong = problems(found)
    assert code == 1 and found["became"]["quantized"] == 14
    assert {n for n in wrong if "norm" in n} == {n for n, t in found["by_name"].items() if t["became"] == "changed"}
    unmade = {n for n, line in wrong.items() if "no kept tensor makes up for that" in line}
    assert unmade == {n for n, t in found["by_name"].items() if t["became"] == "quantized" and "o_proj" not in n}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_offsets_at_the_end_of_a_range_are_not_searched(bits: int, tmp_path: Path) -> None:
    """HQQ's scales are those of min-max too; its offsets are not"""
    out = quantized(tmp_path, base(), "q", "--bits", str(bits), "--asymmetric", "--zero-point", "float",
                    "--calibration", "minmax")  # fmt: skip
    code, found = audited(out, tmp_path / "q-of.safetensors")
    assert code == 0 and {m["method"] for m in found["methods"]} == {"min-max"}


def test_methods_are_told_apart(tmp_path: Path) -> None:
    for options, method in (
        (["--bits", "4", "--calibration", "minmax"], "min-max"),
        (["--bits", "4"], "searched scales"),
        (["--bits", "3", "--calibration", "minmax"], "min-max"),
        (["--bits", "8", "--asymmetric", "--calibration", "minmax"], "min-max"),
        (["--bits", "4", "--asymmetric"], "searched scales"),
    ):
        code, found = audited(quantized(tmp_path, base(), "q", *options, "--force"), tmp_path / "q-of.safetensors")
        assert code == 0 and {m["method"] for m in found["methods"]} == {method}, (options, found["methods"])


ONNX = GOLDEN_FILES / "audits" / "onnxruntime"
BIASES = {"nearest codes": 2}
BY_ONNXRUNTIME: dict[str, dict[str, int]] = {
    "qdq-channels": {"min-max": 6, **BIASES}, "qdq-tensors": {"min-max": 6, **BIASES},
    "qdq-channels-int4": {"min-max": 6, **BIASES}, "qdq-reduced": {"7 of 8 bits, min-max": 6, **BIASES},
    "operators": {"min-max": 5, **BIASES}, "dynamic-channels": {"min-max": 5}, "dynamic-tensors": {"min-max": 5},
    "blocks": {"min-max": 1}, "blocks-qdq": {"min-max": 1},
}  # fmt: skip
"""Models of onnxruntime 1.31's own quantizers: tests/peers/write_audits_onnx.py. A MatMul stays in floats in none, the
transposed convolution in those with codes as operands."""


@pytest.mark.parametrize("name", BY_ONNXRUNTIME)
def test_models_that_onnxruntime_quantized(name: str, tmp_path: Path) -> None:
    """Scales along every axis, matrices of [in, out], I32 biases whose scale is a product, and 7 of 8 bits: the method
    of every tensor is named, and a base whose grouped convolution has two channels exchanged is another one."""
    code, found = audited(ONNX / f"{name}.onnx", ONNX / "base.onnx")
    assert code == 0, problems(found)
    codes = [t for t in found["tensors"] if t["became"] == "quantized"]
    assert Counter(t["method"] for t in codes) == BY_ONNXRUNTIME[name]
    assert all(t["cosine"] > 0.98 for t in codes)
    raw, change = bytearray((ONNX / "base.onnx").read_bytes()), {}
    for which in ("up.weight", "mm.weight", "conv.bias"):
        values = load_onnx(ONNX / "base.onnx")[which]
        at = raw.find(values.tobytes())
        change[which] = values.copy()
        change[which].reshape(len(values), -1)[:2] = change[which].reshape(len(values), -1)[1::-1]
        raw[at : at + values.nbytes] = change[which].tobytes()
    (tmp_path / "other.onnx").write_bytes(raw)
    code, found = audited(ONNX / f"{name}.onnx", tmp_path / "other.onnx")
    assert code == 1 and problems(found).keys() == change.keys()


def load_onnx(path: Path) -> Arrays:
    """The floats of a model, by name."""
    with open_model(str(path)) as model:
        return {name: view.read(0, view.info.numel).reshape(view.info.shape) for name, view in model.items()}


def test_biases_of_nodes_that_compute_with_codes_are_decoded() -> None:
    """QLinearConv and QGemm: `bias_quantized` times the scale of the inputs and that of the weight"""
    with open_model(str(ONNX / "operators.onnx")) as model:
        assert model["conv.bias"].scheme == model["gemm.bias"].scheme == "w32c"
        found = model["conv.bias"].read(0, 32)
    float_bias = load_onnx(ONNX / "base.onnx")["conv.bias"]
    assert 0 < np.abs(found - float_bias).max() < 1e-4


@pytest.mark.parametrize("block", [4, 6, 16])
def test_convolutions_in_blocks(block: int, tmp_path: Path) -> None:
    """DequantizeLinear in blocks along an axis in the middle, of which the last may be short."""
    weights = gaussian(24, 16, 3, 3, seed=4).astype(np.float32)
    count = -(-16 // block)
    padded = np.zeros((24, count * block, 3, 3), np.float32)
    padded[:, :16] = weights
    scale = np.abs(padded.reshape(24, count, block, 3, 3)).max(2) / np.float32(127)
    codes = np.rint(weights / np.repeat(scale, block, axis=1)[:, :16]).astype(np.int8)
    source = written(tmp_path / "base.onnx", op("Conv", ["x", "k"], ["y"]), f32("k", weights))

    def made(codes: np.ndarray) -> Path:
        decoding = op("DequantizeLinear", ["k_quantized", "k_scale"], ["k_d"], axis=1, block_size=block)
        parts = [op("Conv", ["x", "k_d"], ["y"]), tensor("k_quantized", 3, codes.shape, codes.tobytes())]
        return written(tmp_path / "q.onnx", decoding, *parts, f32("k_scale", scale))

    code, document = audited(made(codes), source)
    assert code == 0, problems(document)
    found = document["by_name"]["k"]
    assert found["method"] == "min-max" and found["nearest_share"] == 1
    codes[5, 3] = -codes[5, 3]
    code, document = audited(made(codes), source)
    assert code == 1 and "dB below" in problems(document)["k"]


@pytest.mark.parametrize("each", [True, False], ids=["a scale per channel", "one scale"])
def test_convolutions_as_onnxruntime_quantizes_them(each: bool, tmp_path: Path) -> None:
    """Its static quantizer: whole numbers with the scale of the largest weight, and inputs through two nodes whose
    scale no base has."""
    weights = gaussian(24, 16, 3, 3, seed=4).astype(np.float32)
    largest = np.abs(weights).max(axis=(1, 2, 3) if each else None)
    scale = (largest / np.float32(127)).astype(np.float32)
    codes = np.rint(weights / (scale[:, None, None, None] if each else scale)).astype(np.int8)
    source = written(tmp_path / "base.onnx", op("Conv", ["x", "k"], ["y"]), f32("k", weights))

    def quantized_model(codes: np.ndarray) -> Path:
        parts = [
            op("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["x_q"]),
            op("DequantizeLinear", ["x_q", "x_scale", "x_zero_point"], ["x_d"]),
            op("DequantizeLinear", ["k_quantized", "k_scale", "k_zero"], ["k_d"], axis=0),
            op("Conv", ["x_d", "k_d"], ["y"]),
            f32("x_scale", np.array(0.02)),
            tensor("x_zero_point", 2, (), bytes([128])),
            tensor("k_quantized", 3, codes.shape, codes.tobytes()),
            f32("k_scale", scale),
            tensor("k_zero", 3, scale.shape, bytes(scale.size)),
        ]
        return written(tmp_path / "q.onnx", *parts)

    code, document = audited(quantized_model(codes), source)
    assert code == 0, problems(document)
    assert document["by_name"]["k"]["method"] == "min-max"
    assert document["by_name"]["x_scale"]["became"] == "extra"
    codes[5, 3] = -codes[5, 3]
    code, document = audited(quantized_model(codes), source)
    assert code == 1 and "dB below" in problems(document)["k"]


def test_error_feedback_is_told_from_changed_weights(tmp_path: Path) -> None:
    """Both leave codes that are not the nearest, by as much: but error feedback does so in no first column."""
    arrays, rng = {n: a for n, a in base().items() if a.ndim == 1 or int(n[7]) < 3}, np.random.default_rng(0)
    kept = {n: a for n, a in arrays.items() if "up" not in n}
    source = save(tmp_path / "base.safetensors", arrays)
    made = {n: gptq(a, rng) for n, a in arrays.items() if n not in kept}
    code, found = audited(as_gptq(tmp_path / "gptq", made, kept), source)
    codes = [t for t in found["tensors"] if t["became"] == "quantized"]
    assert code == 0 and {t["method"] for t in codes} == {"error feedback (GPTQ)"}
    share = float(np.mean([t["nearest_share"] for t in codes]))
    assert 0.6 < share < 0.9
    changed = {n: a if n in kept else noisy(a, 0.1, rng) for n, a in arrays.items()}
    code, found = audited(quantized(tmp_path, changed, "noisy", "--bits", "4"), source)
    wrong = problems(found)
    assert code == 1 and set(wrong) == set(made)
    assert all("the weights were changed" in line for line in wrong.values())
    told = "3 of 5 tensors do not fit; most are near those of the base, as after training it further"
    assert found["verdict"] == f"NOT consistent with {source}: {told}"
    assert abs(float(np.mean([found["by_name"][n]["nearest_share"] for n in made])) - share) < 0.2


def test_a_little_noise_under_minmax_scales_shows_in_the_scales(tmp_path: Path) -> None:
    arrays, rng = base(), np.random.default_rng(1)
    source = save(tmp_path / "base.safetensors", arrays)
    tuned = {n: noisy(a, 0.02, rng) if a.ndim == 2 else a for n, a in arrays.items()}
    code, found = audited(quantized(tmp_path, tuned, "tuned", "--bits", "4", "--calibration", "minmax"), source)
    wrong = problems(found)
    assert code == 1 and set(wrong) == {n for n, a in arrays.items() if a.ndim == 2}
    assert all("min-max scales, but" in line for line in wrong.values())


@pytest.mark.parametrize(("kind", "part"), [("nf4", 0.05), ("fp8-e4m3", 0.02)])
def test_noise_under_codes_that_are_not_whole_numbers(kind: str, part: float, tmp_path: Path) -> None:
    """moves codes that no rounding of these weights gives, by more than a step now and then"""
    arrays, rng = base(), np.random.default_rng(5)
    source = save(tmp_path / "base.safetensors", arrays)
    tuned = {n: noisy(a, part, rng) if a.ndim == 2 else a for n, a in arrays.items()}
    code, found = audited(quantized(tmp_path, arrays, "own", "--type", kind), source)
    assert code == 0, problems(found)
    code, found = audited(quantized(tmp_path, tuned, "tuned", "--type", kind), source)
    wrong = problems(found)
    assert code == 1 and set(wrong) == {n for n, a in arrays.items() if a.ndim == 2}
    assert all("the weights were" in line for line in wrong.values())


def test_one_code_that_is_not_its_weights(tmp_path: Path) -> None:
    """One of 32,768, in a layer whose others are the nearest ones."""
    folder = tmp_path / "w4a8"
    shutil.copytree(GOLDEN_FILES / "audits" / "w4a8", folder)
    parts = {n: s.array.copy() for n, s in load(folder / "model.safetensors").items()}
    name = "model.layers.1.mlp.down_proj.weight"
    codes = parts[name].reshape(-1)
    at = int(np.flatnonzero(codes == 1)[77])
    codes[at] = -6
    save(folder / "model.safetensors", parts, {"format": "pt"})
    code, found = audited(folder, LLAMA)
    assert code == 1 and set(problems(found)) == {name}
    assert problems(found)[name].startswith("one weight of the sample changed by more than 3 steps")
    codes[at] = 99
    save(folder / "model.safetensors", parts, {"format": "pt"})
    code, found = audited(folder, LLAMA)
    assert code == 1 and problems(found) == {name: "a code or zero point is not a whole number of 4 bits"}


@pytest.mark.parametrize(("scale", "good"), [(0.5, True), (np.nan, False), (0.0, False), (np.inf, False)])
def test_scales_of_inputs_are_positive_numbers(scale: float, good: bool, tmp_path: Path) -> None:
    """No weight needs them, but a runtime quantizes inputs with them."""
    folder, module = tmp_path / "w4a8", "model.layers.1.mlp.up_proj"
    shutil.copytree(GOLDEN_FILES / "audits" / "w4a8", folder)
    parts = {n: s.array for n, s in load(folder / "model.safetensors").items()}
    parts[f"{module}.input_scale"] = np.array(scale, np.float32)
    save(folder / "model.safetensors", parts, {"format": "pt"})
    code, found = audited(folder, LLAMA)
    wrong = {} if good else {f"{module}.weight": f"{module}.input_scale is not a positive number"}
    assert code == (not good) and problems(found) == wrong


def test_codes_of_quotients_in_bfloat16(tmp_path: Path) -> None:
    """llm-compressor's W8A8 of a model in bfloat16: beyond 64 steps the quotients are rounded to halves, and a tenth of
    the codes are not the nearest ones."""
    arrays, made = base(), dict[str, np.ndarray]()
    for name, a in arrays.items():
        if a.ndim == 1:
            made[name] = a
            continue
        scale = (np.abs(a).max(1, keepdims=True) / BF16(127.5)).astype(BF16)
        made[name] = np.clip(np.rint((a / scale).astype(np.float32)), -128, 127).astype(np.int8)
        made[f"{name}_scale"] = scale
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    method = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    folder, source = tmp_path / "w8a8", save(tmp_path / "base.safetensors", arrays)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": method}))
    save(folder / "model.safetensors", made)
    code, found = audited(folder, source)
    assert code == 0 and {m["method"] for m in found["methods"]} == {"min-max"}, found["methods"]
    assert all(t["nearest_share"] > 0.99 for t in found["tensors"] if t["became"] == "quantized")
    changed = {n: noisy(a, 0.01, np.random.default_rng(4)) if a.ndim == 2 else a for n, a in arrays.items()}
    code, found = audited(folder, save(tmp_path / "changed.safetensors", changed))
    assert code == 1 and set(problems(found)) == {n for n, a in arrays.items() if a.ndim == 2}


def test_pruned_weights_are_named(tmp_path: Path) -> None:
    """Of every four the two smallest are 0, as sparse tensor cores want it."""
    arrays = base()
    source, pruned = save(tmp_path / "base.safetensors", arrays), dict(arrays)
    for name, a in arrays.items():
        if a.ndim == 2:
            fours = a.astype(np.float32).reshape(-1, 4)
            fours[np.argsort(np.abs(fours), axis=1).argsort(axis=1) < 2] = 0
            pruned[name] = fours.reshape(a.shape).astype(BF16)
    code, found = audited(quantized(tmp_path, pruned, "pruned", "--bits", "4"), source)
    assert code == 1 and all("it was pruned" in line for line in problems(found).values())
    assert set(problems(found)) == {n for n, a in arrays.items() if a.ndim == 2}


def with_transform(folder: Path, *places: str) -> Path:
    """The W4A8 model with what compressed-tensors writes of a rotation in these places; rows of one matrix exchanged
    with others, as a rotated one has."""
    shutil.copytree(GOLDEN_FILES / "audits" / "w4a8", folder)
    config = json.loads((folder / "config.json").read_text())
    uses = [{"targets": ["Linear"], "location": place, "inverse": False, "ignore": []} for place in places]
    transforms = {"config_groups": {"R1": {"type": "hadamard", "apply": uses}}}
    config["quantization_config"]["transform_config"] = transforms
    (folder / "config.json").write_text(json.dumps(config))
    parts = {n: s.array.copy() for n, s in load(folder / "model.safetensors").items()}
    codes = parts["model.layers.0.mlp.up_proj.weight"]
    codes[:] = codes[np.random.default_rng(0).permutation(len(codes))]
    save(folder / "model.safetensors", parts, {"format": "pt"})
    return folder


def test_rotated_weights_are_compared_with_no_base(tmp_path: Path) -> None:
    """SpinQuant's rotations lie in the weights of all layers: the model decodes, but is no base's."""
    folder = with_transform(tmp_path / "spin", "weight_input", "weight_output")
    ran = run("audit", folder, "--source", LLAMA)
    assert ran.code == 2 and "its weights were rotated (transform_config in config.json)" in ran.err, ran
    assert run("dequantize", folder, "-o", tmp_path / "floats", "-q").code == 0


def test_models_that_rotate_inputs_are_refused(tmp_path: Path) -> None:
    """QuIP's weights do nothing without the rotations that a runtime makes: no command decodes them."""
    folder = with_transform(tmp_path / "quip", "input", "weight_input")
    for command in (("audit", folder, "--source", LLAMA), ("dequantize", folder, "-o", tmp_path / "floats")):
        ran = run(*command)
        assert ran.code == (2 if command[0] == "audit" else 1) and ran.err.count("\n") == 1, ran
        assert "a runtime multiplies inputs or outputs of layers by R1" in ran.err
    assert not (tmp_path / "floats").exists()


def test_plain_casts_to_eight_bits(tmp_path: Path) -> None:
    """Weights that were rounded to 8-bit floats without scales, as files for ComfyUI have them."""
    arrays = base()
    source = save(tmp_path / "base.safetensors", arrays)
    cast = {n: a.astype(ml_dtypes.float8_e4m3fn) if a.ndim == 2 else a for n, a in arrays.items()}
    code, found = audited(save(tmp_path / "cast.safetensors", cast), source)
    assert code == 0 and found["became"] == {"cast": 8, "equal": 2}
    verdict = f"consistent with {source}: 8 tensors rounded to 8-bit floats, the others as in the base"
    assert found["verdict"] == verdict
    cast["layers.3.up.weight"] = cast["layers.4.up.weight"]
    code, found = audited(save(tmp_path / "cast.safetensors", cast), source)
    assert code == 1 and set(problems(found)) == {"layers.3.up.weight"}


def test_scaling_that_moves_into_the_norm_before_is_explained(tmp_path: Path) -> None:
    """As AWQ does: columns of codes times s, the norm's weight over s."""
    arrays, rng = base(), np.random.default_rng(2)
    source = save(tmp_path / "base.safetensors", arrays)
    s = np.exp(0.5 * rng.normal(size=256)).astype(np.float32)
    scaled = {n: (a * s).astype(BF16) if a.ndim == 2 else a for n, a in arrays.items()}
    scaled["norm.weight"] = (arrays["norm.weight"].astype(np.float32) / s).astype(BF16)
    code, found = audited(quantized(tmp_path, scaled, "scaled", "--bits", "4"), source)
    assert code == 0, problems(found)
    assert found["became"] == {"quantized": 8, "scaled": 1, "equal": 1}
    assert all("AWQ" in m["method"] for m in found["methods"])
    # The same norm beside columns that were not scaled is no such thing.
    half = {**arrays, "norm.weight": scaled["norm.weight"]}
    code, found = audited(quantized(tmp_path, half, "half", "--bits", "4"), source)
    assert code == 1 and set(problems(found)) == {"norm.weight"}


def test_one_tensor_that_lies_far_from_its_kind(tmp_path: Path) -> None:
    """Noise that costs one of eight tensors 3 dB."""
    arrays, rng = base(), np.random.default_rng(3)
    source = save(tmp_path / "base.safetensors", arrays)
    one = "layers.5.up.weight"
    worse = {**arrays, one: noisy(arrays[one], 0.1, rng)}
    code, found = audited(quantized(tmp_path, worse, "worse", "--bits", "4"), source)
    assert code == 1 and set(problems(found)) == {one}
    assert found["verdict"] == f"NOT consistent with {source}: 1 of 10 tensors does not fit"
    assert found["by_name"][one]["score"] is None or found["by_name"][one]["score"] > 6


Doctor = Callable[[Arrays], None]


def shift(parts: Arrays) -> None:
    parts["layers.2.up.qweight"] = (parts["layers.2.up.qweight"].view(np.uint32) ^ 0x11111111).view(np.int32)


def halve(parts: Arrays) -> None:
    parts["layers.2.up.scales"] = parts["layers.2.up.scales"] * np.float16(0.5)


def nan(parts: Arrays) -> None:
    parts["layers.2.up.scales"][0, 0] = np.nan


def few(parts: Arrays) -> None:
    parts["layers.2.up.qweight"] = (parts["layers.2.up.qweight"].view(np.uint32) & 0xCCCCCCCC).view(np.int32)


def lose(parts: Arrays) -> None:
    del parts["bias"]


def add(parts: Arrays) -> None:
    parts["more"] = np.ones(3, np.float32)


def cast(parts: Arrays) -> None:
    parts["norm.weight"] = parts["norm.weight"].astype(np.float16)


@pytest.mark.parametrize(("doctor", "name", "problem"), [
    (halve, "layers.2.up.weight", "0.498 times those of the base"),
    (nan, "layers.2.up.weight", "scales is not finite"),
    (few, "layers.2.up.weight", "only 4 of 16 codes occur"),
    (lose, "bias", "it is missing"),
    (add, "more", "it is not in the base"),
    (cast, None, ""),
    (shift, "layers.2.up.weight", "dB below what this format leaves"),
])  # fmt: skip
def test_what_was_done_to_a_file_is_named(doctor: Doctor, name: str | None, problem: str, tmp_path: Path) -> None:
    arrays = base()
    kept = {n: a for n, a in arrays.items() if "up" not in n}
    source = save(tmp_path / "base.safetensors", arrays)
    made = {}
    for n, a in arrays.items():
        if n not in kept:
            grouped = a.astype(np.float32).reshape(128, 4, 64)
            scales = (np.abs(grouped).max(2) / 7.5).astype(np.float16).astype(np.float32)
            codes = np.clip(np.rint(grouped / scales[..., None]) + 8, 0, 15)
            made[n] = codes.reshape(128, 256).astype(np.int64), scales
    folder = as_gptq(tmp_path / "gptq", made, kept)
    code, found = audited(folder, source)
    assert code == 0 and {m["method"] for m in found["methods"]} == {"min-max"}, problems(found)
    parts = {n: s.array.copy() for n, s in load(folder / "model.safetensors").items()}
    doctor(parts)
    save(folder / "model.safetensors", parts)
    code, found = audited(folder, source)
    wrong = problems(found)
    assert set(wrong) == ({name} if name is not None else set()) and code == (name is not None)
    assert name is None or problem in wrong[name]
    if name is None:
        assert found["by_name"]["norm.weight"]["became"] == "cast"


def test_a_model_of_another_base_is_refused_as_a_whole(tmp_path: Path) -> None:
    out = quantized(tmp_path, base(seed=100), "q", "--bits", "4")
    source = save(tmp_path / "base.safetensors", base())
    ran = run("audit", out, "--source", source)
    assert ran.code == 1
    assert "8 of 8 tensors quantized are other weights" in ran.out and f"NOT of {source}" in ran.err


def test_what_cannot_be_measured_has_exit_code_2(tmp_path: Path) -> None:
    source = save(tmp_path / "base.safetensors", base())
    other = save(tmp_path / "other.safetensors", {"x.weight": gaussian(64, 64, seed=1)})
    out = quantized(tmp_path, {"x.weight": gaussian(64, 64, seed=1)}, "x", "--bits", "4")
    for path, line in ((other, "no tensor"), (out, "no tensor has the same name"), (tmp_path / "none", "no such file")):
        ran = run("audit", path, "--source", source)
        assert ran.code == 2 and line in ran.err and ran.err.count("\n") == 1, ran
    ran = run("audit", source, "--source", source)
    assert ran.code == 2 and "it holds no quantized tensor" in ran.err


def test_the_figures_are_those_of_the_decoded_weights(tmp_path: Path) -> None:
    """SQNR and cosine by their definitions, of what the file decodes to."""
    arrays = base()
    out = quantized(tmp_path, arrays, "q", "--bits", "4")
    found = audited(out, tmp_path / "q-of.safetensors")[1]["by_name"]["layers.0.up.weight"]
    x = arrays["layers.0.up.weight"].astype(np.float64)
    y = values(out)["layers.0.up.weight"].astype(np.float64)
    assert found["sqnr_db"] == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-6)
    assert found["cosine"] == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()), abs=1e-9)


def test_documents_and_threads(tmp_path: Path) -> None:
    out = quantized(tmp_path, base(), "q", "--bits", "4")
    source = tmp_path / "q-of.safetensors"
    one = [run("audit", out, "--source", source, "--json", "--threads", n).out for n in (1, 3)]
    assert one[0] == one[1]
    for name in ("a.csv", "a.html", "a.md", "a.txt"):
        assert run("audit", out, "--source", source, "-q", "-o", tmp_path / name).code == 0
        assert name == "a.csv" or "consistent with" in (tmp_path / name).read_text()
