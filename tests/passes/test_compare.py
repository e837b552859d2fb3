"""compare: figures against numpy and against report, layouts of others, gates, and what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from making import BF16, ROOT, one_line, run, save
from safetensors.numpy import load_file, save_file
from strategies import gaussian

from quantcli.layouts.native import alike
from quantcli.models import open_model
from quantcli.reports import build

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = json.loads((ROOT / "quantcli" / "reports" / "renderings" / "report.schema.json").read_text())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(Path("model.safetensors"), {
        "a.weight": gaussian(64, 128, seed=1), "b.weight": gaussian(700, 900, seed=2).astype(BF16),
        "norm": gaussian(64, seed=4), "ids": np.arange(7)})  # fmt: skip
    for bits in (3, 4):
        assert run("quantize", "model.safetensors", "-o", f"q{bits}.safetensors", "--bits", bits).code == 0
    return tmp_path


def compared(*arguments: Any) -> dict[str, Any]:
    ran = run("compare", *arguments, "--json")
    assert ran.code in (0, 1), ran
    found: dict[str, Any] = json.loads(ran.out)
    jsonschema.validate(found, SCHEMA)
    return found


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in report["tensors"]}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_float_model_and_its_quantized_form(threads: int, place: Path) -> None:
    """per tensor SQNR of B against A, max error: what report says of the same codes"""
    ours = by_name(compared("model.safetensors", "q4.safetensors", "--threads", threads))
    theirs = by_name(json.loads(run("report", "q4.safetensors", "--against", "model.safetensors", "--json").out))
    for name in ("a.weight", "b.weight"):
        assert ours[name]["sqnr_db"] == pytest.approx(theirs[name]["sqnr_db"], abs=1e-4)
        assert ours[name]["max_abs_error"] == pytest.approx(theirs[name]["max_abs_error"], rel=1e-6)
        assert ours[name]["scheme"] == "w4g128" and ours[name]["bytes_out"] == theirs[name]["bytes_out"]
    assert ours["norm"]["disposition"] == ours["ids"]["disposition"] == "kept" and ours["ids"]["exact"]


def test_the_headline_is_of_what_was_quantized(place: Path) -> None:
    """a large tensor in floating point that is off by a rounding does not hide the errors of codes"""
    large = np.full(4096, 1000, np.float32)
    save_file({**load_file("model.safetensors"), "gain": large}, "more.safetensors")
    assert run("quantize", "more.safetensors", "-o", "more4.safetensors").code == 0
    save_file({**load_file("model.safetensors"), "gain": np.nextafter(large, np.float32(0))}, "other.safetensors")
    before = compared("more.safetensors", "more4.safetensors")["summary"]["sqnr_db"]
    after = compared("other.safetensors", "more4.safetensors")
    assert by_name(after)["gain"]["disposition"] == "changed"
    assert after["summary"]["sqnr_db"] == pytest.approx(before, abs=1e-9)


def test_two_float_models(place: Path) -> None:
    weights = load_file("model.safetensors")
    noise = gaussian(64, 128, seed=8) / 100
    changed = {"a.weight": weights["a.weight"] + noise, "ids": np.arange(7)[::-1].copy()}
    save_file({**weights, **changed}, "tuned.safetensors")
    found = by_name(compared("model.safetensors", "tuned.safetensors"))
    assert found["a.weight"]["disposition"] == "changed" and found["b.weight"]["disposition"] == "kept"
    before, after = weights["a.weight"].astype(float), load_file("tuned.safetensors")["a.weight"].astype(float)
    assert found["a.weight"]["sqnr_db"] == pytest.approx(
        10 * math.log10((before**2).sum() / ((before - after) ** 2).sum()), abs=1e-9
    )
    assert found["ids"]["disposition"] == "changed" and found["ids"]["sqnr_db"] is None
    # What was not measured does not pass.
    ran = run("compare", "model.safetensors", "tuned.safetensors", "--min-tensor-sqnr", "20")
    assert ran.code == 1 and "ids: not measured" in ran.err
    same = "model.safetensors", "model.safetensors"
    assert run("compare", *same, "--min-tensor-sqnr", "99", "--min-sqnr", "99").code == 0


def test_numbers_of_other_dtypes(place: Path) -> None:
    """Whole numbers are compared as such, whatever the width; beside a weight in codes they are something else."""
    save(Path("a.safetensors"), {"n": np.arange(-3, 3), "b": np.array([True, False]), "u": np.array([255], np.uint8),
                                 "a.weight": np.arange(64 * 128).reshape(64, 128)})  # fmt: skip
    save(
        Path("b.safetensors"),
        {"n": np.arange(-3, 3, dtype=np.int8), "b": np.array([1, 0], np.int8), "u": np.array([-1], np.int8)},
    )
    found = by_name(compared("a.safetensors", "b.safetensors"))
    assert {n: t["disposition"] for n, t in found.items()} == {"n": "kept", "b": "kept", "u": "changed"}
    for pair in (("a.safetensors", "q4.safetensors"), ("q4.safetensors", "a.safetensors")):
        assert not by_name(compared(*pair))["a.weight"]["exact"]


def test_which_got_worse_and_what_changed_in_scheme(place: Path) -> None:
    found = compared("q4.safetensors", "q3.safetensors")["comparison"]
    q3, q4 = (by_name(json.loads(run("report", f"q{b}.safetensors", "--json").out)) for b in (3, 4))
    assert [(c["tensor"], c["before"], c["after"]) for c in found["changes"]] == sorted(
        [(n, "w4g128", "w3g128") for n in ("a.weight", "b.weight")],
        key=lambda c: q3[c[0]]["sqnr_db"] - q4[c[0]]["sqnr_db"],
    )
    for change in found["changes"]:
        name = change["tensor"]
        assert change["delta_db"] == pytest.approx(q3[name]["sqnr_db"] - q4[name]["sqnr_db"])
    assert "-5." in run("compare", "q4.safetensors", "q3.safetensors").out


def test_figures_come_before_what_is_in_one_model_only(place: Path) -> None:
    """Of AWQ weights the decoded figures lead; tensors that only one side has follow, a few by name."""
    weights = {f"l{i}.weight": gaussian(64, 128, seed=i) for i in range(3)}
    save(Path("before.safetensors"), {**weights, **{f"old{i}.weight": gaussian(8) for i in range(5)}})
    save(Path("source.safetensors"), {**weights, **{f"new{i}.weight": gaussian(8) for i in range(5)}})
    assert (
        run("quantize", "source.safetensors", "--to", "awq", "--group-size", "32", "-o", "awq.safetensors", "-q").code
        == 0
    )
    ran = run("compare", "before.safetensors", "awq.safetensors")
    lines = ran.out.splitlines()
    assert (ran.code, ran.err) == (0, "")
    figures = [i for i, line in enumerate(lines) if line.startswith("l") and "w4g32-asym" in line]
    behind = next(i for i, line in enumerate(lines) if line.startswith("against before.safetensors: "))
    assert len(figures) == 3 and max(figures) < behind
    assert lines[behind:] == [
        "against before.safetensors: 0 changed, 5 new, 5 vanished",
        "only in awq.safetensors: new0.weight, new1.weight, new2.weight and 2 more",
        "only in before.safetensors: old0.weight, old1.weight, old2.weight and 2 more",
    ]
    assert "against" not in run("compare", "source.safetensors", "awq.safetensors").out


@pytest.mark.parametrize(
    "options",
    [["--group-size", "64"], ["--asymmetric", "--group-size", "32"], ["--group-size", "-1", "--bits", "8"]],
    ids=" ".join,
)
def test_the_layout_of_compressed_tensors(options: list[str], place: Path) -> None:
    """A checkpoint folder of ours without our header, read by its config.json alone, decodes to the same weights."""
    model = ROOT / "sample_models" / "tiny-llama"
    assert run("quantize", model, "-o", "ours", *options, "-q").code == 0
    theirs = Path("theirs")
    theirs.mkdir()
    (theirs / "config.json").write_bytes(Path("ours/config.json").read_bytes())
    (theirs / "model.safetensors.index.json").write_bytes(Path("ours/model.safetensors.index.json").read_bytes())
    for shard in Path("ours").glob("*.safetensors"):
        save_file(load_file(shard), theirs / shard.name, {"format": "pt"})
    found = compared("ours", "theirs")
    assert found["summary"]["exact"] and not found["comparison"]["new"] and not found["comparison"]["vanished"]
    again = by_name(compared(model, "theirs"))
    expected = by_name(json.loads(run("report", "ours", "--json").out))
    for name, tensor in expected.items():
        if tensor["disposition"] == "quantized":
            assert again[name]["sqnr_db"] == pytest.approx(tensor["sqnr_db"], abs=1e-4)
            assert again[name]["bits"] == tensor["bits"]


def test_gates_of_compare(place: Path) -> None:
    """the same gates and renderings"""
    assert run("compare", "model.safetensors", "q4.safetensors", "--min-tensor-sqnr", "15").code == 0
    ran = run("compare", "model.safetensors", "q4.safetensors", "--min-tensor-sqnr", "30", "--format", "junit")
    assert ran.code == 1 and "<failure" in ran.out and "gate min-tensor-sqnr failed" in ran.err
    Path("base.json").write_text(run("compare", "model.safetensors", "q4.safetensors", "--json").out)
    ran = run("compare", "model.safetensors", "q3.safetensors", "--baseline", "base.json", "--max-regression", "3")
    assert ran.code == 1 and "in the baseline" in ran.err


def test_what_cannot_be_compared(place: Path) -> None:
    """2 whatever kept them from measuring"""
    save(Path("other.safetensors"), {"x": gaussian(4, 4)})
    save(Path("turned.safetensors"), {"a.weight": gaussian(128, 64)})
    Path("broken.safetensors").write_bytes(b"no")
    assert "no tensor has the same name" in one_line(run("compare", "model.safetensors", "other.safetensors"), 2)
    assert "[64, 128] and [128, 64]" in one_line(run("compare", "model.safetensors", "turned.safetensors"), 2)
    one_line(run("compare", "model.safetensors", "broken.safetensors"), 2)
    one_line(run("compare", "model.safetensors", "nowhere"), 2)
    one_line(run("compare", "model.safetensors"), 2)
    ran = run("compare", "model.safetensors", "q4.safetensors", "--max-regression", "1")
    assert "name a --baseline" in one_line(ran, 2)


def test_tensors_on_one_side_only_are_named(place: Path) -> None:
    weights = load_file("model.safetensors")
    weights["extra"] = weights.pop("norm")
    save_file(weights, "more.safetensors")
    ran = run("compare", "model.safetensors", "more.safetensors")
    assert (ran.code, ran.err) == (0, "")
    assert "only in more.safetensors: extra" in ran.out and "only in model.safetensors: norm" in ran.out
    ran = run("compare", "model.safetensors", "more.safetensors", "--format", "csv")
    assert ran.code == 0
    assert "only in more.safetensors: extra" in ran.err and "only in model.safetensors: norm" in ran.err


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP8", "W8A8", "W4A16"])
def test_all_commands_tell_the_same_of_codes(scheme: str, tmp_path: Path) -> None:
    """Codes are measured as what they stand for, in float32, as kernels multiply: by quantize, by report and by
    compare, which numpy agrees with. What a library makes of them in 16 bits is a little further off."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    names = [f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
    weights = {n: (gaussian(256, 256, seed=i) * 0.02).astype(BF16) for i, n in enumerate(names)}
    save(folder / "model.safetensors", weights)
    out = tmp_path / "out"
    made = run("quantize", folder, "--scheme", scheme, "-o", out, "--json")
    told = {t["name"]: t["sqnr_db"] for t in made.json["tensors"]}
    for words in (["compare", folder, out], ["report", out, "--against", folder]):
        found = {t["name"]: t["sqnr_db"] for t in run(*words, "--json").json["tensors"]}
        assert found == pytest.approx(told, abs=1e-6), words
    with open_model(str(out)) as model:
        for name, weight in weights.items():
            exact = weight.astype(np.float64).ravel()
            noise = np.square(model[name].read(0, exact.size) - exact).sum()
            assert 10 * np.log10(np.square(exact).sum() / noise) == pytest.approx(told[name], abs=1e-6)
    assert run("dequantize", out, "-o", tmp_path / "floats", "-q").code == 0
    rounded = run("compare", folder, tmp_path / "floats", "--json").json["summary"]["sqnr_db"]
    assert made.json["summary"]["sqnr_db"] - 0.1 < rounded <= made.json["summary"]["sqnr_db"] + 1e-7


def test_weights_that_others_were_quantized_from_are_what_was_read(tmp_path: Path) -> None:
    """FP8 is decoded to bfloat16 as its library does, and quantized: compare tells what quantize told."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    name = "model.layers.0.mlp.up_proj.weight"
    save(folder / "model.safetensors", {name: (gaussian(256, 256) * 0.02).astype(BF16)})
    assert run("quantize", folder, "--to", "fp8-blocks", "-o", tmp_path / "fp8", "-q").code == 0
    made = run("quantize", tmp_path / "fp8", "--bits", "8", "-o", tmp_path / "out", "--json")
    seen = run("compare", tmp_path / "fp8", tmp_path / "out", "--json")
    assert seen.json["summary"]["sqnr_db"] == pytest.approx(made.json["summary"]["sqnr_db"], abs=1e-6)
    assert run("compare", tmp_path / "fp8", tmp_path / "fp8", "--json").json["summary"]["sqnr_db"] is None


def figures(*words: Any) -> list[dict[str, Any]]:
    """What is said of each tensor, and of all, in order."""
    ran = run(*words, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    return [*found["tensors"], found["summary"] | {"seconds": None}]


@pytest.mark.parametrize("words", [("compare", "m", "q"), ("compare", "m", "m2"), ("report", "q", "--against", "m")])
def test_small_tensors_read_together_have_the_figures_that_each_has_alone(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is beside them and on any number of threads; those that are not finite too."""
    monkeypatch.chdir(tmp_path)
    tensors: dict[str, NDArray[Any]] = {
        f"{n}.w": gaussian(3 + n // 20, 64, seed=n).astype((BF16, np.float32, np.float16)[n // 7 % 3])
        for n in range(60)
    }
    tensors |= {"a": np.array([1, np.nan, np.inf, 0], np.float32), "b": np.zeros((2, 64), np.float32)}
    save(Path("m"), tensors | {"i": np.arange(5)})
    save(Path("m2"), {n: (v * 1.5).astype(v.dtype) for n, v in tensors.items()} | {"i": np.arange(5)})
    how = ("--group-size", 32, "--override", "1*.w:symmetric=false", "--on-nonfinite", "keep")
    assert run("quantize", "m", "-o", "q", *how).code == 0
    found = [figures(*words, "--threads", threads) for threads in (1, 2, 7)]
    monkeypatch.setattr(alike, "MANY", 1)
    assert found == [figures(*words)] * 3


def test_rows_that_are_made_when_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say what those say that are held."""
    commands = (("compare", "model.safetensors", "q4.safetensors"), ("report", "q4.safetensors"),
                ("report", "q3.safetensors", "--against", "model.safetensors"))  # fmt: skip
    held = [(figures(*words), run(*words, "--all").out) for words in commands]
    monkeypatch.setattr(build, "HELD", 1)
    for words, (said, table) in zip(commands, held):
        assert figures(*words) == said
        lines = zip(table.splitlines(), run(*words, "--all").out.splitlines(), strict=True)
        assert all(a == b or a.endswith(" s") for a, b in lines)
