"""Error measures against golden numbers and exact sums."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import GOLDEN_FILES

from quantcli.kernels import Sums
from quantcli.metrics import DB_PER_BIT, NOTHING, Metrics, Sum, decibels, ordered_sum, total

GOLDEN = json.loads((GOLDEN_FILES / "minmax.json").read_text())["metrics"]


def metrics_of(weights: list[float], values: list[float]) -> Metrics:
    x, y = np.array(weights), np.array(values)
    return Metrics(float(((x - y) ** 2).sum()), float((x**2).sum()), x.size, float(np.abs(x - y).max()), 0)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["id"])
def test_golden_metrics(case: dict[str, Any]) -> None:
    found = metrics_of(case["weights"], case["values"])
    assert found.mse == pytest.approx(case["mse"], rel=1e-12)
    assert found.max_abs_error == case["max_abs_error"]
    # JSON has no infinity: an exact reconstruction and one without a signal have no ratio.
    expected_nmse = None if case["nmse"] == "inf" else case["nmse"]
    expected_sqnr = None if isinstance(case["sqnr_db"], str) else case["sqnr_db"]
    assert found.nmse == (None if expected_nmse is None else pytest.approx(expected_nmse, rel=1e-12))
    assert found.sqnr_db == (None if expected_sqnr is None else pytest.approx(expected_sqnr, rel=1e-12))
    assert found.exact == (case["sqnr_db"] == "inf")


def test_powers_beyond_a_float_are_no_ratio() -> None:
    assert Metrics(math.inf, 1.0, 1, 1.0, 0).sqnr_db is None
    assert Metrics(1e-320, 1e300, 1, 1e-160, 0).sqnr_db == pytest.approx(6200, rel=1e-3)
    assert not Metrics(0.0, 1.0, 1, 1e-200, 0).exact, "an error too small to be squared is an error"


def test_nothing_measured() -> None:
    assert (NOTHING.mse, NOTHING.nmse, NOTHING.sqnr_db, NOTHING.clipped_fraction) == (0.0, 0.0, None, 0.0)


def test_tiles_add_up() -> None:
    found = total([(Sums(1.0, 10.0, 0.5, 2), 4), (Sums(2.0, 20.0, 0.25, 1), 6)])
    assert found == Metrics(3.0, 30.0, 10, 0.5, 3)
    assert found.clipped_fraction == 0.3
    assert found + NOTHING == found


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_ordered_sums_are_near_the_exact_sum(values: list[float]) -> None:
    found = float(ordered_sum(np.array(values)))
    # Halving n values takes log2(n) additions of each: so many roundings of at most half a unit.
    bound = 8 * 2.0**-53 * sum(abs(v) for v in values)
    assert abs(found - math.fsum(values)) <= bound


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 100))
def test_ordered_sums_are_made_by_halves(rows: int, n: int, seed: int) -> None:
    """Sums over the last axis in float64, by halves: the same on every CPU and numpy version."""
    values = np.random.default_rng(seed).standard_normal((rows, n))

    def halves(part: list[float]) -> float:
        while len(part) > 1:
            half = len(part) // 2
            part = [a + b for a, b in zip(part[:half], part[half:], strict=True)]
        return part[0]

    width = 1 << (n - 1).bit_length()
    expected = [halves([*row, *[0.0] * (width - n)]) for row in values.tolist()]
    assert ordered_sum(values).tolist() == expected


def test_the_sum_of_nothing() -> None:
    assert ordered_sum(np.zeros((2, 0))).tolist() == [0.0, 0.0]


def test_decibels_of_a_bit() -> None:
    """6.0206 dB: the known figure for twice as many steps."""
    assert pytest.approx(6.0206, abs=1e-4) == DB_PER_BIT


@pytest.mark.parametrize(("sse", "power"), [(0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_no_ratio(sse: float, power: float) -> None:
    assert decibels(sse, power) is None


@pytest.mark.parametrize(("found", "expected"), [
    (Metrics(8.0, 1.0, 8, 1.0, 8), True),  # eight errors of 1
    (Metrics(1.0, 1.0, 8, 1.0, 0), True),  # one of them, seven of 0
    (Metrics(8.004, 1.0, 8, 1.0, 0), True), (Metrics(8.02, 1.0, 8, 1.0, 0), False),
    (Metrics(0.9995, 1.0, 8, 1.0, 0), True), (Metrics(0.998, 1.0, 8, 1.0, 0), False),
    (Metrics(4.0, 1.0, 1, 2.0, 1), True), (Metrics(1.0, 1.0, 1, 2.0, 0), False), (Metrics(2.0, 1.0, 1, 0.5, 0), False),
    (Metrics(0.0, 1.0, 8, 0.0, 8), True), (Metrics(0.0, 1.0, 8, 0.0, 9), False), (Metrics(1.0, 1.0, 8, 0.0, 0), False),
])  # fmt: skip
def test_figures_that_contradict_each_other(found: Metrics, expected: bool) -> None:
    """n errors of which the largest is m have squares that sum to m^2 at least and n m^2 at most, but for the last
    digits; no more weights are clipped than there are."""
    assert (found.contradiction is None) == expected


def test_metrics_of_tensors_together() -> None:
    several = [Metrics(1.0, 10.0, 4, 0.5, 2), Metrics(2.0, 20.0, 6, 0.25, 1), Metrics(4.0, 40.0, 7, 0.75, 3)]
    whole = Sum()
    assert whole.found == NOTHING
    for one in several:
        whole.add(one)
    assert whole.found == Metrics(7.0, 70.0, 17, 0.75, 6) == several[0] + several[1] + several[2]


def test_what_is_exact() -> None:
    assert Metrics(0.0, 0.0, 3, 0.0, 0).exact and not Metrics(1.0, 1.0, 3, 0.0, 0).exact
    assert Metrics(1.0, 0.0, 1, 1.0, 0).nmse is None and Metrics(0.0, 0.0, 1, 0.0, 0).nmse == 0
    assert Metrics(1.0, 4.0, 2, 1.0, 1).mse == 0.5 and Metrics(1.0, 4.0, 2, 1.0, 1).clipped_fraction == 0.5
