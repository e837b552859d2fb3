"""Min-max and signed-extreme against worked cases that were computed elsewhere, in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from making import GOLDEN_FILES

import quantcli
from quantcli import Scheme

CASES = json.loads((GOLDEN_FILES / "minmax.json").read_text())["cases"]


def scheme_of(case: dict[str, Any]) -> Scheme:
    fields: dict[str, Any] = {"bits": case["bits"], "granularity": "tensor", "scale_dtype": "float32"}
    if case["kind"] == "symmetric":
        return Scheme(**fields, calibration=case["method"], grid=case["grid"])
    return Scheme(
        **fields, symmetric=False, calibration="minmax", zero_point="int" if case["kind"] == "affine-int" else "float"
    )


def ids(cases: list[dict[str, Any]]) -> list[str]:
    return [case["id"] for case in cases]


def comparable(case: dict[str, Any]) -> bool:
    """Not those by another convention: a zero point of 0 for signed codes of zeros, and a single symmetric bit."""
    zeros = bool(case.get("signed")) and not any(case["weights"])
    return not zeros and not (case["bits"] == 1 and case["kind"] == "symmetric")


COMPARABLE = [case for case in CASES if comparable(case)]


@pytest.mark.parametrize("case", COMPARABLE, ids=ids(COMPARABLE))
def test_golden_case(case: dict[str, Any]) -> None:
    weights = np.array([case["weights"]], np.float32)
    found = quantcli.quantize(weights, scheme_of(case))

    scale = float(found.scale.reshape(-1)[0])
    assert scale == pytest.approx(case["scale"], rel=2e-7)
    codes = found.codes[0].astype(int) - (1 << (case["bits"] - 1) if case.get("signed") else 0)
    expected = np.array(case["codes"])
    # The cases are float64, we divide in float32: `float32_same_codes` says where that gives the same codes. Elsewhere
    # a quotient lies on a decimal tie and may go either way.
    if case.get("float32_same_codes"):
        np.testing.assert_array_equal(codes, expected)
    else:
        offset = case.get("offset", 0.0)
        quotient = (np.array(case["weights"]) - offset) / case["scale"]
        tied = np.abs(np.abs(quotient - np.rint(quotient)) - 0.5) < 1e-5
        np.testing.assert_array_equal(codes[~tied], expected[~tied])
        assert (np.abs(codes - expected)[tied] <= 1).all()

    if "zero_point" in case:
        assert found.zero_point is not None
        zero = int(found.zero_point.reshape(-1)[0]) - (1 << (case["bits"] - 1) if case.get("signed") else 0)
        assert zero == case["zero_point"]
    if "offset" in case:
        assert found.zero_point is not None
        assert float(found.zero_point.reshape(-1)[0]) == pytest.approx(case["offset"], rel=1e-7)

    if case.get("float32_same_codes"):
        largest = max(abs(w) for w in case["weights"])
        np.testing.assert_allclose(found.dequantize()[0], case["values"], rtol=1e-6, atol=2e-7 * largest)
        metrics = found.metrics(weights)
        power = float((np.array(case["weights"]) ** 2).sum())
        # float32 weights are off by 2^-24, which shows most where the error itself is small.
        slack = 1e-6 * math.sqrt(case["sse"] * power) + 1e-12 * power
        assert metrics.sse == pytest.approx(case["sse"], rel=1e-6, abs=slack)
        assert metrics.max_abs_error == pytest.approx(case["max_abs_error"], rel=1e-6, abs=3e-7 * largest)


def test_the_cases_cover_every_kind() -> None:
    found = {(c["kind"], c["method"], c.get("grid"), bool(c.get("signed"))) for c in CASES}
    assert len(found) == 6, found
    assert len(CASES) == 118
