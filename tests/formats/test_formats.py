"""Number formats against ml_dtypes, published tables and formulas, in arrays and in files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import conformance
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, GOLDEN_FILES, load, metadata_of, one_line, run, save
from strategies import AWKWARD, gaussian

import quantcli
from quantcli import DataError, Scheme, registry
from quantcli.formats import fixed_codebook
from quantcli.kernels.codebook import codebook

GOLDEN = json.loads((GOLDEN_FILES / "calibrators.json").read_text())

CASTS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2, "fp4": ml_dtypes.float4_e2m1fn,
}  # fmt: skip

SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": {"format": "nf4", "group_size": 64}, "fp4": {"format": "fp4", "group_size": 32},
    "fp8_e4m3": {"format": "fp8_e4m3", "granularity": "channel"}, "fp8_e5m2": {"format": "fp8_e5m2"},
    "midrise": {"format": "midrise", "bits": 4}, "midrise-offset": {"format": "midrise", "bits": 3, "symmetric": False,
                                                                     "zero_point": "float"},
    "midrise-1": {"format": "midrise", "bits": 1, "calibration": "mse"}, "mu-law": {"format": "mu-law"},
    "a-law": {"format": "a-law", "bits": 6, "granularity": "tensor"},
    "given": {"codebook": (-1.5, -0.25, 0.0, 0.25, 2.0), "format": "codebook", "group_size": 32},
    "tensor": {"format": "codebook", "granularity": "tensor"},
    "channel": {"format": "codebook", "granularity": "channel"},
    "five": {"format": "codebook", "levels": 5, "granularity": "tensor"},
    "256": {"format": "codebook", "levels": 256, "granularity": "tensor"},
    "two": {"format": "codebook", "levels": 2, "granularity": "channel"},
    "groups": {"format": "codebook", "group_size": 32},
    "groups-f16": {"format": "codebook", "group_size": 16, "bits": 3, "scale_dtype": "float16"},
    "nf4-mse": {"format": "nf4", "group_size": 64, "calibration": "mse"},
    "fp8-mse": {"format": "fp8_e4m3", "granularity": "tensor", "calibration": "mse"},
    "nf4-percentile": {"format": "nf4", "group_size": 64, "calibration": "percentile"},
}  # fmt: skip
"""One of everything that is not a plain integer."""

for _format in registry.names("formats"):
    if _format not in {"int", *(Scheme(**fields).format for fields in SCHEMES.values())}:
        SCHEMES |= conformance.schemes_of_format(_format)


def levels_of(tensor: quantcli.QuantizedTensor) -> np.ndarray:
    book = tensor.params.codebook
    assert book is not None
    return book.levels


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("kind", SCHEMES)
def test_awkward_arrays(kind: str, name: str) -> None:
    """Finite, in shape, and of all levels the nearest one."""
    array = AWKWARD[name]
    scheme = Scheme(**SCHEMES[kind])
    try:
        found = quantcli.quantize(array, scheme)
    except DataError as refused:
        assert "does not fit" in str(refused)
        return
    decoded = found.dequantize()
    assert decoded.shape == array.shape and np.isfinite(decoded).all()
    x = array.astype(np.float32).astype(np.float64)
    error = np.abs(x - decoded)
    metrics = found.metrics(array)
    assert metrics.sse == pytest.approx(float((error**2).sum()), rel=1e-6, abs=1e-90)
    if found.params.codebook is not None and found.grouping.shared != "columns":
        plan = found.grouping
        matrix, out = x.reshape(plan.rows, plan.cols), decoded.reshape(plan.rows, plan.cols).astype(np.float64)
        scale = np.broadcast_to(found.params.scale, (plan.rows, plan.groups)).astype(np.float64)
        for row in range(plan.rows):
            levels = levels_of(found)[row if len(levels_of(found)) > 1 else 0].astype(np.float64)
            levels = levels[np.isfinite(levels)]
            values = levels[None] * np.repeat(scale[row], plan.group)[: plan.cols, None]
            nearest = np.abs(matrix[row][:, None] - values).min(axis=1)
            slack = 1e-6 * (np.abs(matrix[row]) + np.abs(values).max(axis=1)) + 2.0**-149
            assert (np.abs(matrix[row] - out[row]) <= nearest + slack).all()


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("shape", [(4, 256), (1, 7)])
def test_small_floats_are_what_a_cast_gives(name: str, shape: tuple[int, int]) -> None:
    """Ties to even, saturation: the values of ml_dtypes' cast of the quotients."""
    weights = gaussian(*shape, seed=1)
    found = quantcli.quantize(weights, Scheme(format=name, granularity="channel", scale_dtype="float32"))
    cast = (weights / found.scale).astype(np.float32).astype(CASTS[name])
    np.testing.assert_array_equal(found.dequantize(), cast.astype(np.float32) * found.scale)
    if name != "fp4":  # the codes are the bytes of the format; the second zero aside
        stored = found.codes.astype(np.uint8)
        same = (stored == cast.view(np.uint8)) | (cast.astype(np.float32) == 0)
        assert same.all()


@pytest.mark.parametrize("name", CASTS)
def test_every_value_of_a_small_float_and_every_tie_between_two(name: str) -> None:
    levels = np.unique(fixed_codebook(Scheme(format=name)).sorted[0]).astype(np.float64)
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    probe = np.concatenate(
        [levels, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))]
    ).astype(np.float32)[None]
    # The largest value first: min-max then has scale 1.
    found = quantcli.quantize(probe, Scheme(format=name, granularity="tensor", scale_dtype="float32"))
    assert float(found.scale[0, 0]) == 1.0
    np.testing.assert_array_equal(found.dequantize(), probe.astype(CASTS[name]).astype(np.float32))


def test_nf4_is_the_published_table() -> None:
    """Quantiles of the normal distribution, averaged on either side of 0, over the largest."""
    from statistics import NormalDist

    offset, normal = 0.9677083, NormalDist()
    upper = [normal.inv_cdf(v) for v in np.linspace(offset, 0.5, 9)[:-1]]
    lower = [-normal.inv_cdf(v) for v in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort(np.array([*upper, 0.0, *lower]) / normal.inv_cdf(offset))
    np.testing.assert_allclose(fixed_codebook(Scheme(format="nf4")).levels[0], expected, atol=2e-7)
    weights = gaussian(512, 1024, seed=8)
    assert quantcli.quantize(weights, Scheme(format="nf4", group_size=128)).metrics(weights).sqnr_db == pytest.approx(
        20.39, abs=0.03
    )


@pytest.mark.parametrize("case", GOLDEN["floor"], ids=[c["id"] for c in GOLDEN["floor"]])
def test_golden_midrise(case: dict[str, Any]) -> None:
    """floor((w - lo) / step), read back in the middle of the cell."""
    from quantcli.kernels import F32, OFFSET, CodeGrid, QuantParams, Tile
    from quantcli.kernels import load as table

    weights = np.array(case["weights"], np.float32)
    bits = int(math.log2(case["count"]))
    step, offset = (np.full((1, 1), v, np.float32) for v in ((case["hi"] - case["lo"]) / case["count"], case["lo"]))
    grid = CodeGrid(mode=OFFSET, bits=bits, umin=0, umax=case["count"] - 1, midrise=True)
    packed = np.zeros(64, np.uint8)
    tile = Tile(weights, F32, 1, len(weights), len(weights))
    table().encode(tile, QuantParams(step, offset), grid, packed)
    values = table().decode(packed, (1, len(weights)), len(weights), QuantParams(step, offset), grid)
    np.testing.assert_array_equal(values[0], np.array(case["values"], np.float32))


def test_midrise_has_no_zero_and_half_steps() -> None:
    weights = np.array([[-1.0, -0.3, 0.0, 0.1, 0.6, 0.99]], np.float32)
    found = quantcli.quantize(weights, Scheme(format="midrise", bits=2, granularity="tensor", scale_dtype="float32"))
    assert float(found.scale[0, 0]) == 0.5
    assert found.dequantize()[0].tolist() == [-0.75, -0.25, 0.25, 0.25, 0.75, 0.75]


def test_companding_follows_the_law() -> None:
    """Levels evenly spaced after compression; quiet samples keep what a uniform quantizer loses."""
    levels = fixed_codebook(Scheme(format="mu-law")).levels[0].astype(np.float64)
    compressed = np.sign(levels) * np.log1p(255 * np.abs(levels)) / np.log1p(255)
    np.testing.assert_allclose(compressed, np.linspace(-1, 1, 256), atol=1e-6)
    levels = fixed_codebook(Scheme(format="a-law")).levels[0].astype(np.float64)
    size, whole = np.abs(levels), 1 + math.log(87.6)
    bent = np.where(size < 1 / 87.6, 87.6 * size, 1 + np.log(np.maximum(87.6 * size, 1e-9)))
    compressed = np.sign(levels) * bent / whole
    np.testing.assert_allclose(compressed, np.linspace(-1, 1, 256), atol=1e-6)
    quiet = gaussian(8000, seed=1, scale=0.01)
    quiet[0] = 1.0
    for law in ("mu-law", "a-law"):
        sqnr = quantcli.quantize(quiet[1:], Scheme(format=law, granularity="tensor")).metrics(quiet[1:]).sqnr_db
        assert sqnr is not None and sqnr > 35


@given(
    levels=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40, unique=True),
    weights=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=30),
)
def test_a_weight_halfway_goes_to_the_lower_level(levels: list[float], weights: list[float]) -> None:
    """Thresholds decide exactly as the distances in rational numbers do."""
    from fractions import Fraction

    book = codebook(np.pad(np.array([sorted(levels)]), ((0, 0), (0, 64 - len(levels))), constant_values=np.nan))
    ordered = [Fraction(float(v)) for v in book.sorted[0]]
    for weight in weights:
        exact = Fraction(float(np.float32(weight)))
        place = int((book.thresholds[0] < np.float32(weight)).sum())
        assert place == min(range(len(ordered)), key=lambda i: (abs(ordered[i] - exact), i))


# ---- in files ---------------------------------------------------------------------------------------------------


def flags_of(scheme: Scheme, folder: Path) -> list[str]:
    flags = ["--type", scheme.format, "--granularity", scheme.granularity, "--calibration", scheme.calibration]
    flags += ["--bits", str(scheme.bits)]
    flags += ["--asymmetric", "--zero-point", scheme.zero_point] if not scheme.symmetric else []
    flags += ["--group-size", str(scheme.group_size)] if scheme.group_size else []
    flags += ["--levels", str(scheme.levels)] if scheme.levels else []
    flags += ["--scale-dtype", scheme.scale_dtype] if scheme.scale_dtype != "auto" else []
    if scheme.codebook:
        (folder / "levels.txt").write_text("\n".join(map(str, reversed(scheme.codebook))))
        flags += ["--codebook", str(folder / "levels.txt")]
    return flags


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("kind", SCHEMES)
def test_files_hold_what_arrays_do(kind: str, dtype: Any, tmp_path: Path) -> None:
    """All stored natively, read back, dequantized: the same codes and values as the array's, and the same metrics
    measured again."""
    scheme = Scheme(**SCHEMES[kind])
    arrays = {"a.weight": gaussian(24, 200, seed=1).astype(dtype), "b.weight": gaussian(3, 5, 96, seed=2).astype(dtype)}
    source, target = save(tmp_path / "m.safetensors", arrays), tmp_path / "q.safetensors"
    ran = run("quantize", source, "-o", target, "--json", *flags_of(scheme, tmp_path))
    assert ran.code == 0, ran.err
    report = {t["name"]: t for t in ran.json["tensors"]}
    with quantcli.open(str(target)) as model:
        for name, array in arrays.items():
            expected = quantcli.quantize(array, scheme)
            stored = model[name].quantized()
            np.testing.assert_array_equal(stored.codes, expected.codes)
            np.testing.assert_array_equal(model[name].numpy(), expected.dequantize())
            assert report[name]["mse"] == pytest.approx(expected.metrics(array).mse, rel=1e-9)
            assert report[name]["format"] == scheme.format
    against = run("report", target, "--against", source, "--json")
    assert {t["name"]: t["mse"] for t in against.json["tensors"]} == {n: t["mse"] for n, t in report.items()}
    back = run("dequantize", target, "-o", tmp_path / "back.safetensors")
    assert back.code == 0 and set(load(tmp_path / "back.safetensors")) == set(arrays)


def test_what_a_learned_codebook_is_stored_as(tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", {"w": gaussian(64, 128).astype(BF16)})
    for flags, expected in (
        (["--group-size", "0"], {"w_packed": ("I32", (64, 16)), "w_codebook": ("F32", (16,)),
                                 "w_shape": ("I64", (2,))}),
        (["--group-size", "-1"], {"w_packed": ("I32", (64, 16)), "w_codebook": ("BF16", (64, 16)),
                                  "w_shape": ("I64", (2,))}),
        (["--group-size", "32"], {"w_packed": ("I32", (64, 16)), "w_scale": ("F8_E4M3", (64, 4)),
                                  "w_codebook": ("F32", (16,)), "w_shape": ("I64", (2,))}),
    ):  # fmt: skip
        target = tmp_path / "q.safetensors"
        assert run("quantize", source, "-o", target, "--force", "--type", "codebook", *flags).code == 0
        assert {n: (t.dtype, t.shape) for n, t in load(target).items()} == expected


def test_damaged_levels_are_refused(tmp_path: Path) -> None:
    source, target = save(tmp_path / "m.safetensors", {"w": gaussian(64, 128)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "-o", target, "--type", "codebook", "--group-size", "0").code == 0
    tensors = {n: t.array.copy() for n, t in load(target).items()}
    tensors["w_codebook"][3] = np.nan
    save(tmp_path / "bad.safetensors", tensors, metadata_of(target))
    line = one_line(run("dequantize", tmp_path / "bad.safetensors"), 1)
    assert "a stored level is not finite" in line


@pytest.mark.parametrize(("text", "words"), [
    ("", "0 levels given"), ("1 2 x", "not a list of numbers"), ("1 1", "not in ascending order"),
    ("1", "1 levels given"),
    ("nan 1", "not a finite number"), (" ".join(map(str, range(300))), "300 levels given"),
])  # fmt: skip
def test_invalid_files_of_levels(text: str, words: str, tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", {"w": gaussian(64, 128)})
    (tmp_path / "levels").write_text(text)
    line = one_line(run("quantize", source, "--codebook", tmp_path / "levels"), 2)
    assert words in line


# ---- the same bytes everywhere -----------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    **SCHEMES,
    "default": {"bits": 4}, "default-2": {"bits": 2, "group_size": 32}, "affine": {"bits": 4, "symmetric": False},
    "channel": {"bits": 4, "granularity": "channel"}, "columns": {"bits": 4, "granularity": "channel", "axis": 1},
    "tensor-mse": {"bits": 4, "granularity": "tensor"}, "exact": {"bits": 3, "calibration": "mse",
                                                                  "options": {"effort": "exact"}},
    "norm": {"bits": 4, "calibration": "mse", "options": {"norm": 2.4}},
    "percentile": {"bits": 4, "calibration": "percentile", "granularity": "tensor"},
    "entropy": {"bits": 3, "calibration": "entropy", "granularity": "tensor"},
    "entropy-rows": {"bits": 2, "calibration": "entropy", "granularity": "channel"},
    "offset": {"bits": 4, "symmetric": False, "zero_point": "float"}, "8 bits": {"bits": 8}, "12 bits": {"bits": 12},
    "auto": {"bits": 3, "calibration": "auto"},
}  # fmt: skip

for _calibrator in registry.names("calibrators"):
    if _calibrator not in {Scheme(**fields).calibration for fields in METHODS.values()}:
        METHODS |= conformance.schemes_of_calibrator(_calibrator)


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", METHODS)
def test_native_and_numpy_kernels_agree(kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy and native kernels agree byte for byte here too"""
    from quantcli import kernels
    from quantcli.kernels import native
    from quantcli.kernels.numpy_kernels import NumpyKernels

    table = native.find()
    if table is None:
        pytest.skip("the native kernels are not built")
    for array in (gaussian(40, 300, seed=3).astype(dtype), (gaussian(6, 7, 3, 3, seed=4) ** 3).astype(dtype)):
        found = []
        for own in (table, NumpyKernels()):
            monkeypatch.setattr(kernels, "load", lambda own=own: own)
            tensor = quantcli.quantize(array, Scheme(**METHODS[kind]))
            book = tensor.params.codebook
            found.append((tensor.packed.tobytes(), tensor.scale.tobytes(), tensor.scheme, tensor.metrics(array),
                          None if tensor.zero_point is None else tensor.zero_point.tobytes(),
                          None if book is None else book.levels.tobytes(), tensor.dequantize().tobytes()))  # fmt: skip
        assert found[0] == found[1]


@pytest.mark.parametrize("kind", METHODS)
def test_threads_change_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """the same bytes come out at any number of threads"""
    from quantcli.tensors import api, rows

    monkeypatch.setattr(rows, "TILE", 4096)
    monkeypatch.setattr(api, "TILE", 4096)
    scheme = Scheme(**METHODS[kind])
    source = save(tmp_path / "m.safetensors", {f"{i}.weight": gaussian(60, 320, seed=i).astype(BF16) for i in range(3)})
    flags = [*flags_of(scheme, tmp_path), "--rounding", scheme.rounding]
    flags += ["--axis", str(scheme.axis)] if scheme.axis else []
    for option, flag in (("effort", "--effort"), ("norm", "--mse-norm")):
        flags += [flag, str(scheme.options[option])] if option in scheme.options else []
    files = []
    for threads in (1, 2, 7):
        target = tmp_path / f"{threads}.safetensors"
        ran = run("quantize", source, "-o", target, "-q", "--threads", threads, *flags)
        assert ran.code == 0, ran.err
        files.append(target.read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("kernels", ["native", "numpy"])
def test_sums_are_preserved_at_the_end_of_float32(kernels: str) -> None:
    import quantcli.kernels
    from quantcli.kernels import native
    from quantcli.kernels.numpy_kernels import NumpyKernels

    table = native.find() if kernels == "native" else NumpyKernels()
    if table is None:
        pytest.skip("the native kernels are not built")
    huge = np.array([[3.4e38, -3.4e38, 3.3e38, 3.2e38, 1e38, -2e38, 3e38, 3.39e38]], np.float32)
    scheme = Scheme(bits=2, group_size=8, calibration="minmax", rounding="sum-preserving")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantcli.kernels, "load", lambda: table)
        assert np.isfinite(quantcli.quantize(huge, scheme).dequantize()).all()
