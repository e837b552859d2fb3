"""Scales and float offsets with the least squared error: both kernel tables, brute force, min-max, and odd weights."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_parts import NATIVE, TABLES, needs_native, variants
from making import BF16 as BFLOAT16
from making import raw_tensors, run, save

import quantcli
import quantcli.kernels
from quantcli import Scheme
from quantcli.calibrators import mse
from quantcli.calibrators.searches import candidates, trials
from quantcli.formats import reach
from quantcli.kernels import BF16, F16, F32, Kernels, Kind, Tile
from quantcli.kernels.numpy_kernels import NumpyKernels
from quantcli.kernels.table import MOST_ENDS


def scheme_of(bits: int, n: int, **fields: Any) -> Scheme:
    usual: dict[str, Any] = {"group_size": n, "scale_dtype": "float32", "calibration": "mse"}
    return Scheme(bits=bits, symmetric=False, zero_point="float", **usual | fields)


def tile_of(x: np.ndarray, kind: Kind, group: int, importance: np.ndarray | None = None) -> Tile:
    if kind == BF16:
        raw = x.astype(BFLOAT16).view(np.uint16)
    else:
        raw = np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16) if kind == F16 else x.astype(np.float32)
    rows, cols = x.shape
    return Tile(np.ascontiguousarray(raw).reshape(-1), kind, rows, cols, group, importance)


def sse_of(x: np.ndarray, scale: np.ndarray, offset: np.ndarray, bits: int, half: float = 0.0) -> np.ndarray:
    """Squared errors of groups (groups, n), from the definition, in float64."""
    quotients = (x - offset) / scale
    codes = np.clip(np.floor(quotients) if half else np.rint(quotients), 0, (1 << bits) - 1) + half
    found: np.ndarray = ((x - codes * scale - offset) ** 2).sum(axis=1)
    return found


def samples(n: int, groups: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    outlier = rng.standard_normal((groups, n))
    outlier[np.arange(groups), rng.integers(0, n, groups)] = 20
    found = {
        "normal": rng.standard_normal((groups, n)), "Laplace": rng.laplace(size=(groups, n)),
        "Student": rng.standard_t(4, (groups, n)), "uniform": rng.uniform(-1, 1, (groups, n)), "outlier": outlier,
    }  # fmt: skip
    return {name: x.astype(np.float32).astype(np.float64) for name, x in found.items()}


@needs_native
@given(data=st.data())
def test_every_table_finds_the_same_offsets(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.one_of(st.integers(1, 70), st.integers(1, 1500)))
    group = min(cols, data.draw(st.one_of(st.sampled_from([16, 32, 64, 128]), st.integers(1, cols))))
    kind: Any = data.draw(st.sampled_from([BF16, F16, F32]))
    bits, effort = data.draw(st.integers(1, 16)), data.draw(st.sampled_from(["fast", "default"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    size = 10.0 ** data.draw(st.sampled_from([-45, -40, -38, -3, 0, 0, 0, 3, 37]))
    with np.errstate(over="ignore"):
        x = rng.standard_t(data.draw(st.sampled_from([1, 4, 30])), (rows, cols)) * size
        x = np.clip(x + data.draw(st.sampled_from([0.0, 0.0, 1.0, -1000.0])), -3e38, 3e38)
    if data.draw(st.booleans()):
        x[0] = np.round(x[0])
        x[-1] = rng.choice([0.0, -0.0, x[-1, 0]], cols)
    importance = rng.gamma(0.5, size=cols) if data.draw(st.booleans()) else None
    tile = tile_of(x, kind, group, importance)
    form: Any = "int" if bits == 1 else data.draw(st.sampled_from(["int", "midrise"]))
    scheme = scheme_of(bits, group, format=form, options={"effort": effort})
    found = [mse.local(table, tile, scheme) for table in (NumpyKernels(), *variants())]
    for ideal in found:
        assert ideal is not None and ideal.zero is not None and found[0] is not None and found[0].zero is not None
        assert ideal.scale.tobytes() == found[0].scale.tobytes(), (rows, cols, group, kind, bits)
        assert ideal.zero.tobytes() == found[0].zero.tobytes(), (rows, cols, group, kind, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_file_is_the_same_at_any_number_of_threads_and_with_any_kernels(
    tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(bits).standard_t(5, (1500, 1000)).astype(np.float32)
    source = save(tmp_path / "in.safetensors", {"w": weights, "b": weights[:40, :999].astype(np.float16)})
    written = set()
    for kernels, threads in (("native", 1), ("native", 2), ("native", 7), ("numpy", 2)):
        if kernels == "native" and NATIVE is None:
            continue
        monkeypatch.setenv("QUANTCLI_KERNELS", kernels)
        quantcli.kernels.load.cache_clear()
        out = tmp_path / f"{kernels}-{threads}.safetensors"
        ran = run("quantize", source, "-o", out, "--bits", bits, "--group-size", 64, "--asymmetric", "--zero-point",
                  "float", "--calibration", "mse", "--threads", threads)  # fmt: skip
        assert ran.code == 0, ran.err
        written.add(out.read_bytes())
    quantcli.kernels.load.cache_clear()
    assert len(written) == 1


def test_a_tensor_whose_offsets_do_not_fit_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets of 8 bits do not fit bfloat16, which the first tile shows; then both are searched for float32."""
    weights = np.random.default_rng(0).standard_normal((1 << 10, 1 << 11)).astype(np.float32).view(np.uint32) >> 16
    header = {"w": ("BF16", weights.shape, weights.astype("<u2").tobytes())}
    source = tmp_path / "in.safetensors"
    source.write_bytes(raw_tensors(header))
    searched, search = [], mse._offsets

    def counted(*arguments: Any) -> Any:
        searched.append(1)
        return search(*arguments)

    monkeypatch.setattr(mse, "_offsets", counted)
    ran = run("quantize", source, "-o", tmp_path / "out.safetensors", "--bits", 8, "--group-size", 128, "--asymmetric",
              "--zero-point", "float", "--calibration", "mse", "--threads", 1)  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(searched) == 3


def least_error(x: np.ndarray, bits: int, ends: np.ndarray) -> np.ndarray:
    """The least squared error of groups over all ranges whose ends are at these shares of the way from the mean, codes
    and line refit in turn."""
    best = np.full(len(x), np.inf)
    mean, lo, hi = x.mean(axis=1, keepdims=True), x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    top = (1 << bits) - 1
    for below, above in itertools.product(ends, ends):
        offset, end = mean + (lo - mean) * below, mean + (hi - mean) * above
        scale = (end - offset) / top
        for _ in range(3):
            codes = np.clip(np.rint((x - offset) / scale), 0, top)
            around = codes - codes.mean(axis=1, keepdims=True)
            square = (around * around).sum(axis=1, keepdims=True)
            slope = (around * x).sum(axis=1, keepdims=True) / np.where(square > 0, square, 1)
            good = slope > 0
            offset = np.where(good, mean - slope * codes.mean(axis=1, keepdims=True), offset)
            scale = np.where(good, slope, scale)
            best = np.minimum(best, sse_of(x, scale, offset, bits))
    return best


@pytest.mark.parametrize("n", [16, 32, 64, 128, 512])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_the_search_is_close_to_brute_force_and_to_the_slow_search(bits: int, n: int) -> None:
    ends = {2: np.geomspace(0.15, 1.1, 16), 3: np.geomspace(0.3, 1.15, 16), 4: np.geomspace(0.5, 1.2, 18)}.get(
        bits, np.linspace(0.9, 1.2, 18) if bits < 7 else np.linspace(0.985, 1.1, 18)
    )
    kernels = quantcli.kernels.load()
    slack = 0.1 if bits < 8 or n >= 128 else 0.3
    for name, x in samples(n, max(6, 4000 // n)).items():
        scheme = scheme_of(bits, n)
        ideal = mse.local(kernels, tile_of(x, F32, n), scheme)
        assert ideal is not None and ideal.zero is not None
        ours = sse_of(x, ideal.scale, ideal.zero, bits)
        least = least_error(x, bits, ends)
        assert 10 * math.log10(ours.sum() / least.sum()) <= slack, name
        scale, offset = trials.affine(x, None, scheme, norm=2.0, effort=scheme.options["effort"])
        slow = sse_of(x, scale[:, None], offset[:, None], bits)
        assert 10 * math.log10(ours.sum() / slow.sum()) <= 0.03, name


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("form", "bits"),
    [*(("int", bits) for bits in (1, 2, 4, 8, 12)), *(("midrise", bits) for bits in (2, 4, 8, 12))],
)
def test_no_group_is_worse_than_with_min_max(table: Kernels, form: Any, bits: int) -> None:
    half = 0.5 if form == "midrise" else 0.0
    for n in (2, 3, 7, 16, 50, 128, 300):
        for x in (*samples(n, 40).values(), np.round(samples(n, 40)["normal"] * 2)):
            x = x[x.min(axis=1) < x.max(axis=1)]
            if not len(x):
                continue
            errors = []
            for calibration in ("mse", "minmax"):
                scheme = scheme_of(bits, n, format=form, calibration=calibration)
                lo, hi = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
                ideal = mse.local(table, tile_of(x, F32, n), scheme) if calibration == "mse" else None
                scale, offset = (hi - lo) / reach(scheme), lo
                if ideal is not None:
                    assert ideal.zero is not None
                    scale, offset = ideal.scale, ideal.zero
                errors.append(sse_of(x, scale, offset, bits, half))
            assert (errors[0] <= errors[1] * (1 + 1e-9) + 1e-20 * (x**2).sum(axis=1)).all(), n


def test_weights_on_a_grid_stay_exact() -> None:
    """What was 4-bit before comes back without an error."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (50, 64))
    codes[:, 0], codes[:, 1] = 0, 15
    weights = codes * 0.25 - 1.75
    assert quantcli.quantize(weights, scheme_of(4, 64)).metrics(weights).sse == 0


@pytest.mark.parametrize("table", TABLES)
def test_odd_groups(table: Kernels) -> None:
    """Constant groups keep their value as offset, and neither huge nor tiny weights break the search."""
    rows = np.array([np.full(40, v) for v in (0.0, -0.0, 1.5, -3e38, 1e-45)])
    ideal = mse.local(table, tile_of(rows, F32, 32), scheme_of(4, 32))
    assert ideal is not None and ideal.zero is not None
    assert (ideal.scale == 1).all()
    np.testing.assert_array_equal(ideal.zero, np.repeat(rows[:, :1].astype(np.float32), 2, axis=1))
    assert not np.signbit(ideal.zero[:2]).any()
    x = np.random.default_rng(0).standard_normal((8, 64))
    errors = []
    for size in (1.0, 1e38 / 2, 1e-36):
        ideal = mse.local(table, tile_of(np.clip(x * size, -3e38, 3e38), F32, 64), scheme_of(4, 64))
        assert ideal is not None and ideal.zero is not None
        errors.append(sse_of(x, ideal.scale / size, ideal.zero / size, 4))
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)
    np.testing.assert_allclose(errors[2], errors[0], rtol=0.02)


def test_columns_that_matter_are_served_better() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64))
    importance = np.where(np.arange(64) % 8 == 0, 1.0, 0.001)
    weighed = []
    for own in (None, importance):
        ideal = mse.local(quantcli.kernels.load(), tile_of(x, F32, 64, own), scheme_of(3, 64))
        assert ideal is not None and ideal.zero is not None
        weighed.append(sse_of(x[:, ::8], ideal.scale, ideal.zero, 3).sum())
    assert weighed[1] < 0.3 * weighed[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_effort_costs_no_quality(bits: int) -> None:
    for name, x in samples(64, 60).items():
        errors = []
        for effort in ("fast", "default", "best", "exact"):
            scheme = scheme_of(bits, 64, options={"effort": effort})
            ideal = mse.local(quantcli.kernels.load(), tile_of(x, F32, 64), scheme)
            assert ideal is not None and ideal.zero is not None
            errors.append(10 * math.log10(sse_of(x, ideal.scale, ideal.zero, bits).sum()))
        assert errors[0] >= errors[1] - 0.02 >= errors[2] - 0.03 and errors[3] <= errors[2] + 0.02, name


def test_the_places_of_ends_fit_the_kernels() -> None:
    for bits, n, effort in itertools.product(range(1, 17), (2, 24, 100, 512, 8192, 1 << 19), ("fast", "best", "exact")):
        for weighted in (False, True):
            ends = candidates.ends(bits, n, effort, weighted=weighted)
            assert 2 <= len(ends) <= MOST_ENDS and (np.diff(ends) > 0).all() and 0 < ends[0] < ends[-1] < 2
