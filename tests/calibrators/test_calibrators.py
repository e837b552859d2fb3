"""Calibrators against worked cases computed elsewhere, the exact optimum, and brute force."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, GOLDEN_FILES
from strategies import gaussian

import quantcli
from quantcli import Scheme
from quantcli.asking import candidates
from quantcli.calibrators import entropy
from quantcli.calibrators.searches import arithmetic, breakpoints, histogram, kmeans, trials
from quantcli.calibrators.searches import candidates as tried

GOLDEN = json.loads((GOLDEN_FILES / "calibrators.json").read_text())


def named(cases: list[dict[str, Any]]) -> list[str]:
    return [case["id"] for case in cases]


def scheme_of(case: dict[str, Any], calibration: str, granularity: Any, **options: Any) -> Scheme:
    fields: dict[str, Any] = {"bits": case["bits"], "granularity": granularity, "scale_dtype": "float32"}
    if case["scheme"] == "symmetric":
        fields["grid"] = case["grid"] or "full"
    else:
        fields |= {"symmetric": False, "zero_point": "int" if "int" in case["scheme"] else "float"}
    return Scheme(**fields, calibration=calibration, options=options)


def irwin_hall() -> dict[str, np.ndarray]:
    """Nearly normal weights from a generator that any language can repeat."""

    def lcg(n: int, state: int) -> np.ndarray:
        found = []
        for _ in range(n):
            state = (1103515245 * state + 12345) % 2**31
            found.append(state / 2**31)
        return np.array(found)

    sums = lcg(24000, 12345).reshape(2000, 12).sum(axis=1) - 6
    return {
        "irwin_hall_2000": sums, "irwin_hall_2000_outlier": np.append(sums[:-1], 16.0),
        "irwin_hall_half_zero": np.where(np.arange(2000) % 2 == 0, 0, sums), "uniform_2000": lcg(2000, 99) * 2 - 1,
        "uniform_shift": lcg(2000, 7) * 3 - 1,
    }  # fmt: skip


GENERATED = irwin_hall()


# ---- least squared error ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("case", GOLDEN["mse"], ids=named(GOLDEN["mse"]))
def test_exact_finds_the_least_error(case: dict[str, Any], granularity: str) -> None:
    weights = np.array([case["weights"]])
    found = quantcli.quantize(weights, scheme_of(case, "mse", granularity, effort="exact")).metrics(weights)
    power = float((weights**2).sum())
    assert found.sse <= case["sse"] * (1 + 1e-4) + 1e-6 * math.sqrt(case["sse"] * power) + 1e-11 * power


@pytest.mark.parametrize("case", GOLDEN["mse_2000"], ids=lambda c: f"{c['bits']}-{c['grid']}")
def test_two_thousand_weights(case: dict[str, Any]) -> None:
    weights = GENERATED[case["generator"]][None]
    for granularity, effort in (("tensor", "exact"), ("channel", "exact"), ("tensor", "default"), ("channel", "best")):
        scheme = Scheme(bits=case["bits"], grid=case["grid"], calibration="mse", granularity=granularity,  # type: ignore[arg-type]
                        scale_dtype="float32", options={"effort": effort})  # fmt: skip
        found = quantcli.quantize(weights, scheme).metrics(weights).sqnr_db
        assert found is not None
        slack = 1e-3 if effort == "exact" else 0.03 if effort == "best" else 0.1
        # On the full grid ours may use a negative scale, which the case does not.
        assert found >= case["sqnr_db"] - slack
        if case["grid"] == "restricted":
            assert found <= case["sqnr_db"] + 1e-3


@given(values=st.lists(st.integers(-6, 6), min_size=1, max_size=4), top=st.integers(1, 3))
def test_the_sweep_is_brute_force(values: list[int], top: int) -> None:
    """Every assignment of codes, each with its own least-squares scale."""
    x = np.array([values], np.float64)
    scale, gain = breakpoints.exact(x, np.array([-top - 1.0]), np.array([float(top)]))
    most = 0.0
    for codes in itertools.product(range(-top - 1, top + 1), repeat=len(values)):
        q = np.array(codes, np.float64)
        if (x[0] @ q) > 0:
            most = max(most, float(x[0] @ q) ** 2 / float(q @ q))
    assert gain[0] == pytest.approx(most, rel=1e-12)
    q = np.clip(np.rint(x / scale[:, None]), -top - 1, top)
    if most:
        assert float(((x - q * scale[:, None]) ** 2).sum()) == pytest.approx(float((x**2).sum()) - most, abs=1e-9)


def samples(n: int, groups: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "normal": rng.standard_normal((groups, n)), "Laplace": rng.laplace(size=(groups, n)),
        "Student": rng.standard_t(4, (groups, n)), "shifted": rng.standard_normal((groups, n)) + 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256, 1024])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_default_is_within_a_tenth_and_best_within_three_hundredths(bits: int, n: int) -> None:
    """the default is within 0.1 dB and `best` within 0.03 dB of the exact optimum at 2, 3, 4, 6 and 8 bits"""
    for name, weights in samples(n, max(24, 1_200_000 // (n << bits))).items():
        error = {}
        for effort in ("default", "best", "exact"):
            scheme = Scheme(
                bits=bits, group_size=n, calibration="mse", options={"effort": effort}, scale_dtype="float32"
            )
            error[effort] = quantcli.quantize(weights, scheme).metrics(weights).sse
        assert 10 * math.log10(error["default"] / error["exact"]) <= 0.1, name
        assert 10 * math.log10(error["best"] / error["exact"]) <= 0.03, name


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_are_searched_as_closely(bits: int, n: int) -> None:
    for name, weights in samples(n, 6_400 // n).items():
        error = {}
        for effort in ("default", "best", "exact"):
            scheme = Scheme(bits=bits, group_size=n, symmetric=False, calibration="mse", options={"effort": effort},
                            scale_dtype="float32")  # fmt: skip
            error[effort] = quantcli.quantize(weights, scheme).metrics(weights).sse
        assert 10 * math.log10(error["default"] / error["exact"]) <= 0.1, name
        assert 10 * math.log10(error["best"] / error["exact"]) <= 0.03, name


@pytest.mark.parametrize(("fields", "least"), [
    ({"bits": 4}, 20.2), ({"bits": 3}, 14.6), ({"bits": 2}, 8.7), ({"bits": 4, "symmetric": False}, 20.4),
    ({"format": "codebook", "group_size": 32}, 22.4), ({"format": "codebook", "group_size": 16}, 23.4),
    ({"format": "codebook", "group_size": 16, "bits": 3}, 17.2),
])  # fmt: skip
def test_what_normal_weights_keep(fields: dict[str, Any], least: float) -> None:
    """SQNR on N(0,1), bf16, every figure at its bits per weight."""
    weights = gaussian(256, 4096, seed=5).astype(BF16)
    found = quantcli.quantize(weights, Scheme(**fields)).metrics(weights).sqnr_db
    assert found is not None and found >= least


def test_a_histogram_is_searched_like_the_weights() -> None:
    """Per tensor from the exact histogram: no worse than brute force over scales."""
    weights = gaussian(64, 512, seed=3).astype(BF16)
    x = weights.astype(np.float64)
    for bits in (2, 4, 8):
        top = (1 << (bits - 1)) - 1
        scheme = Scheme(bits=bits, granularity="tensor", calibration="mse", scale_dtype="float32")
        found = quantcli.quantize(weights, scheme).metrics(weights).sse
        errors = []
        for scale in np.linspace(0.02, 1.1, 400) * np.abs(x).max() / top:
            q = np.clip(np.rint(x / scale), -top - 1, top)
            errors.append(float(((x - q * scale) ** 2).sum()))
        assert found <= min(errors) * 1.002


@pytest.mark.parametrize(
    "asked",
    [
        *({"bits": 2}, {"bits": 4}, {"bits": 8}, {"bits": 4, "grid": "restricted"}, {"bits": 3, "format": "midrise"}),
        *({"format": "fp4"}, {"format": "nf4"}, {"format": "fp8-e4m3"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("weights", ["normal", "positive", "outlier", "few"])
def test_running_sums_find_the_scale_that_a_search_weight_by_weight_does(weights: str, asked: dict[str, Any]) -> None:
    x = gaussian(16, 1024, seed=8).astype(BF16).astype(np.float64).ravel()
    x = {"normal": x, "positive": np.abs(x), "outlier": np.append(x, 40.0), "few": np.append(np.round(x), 0.3)}[weights]
    values, counts = np.unique(x, return_counts=True)
    scheme = Scheme(granularity="tensor", calibration="mse", scale_dtype="float32", **asked)
    levels = trials.levels_of(scheme)

    def error(scale: float) -> float:
        return float(((values - levels(values / scale) * scale) ** 2 * counts).sum())

    slow = trials.symmetric(values[None], counts[None].astype(np.float64), scheme, norm=2.0, effort="default")[0]
    found = trials.of_histogram(values, counts.astype(np.float64), scheme, "default")[0]
    assert error(found) <= error(slow) * (1 + 1e-6)


def test_other_norms_trade_the_largest_error_for_the_rest() -> None:
    weights = gaussian(32, 512, seed=4)
    worst, power = [], []
    for norm in (1.0, 2.0, 4.0, 8.0):
        found = quantcli.quantize(weights, Scheme(bits=3, calibration="mse", options={"norm": norm})).metrics(weights)
        worst.append(found.max_abs_error)
        power.append(found.sse)
    assert worst == sorted(worst, reverse=True)
    assert power[1] == min(power)


def test_powers_and_logarithms_are_the_libraries_own_to_the_last_digits() -> None:
    x = np.geomspace(1e-300, 1e300, 1001)
    np.testing.assert_allclose(arithmetic.log(x), np.log(x), rtol=1e-14)
    y = np.linspace(-600, 600, 1001)
    np.testing.assert_allclose(arithmetic.exp(y), np.exp(y), rtol=1e-12)
    z = np.linspace(0, 5, 101)
    np.testing.assert_allclose(arithmetic.power(z, 2.4), z**2.4, rtol=1e-12)


def test_candidates_reach_low_enough() -> None:
    """the range must reach low enough at 2 and 3 bits"""
    assert tried.ratios(2, 4096, "default").min() <= 0.1 and tried.ratios(3, 4096, "default").min() <= 0.2
    for effort in ("fast", "default", "best"):
        for bits in range(2, 17):
            for n in (16, 128, 1024, 65536):
                ratios = tried.ratios(bits, n, effort)
                assert 3 <= len(ratios) <= 120 and (np.diff(ratios) > 0).all()


def test_levels_of_groups_of_very_unlike_size() -> None:
    """zeros and few values safe: groups 1e7 times larger than the others leave those without weight in the sums"""
    weights = gaussian(64, 96, seed=5) * np.where(np.arange(64) == 3, np.float32(1e7), np.float32(1))[:, None]
    quantized = quantcli.quantize(weights, Scheme(bits=4, group_size=32, format="codebook"))
    assert (quantized.metrics(weights).sqnr_db or 0) > 18


# ---- percentile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("case", GOLDEN["percentile"], ids=named(GOLDEN["percentile"]))
def test_golden_percentile(case: dict[str, Any], granularity: str) -> None:
    weights = np.array([case["weights"]], np.float32)
    found = quantcli.quantize(weights, scheme_of(case, "percentile", granularity, percentile=case["percent"]))
    assert float(found.scale.reshape(-1)[0]) == pytest.approx(case["scale"], rel=3e-6)
    if case["zero"] is not None:
        assert found.zero_point is not None
        assert float(found.zero_point.reshape(-1)[0]) == pytest.approx(case["zero"], rel=3e-6, abs=1e-6)


@pytest.mark.parametrize("case", GOLDEN["percentile_2000"], ids=lambda c: str(c["percent"]))
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_percentile_is_an_exact_order_statistic(case: dict[str, Any], granularity: Any) -> None:
    weights = GENERATED[case["generator"]][None].astype(np.float32)
    options = {"percentile": case["percent"]}
    fields: dict[str, Any] = {"bits": 8, "granularity": granularity, "scale_dtype": "float32", "options": options}
    found = quantcli.quantize(weights, Scheme(**fields, calibration="percentile", grid="restricted"))
    assert float(found.scale[0, 0]) * 127 == pytest.approx(case["alpha"], rel=3e-4 if granularity == "tensor" else 1e-6)
    both = quantcli.quantize(weights, Scheme(**fields, calibration="percentile", symmetric=False, zero_point="float"))
    assert both.zero_point is not None
    low, high = case["range"]
    assert float(both.zero_point[0, 0]) == pytest.approx(low, rel=3e-4)
    assert float(both.scale[0, 0]) * 255 == pytest.approx(high - low, rel=3e-4)


@given(
    values=st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=60),
    percent=st.floats(50, 100),
    half=st.booleans(),
)
def test_percentile_of_a_histogram_is_numpys(values: list[float], percent: float, half: bool) -> None:
    x = np.array([values], np.float16 if half else np.float32)
    counts, lows = np.zeros(1 << (16 if half else 20), np.int64), None if half else np.zeros(1 << 20, np.int64)
    raw = x.view(np.uint16) if half else x
    from quantcli.kernels import F16, F32, Tile, load

    assert load().histogram(Tile(raw.reshape(-1), F16 if half else F32, 1, x.size, x.size), counts, lows)
    found = histogram.distinct({"counts": counts, "kind": F16 if half else F32, "lows": lows})
    expected = np.quantile(x.astype(np.float64), percent / 100)
    assert histogram.quantile(*found, percent / 100) == pytest.approx(expected, rel=1e-9 if half else 3e-4, abs=1e-9)


# ---- entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["entropy"], ids=named(GOLDEN["entropy"]))
def test_golden_entropy(case: dict[str, Any]) -> None:
    values, counts = np.unique(GENERATED[case["generator"]], return_counts=True)
    fields: dict[str, Any] = {"bits": case["params"]["bits"], "granularity": "tensor", "calibration": "entropy"}
    if "affine" in case["id"]:
        fields |= {"symmetric": False, "zero_point": "float"}
    else:
        fields |= {"grid": "restricted"}
    scale, zero = entropy._of(values, counts.astype(np.float64), Scheme(**fields))
    assert scale[0] == pytest.approx(case["expected"]["scale"], rel=1e-12)
    if zero is not None:
        assert zero[0] == pytest.approx(case["expected"]["offset"], rel=1e-12)


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_entropy_is_the_same_for_a_row_and_a_histogram(name: str) -> None:
    weights = GENERATED[name][None].astype(np.float16)
    for bits in (2, 3, 4):
        found = [
            quantcli.quantize(weights, Scheme(bits=bits, calibration="entropy", granularity=g)).scale[0, 0]
            for g in ("channel", "tensor")
        ]
        assert found[0] == found[1]


# ---- levels -----------------------------------------------------------------------------------------------------


def distinct(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    found, counts = np.unique(np.array(values, np.float64), return_counts=True)
    return found, counts.astype(np.float64)


def error_of(values: np.ndarray, counts: np.ndarray, levels: np.ndarray) -> float:
    return float((counts * ((values[:, None] - levels[None]) ** 2).min(axis=1)).sum())


@pytest.mark.parametrize("case", GOLDEN["lloyd"], ids=named(GOLDEN["lloyd"]))
def test_golden_levels(case: dict[str, Any]) -> None:
    values, counts = distinct(case["weights"])
    k = case["levels"]
    found = (
        kmeans.optimal(values, counts, k)
        if case["optimal"]
        else kmeans.lloyd(values, counts, kmeans.quantiles(values, counts, k), 1000)
    )
    assert error_of(values, counts, found) == pytest.approx(case["sse"], rel=1e-9, abs=1e-12)


@given(values=st.lists(st.integers(-30, 30), min_size=1, max_size=9), k=st.integers(2, 5))
def test_optimal_levels_are_brute_force(values: list[int], k: int) -> None:
    """Of all ways to cut the sorted values into k runs the best one."""
    ordered, counts = distinct([float(v) for v in values])
    found = kmeans.optimal(ordered, counts, k)
    assert len(found) == k and (np.diff(found) >= 0).all()
    x, best = np.sort(np.array(values, np.float64)), math.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), k - 1):
        runs = np.split(x, cuts)
        best = min(best, sum(float(((r - r.mean()) ** 2).sum()) for r in runs if len(r)))
    assert error_of(ordered, counts, found) == pytest.approx(best, abs=1e-9)


def test_optimal_levels_of_a_normal_tensor_are_lloyd_and_maxs() -> None:
    """20.22 dB at 16 levels, the least a scalar quantizer of a normal source can lose."""
    weights = gaussian(512, 2048, seed=9).astype(BF16)
    for bits, expected in ((1, 4.396), (2, 9.300), (3, 14.616), (4, 20.222)):
        found = quantcli.quantize(weights, Scheme(bits=bits, format="codebook", granularity="tensor"))
        assert found.metrics(weights).sqnr_db == pytest.approx(expected, abs=0.02)


def test_levels_per_channel_are_each_channels_own() -> None:
    weights = gaussian(6, 700, seed=2) * np.array([[1, 10, 0.1, 3, 5, 0]], np.float32).T
    whole = quantcli.quantize(weights, Scheme(bits=3, format="codebook", granularity="channel", scale_dtype="float32"))
    for row in range(6):
        alone = quantcli.quantize(weights[row : row + 1], whole.scheme)
        np.testing.assert_array_equal(alone.dequantize()[0], whole.dequantize()[row])
    assert whole.params.codebook is not None and whole.params.codebook.levels.shape == (6, 8)


def test_groups_of_zeros_stay_zeros_in_a_learned_codebook() -> None:
    weights = gaussian(8, 256, seed=6)
    weights[3, 64:128] = 0
    for dtype in ("float8_e4m3", "float16", "bfloat16", "float32"):
        found = quantcli.quantize(weights, Scheme(bits=4, format="codebook", group_size=32, scale_dtype=dtype))
        assert (found.dequantize()[3, 64:128] == 0).all()
        assert (found.metrics(weights).sqnr_db or 0) > 21
    nothing = quantcli.quantize(np.zeros((4, 64), np.float32), Scheme(format="codebook", group_size=32))
    assert (nothing.dequantize() == 0).all()


def test_auto_is_never_worse_than_any_candidate() -> None:
    """never worse than min-max"""
    for seed, shape in enumerate([(16, 256), (4, 1000), (1, 64)]):
        weights = gaussian(*shape, seed=seed) ** 3
        for fields in (
            {"bits": 4},
            {"bits": 2, "symmetric": False},
            {"bits": 8, "granularity": "tensor"},
            {"format": "nf4"},
        ):
            scheme = Scheme(**fields, calibration="auto")
            found = quantcli.quantize(weights, scheme)
            others = [quantcli.quantize(weights, s).metrics(weights).sse for s in candidates(scheme)]
            assert len(others) > 1
            assert found.scheme.calibration != "auto"
            assert found.metrics(weights).sse == min(others)
