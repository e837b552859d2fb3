"""Verifying: nothing is found in files that are right, and every flipped bit in those that are not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import made
from hypothesis import given
from hypothesis import strategies as st
from making import (
    BF16,
    ROOT,
    change_header,
    environment,
    header_of,
    one_line,
    run,
    run_process,
    save,
    sparse_model,
)
from safetensors.numpy import load_file, save_file
from strategies import AWKWARD, gaussian, schemes, weights

from quantcli import DataError, QuantcliError, Scheme
from quantcli.layouts.native import model as reading
from quantcli.passes import outputs, quantize, verify
from quantcli.passes.findings import Verified
from quantcli.planning.plan import make
from quantcli.planning.request import Request

OPTIONS: dict[str, list[str]] = {
    "default": [], "w8c": ["--bits", "8", "--group-size", "-1"], "tensor": ["--bits", "5", "--group-size", "0"],
    "asymmetric": ["--asymmetric", "--group-size", "16"],
    "tensor-asymmetric": ["--bits", "7", "--granularity", "tensor", "--asymmetric"],
    "columns": ["--bits", "6", "--granularity", "channel", "--axis", "1", "--asymmetric"],
    "float offsets": ["--bits", "4", "--asymmetric", "--zero-point", "float", "--group-size", "32"],
    "restricted": ["--bits", "3", "--calibration", "minmax", "--group-size", "32"],
    "binary": ["--bits", "1"], "wide": ["--bits", "16", "--group-size", "64"], "nf4": ["--type", "nf4"],
    "fp8": ["--type", "fp8-e4m3"], "midrise": ["--type", "midrise"], "mu-law": ["--type", "mu-law"],
    "codebook": ["--type", "codebook", "--group-size", "32"], "five levels": ["--levels", "5", "--group-size", "32"],
    "channel levels": ["--type", "codebook", "--group-size", "-1", "--bits", "3"],
    "tensor levels": ["--type", "codebook", "--group-size", "0", "--bits", "3"],
    "auto": ["--calibration", "auto"], "sha256": ["--digest", "sha256"], "no digest": ["--digest", "none"],
    "preserving": ["--rounding", "sum-preserving", "--calibration", "minmax", "--bits", "2"],
}  # fmt: skip


def verified(file: Path | str, original: Path | str | None = None, threads: int = 2) -> Verified:
    with reading.open(str(file)) as model:
        if original is None:
            return verify.verify(model, None, threads=threads, progress=None)
        with reading.open(str(original)) as before:
            return verify.verify(model, before, threads=threads, progress=None)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_is_found_in_what_quantize_writes(name: str, tmp_path: Path) -> None:
    weights = {f"{key}.weight": array for key, array in AWKWARD.items() if array.dtype.byteorder != ">"}
    if "columns" in name:
        weights = {key: array for key, array in weights.items() if array.ndim > 1}
    if "levels" in name:
        del weights["far from zero.weight"]  # some levels there do not fit bfloat16, which is beside the point
    weights |= {"wide": gaussian(3, 40_000, seed=9).astype(BF16), "ids": np.arange(7), "x.bias": gaussian(64)}
    source = save(tmp_path / "model.safetensors", weights)
    ran = run("quantize", source, "-o", tmp_path / "out.safetensors", "-q", "--no-default-keep", *OPTIONS[name])
    assert ran.code == 0, ran
    for original in (None, source):
        found = verified(tmp_path / "out.safetensors", original)
        assert found.passed, found.findings
        assert found.tensors == len(weights) and found.quantized >= 10
        assert bool(found.unchecked) == (name == "no digest")


@given(data=st.data(), scheme=schemes())
def test_nothing_is_found_in_any_file(data: st.DataObject, scheme: Scheme, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    array = data.draw(weights(dtype=data.draw(st.sampled_from([np.float32, BF16, np.float16]))))
    source, out = save(folder / "a.safetensors", {"a": array}), str(folder / "b.safetensors")
    with reading.open(str(source)) as model:
        try:
            plan = make(model.source.infos(), Request(scheme=scheme, keep_defaults=False))
            options = quantize.Options(threads=1)
            outgoing = outputs.planned(plan, model.source, digest=options.digest)
            quantize.write(model.source, plan, outgoing, out, options)
        except DataError:
            return
    assert verified(out).findings == verified(out, source).findings == ()


# ---- flipped bits -----------------------------------------------------------------------------------------------

TINY = {"w": gaussian(6, 10, seed=1).astype(BF16), "kept.bias": gaussian(3, seed=2)}
ZERO = {"w": np.concatenate([gaussian(3, 16, seed=1), np.zeros((2, 16), np.float32)])}
FLIPS: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "w3g4": (TINY, ["--bits", "3", "--group-size", "4", "--no-default-keep"]),
    "w4t-asym": (TINY, ["--calibration", "minmax", "--group-size", "0", "--asymmetric", "--no-default-keep"]),
    "w2g8-asym": (TINY, ["--bits", "2", "--group-size", "8", "--asymmetric", "--no-default-keep"]),
    "w4g8-restricted": (ZERO, ["--group-size", "8", "--calibration", "minmax", "--scale-dtype", "float32"]),
    "w4g4-offset": (TINY, ["--group-size", "4", "--asymmetric", "--zero-point", "float", "--calibration", "minmax",
                           "--no-default-keep"]),
    "w1g8": (ZERO, ["--bits", "1", "--group-size", "8"]),
    "w5c1": (TINY, ["--bits", "5", "--granularity", "channel", "--axis", "1", "--no-default-keep"]),
    "nf4g8": (ZERO, ["--type", "nf4", "--group-size", "8"]),
    "codebook-g8": (ZERO, ["--levels", "5", "--group-size", "8", "--effort", "fast"]),
    "codebook-c": (TINY, ["--type", "codebook", "--bits", "2", "--group-size", "-1", "--no-default-keep"]),
    "w4t-zeros": ({"w": np.zeros((2, 16), np.float32), "v": gaussian(2, 16)},
                  ["--group-size", "0", "--calibration", "minmax", "--grid", "full"]),
}  # fmt: skip


def flips(file: Path, step: int) -> list[tuple[str, int]]:
    """Every bit of the data and every `step`th of the header, as (part, bit in the file)."""
    header = header_of(file)
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    found = [("header", bit) for bit in range(0, 8 * start, step)]
    for name, entry in header.items():
        if name != "__metadata__":
            part = name.rpartition("_")[2] if not name.startswith("kept") else "kept"
            found += [(part, 8 * start + bit) for bit in range(*(8 * n for n in entry["data_offsets"]))]
    return found


def missed(file: Path, original: Path | None, which: list[tuple[str, int]]) -> Counter[str]:
    """How many flips in each part are not found."""
    raw, left = file.read_bytes(), Counter[str]()
    for part, bit in which:
        with file.open("r+b") as out:
            out.seek(bit // 8)
            out.write(bytes([raw[bit // 8] ^ 1 << bit % 8]))
        with contextlib.suppress(QuantcliError):
            left[part] += verified(file, original, 1).passed
        with file.open("r+b") as out:
            out.seek(bit // 8)
            out.write(raw[bit // 8 : bit // 8 + 1])
    assert file.read_bytes() == raw
    return +left


@pytest.mark.parametrize("name", FLIPS)
def test_every_flipped_bit_is_found_with_the_source(name: str, tmp_path: Path) -> None:
    """in codes, scales, zero points, padding, shape tensors, kept tensors and the header"""
    tensors, options = FLIPS[name]
    source, out = save(tmp_path / "model.safetensors", tensors), tmp_path / "out.safetensors"
    assert run("quantize", source, "-o", out, *options, "-q").code == 0
    assert verified(out, source).passed
    which = flips(out, 397)
    assert len(which) > 300
    assert missed(out, source, which) == Counter()


@pytest.mark.parametrize("name", FLIPS)
def test_which_flipped_bits_are_found_without_the_source(name: str, tmp_path: Path) -> None:
    """Codes, scales, zero points and levels that are possible too cannot be told; everything else is"""
    tensors, options = FLIPS[name]
    source, out = save(tmp_path / "model.safetensors", tensors), tmp_path / "out.safetensors"
    run("quantize", source, "-o", out, *options, "-q")
    which = flips(out, 397)
    left = missed(out, None, which)
    assert set(left) <= {"packed", "scale", "point", "offset", "codebook"}
    total = Counter(part for part, _ in which)
    assert all(left[part] < total[part] for part in {"scale", "offset", "codebook"} & set(total))
    assert left["packed"] < total["packed"] or name in ("nf4g8", "w4t-zeros", "w1g8")  # which have no padding


def test_all_of_a_header(tmp_path: Path) -> None:
    """Every single bit of a header, with no original at hand"""
    source, out = save(tmp_path / "model.safetensors", {"w": gaussian(2, 40)}), tmp_path / "out.safetensors"
    run("quantize", source, "-o", out, "-q")
    which = [("header", bit) for bit in range(8 * (8 + int.from_bytes(out.read_bytes()[:8], "little")))]
    assert missed(out, None, which[::5]) == Counter()


# ---- what is printed --------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {"a.weight": gaussian(40, 64, seed=1), "b.weight": gaussian(33, 50, seed=2), "c.bias": gaussian(20)}
    source = save(tmp_path / "model.safetensors", tensors)
    assert run("quantize", source, "-o", "out.safetensors", "-q").code == 0
    return source


def damage(file: Path, tensor: str, at: int, mask: int) -> None:
    """Change a byte of a stored tensor."""
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + header_of(file)[tensor]["data_offsets"][0] + at] ^= mask
    file.write_bytes(raw)


def test_what_is_printed(model: Path) -> None:
    out = Path("out.safetensors")
    ran = run("verify", out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "out.safetensors: ok: 3 tensors, 2 quantized; structure, scales, padding, ranges, digest\n"
    ran = run("verify", out, "--source", model)
    assert (
        ran.out == f"out.safetensors: ok against {model}: 3 tensors, 2 quantized; structure, scales, padding, "
        "ranges, digest, source, codes, metrics\n"
    )
    with reading.open(str(out)) as opened:
        code = int(opened["b.weight"].quantized().codes[2, 1])
    damage(out, "b.weight_packed", 2 * 28, 0x10)
    assert run("verify", out).code == 0
    ran = run("verify", out, "--source", model)
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[0] == f"out.safetensors: FAILED against {model}: 3 tensors, 2 quantized, 1 wrong"
    assert lines[2].split() == ["tensor", "structure", "scales", "padding", "ranges", "digest", "source", "codes",
                                "metrics"]  # fmt: skip
    assert lines[3].split() == ["b.weight", *["ok"] * 6, "FAILED", "FAILED"]
    u = code + 8
    said = (
        "b.weight: codes: a code is not the one of its weight under the stored scales "
        f"at [2, 1]: {u ^ 1} stored, {u} expected"
    )
    assert lines[5] == said and lines[6].startswith("b.weight: metrics: the squared error is ")
    assert ran.err == f"quantcli: out.safetensors: verification failed: {said}; and 1 more\n"
    assert len(run("verify", out, "--source", model, "--all").out.splitlines()) == len(lines) + 2


def test_the_document(model: Path) -> None:
    damage(Path("out.safetensors"), "a.weight_scale", 1, 0x80)
    document = run("verify", "out.safetensors", "--source", model, "--json").json
    assert {k: v for k, v in document.items() if k != "findings"} == {
        "schema_version": 1, "command": "verify", "file": "out.safetensors", "source": str(model), "passed": False,
        "tensors": 3, "quantized": 2, "unchecked": [],
    }  # fmt: skip
    codes = next(f for f in document["findings"] if f["check"] == "codes")
    assert codes["tensor"] == "a.weight" and codes["index"][0] == 0 and codes["count"] > 20
    assert codes["stored"] != codes["expected"]
    assert document == run("verify", "out.safetensors", "--source", model, "--json", "--threads", "1").json
    assert run("verify", "out.safetensors", "--source", model, "-q").out == ""


def test_the_same_codes_and_another_sum(model: Path) -> None:
    """stored metrics are measured again and equal"""
    document = json.loads(header_of(Path("out.safetensors"))["__metadata__"]["quantcli"])
    told = document["tensors"]["a.weight"]["sse"]
    measured = f"{told * 1.125!r} in the header, {told!r} measured"
    change_header("out.safetensors", lambda d: d["tensors"]["a.weight"].update(sse=told * 1.125))
    assert run("verify", "out.safetensors").code == 0
    ran = run("verify", "out.safetensors", "--source", model)
    assert ran.code == 1 and f"a.weight: metrics: the squared error is {measured}" in ran.out


def test_another_original(model: Path) -> None:
    other = {"a.weight": gaussian(40, 64, seed=1), "b.weight": gaussian(33, 49, seed=2), "d": gaussian(2, 2)}
    other["a.weight"][3, 3] += 1
    save(Path("other.safetensors"), other)
    ran = run("verify", "out.safetensors", "--source", "other.safetensors")
    assert ran.code == 1
    for line in (
        "a.weight: source: the original's bytes do not have the digest in the header",
        "a.weight: codes: a code is not the one of its weight under the stored scales",
        "b.weight: source: it is F32 [33, 49] in the original, not F32 [33, 50]",
        "c.bias: source: it is not in the original",
        "d: source: it is missing here",
    ):
        assert line in ran.out
    itself = run("verify", "out.safetensors", "--source", "out.safetensors")
    assert itself.code == 1 and "the original's bytes do not have the digest in the header" in itself.out


def test_what_cannot_be_looked_at(model: Path) -> None:
    assert "it holds no quantized tensor" in one_line(run("verify", model), 2)
    assert "no such file" in one_line(run("verify", "nothing.safetensors"), 2)
    assert "no such file" in one_line(run("verify", "out.safetensors", "--source", "nothing"), 2)
    Path("empty").write_bytes(b"")
    assert one_line(run("verify", "out.safetensors", "--source", "empty"), 2).startswith("empty")
    ran = run("verify", "empty")
    assert ran.code == 1 and ran.out.splitlines()[-1].startswith("structure: a file of 0 bytes is not a safetensors")


def test_a_cut_file_has_failed(model: Path) -> None:
    raw = Path("out.safetensors").read_bytes()
    for size in (7, 300, len(raw) - 1):
        Path("cut.safetensors").write_bytes(raw[:size])
        ran = run("verify", "cut.safetensors")
        assert ran.code == 1 and "verification failed: structure: " in ran.err and ran.err.count("\n") == 1


def test_a_header_without_a_digest_of_itself(model: Path) -> None:
    """as earlier versions wrote them"""
    change_header("out.safetensors", lambda d: d.pop("check"), seal=False)
    ran = run("verify", "out.safetensors", "--source", model)
    assert ran.code == 0 and ran.out.splitlines()[1] == "not checked: the header has no digest of its own"


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """index and config.json's quantization_config"""
    monkeypatch.chdir(tmp_path)
    source = made(tmp_path / "source")
    run("quantize", source, "-o", "out", "-q")
    assert run("verify", "out").code == run("verify", "out", "--source", source).code == 0
    index, config = Path("out/model.safetensors.index.json"), Path("out/config.json")
    told, said = json.loads(index.read_text()), json.loads(config.read_text())
    for change, words in (
        ({"metadata": {**told["metadata"], "total_size": 5}}, "model.safetensors.index.json: total_size is 5, not "),
        ({"metadata": {**told["metadata"], "total_parameters": "x"}}, "total_parameters is 'x', not 99328"),
        ({"weight_map": {**told["weight_map"], "x": "model-00001-of-00004.safetensors"}}, "which does not hold it"),
    ):
        index.write_text(json.dumps({**told, **change}))
        ran = run("verify", "out")
        assert ran.code == 1 and words in ran.out
    index.write_text(json.dumps(told))
    ours = said["quantization_config"]
    for content, fault in (
        ({**said, "quantization_config": {**ours, "ignore": ["x"]}}, "ignore of quantization_config"),
        ({"model_type": "llama"}, "config_groups of quantization_config differs from the files"),
        ({**said, "more": 1, "quantization_config": {**ours, "version": "9"}}, ""),
        ({**said, "quantization_config": {**ours, "ignore": ours["ignore"][::-1]}}, ""),
    ):
        config.write_text(json.dumps(content))
        ran = run("verify", "out")
        assert (ran.code == 0) == (not fault) and fault in ran.out
    os.remove("out/model-00002-of-00004.safetensors")
    assert run("verify", "out").code == 1


def test_the_same_with_either_kernels(model: Path) -> None:
    damage(Path("out.safetensors"), "b.weight_packed", 100, 0x42)
    damage(Path("out.safetensors"), "a.weight_scale", 3, 0x11)
    ran = [
        run_process("verify", "out.safetensors", "--source", model, QUANTCLI_KERNELS=kernels)
        for kernels in ("native", "numpy")
    ]
    assert ran[0] == ran[1] and ran[0].code == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    source, out = sparse_model(tmp_path / "model.safetensors", 0.4), tmp_path / "out.safetensors"
    assert run("quantize", source, "-o", out, "-q").code == 0
    program = (
        "from quantcli.cli import main\n"
        f"try: main(['verify', {str(out)!r}, '--source', {str(source)!r}, '--threads', '2'])\n"
        "except SystemExit as done: print(done.code, open('/proc/self/status').read())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    status = done.stdout.splitlines()[1:]
    assert status[0].startswith("0 ")
    assert int(next(line for line in status if line.startswith("VmHWM")).split()[1]) < 100_000


# ---- importances, and what other tools wrote ------------------------------------------------------------------------


def test_scales_weighed_by_importances(tmp_path: Path) -> None:
    weights = gaussian(64, 96, seed=3)
    model = save(tmp_path / "m.safetensors", {"a.weight": weights})
    for name, importance in (("right", gaussian(96, seed=4) ** 4), ("wrong", gaussian(96, seed=5) ** 4)):
        save(tmp_path / f"{name}.safetensors", {"a.weight": importance})
    out = tmp_path / "q.safetensors"
    assert run("quantize", model, "--importance", tmp_path / "right.safetensors", "-o", out, "-q").code == 0
    ran = run("verify", out, "--source", model)
    assert ran.code == 0 and "not recomputed without --importance" in ran.out
    ran = run("verify", out, "--source", model, "--importance", tmp_path / "right.safetensors")
    assert ran.code == 0 and "not checked" not in ran.out
    ran = run("verify", out, "--source", model, "--importance", tmp_path / "wrong.safetensors")
    assert ran.code == 1 and "it was weighted by other importances" in ran.out
    raw = bytearray(out.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    at = 8 + int.from_bytes(raw[:8], "little") + header["a.weight_scale"]["data_offsets"][0]
    raw[at] ^= 1
    out.write_bytes(raw)
    ran = run("verify", out, "--source", model, "--importance", tmp_path / "right.safetensors")
    assert ran.code == 1 and "a scale is not what its method computes" in ran.out


def test_what_another_tool_wrote(tmp_path: Path) -> None:
    original, out = ROOT / "sample_models" / "tiny-llama", tmp_path / "out"
    assert run("quantize", original, "--to", "mlx", "--group-size", 32, "-o", out, "-q").code == 0
    ran = run("verify", out, "--source", original)
    assert ran.code == 0 and "codes are not recomputed" in ran.out and "padding" not in ran.out
    file = next(out.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.scales"][3, 1] = np.nan
    save_file(tensors, file, metadata={"format": "mlx"})
    ran = run("verify", out, "--json")
    assert ran.code == 1
    found = json.loads(ran.out)["findings"]
    assert [(f["tensor"], f["check"]) for f in found] == [("model.layers.0.mlp.up_proj.weight", "scales")]
    assert run("verify", out, "--source", ROOT / "sample_models" / "digits.safetensors").code == 1


def test_missing_tensors_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that only the original has are none of those of the file that are wrong."""
    monkeypatch.chdir(tmp_path)
    weights = {f"layers.{i}.weight": gaussian(64, 128, seed=i) for i in range(4)}
    save(tmp_path / "all.safetensors", weights)
    save(tmp_path / "one.safetensors", {"layers.0.weight": weights["layers.0.weight"]})
    assert run("quantize", "one.safetensors", "-o", "out.gguf", "--container", "-q").code == 0
    assert run("inspect", "one.safetensors").out.startswith("one.safetensors: 1 tensor, ")
    ran = run("verify", "out.gguf", "--source", "all.safetensors")
    line = "out.gguf: FAILED against all.safetensors: 1 tensor, 1 quantized, 0 wrong, 3 missing"
    assert (ran.code, ran.out.splitlines()[0]) == (1, line)
