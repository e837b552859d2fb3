"""Damaged and forged files: refused in a line or read, never believed, and never an internal error."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_parts import f32 as gguf_f32
from gguf_parts import raw_gguf
from making import (
    change_header,
    command,
    environment,
    header_of,
    metadata_of,
    npy_bytes,
    one_line,
    raw_tensors,
    run,
    run_process,
    save,
    zip_bytes,
)
from onnx_parts import f32 as onnx_f32
from onnx_parts import model as onnx_model
from strategies import gaussian

import quantcli
from quantcli import registry

FAMILIES: dict[str, list[str]] = {
    "groups": ["--group-size", "32"],
    "channels": ["--bits", "8", "--group-size", "-1"],
    "tensor": ["--bits", "8", "--group-size", "0"],
    "columns": ["--granularity", "channel", "--axis", "1"],
    "zero points": ["--asymmetric", "--group-size", "32"],
    "offsets": ["--asymmetric", "--zero-point", "float", "--calibration", "minmax"],
    "one bit": ["--bits", "1"],
    "twelve bits": ["--bits", "12"],
    "midrise": ["--type", "midrise", "--bits", "4"],
    "nf4": ["--type", "nf4"],
    "fp8": ["--type", "fp8-e4m3"],
    "mu-law": ["--type", "mu-law", "--bits", "6"],
    "levels of the tensor": ["--type", "codebook", "--group-size", "0"],
    "levels of channels": ["--type", "codebook", "--group-size", "-1", "--bits", "2"],
    "levels of groups": ["--type", "codebook", "--group-size", "32", "--bits", "3"],
    "given levels": ["--codebook", "levels.txt"],
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.safetensors, and q.safetensors made from it, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    save(
        Path("model.safetensors"),
        {"a.weight": gaussian(16, 96), "b.weight": gaussian(32, 64, seed=1), "c.bias": gaussian(9)},
    )
    assert run("quantize", "model.safetensors", "-o", "q.safetensors", "--no-default-keep", "-q").code == 0
    return tmp_path


def damage(tensor: str, value: float) -> None:
    """Put a number in place of the first one of a tensor of q.safetensors."""
    raw = bytearray(Path("q.safetensors").read_bytes())
    entry = header_of("q.safetensors")[tensor]
    at = 8 + int.from_bytes(raw[:8], "little") + entry["data_offsets"][0]
    held = np.array([value], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]).tobytes()
    raw[at : at + len(held)] = held
    Path("q.safetensors").write_bytes(bytes(raw))


# ---- statistics of quantized files, and of what is not finite -------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_of_the_decoded_weights(family: str, files: Path) -> None:
    Path("levels.txt").write_text("-1 -0.5 0 0.25 1")
    made = run(
        "quantize", "model.safetensors", "-o", "q.safetensors", "--force", "--no-default-keep", "-q", *FAMILIES[family]
    )
    assert made.code == 0, made
    assert run("inspect", "q.safetensors", "--stats").code == 0
    found = {t["name"]: t for t in run("inspect", "q.safetensors", "--stats", "--json").json["tensors"]}
    with quantcli.open("q.safetensors") as model:
        for name, tensor in model.items():
            values = tensor.numpy().astype(np.float64)
            stats = found[name]["stats"]
            assert (stats["min"], stats["max"]) == (values.min(), values.max())
            assert stats["mean"] == pytest.approx(values.mean()) and stats["std"] == pytest.approx(values.std())
            assert sum(stats["histogram"]) == values.size


def test_statistics_near_the_ends_of_float64(tmp_path: Path) -> None:
    """smallest and largest numbers, infinities and signalling NaN"""
    ends = np.array([0.0, 5e-324, 0.0, 5e-324]), np.array([1.7e308, -1.7e308, 1.7e308, np.inf])
    odd = np.array([0x7FA00001, 0x7F800000, 0x3F800000], "<u4").tobytes()
    half = np.array([0x7D01, 0x3C00], "<u2").tobytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_tensors({
        "small": ("F64", (4,), ends[0].tobytes()), "large": ("F64", (4,), ends[1].tobytes()), "odd": ("F32", (3,), odd),
        "half": ("F16", (2,), half),
    }))  # fmt: skip
    found = {t["name"]: t["stats"] for t in run("inspect", path, "--stats", "--json").json["tensors"]}
    assert (found["odd"]["nonfinite"], found["odd"]["mean"], found["half"]["nonfinite"]) == (2, 1.0, 1)
    assert found["large"]["max"] == 1.7e308 and found["small"]["max"] == 5e-324
    done = subprocess.run(
        command("inspect", path, "--stats"), capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stderr == ""


@pytest.mark.parametrize("to", ["--theory", "html"])
def test_theory_of_a_codebook_without_a_spread(to: str, tmp_path: Path) -> None:
    model = save(tmp_path / "m.safetensors", {"w": np.full((8, 64), 0.25, np.float32), "z": np.zeros((8, 64), "<f4")})
    out = tmp_path / "q.safetensors"
    for size in ("0", "-1", "32"):
        made = run("quantize", model, "-o", out, "--type", "codebook", "--group-size", size, "--force", "-q",
                   "--no-default-keep")  # fmt: skip
        assert made.code == 0, made
        more = ["--theory"] if to == "--theory" else ["-o", f"html={tmp_path / 'x.html'}"]
        ran = run("report", out, "--against", model, *more)
        assert ran.code == 0 and "SQNR" in ran.out, ran


@pytest.mark.parametrize("kind", registry.names("reports.renderings"))
def test_weights_decoded_to_infinity(kind: str, files: Path) -> None:
    run("quantize", "model.safetensors", "-o", "q.safetensors", "--force", "--no-default-keep", "--scale-dtype",
        "float32", "--bits", "8", "-q")  # fmt: skip
    damage("a.weight_scale", 3e38)
    for arguments in (
        ["compare", "model.safetensors", "q.safetensors"],
        ["report", "q.safetensors", "--against", "model.safetensors"],
        ["report", "q.safetensors", "--against", "model.safetensors", "--theory"],
    ):
        ran = run(*arguments, "--format", kind, "--max-mse", "1e-3")
        assert ran.code == 1 and "internal" not in ran.err, ran
        if kind == "json":
            tensor = next(t for t in ran.json["tensors"] if t["name"] == "a.weight")
            assert tensor["mse"] is None and tensor["max_abs_error"] is None and tensor["exact"] is False
    stats = {t["name"]: t["stats"] for t in run("inspect", "q.safetensors", "--stats", "--json").json["tensors"]}
    assert stats["a.weight"]["nonfinite"] > 0


# ---- headers that were changed --------------------------------------------------------------------------------------


def forge(document: dict[str, Any]) -> None:
    """Errors a hundred million times smaller than they are."""
    for entry in document["tensors"].values():
        if "sse" in entry:
            entry["sse"] *= 1e-16
            entry["max_abs_error"] *= 1e-8


def test_a_changed_header_is_not_believed(files: Path) -> None:
    assert run("report", "q.safetensors", "--min-sqnr", "10").code == 0
    assert run("report", "q.safetensors", "--min-sqnr", "100").code == 1
    change_header("q.safetensors", forge, seal=False)
    for arguments in (
        ["report", "q.safetensors", "--min-sqnr", "100"],
        ["report", "q.safetensors", "--json"],
        ["report", "q.safetensors", "--against", "model.safetensors"],
        ["compare", "model.safetensors", "q.safetensors"],
    ):
        assert "its quantcli header was changed after it was written" in one_line(run(*arguments), 2)
    ran = run("verify", "q.safetensors")
    assert ran.code == 1 and "structure: the header was changed after it was written" in ran.out
    ran = run("inspect", "q.safetensors", "--json")
    assert ran.code == 0 and ran.json["quantized"] and "its quantcli header was changed" in ran.err


def test_a_changed_header_on_a_pipe(files: Path) -> None:
    for forged in (False, True):
        if forged:
            change_header("q.safetensors", forge, seal=False)
        done = subprocess.run(command("report", "-", "--min-sqnr", "100"), input=Path("q.safetensors").read_bytes(),
                              capture_output=True, env=environment(), check=False)  # fmt: skip
        assert done.returncode == 1 + forged
    assert b"its quantcli header was changed" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_changed_shard(files: Path) -> None:
    Path("m").mkdir()
    shutil.copy("model.safetensors", "m/model.safetensors")
    assert run("quantize", "m", "-o", "out", "-q", "--no-default-keep").code == 0
    assert run("report", "out").code == 0
    change_header("out/model.safetensors", forge, seal=False)
    assert "its quantcli header was changed" in one_line(run("report", "out", "--min-sqnr", "100"), 2)


@pytest.mark.parametrize("change", [
    {"sse": 1e-9}, {"max_abs_error": 1e-9}, {"max_abs_error": 1e9}, {"sse": 0.0}, {"clipped": 10**6},
])  # fmt: skip
def test_figures_that_contradict_one_another(change: dict[str, Any], files: Path) -> None:
    """though the digest of the header was made anew"""
    change_header("q.safetensors", lambda d: d["tensors"]["a.weight"].update(change))
    line = one_line(run("report", "q.safetensors", "--min-sqnr", "100"), 2)
    assert line.startswith("q.safetensors: quantcli header: a.weight: ")


def test_a_header_without_a_digest_says_so(files: Path) -> None:
    change_header("q.safetensors", lambda document: document.pop("check"), seal=False)
    ran = run("report", "q.safetensors", "--json")
    assert ran.code == 0 and ran.json["warnings"][0].startswith("the header has no digest of its own")
    assert run("report", "q.safetensors", "--against", "model.safetensors", "--json").json["warnings"] == []


WRONG_FIELDS = [
    ("digest", 160), ("digest", []), ("digest", "xyz"), ("digest", "0" * 64), ("reason", None), ("reason", 7),
    ("note", 1e308), ("importance", {}), ("minmax_sse", -1.0), ("minmax_sse", "nan"), ("sse", True), ("power", -1),
    ("sse", 10**400), ("clipped", 1.5), ("clipped", -1), ("scheme", -1), ("scheme", 99), ("scheme", True),
    ("dtype", []), ("dtype", "F99"), ("shape", 7), ("shape", [-1]), ("shape", [2**70, 2**70]), ("shape", [True]),
    ("max_abs_error", None),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_FIELDS)
def test_invalid_fields_of_a_tensor(key: str, value: Any, files: Path) -> None:
    change_header("q.safetensors", lambda d: d["tensors"]["a.weight"].update({key: value}))
    for arguments, code in ((["report"], 2), (["inspect", "--stats"], 1), (["dequantize", "-o", "d.safetensors"], 1)):
        assert "quantcli header: a.weight: " in one_line(run(arguments[0], "q.safetensors", *arguments[1:]), code)
    assert run("verify", "q.safetensors", "--json").json["passed"] is False


@pytest.mark.parametrize("change", [
    {"tool": []}, {"source_bytes": "7"}, {"source_bytes": 10**400}, {"schemes": {}}, {"schemes": [7]}, {"tensors": []},
    {"schemes": [{"bits": 4, "options": "hello"}]}, {"schemes": [{"bits": 4, "nothing": 1}]}, {"version": "1"},
    {"schemes": [{"bits": [4]}]}, {"schemes": [{"format": "codebook", "codebook": 5}]}, {"recipe": 7}, {"digest": None},
    {"tensors": {"a.weight": None}}, {"tensors": {"a.weight": []}}, {"version": 5},
])  # fmt: skip
def test_invalid_documents(change: dict[str, Any], files: Path) -> None:
    change_header("q.safetensors", lambda document: document.update(change))
    assert "quantcli header" in one_line(run("report", "q.safetensors"), 2)


ODD: list[Any] = [None, True, 0, -1, 2**63, 10**400, -1.5, 1e308, 5e-324, "", "nan", "\x1b[2J", "::error::x", [], {},
                  [[]], {"a": 1}, "0" * 32]  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """A JSON value with one thing changed."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], mutated(value[at], chance), *value[at + 1 :]]
    return copy.deepcopy(chance.choice(ODD))


@pytest.mark.parametrize("seed", range(40))
def test_no_header_is_an_internal_error(seed: int, files: Path) -> None:
    chance = random.Random(seed)
    options = chance.choice(list(FAMILIES.values())[:-1])
    run("quantize", "model.safetensors", "-o", "q.safetensors", "--force", "--no-default-keep", "-q", *options)
    document = json.loads(metadata_of("q.safetensors")["quantcli"])
    new = mutated(document, chance)

    def replace(document: dict[str, Any]) -> None:
        document.clear()
        document.update(new if isinstance(new, dict) else {})

    change_header("q.safetensors", replace, seal=False)
    if isinstance(new, dict) and "check" in new:
        change_header("q.safetensors", lambda d: d.update(check="0" * 32))
    for arguments in (
        ["inspect", "q.safetensors", "--stats"],
        ["inspect", "q.safetensors", "--recipe"],
        ["report", "q.safetensors"],
        ["verify", "q.safetensors", "--source", "model.safetensors"],
        ["report", "q.safetensors", "--against", "model.safetensors", "--ignore-digest", "--theory"],
        ["compare", "q.safetensors", "model.safetensors", "--format", "html"],
    ):
        ran = run(*arguments, *(["--threads", "1"] if arguments[0] != "inspect" else []))
        assert ran.code in (0, 1, 2), ran
        assert all(c == "\n" or c.isprintable() for c in ran.out + ran.err)


def test_damaged_scales_give_no_warning(files: Path) -> None:
    """of numpy's; the tests make an error of one"""
    for value in (0.0, 1e-7, 65504.0, -1.0):
        damage("a.weight_scale", value)
        for more in (["--theory"], ["--format", "html"]):
            ran = run("report", "q.safetensors", "--against", "model.safetensors", *more)
            assert ran.code == 0, ran
    damage("a.weight_scale", np.nan)
    assert "a stored scale is not finite" in one_line(
        run("report", "q.safetensors", "--against", "model.safetensors"), 2
    )


def test_numpy_kernels_are_as_silent_as_native_ones(tmp_path: Path) -> None:
    weights = np.concatenate([gaussian(1, 64, scale=1e38), np.full((1, 64), 1e-45, np.float32)])
    model = save(tmp_path / "m.safetensors", {"w": weights.astype(np.float32)})
    found = []
    for kernels in ("native", "numpy"):
        ran = run_process(
            "quantize",
            model,
            "-o",
            tmp_path / f"{kernels}.safetensors",
            "--no-default-keep",
            "-q",
            "--bits",
            "8",
            "--group-size",
            "32",
            QUANTCLI_KERNELS=kernels,
            PYTHONWARNINGS="error",
        )
        if "not built" in ran.err:
            pytest.skip("no native kernels")
        found.append((ran.code, ran.err.replace(kernels, "")))
    assert found[0] == found[1] and found[0][0] in (0, 1)


def test_what_no_scale_fits_is_refused_by_plan_and_sweep_too(tmp_path: Path) -> None:
    """they went on for ever"""
    weights = gaussian(4, 64)
    weights[1, 3] = np.finfo(np.float32).max
    model = save(tmp_path / "m.safetensors", {"w": weights})
    for arguments in (["sweep", model, "--bits", "2"], ["plan", model, "--target-bpw", "40"]):
        assert f"{model}: w: a scale does not fit float32" in one_line(run(*arguments, "--threads", "1"), 1)


# ---- recipes, configurations, baselines -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    "!!python/object/apply:os.system [echo]", "!!binary eA==", "!!set {a, b}", "!!timestamp hello", "!!float hello",
    "!!bool hello", "!!int hello", "!!omap [a: 1]", "!!str 4", "!thing 4", "! 4", "!!null x",
])  # fmt: skip
@pytest.mark.parametrize("place", ["default: {bits: %s}", "rules: [%s]", "%s : 4"])
def test_yaml_has_no_tags(place: str, value: str, files: Path) -> None:
    Path("r.yaml").write_text(place % value)
    line = one_line(run("quantize", "model.safetensors", "--recipe", "r.yaml", "--dry-run"), 2)
    assert line.startswith("r.yaml: line 1, column ")
    if "bits" in place:
        assert "tags are not allowed" in line
        Path("quantcli.yaml").write_text(f"gates: {{min_sqnr: {value}}}\n")
        assert "tags are not allowed" in one_line(run("report", "q.safetensors"), 2)


@pytest.mark.parametrize("options", ["hello", "[1]", "5", "true", "{norm: [1]}", "{norm: {}}", "{[1]: 2}", "{1: 2}"])
def test_invalid_options_of_a_recipe(options: str, files: Path) -> None:
    Path("r.yaml").write_text(f"default: {{bits: 4, options: {options}}}\n")
    one_line(run("quantize", "model.safetensors", "--recipe", "r.yaml", "--dry-run"), 2)
    if "{" not in options:
        one_line(run("quantize", "model.safetensors", "--override", f"*:options={options}", "--dry-run"), 2)


@pytest.mark.parametrize("key", ["name", "sqnr_db", "scheme", "exact", "reason"])
@pytest.mark.parametrize("value", ["left out", [], {}, True, 7e999])
def test_invalid_baselines(key: str, value: Any, files: Path) -> None:
    document = run("report", "q.safetensors", "--json").json
    for tensor in document["tensors"]:
        if value == "left out":
            del tensor[key]
        else:
            tensor[key] = value
    Path("b.json").write_text(json.dumps(document).replace("Infinity", "7e999"))
    ran = run("report", "q.safetensors", "--baseline", "b.json", "--max-regression", "1")
    if (key, value) != ("exact", True):
        assert one_line(ran, 2).startswith("b.json: ")


# ---- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "gguf", "onnx"])
def test_a_tensor_named_as_the_metadata_of_safetensors(kind: str, tmp_path: Path) -> None:
    """safetensors files with one can be written but not read"""
    values = gaussian(32, 64)
    path = tmp_path / f"m.{kind}"
    path.write_bytes({
        "npz": lambda: zip_bytes([("__metadata__.npy", npy_bytes(values)), ("w.npy", npy_bytes(values))]),
        "gguf": lambda: raw_gguf([], [gguf_f32("__metadata__", values), gguf_f32("w", values)]),
        "onnx": lambda: onnx_model(onnx_f32("__metadata__", values), onnx_f32("w", values)),
    }[kind]())  # fmt: skip
    assert run("inspect", path).code == 0
    for arguments in (
        ["quantize", path, "-o", tmp_path / "q.safetensors", "--exclude", "__metadata__"],
        ["quantize", path, "--dry-run", "--exclude", "__metadata__"],
        ["dequantize", path, "-o", tmp_path / "d.safetensors"],
    ):
        line = one_line(run(*arguments), 1)
        assert line.startswith(f"{path}: ")
        assert arguments[0] == "dequantize" or "__metadata__: a safetensors file cannot hold a tensor of this" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"m.{kind}"]


def test_npy_headers_are_plain(tmp_path: Path) -> None:
    """numpy refuses a no-break space too"""
    raw = npy_bytes(gaussian(4, 8)).replace(b"'fortran_order': ", b"'fortran_order':\xa0")
    (tmp_path / "x.npy").write_bytes(raw)
    assert "not a plain description of one array" in one_line(run("inspect", tmp_path / "x.npy"), 1)


def test_numbers_beyond_float64_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"metadata": {"total_size": 1e999}, "weight_map": {"a": "a.safetensors"}}')
    assert "1e999 is too large a number" in one_line(run("inspect", path), 1)
