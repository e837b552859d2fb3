"""Closed forms against tables computed to 40 digits, and theory against what quantizers do."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, one_line, run, save
from strategies import AWKWARD, gaussian

import quantcli
from quantcli import Scheme, theory

GOLDEN = json.loads((Path(__file__).parent / "golden" / "theory.json").read_text())
SOURCES: list[Any] = ["gaussian", "laplace"]
GRIDS: list[Any] = ["midrise", "midtread_full", "midtread_restricted"]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("source", SOURCES)
def test_lloyd_max(source: Any, bits: int) -> None:
    levels, error = theory.lloyd_max(source, 1 << bits)
    expected, highest = GOLDEN["lloyd_max"][source][str(bits)]
    assert error == pytest.approx(expected, rel=1e-10)
    assert levels[-1] == pytest.approx(highest, rel=1e-6)
    np.testing.assert_allclose(levels, -np.array(levels)[::-1], atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("source", SOURCES)
def test_best_uniform(source: Any, grid: Any) -> None:
    for bits, (step, error) in GOLDEN["uniform"][source][grid].items():
        found = theory.best_uniform(source, grid, int(bits))
        assert found[1] == pytest.approx(error, rel=1e-10)
        assert found[0] == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_best_clipping_is_the_root_and_the_minimum(bits: int) -> None:
    c = theory.best_clipping(bits)
    assert c == pytest.approx(GOLDEN["clip"][str(bits)], rel=1e-10)
    least = sum(theory.clipping_and_rounding(c, bits))
    assert least == pytest.approx(GOLDEN["clip_least"][str(bits)], rel=1e-10)
    assert least < min(sum(theory.clipping_and_rounding(c + d, bits)) for d in (-1e-3, 1e-3))


@pytest.mark.parametrize("bits", range(1, 9))
def test_distance_to_the_rate_distortion_bound(bits: int) -> None:
    bound = theory.rate_distortion(bits)
    gaps = GOLDEN["gap_db"]["gaussian"][str(bits)]
    best = theory.lloyd_max("gaussian", 1 << bits)[1]
    assert theory.decibels(best / bound) == pytest.approx(gaps["lloyd_max"], abs=1e-8)
    assert theory.decibels(theory.best_uniform("gaussian", "midrise", bits)[1] / bound) == \
        pytest.approx(gaps["uniform_midrise"], abs=1e-8)
    # The Shannon lower bound of a Laplace source, of entropy log2(e sqrt 2).
    shannon = theory.shannon_bound(math.log2(math.e * math.sqrt(2)), bits)
    gaps = GOLDEN["gap_db"]["laplace"][str(bits)]
    best = theory.lloyd_max("laplace", 1 << bits)[1]
    assert theory.decibels(best / shannon) == pytest.approx(gaps["lloyd_max"], abs=1e-8)


def test_statements_that_are_often_printed_wrongly() -> None:
    """the offset is 0 for a uniform full-range source; D(R) at 4 bits is sigma^2/256; Lloyd-Max stays above it"""
    assert theory.no_clipping_sqnr(8, math.sqrt(3)) == pytest.approx(48.165, abs=1e-3)
    uniform = np.random.default_rng(0).uniform(-1, 1, 200_000)
    scheme = Scheme(format="midrise", bits=6, granularity="tensor", scale_dtype="float32")
    assert quantcli.quantize(uniform, scheme).metrics(uniform).sqnr_db == \
        pytest.approx(theory.no_clipping_sqnr(6, math.sqrt(3)), abs=0.03)
    assert theory.rate_distortion(4) == 1 / 256 and theory.rate_distortion(-1) == 1
    assert theory.lloyd_max("gaussian", 16)[1] == pytest.approx(0.0095010, abs=1e-7)
    assert pytest.approx(1.5329, abs=1e-4) == theory.ENTROPY_CODED_GAP


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8, unique=True), st.integers(1, 2))
def test_the_best_quantizers_of_a_few_weights_are_brute_force(values: list[int], bits: int) -> None:
    x = np.sort(np.array(values, np.float64))
    counts = np.ones(len(x))
    best = math.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), (1 << bits) - 1):
        best = min(best, sum(float(((r - r.mean()) ** 2).sum()) for r in np.split(x, cuts) if len(r)))
    assert theory.own_lloyd_max(x, counts, bits) == pytest.approx(best, abs=1e-9)
    if x.any():
        uniform = theory.own_uniform(x, counts, bits)
        assert uniform >= best - 1e-9
        if bits == 2:
            grid = np.arange(-2, 2)
            for scale in np.linspace(-12, 12, 241):
                assert uniform <= float(((x[:, None] - grid * scale) ** 2).min(axis=1).sum()) + 1e-9


def test_entropies() -> None:
    assert theory.entropy(np.array([7, 0, 0])) == 0
    assert theory.entropy(np.full(16, 3)) == 4
    x = np.sort(np.random.default_rng(1).standard_normal(300_000) * 5)
    h = theory.differential_entropy(x, np.ones_like(x))
    assert h == pytest.approx(math.log2(5 * math.sqrt(2 * math.pi * math.e)), abs=0.01)
    assert theory.differential_entropy(x[:100], np.ones(100)) is None
    assert theory.differential_entropy(np.arange(50.0), np.full(50, 1000.0)) is None


# ---- in a report ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [
    [], ["--bits", "3", "--asymmetric"], ["--group-size", "0"], ["--type", "nf4"], ["--type", "codebook"],
    ["--type", "codebook", "--group-size", "-1"], ["--bits", "1"], ["--bits", "12"], ["--type", "midrise"],
    ["--asymmetric", "--zero-point", "float"], ["--granularity", "channel", "--axis", "1"], ["--type", "fp8_e4m3"],
], ids=" ".join)  # fmt: skip
def test_theory_in_a_report(flags: list[str], tmp_path: Path) -> None:
    """For every tensor the prediction, the split, the best quantizers, the bounds and the entropy."""
    arrays = {"a.weight": gaussian(64, 512, seed=1).astype(BF16), "b.weight": gaussian(8, 16, 3, 3, seed=2),
              "c.weight": AWKWARD["sparse"].repeat(4, axis=1), "norm.weight": gaussian(64)}
    source, target = save(tmp_path / "m.safetensors", arrays), tmp_path / "q.safetensors"
    assert run("quantize", source, "-o", target, "-q", *flags).code == 0
    found = run("report", target, "--against", source, "--theory", "--json")
    assert found.code == 0, found.err
    for tensor in found.json["tensors"]:
        known = tensor["theory"]
        if tensor["disposition"] == "kept":
            assert known is None
            continue
        sse = tensor["mse"] * math.prod(tensor["shape"])
        assert known["rounding_sse"] + known["clipping_sse"] == pytest.approx(sse, rel=1e-6)
        assert known["rate"] == pytest.approx(tensor["bits_per_weight"])
        assert 0 <= known["code_entropy"] <= tensor["bits"]
        saving = (tensor["bits"] - known["code_entropy"]) * math.prod(tensor["shape"]) / 8
        assert known["saving_bytes"] == pytest.approx(saving, abs=1)
        if known["lloyd_max_sqnr_db"] is not None and known["uniform_sqnr_db"] is not None:
            assert known["lloyd_max_sqnr_db"] >= known["uniform_sqnr_db"] - 0.05
        for name, gap in known["gaps_db"].items():
            limit = known.get(f"{name}_sqnr_db", known.get(f"{name}_db"))
            if gap is not None:
                assert gap == pytest.approx(limit - tensor["sqnr_db"], abs=1e-6)
        if tensor["name"] == "a.weight":  # normal weights: the model holds, and no bound is broken
            if 4 <= tensor["bits"] <= 8 and tensor["rounding"] == "nearest" and tensor["format"] == "int":
                assert known["predicted_sqnr_db"] == pytest.approx(tensor["sqnr_db"], abs=0.3)
            assert tensor["sqnr_db"] < known["rate_distortion_db"]
            if known["shannon_db"] is not None:
                assert known["shannon_db"] == pytest.approx(known["rate_distortion_db"], abs=0.15)
    shown = run("report", target, "--against", source, "--theory")
    assert "Lloyd-Max" in shown.out and shown.code == 0


def test_theory_needs_the_weights(tmp_path: Path) -> None:
    source, target = save(tmp_path / "m.safetensors", {"w": gaussian(64, 128)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "-o", target, "-q").code == 0
    assert "--theory: the original weights are needed" in one_line(run("report", target, "--theory"), 2)
