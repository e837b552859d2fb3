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
from quantcli.metrics import NOTHING, Metrics, ordered_sum, total

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
