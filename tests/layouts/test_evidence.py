"""Models that are quantized already: what is recognised, what each command says of it, and what is taken as floats.

The layouts are those that the tools write: names, dtypes and shapes of the files of hqq 0.2.8, optimum-quanto 0.2.7,
torchao 0.18 and onnxruntime 1.31, and of published checkpoints (DeepSeek's FP8, gpt-oss, ModelOpt's NVFP4, AQLM).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layout_parts import GOLDEN
from making import BF16, NUMPY_OF, left_behind, load, one_line, raw_tensors, run, save
from strategies import gaussian

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def zeros(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors of the byte 0x38, which is a finite number, and a plausible one, in every dtype."""
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    return {name: (dtype, shape, b"8" * (int(np.prod(shape)) * bits.get(dtype, 0) // 8 if dtype in bits else
                                         int(np.prod(shape)) * NUMPY_OF[dtype].itemsize))
            for name, (dtype, shape) in tensors.items()}  # fmt: skip


def model(
    folder: Path,
    tensors: Tensors,
    config: dict[str, Any] | None = None,
    name: str = "config.json",
    metadata: dict[str, str] | None = None,
) -> Path:
    """A checkpoint folder of these tensors."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(raw_tensors(zeros(tensors), metadata))
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    return folder


NORM: Tensors = {"model.norm.weight": ("BF16", (64,))}
FLOATS: Tensors = {**NORM, "model.l.q.weight": ("BF16", (64, 64)), "model.l.q.bias": ("BF16", (64,))}
QUANTO: Tensors = {"0.weight._scale": ("F32", (64, 1)), "0.input_scale": ("F32", ()), "0.output_scale": ("F32", ()),
                   "0.bias": ("F32", (64,))}  # fmt: skip

DECODED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "DeepSeek": ({"model.l.q.weight": ("F8_E4M3", (256, 256)), "model.l.q.weight_scale_inv": ("F32", (2, 2))},
                 {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8 blocks"),
    "ModelOpt FP8": ({"l.q.weight": ("F8_E4M3", (64, 64)), "l.q.weight_scale": ("F32", ()),
                      "l.q.input_scale": ("F32", ())}, {}, "8-bit floats with scales"),
    "ComfyUI scaled": ({"l.q.weight": ("F8_E4M3", (64, 64)), "l.q.scale_weight": ("F32", ()),
                        "scaled_fp8": ("F8_E4M3", (2,))}, {}, "ComfyUI's scaled 8-bit floats"),
    "gpt-oss": ({"l.experts.gate_up_proj_blocks": ("U8", (2, 8, 2, 16)), "l.experts.gate_up_proj_scales":
                 ("U8", (2, 8, 2)), "l.experts.gate_up_proj_bias": ("BF16", (2, 8))},
                {"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4 of gpt-oss"),
    "ModelOpt NVFP4": ({"l.q.weight": ("U8", (64, 32)), "l.q.weight_scale": ("F8_E4M3", (64, 4)),
                        "l.q.weight_scale_2": ("F32", ()), "l.q.input_scale": ("F32", ())}, {}, "NVFP4 of ModelOpt"),
    "DeepSeek's own names": ({"l.wq.weight": ("F8_E4M3", (64, 64)), "l.wq.scale": ("F8_E8M0", (1, 1))}, {},
                             "8-bit floats with scales"),
    "quanto float8": ({"0.weight._data": ("F8_E4M3", (64, 128)), **QUANTO}, {}, "optimum-quanto"),
    "torchao float8": ({"0._weight_qdata": ("F8_E4M3", (64, 128)), "0._weight_scale": ("F32", (64, 1))}, {}, "torchao"),
}  # fmt: skip
"""Layouts that quantcli decodes: their tensors, config.json, and what is said."""

CODES: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "quanto int8": ({"0.weight._data": ("I8", (64, 128)), **QUANTO}, {}, "w8c"),
    "torchao int8": (
        {
            "0._weight_qdata": ("I8", (64, 128)),
            "0._weight_scale": ("F32", (64, 1)),
            "0._weight_zero_point": ("I8", (64, 1)),
        },
        {},
        "w8c-asym",
    ),
}
"""Layouts of whole numbers that quantcli decodes when asked to: the last is their scheme."""

UNDECODED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "torchao in tiles": ({"l.q._weight_qdata": ("I32", (8, 1, 32, 4)),
                          "l.q._weight_scale_and_zero": ("BF16", (8, 64, 2))}, {}, "torchao"),
    "AQLM": ({"l.q.codes": ("I8", (64, 16, 1)), "l.q.codebooks": ("F16", (1, 256, 1, 8)),
              "l.q.scales": ("F16", (64, 1, 1, 1))}, {}, "AQLM"),
    "BitNet": ({"l.q.weight": ("U8", (16, 64)), "l.q.weight_scale": ("BF16", (1,))}, {}, "integers with scales"),
    "SDNQ of 4 bits": ({"l.q.weight": ("U8", (6144,)), "l.q.scale": ("F32", (192, 2, 1)),
                        "l.q.zero_point": ("F32", (192, 2, 1))}, {}, "SDNQ"),
    "SDNQ of one bit": ({"l.q.weight": ("I64", (1536,)), "l.q.scale": ("F32", (192, 2, 1))},
                        {"quantization_config": {"quant_method": "sdnq"}}, "SDNQ"),
    "SDNQ of 8 bits": ({"l.q.weight": ("I8", (192, 2, 32)), "l.q.scale": ("F32", (192, 2, 1))},
                       {"quantization_config": {"quant_method": "sdnq"}}, "integers with scales"),
    "Quark of 4 bits": ({"l.q.weight": ("I32", (64, 24)), "l.q.weight_scale": ("BF16", (2, 192)),
                         "l.q.weight_zero_point": ("I32", (2, 24))},
                        {"quantization_config": {"quant_method": "quark"}}, "integers with scales"),
    "Quark's MXFP6": ({"l.q.weight": ("U8", (192, 48)), "l.q.weight_scale": ("U8", (192, 2))},
                      {"quantization_config": {"quant_method": "quark"}}, "integers with scales"),
    "torchao's MXFP8": ({"0._weight_qdata": ("F8_E4M3", (192, 64)), "0._weight_scale": ("F8_E8M0", (64, 16))}, {},
                        "torchao"),
    "torchao's NVFP4": ({"0._weight_qdata": ("U8", (192, 32)), "0._weight_scale": ("F8_E4M3", (64, 16)),
                         "0._weight_per_tensor_scale": ("F32", ())}, {}, "torchao"),
    "bytes named qweight": ({"l.q.qweight": ("I8", (64, 64)), "l.q.scale": ("F32", (64,))}, {},
                            "integers with scales"),
    "by config alone": ({"l.q.strange": ("I16", (64, 64))}, {"quantization_config": {"quant_method": "new"}},
                        "quant_method new"),
    "by the text's config": ({"l.q.strange": ("I16", (64, 64))},
                             {"text_config": {"quantization_config": {"quant_method": "new"}}}, "quant_method new"),
    "8-bit floats of an unknown method": ({"l.q.weight": ("F8_E4M3", (64, 64)), "l.q.weight_scale": ("F32", (1,))},
                                          {"quantization_config": {"quant_method": "new"}}, "quant_method new"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDECODED)
def test_quantized_sources_are_refused_before_a_weight_is_read(case: str, tmp_path: Path) -> None:
    tensors, config, said = UNDECODED[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    for command in (["quantize", "-o", tmp_path / "out"], ["quantize", "--to", "mlx", "-o", tmp_path / "out"],
                    ["plan", "--target-bpw", "5"], ["sweep"]):  # fmt: skip
        line = one_line(run(command[0], source, *command[1:]), 1)
        assert line.startswith(f"{source}: it is quantized in a layout that quantcli does not decode")
        assert said in line and line.endswith("start from the original")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"] and not left_behind(tmp_path)
    line = one_line(run("quantize", source / "model.safetensors", "-o", tmp_path / "out"), 1)
    assert "it is quantized in a layout that quantcli does not decode" in line and said in line


@pytest.mark.parametrize("case", [case for case, (_, config, _) in UNDECODED.items() if config])
def test_what_is_refused_is_named_by_its_configuration(case: str, tmp_path: Path) -> None:
    tensors, config, _ = UNDECODED[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    method = config.get("text_config", config)["quantization_config"]["quant_method"]
    for line in (one_line(run("dequantize", source, "-o", tmp_path / "out"), 1), run("inspect", source).out):
        assert f"config.json has quantization_config (quant_method {method})" in line


def test_integers_of_compressed_tensors_are_named_without_a_configuration(tmp_path: Path) -> None:
    tensors: Tensors = {"l.q.weight": ("I8", (64, 128)), "l.q.weight_scale": ("F32", (64, 1))}
    source = model(tmp_path / "source", {**FLOATS, **tensors}, {})
    ran = run("inspect", source)
    assert "layout: integers as compressed-tensors stores them: l.q.weight is I8 beside l.q.weight_scale" in ran.out


@pytest.mark.parametrize("case", DECODED)
def test_published_formats_are_decoded(case: str, tmp_path: Path) -> None:
    tensors, config, _ = DECODED[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    said = r"source: (FP8|MXFP4|NVFP4)[^(]* \(1 tensor, decoded to (bfloat16|float32)\)"
    assert re.search(said, run("quantize", source, "-o", tmp_path / "out").out)
    for command in (["plan", "--target-bpw", "9"], ["sweep"]):
        ran = run(command[0], source, *command[1:])
        assert ran.code == 0 and re.search(said, ran.err)


@pytest.mark.parametrize("case", CODES)
def test_whole_numbers_are_decoded_when_asked_to(case: str, tmp_path: Path) -> None:
    tensors, config, scheme = CODES[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    line = one_line(run("quantize", source, "-o", tmp_path / "out"), 1)
    assert f"{scheme} (1 tensor, decoded to float32)" in line and "--requantize" in line
    assert run("quantize", source, "--requantize", "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda p: p.stem)
def test_files_that_other_tools_wrote_are_decoded_or_refused(path: Path, tmp_path: Path) -> None:
    """Integer codes are decoded on request; what comes out is what the decoded file gives. Some need a config.json."""
    out = tmp_path / "out.safetensors"
    ran = run("quantize", path, "-o", out, "--bits", "8", "--json")
    if ran.code:
        if run("dequantize", path, "-o", tmp_path / "floats.safetensors").code:
            assert "m.weight: " in one_line(ran, 1) and list(tmp_path.iterdir()) == []
            return
        (tmp_path / "floats.safetensors").unlink()
        assert "this model is quantized already" in one_line(ran, 1) and "--requantize" in ran.err
        assert list(tmp_path.iterdir()) == []
        ran = run("quantize", path, "-o", out, "--bits", "8", "--json", "--requantize")
    assert ran.code == 0 and ran.json["decoded_from"]
    run("dequantize", path, "-o", tmp_path / "floats.safetensors")
    assert run("quantize", tmp_path / "floats.safetensors", "-o", tmp_path / "two.safetensors", "--bits", "8").code == 0
    own, other = load(out), load(tmp_path / "two.safetensors")
    assert {n: (t.dtype, t.shape, t.data) for n, t in own.items()} == {
        n: (t.dtype, t.shape, t.data) for n, t in other.items()
    }


@pytest.mark.parametrize("case", UNDECODED)
def test_what_is_not_decoded_is_never_taken_for_floats(case: str, tmp_path: Path) -> None:
    """HQQ and quanto files compared as exact, or had nothing quantized in them."""
    tensors, config, said = UNDECODED[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    original = model(tmp_path / "original", FLOATS)
    for ran, code in [
        (run("compare", original, source), 2), (run("compare", source, original), 2),
        (run("compare", source, source), 2), (run("report", source), 2),
        (run("report", source, "--against", original), 2), (run("verify", source), 2),
        (run("verify", source, "--source", original), 2),
        (run("dequantize", source, "-o", tmp_path / "out.safetensors"), 1),
    ]:  # fmt: skip
        line = one_line(ran, code)
        assert line.startswith(f"{source}: it is quantized in a layout that quantcli does not decode") and said in line
    assert not (tmp_path / "out.safetensors").exists()


def test_scales_in_another_file_are_missed(tmp_path: Path) -> None:
    """One shard of a model alone: what its scales lie elsewhere for is not compared as numbers."""
    tensors, config, _ = DECODED["DeepSeek"]
    whole = model(tmp_path / "whole", tensors, config)
    assert run("compare", whole, whole).code == 0
    shard = model(tmp_path / "shard", {**tensors, "model.l.k.weight": ("F8_E4M3", (256, 256))}, config)
    line = one_line(run("compare", shard, shard), 2)
    assert "model.l.k.weight is F8_E4M3, and config.json has quantization_config (quant_method fp8)" in line


@pytest.mark.parametrize("case", [*DECODED, *UNDECODED])
def test_inspect_shows_the_layout(case: str, tmp_path: Path) -> None:
    tensors, config, said = {**DECODED, **UNDECODED}[case]
    source = model(tmp_path / "source", {**FLOATS, **tensors}, config)
    ran = run("inspect", source)
    layout = next(line for line in ran.out.splitlines() if line.startswith("layout: "))
    assert ran.code == 0 and said in layout
    found = run("inspect", source, "--json").json
    assert f"layout: {found['layout']}" == layout and found["quantized"]


# ---- what is said beside it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "said"), [
    ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config (quant_method fp8)"),
    ("config.json", {"quantization": {"bits": 4, "group_size": 64}}, "quantization (bits 4)"),
    ("config.json", {"compression_config": {"format": "dense"}}, "compression_config (format dense)"),
    ("quantize_config.json", {"bits": 4, "group_size": 128}, "quantization_config (bits 4)"),
    ("quant_config.json", {"w_bit": 4, "version": "GEMM"}, "quant_config.json is present (w_bit 4)"),
    ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "is present (quant_algo NVFP4)"),
])  # fmt: skip
def test_a_configuration_counts_where_a_tensor_can_be_codes(
    name: str, config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """A dequantized model keeps the configuration; that is said, and its floats are quantized."""
    stale = model(tmp_path / "stale", {**FLOATS, "ids": ("I64", (1, 64))}, config, name)
    ran = run("quantize", stale, "-o", tmp_path / "out")
    assert ran.code == 0 and said in ran.err and "all tensors are read as plain floats" in ran.err, ran
    assert "model.l.q.weight_packed" in load(tmp_path / "out" / "model.safetensors")
    assert f"layout: plain floats: {ran.err.split(': ', 2)[2].split(', but')[0]}" in run("inspect", stale).out
    assert run("compare", stale, stale).code == 0
    codes = model(tmp_path / "codes", {**FLOATS, "l.strange": ("I32", (64, 8))}, config, name)
    assert said in one_line(run("quantize", codes, "-o", tmp_path / "out2"), 1)


def test_configurations_that_say_nothing(tmp_path: Path) -> None:
    silent: list[tuple[str, dict[str, Any]]] = [
        ("config.json", {"quantization_config": None, "quantization": {}, "model_type": "x"}),
        ("config.json", {"quantization": "none"}),
        ("hf_quant_config.json", {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}),
    ]  # fmt: skip
    for i, (name, config) in enumerate(silent):
        source = model(tmp_path / str(i), {**FLOATS, "table": ("I32", (64, 8))}, config, name)
        ran = run("quantize", source, "-o", tmp_path / f"out{i}")
        assert ran.code == 0 and "plain floats" not in ran.err, ran


def test_a_broken_configuration_beside_a_single_file_is_not_its_own(tmp_path: Path) -> None:
    source = model(tmp_path / "source", FLOATS)
    (source / "config.json").write_text("{")
    assert run("quantize", source / "model.safetensors", "-o", tmp_path / "out.safetensors").code == 0
    assert "not valid JSON" in one_line(run("quantize", source, "-o", tmp_path / "out"), 1)


@pytest.mark.parametrize(("name", "others"), [
    ("l.k.zero", {"l.k.scale": ("F16", (64, 1)), "l.k.zero": ("F16", (64, 1)), "l.k.nbits": ("I32", ())}),
    ("l.k._weight_scale", {"l.k._weight_scale": ("F32", (64, 1))}),
    ("l.k._weight_scale_and_zero", {"l.k._weight_scale_and_zero": ("BF16", (2, 64, 2))}),
])  # fmt: skip
def test_scales_without_their_codes_are_refused(name: str, others: Tensors, tmp_path: Path) -> None:
    """As of a shard whose codes are in another file: of HQQ and torchao, whose scales have common names."""
    source = model(tmp_path / "source", {**FLOATS, **others})
    line = one_line(run("quantize", source, "-o", tmp_path / "out"), 1)
    assert f"{name} is there, but not the codes that it belongs to" in line
    assert run("quantize", source, "-o", tmp_path / "out", "--source-layout", "plain").code == 0


def test_scales_of_activations_are_said_to_be_left_out(tmp_path: Path) -> None:
    tensors, config, _ = DECODED["ModelOpt FP8"]
    source = model(tmp_path / "source", {**FLOATS, **tensors, "l.q.output_scale": ("F32", ())}, config)
    said = "left out, scales of activations or caches: l.q.input_scale and 1 more"
    assert said in run("quantize", source, "-o", tmp_path / "out", "--json").json["warnings"]
    assert said in run("dequantize", source, "-o", tmp_path / "floats", "--json").json["warnings"]
    for words in (["plan", source, "--target-bpw", "9"], ["sweep", source]):
        assert said in run(*words).err


# ---- floats that only look like it ------------------------------------------------------------------------------


def test_float_models_with_scales_in_their_names_are_floats(tmp_path: Path) -> None:
    """Parameters called scale, a scale beside a float weight, whole numbers that are buffers: none of it is codes."""
    source = model(tmp_path / "source", {
        **FLOATS, "logit_scale": ("F32", ()), "l.layer_scale": ("F32", (64,)), "l.scale": ("F32", (64, 64)),
        "l.q.scales": ("F32", (64, 2)), "model.norm.weight_scale": ("F32", (64, 1)), "l.q.input_scale": ("F32", ()),
        "attn.W_q": ("F32", (64, 64)), "attn.W_k": ("F32", (64, 64)), "attn.scale": ("F32", ()),
        "norm_data": ("F32", (64, 64)), "blocks": ("F32", (64, 64)), "scales": ("F32", (64, 64)),
        "position_ids": ("I64", (1, 512)), "bn.num_batches_tracked": ("I64", ()), "tokens": ("I32", (4, 64)),
        "h.attn.bias": ("U8", (1, 1, 32, 32)), "mask": ("BOOL", (32, 32)), "index": ("I64", (49, 49)),
        "image": ("U8", (8, 8, 3)),
    })  # fmt: skip
    ran = run("quantize", source, "-o", tmp_path / "out")
    assert ran.code == 0, ran
    assert not any(line.startswith("layout") for line in run("inspect", source).out.splitlines())
    assert run("compare", source, source, "--json").json["summary"]["exact"]


# ---- codes without scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_casts_to_8_bit_floats_are_floats_on_request(dtype: Any, tmp_path: Path) -> None:
    """What ComfyUI's users have: refused with the way out; then each weight is the number that it is."""
    cast = gaussian(64, 256, seed=1).astype(dtype)
    path = save(tmp_path / "cast.safetensors", {"a.weight": cast, "b.bias": gaussian(64).astype(dtype)})
    plain = save(tmp_path / "plain.safetensors", {"a.weight": cast.astype(np.float32), "b.bias": gaussian(64)})
    for command in (["quantize", "-o", tmp_path / "out"], ["plan", "--target-bpw", "5"], ["sweep"]):
        line = one_line(run(command[0], path, *command[1:]), 1)
        assert "looks quantized already" in line and "a.weight is F8_E" in line and "--source-layout plain" in line
        assert run(command[0], path, "--source-layout", "plain", *command[1:]).code == 0
    assert run("quantize", plain, "--scale-dtype", "float32", "-o", tmp_path / "want.safetensors").code == 0
    assert run("quantize", path, "--source-layout", "plain", "--scale-dtype", "float32", "-o",
               tmp_path / "have.safetensors").code == 0  # fmt: skip
    want, have = load(tmp_path / "want.safetensors"), load(tmp_path / "have.safetensors")
    for name in ("a.weight_packed", "a.weight_scale"):
        assert have[name].data == want[name].data
    assert run("compare", path, plain).code == 0 and run("report", path).code == 2


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ", "U8", "I8", "I32"])
def test_other_codes_without_scales(dtype: str, tmp_path: Path) -> None:
    source = model(tmp_path / "source", {**FLOATS, "l.k.weight": (dtype, (64, 64))})
    line = one_line(run("quantize", source, "-o", tmp_path / "out"), 1)
    assert f"l.k.weight is {dtype}" in line and "--source-layout plain" in line
    assert run("quantize", source, "-o", tmp_path / "out", "--source-layout", "plain").code == 0
    assert load(tmp_path / "out" / "model.safetensors")["l.k.weight"].dtype == dtype


def test_plain_holds_for_every_target_and_report(tmp_path: Path) -> None:
    """Scales beside the weights change nothing then: what was written is measured against the numbers themselves."""
    codes = gaussian(256, 256, seed=3).astype(ml_dtypes.float8_e4m3fn)
    scale = np.full((2, 2), 1e-3, np.float32)
    path = save(tmp_path / "m.safetensors", {"q.weight": codes, "q.weight_scale_inv": scale})
    flags = ["--source-layout", "plain", "--group-size", "64", "--asymmetric", "--zero-point", "float", "--json"]
    for target in ("native", "mlx"):
        found = run("quantize", path, *flags, "--to", target, "-o", tmp_path / f"{target}.safetensors")
        assert found.code == 0, found
        assert next(t for t in found.json["tensors"] if t["name"] == "q.weight")["sqnr_db"] > 15
    native = tmp_path / "native.safetensors"
    assert run("report", native, "--against", path, "--min-sqnr", "15").code == 0
    # Without digests nothing tells that these codes are the floats it was made from.
    line = one_line(run("report", native, "--against", path, "--ignore-digest"), 2)
    assert "the original is quantized itself (FP8 blocks" in line


def test_native_files_are_refused_in_any_layout(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"a.weight": gaussian(64, 64).astype(BF16)})
    assert run("quantize", tmp_path / "a.safetensors", "-o", tmp_path / "q.safetensors").code == 0
    for layout in ("auto", "plain"):
        line = one_line(run("quantize", tmp_path / "q.safetensors", "--source-layout", layout, "-o", tmp_path / "x"), 1)
        assert "quantized already" in line and "--requantize" in line
