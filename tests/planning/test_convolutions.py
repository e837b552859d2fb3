"""The rounding of convolutions in codebooks and formats of levels, where none is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import Stored, load, run, save
from strategies import gaussian

from quantcli.planning.convolutions import is_convolution
from quantcli.tensors.info import TensorInfo

NAMES = {
    "conv.weight": (16, 8, 3, 3),
    "line.weight": (16, 32, 5),
    "point.weight": (64, 32, 1, 1),
    "fc.weight": (64, 96),
}
FORMATS = (
    ["--type", "nf4", "--group-size", "24"],
    ["--type", "codebook", "--bits", "3", "--group-size", "24"],
    ["--type", "fp8-e4m3", "--group-size", "-1"],
    ["--levels", "6", "--group-size", "24"],
)
ASKED: tuple[list[str], ...] = (
    ["--rounding", "nearest"],
    ["--rounding", "sum-preserving"],
    ["--override", "fc:rounding=nearest"],
    ["--override", "fc:bits=8,format=int,calibration=minmax"],
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(NAMES.items())}
    stack = {"stack.weight": gaussian(2, 16, 288, seed=9)}  # matrices
    return save(tmp_path / "model.safetensors", tensors | stack)


def roundings(*options: object) -> dict[str, str]:
    """How each tensor is rounded."""
    report = json.loads(run("quantize", "model.safetensors", *options, "--dry-run", "--json", "-q").out)
    return {t["name"]: t["rounding"] for t in report["tensors"] if t["disposition"] == "quantized"}


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_only_convolutions_keep_the_sums_of_rows_unless_it_is_asked(options: list[str], model: Path) -> None:
    """`help methods`: the default for convolutions, for matrices on request; experts are matrices."""
    found = roundings(*options)
    assert {n for n, rounding in found.items() if rounding == "sum-preserving"} == set(NAMES) - {"fc.weight"}
    assert {"fc.weight", "stack.weight"} < set(found)
    for asked in ("nearest", "sum-preserving"):
        assert set(roundings(*options, "--rounding", asked).values()) == {asked}
    if "nf4" in options:
        assert set(roundings(*options, "--calibration", "mse").values()) == {"nearest"}


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_the_codes_are_those_of_the_rounding_that_is_named(options: list[str], model: Path) -> None:
    found = dict[str, dict[str, Stored]]()
    for asked in ([], ["--rounding", "nearest"], ["--rounding", "sum-preserving"]):
        run("quantize", model, *options, *asked, "-o", "out.safetensors", "--force", "-q")
        run("dequantize", "out.safetensors", "-o", "decoded.safetensors", "--force", "-q")
        found[" ".join(asked)] = load("decoded.safetensors")
    for name in found[""]:
        same = "sum-preserving" if name in NAMES and name != "fc.weight" else "nearest"
        assert found[""][name].data == found[f"--rounding {same}"][name].data, name
    assert found[""]["conv.weight"].data != found["--rounding nearest"]["conv.weight"].data


@pytest.mark.parametrize("asked", [[], *ASKED], ids=" ".join)
def test_recipes_make_the_same_bytes_again(asked: list[str], model: Path) -> None:
    """README: every header holds the recipe that makes the file again; `help recipes`: --save-recipe too"""
    run("quantize", model, "--type", "nf4", *asked, "-o", "a.safetensors", "--save-recipe", "saved.yaml", "-q")
    Path("header.yaml").write_text(run("inspect", "a.safetensors", "--recipe").out)
    for recipe in ("saved.yaml", "header.yaml"):
        assert run("quantize", model, "--recipe", recipe, "-o", "b.safetensors", "--force", "-q").code == 0
        assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes(), recipe


def test_a_recipe_says_it_too(model: Path) -> None:
    for said, wanted in (("true", {"nearest", "sum-preserving"}), ("false", {"nearest"})):
        Path("r.yaml").write_text(f"default: {{format: nf4}}\nconvolution_sums: {said}\n")
        assert set(roundings("--recipe", "r.yaml").values()) == wanted
    Path("r.yaml").write_text("default: {format: nf4}\nconvolution_sums: 1\n")
    assert "neither true nor false" in run("quantize", model, "--recipe", "r.yaml", "-o", "x.safetensors").err


@pytest.mark.parametrize("more", [[], ["--calibration", "lloyd-max"]], ids=" ".join)
def test_sweeps_measure_what_is_written(more: list[str], model: Path) -> None:
    """`help budgets`: calibrations that are named are rounded to nearest"""
    swept = json.loads(run("sweep", model, "--levels", "6", "--group-size", "24", *more, "--json", "-q").out)
    asked = ["--levels", "6", "--group-size", "24", *(["--rounding", "nearest"] if more else [])]
    written = json.loads(run("quantize", model, *asked, "-o", "out.safetensors", "--json", "-q").out)
    assert written["summary"]["sqnr_db"] == swept["points"][0]["sqnr_db"]


def test_experts_are_matrices() -> None:
    for name, shape in (("mlp.experts.down_proj", (4, 32, 48)), ("switch_mlp.up_proj.weight", (4, 32, 48))):
        assert not is_convolution(TensorInfo(name, "F32", shape))
