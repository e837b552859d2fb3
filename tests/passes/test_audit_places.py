"""Audits: weights that were changed in a part of a tensor are found wherever they are, and named by their place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from audit_parts import Arrays, audited, problems, quantized
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, save
from strategies import gaussian

from quantcli.passes.audit_places import MOST_RUNS, Places, places_of, run_of, sums_of

NAME, OTHER = "layers.0.up.weight", "layers.1.up.weight"


def model() -> Arrays:
    """Two matrices of so many rows that a sample has not all of them: rows of sizes from 1 to 16 and, within each,
    columns of all sizes, as scales of a tensor, of rows and of groups follow them differently."""
    sizes = 2.0 ** (4 * np.random.default_rng(9).random((640, 1)))
    columns = 2.0 ** np.repeat(np.arange(2), 512)
    return {n: (gaussian(640, 1024, seed=i) * sizes * columns).astype(BF16) for i, n in enumerate((NAME, OTHER))}


SCHEMES = {
    "w2g64": ("--bits", "2"),
    "w4g64": ("--bits", "4", "--calibration", "minmax"),
    "w8c": ("--bits", "8", "--group-size", "-1"),
    "w8t": ("--bits", "8", "--group-size", "0"),
    "nf4": ("--type", "nf4"),
    "fp8": ("--type", "fp8-e4m3", "--group-size", "-1"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_in_place_of_another(scheme: str, tmp_path: Path) -> None:
    """One row of 640: with the index of its first weight, and nothing else, whatever scales follow."""
    arrays = model()
    out = quantized(tmp_path, arrays, "q", *SCHEMES[scheme])
    code, found = audited(out, tmp_path / "q-of.safetensors")
    assert code == 0, problems(found)
    assert all((t["changed_runs"], t["first_changed"]) == (0, None) for t in found["tensors"])
    weights = arrays[NAME].copy()
    rows = np.argsort(np.abs(weights.astype(np.float64)).sum(1))  # with one scale for all, small ones are nearly 0
    row = int(rows[-9])
    weights[row] = -weights[rows[-1]]
    code, found = audited(out, save(tmp_path / "changed.safetensors", arrays | {NAME: weights}))
    assert code == 1 and problems(found).keys() == {NAME}
    told = found["by_name"][NAME]
    assert told["changed_runs"] == 4 and told["first_changed"] == [row, 0]
    assert f"4 of 2,560 runs of 256 weights, from [{row}, 0] on, are up to" in problems(found)[NAME]
    assert told["method"] != "none of the base as it is"


def steps(count: int, seed: int = 0, part: float = 0.125) -> tuple[np.ndarray, np.ndarray]:
    """Weights that are 1 or -1, and the same with errors of a part of that up or down."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], count).astype(np.float32)
    return x, x + np.float32(part) * rng.choice([-1, 1], count).astype(np.float32)


def found_in(
    x: np.ndarray, y: np.ndarray, shape: tuple[int, ...], *, bits: int = 8, scaled: bool = False
) -> Places | None:
    cuts = range(0, len(x), 1024)
    with np.errstate(over="ignore"):
        pieces = [piece for i in cuts for piece in sums_of(x[i : i + 1024], y[i : i + 1024], 256)]
        return places_of(pieces, shape, bits=bits, scaled=scaled)


@pytest.mark.parametrize("times", [1.9, 2.1, 4.0])
def test_six_decibels_are_too_much(times: float) -> None:
    """Errors twice as large are 6.02 dB; what is said is what was done."""
    x, y = steps(16 * 1024)
    for run in (5, 6, 40):
        part = slice(256 * run, 256 * run + 256)
        y[part] = x[part] + np.float32(times) * (y[part] - x[part])
    found = found_in(x, y, (16, 1024))
    if times < 2:
        assert found is None
        return
    assert found is not None and (found.changed, found.count, found.size, found.first) == (3, 64, 256, (1, 256))
    assert found.worst_db == pytest.approx(20 * np.log10(times), abs=0.01)
    said = "3 of 64 runs of 256 weights, from [1, 256] on, are up to"
    assert str(found) == f"{said} {found.worst_db:.1f} dB farther from the base than the others: they were changed"


def test_fewer_than_eight_runs_have_no_others() -> None:
    for runs, seen in ((7, False), (8, True)):
        x, y = steps(256 * runs)
        y[:256] = -x[:256]
        found = found_in(x, y, (runs, 256))
        assert (found is not None) == seen
    assert found is not None and found.worst_db == pytest.approx(20 * np.log10(16), abs=0.01)
    assert str(found).startswith("1 of 8 runs of 256 weights, from [0, 0] on, is 24.1 dB farther")


def test_runs_in_which_nothing_is_wrong_make_no_others_stand_out() -> None:
    """Weights that were on the grid already, but for a few that a scale's rounding moves by 36 dB less than they are;
    codes of 4 bits leave 34 dB at most. With 28 dB they stand out by 6 dB."""
    x, y = steps(256 * 64, part=0.0)
    y[256:512] += np.float32(0.016)
    assert found_in(x, y, (64, 256), bits=4) is None
    y[256:512] = x[256:512] + np.float32(0.04)
    found = found_in(x, y, (64, 256), bits=4)
    assert found is not None and found.first == (1, 0)
    assert found.worst_db == pytest.approx(10 * np.log10(1 + 0.04**2 * 10**3.408), abs=0.01)
    zeros = np.zeros(256 * 64, np.float32)
    assert found_in(zeros, zeros, (64, 256)) is None and found_in(zeros, y, (64, 256)) is None
    assert found_in(x, np.where(x > 0, np.float32(3e38), x), (64, 256)) is None  # whose squares float32 does not hold


@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_run_beside_a_large_weight_was_not_changed(bits: str, tmp_path: Path) -> None:
    """Rows of 1,008 weights, which runs of 256 do not end with: a run in row 26 and 27, whose large weight is in the
    next one. So it is in ANI-2xt, as Auto3D 3.2.3 has it. Other weights in its place are still found."""
    weights = gaussian(224, 1008, seed=3) * np.float32(0.04)
    weights[27, 200] = 3
    out = quantized(tmp_path, {NAME: weights}, "q", "--bits", bits, "--group-size", "128")
    code, found = audited(out, tmp_path / "q-of.safetensors")
    assert (code, problems(found)) == (0, {})
    weights[26, 928:], weights[27, :176] = -8 * weights[26, 928:], -8 * weights[27, :176]
    code, found = audited(out, save(tmp_path / "changed.safetensors", {NAME: weights}))
    assert code == 1 and (found["by_name"][NAME]["changed_runs"], found["by_name"][NAME]["first_changed"]) == (
        1,
        [26, 928],
    )


def test_larger_weights_among_small_ones_were_not_changed() -> None:
    """Groups of which nearly all weights are rounded to 0, but for two whose weights are larger than a step: rounding
    to sevenths leaves more of an error there. So it is in IM2Deep 2.0.2. One that is rounded to halves stands out."""
    rng = np.random.default_rng(5)
    x = gaussian(64, 1024, seed=4) * np.float32(0.006)
    x[40, :256] = rng.uniform(-0.25, 0.25, 256)
    x[:, ::128] = rng.choice([-1.0, 1.0], (64, 8))
    y = np.rint(x * 7) / 7
    assert found_in(x.ravel(), y.ravel(), x.shape, bits=4) is None
    y[40, :256] = np.rint(x[40, :256] * 2) / 2
    found = found_in(x.ravel(), y.ravel(), x.shape, bits=4)
    assert found is not None and (found.changed, found.first) == (1, (40, 0))


def test_gains_of_rows_are_no_errors() -> None:
    """Rows that were scaled as a whole, where that is known; but not those whose weights are others."""
    x, y = steps(256 * 64)
    y[:256] *= 3
    y[256:512] *= np.float32(0.2)
    x[1024:1280], y[1024:1280] = 0, 0
    assert found_in(x, y, (64, 256)) is not None
    assert found_in(x, y, (64, 256), scaled=True) is None
    y[512:768] = -y[512:768]
    found = found_in(x, y, (64, 256), scaled=True)
    assert found is not None and (found.changed, found.first) == (1, (2, 0))


def test_scales_of_rows_in_three_dimensions() -> None:
    """Experts' rows have the errors of their largest weight, which is in one of their four runs."""
    x, y = steps(2 * 20 * 1024)
    sizes = np.repeat(4.0 ** (np.arange(40) % 3), 1024).astype(np.float32)
    y = x + (y - x) * sizes
    x[np.arange(40) * 1024] *= sizes[::1024]
    y[np.arange(40) * 1024] = x[np.arange(40) * 1024]
    assert found_in(x, y, (2, 20, 1024)) is None
    y[5120:5376] += 3 * (y[5120:5376] - x[5120:5376])
    found = found_in(x, y, (2, 20, 1024))
    assert found is not None and (found.changed, found.first) == (1, (0, 5, 0))


def test_gains_of_rows_are_told_as_gains(tmp_path: Path) -> None:
    """Six of 128 rows three times as large: not six changed places, but scaled rows."""
    weights = gaussian(128, 256, seed=1)
    scaled = weights.copy()
    scaled[10:16] *= 3
    out = quantized(tmp_path, {NAME: scaled}, "q", "--bits", "4")
    code, found = audited(out, save(tmp_path / "base.safetensors", {NAME: weights}))
    line = "its rows or columns are scaled, and no kept tensor makes up for that"
    assert code == 1 and found["by_name"][NAME]["problems"] == [line]
    weights[40] = weights[41]
    code, found = audited(out, save(tmp_path / "other.safetensors", {NAME: weights}))
    told = found["by_name"][NAME]
    assert line in told["problems"] and (told["changed_runs"], told["first_changed"]) == (1, [40, 0])


@given(st.integers(1, 70_000), st.integers(1, 9), st.integers(0, 99))
def test_runs_add_up_to_the_whole(count: int, cut: int, seed: int) -> None:
    """Every weight is in one run, wherever a tensor is cut into pieces."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, count)).astype(np.float32)
    at = sorted({0, count, *rng.integers(0, count, cut)})
    pieces = [piece for a, b in pairwise(at) for piece in sums_of(x[a:b], y[a:b], 256)]
    wanted = [np.ones(count), x * x, y * y, x * y, np.square(x - y)]
    for found, values in zip(zip(*pieces), wanted):
        assert np.concatenate(found).sum() == pytest.approx(values.astype(np.float64).sum(), rel=1e-9, abs=1e-9)
    assert all(
        256 <= size < 512 or b - a < 256 for a, b in pairwise(at) for p in sums_of(x[a:b], y[a:b], 256) for size in p[0]
    )
    highest = [float(piece[-1].max()) for piece in pieces]
    assert max(highest) == pytest.approx(float(np.square(np.abs(x).max(), dtype=np.float64)))


def test_large_tensors_have_longer_runs() -> None:
    """So that what is kept of them is bounded."""
    assert run_of(1) == run_of(256 * MOST_RUNS + 255) == 256 and run_of(256 * (MOST_RUNS + 1)) == 512
    assert run_of(1 << 40) // 256 == (1 << 40) // 256 // MOST_RUNS
