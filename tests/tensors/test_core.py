"""The questions every calibrator and every kind of scheme has to answer, for every awkward array."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from making import BF16, environment
from strategies import AWKWARD, GRANULARITIES, gaussian, weights

import quantcli
from quantcli import DataError, QuantizedTensor, Scheme, UsageError, registry
from quantcli.tensors import api, rows
from quantcli.tensors.rows import grouping_of

BITS = [1, 2, 3, 4, 5, 8, 9, 13, 16]


SEARCHING = ("mse", "percentile", "entropy")
"""Calibrators that look at every weight: slower, and of the same opinion at every bit width."""

FIELDS: dict[str, dict[str, Any]] = {
    "restricted": {"grid": "restricted"}, "full": {"grid": "full"}, "affine": {"symmetric": False},
    "offset": {"symmetric": False, "zero_point": "float"},
}  # fmt: skip


def kinds() -> dict[str, dict[str, Any]]:
    """Every combination of a registered calibrator with a symmetry, a grid and a kind of zero point."""
    found = {}
    for calibration in registry.names("calibrators"):
        for label, fields in FIELDS.items():
            if any(valid({"calibration": calibration, **fields}, bits) for bits in BITS):
                found[f"{calibration}-{label}"] = {"calibration": calibration, **fields}
    return found


def valid(fields: dict[str, Any], bits: int) -> bool:
    if fields["calibration"] in SEARCHING and bits not in (2, 4, 8):
        return False
    if fields["calibration"] == "entropy" and fields.get("group_size") in (1, 7):
        return False
    try:
        Scheme(bits=bits, **fields)
    except UsageError:
        return False
    return True


KINDS = kinds()


def test_every_calibrator_takes_part() -> None:
    integers = {n for n in registry.names("calibrators") if "int" in registry.get("calibrators", n).families}
    assert {fields["calibration"] for fields in KINDS.values()} == integers


def per_weight(values: np.ndarray | None, tensor: QuantizedTensor) -> np.ndarray:
    """Stored parameters of every weight, in the tensor's shape."""
    assert values is not None
    plan, shape = tensor.grouping, tensor.info.shape
    if plan.shared == "columns":
        return np.broadcast_to(values, shape)
    matrix = values.reshape(plan.rows, plan.groups)
    return matrix[:, np.arange(plan.cols) // plan.group].reshape(shape)


def decoded_by_hand(tensor: QuantizedTensor) -> np.ndarray:
    """What the stored codes and parameters mean, one float32 operation at a time."""
    scale, codes = per_weight(tensor.scale, tensor), tensor.codes
    decoded: np.ndarray = codes.astype(np.float32) * scale
    if tensor.zero_point is None:
        return decoded
    zero = per_weight(tensor.zero_point, tensor)
    if tensor.scheme.zero_point == "float":
        decoded = decoded + zero
    else:
        decoded = (codes.astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale
    return decoded


def reach(tensor: QuantizedTensor) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest value of every weight's grid, in float64."""
    scheme, scale = tensor.scheme, per_weight(tensor.scale, tensor).astype(np.float64)
    half = 1 << (scheme.bits - 1)
    if scheme.symmetric:
        ends = scale * (-half + (scheme.grid == "restricted")), scale * (half - 1)
    else:
        zero = per_weight(tensor.zero_point, tensor).astype(np.float64)
        top = 2 * half - 1
        ends = (zero, top * scale + zero) if scheme.zero_point == "float" else (-zero * scale, (top - zero) * scale)
    return np.minimum(*ends), np.maximum(*ends)


def check(array: np.ndarray, scheme: Scheme) -> QuantizedTensor:
    """Everything that holds for all schemes and weights."""
    before = array.copy()
    tensor = quantcli.quantize(array, scheme)
    np.testing.assert_array_equal(array, before)
    x = array.astype(np.float32)
    decoded = tensor.dequantize()

    assert decoded.dtype == np.float32 and decoded.shape == array.shape
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(decoded, decoded_by_hand(tensor))

    plan, bits = grouping_of(array.shape, scheme), scheme.bits
    assert tensor.codes.shape == array.shape
    assert tensor.scale.shape == plan.scale_shape and tensor.scale.dtype == np.float32
    assert np.isfinite(tensor.scale).all()
    low, high = (-1, 1) if scheme.symmetric and bits == 1 else (0, (1 << bits) - 1) if not scheme.symmetric else \
        (-(1 << (bits - 1)) + (scheme.grid == "restricted"), (1 << (bits - 1)) - 1)  # fmt: skip
    assert low <= tensor.codes.min() and tensor.codes.max() <= high
    assert (tensor.zero_point is None) == scheme.symmetric
    if tensor.zero_point is not None:
        assert tensor.zero_point.shape == plan.scale_shape
        if scheme.zero_point == "int":
            assert tensor.zero_point.dtype.kind == "u" and tensor.zero_point.max() <= high
    binary = scheme.symmetric and bits == 1
    if not binary:
        assert (tensor.scale != 0).all()
    if not x.any():
        assert (decoded == 0).all(), "zeros decode to exactly 0"
    elif scheme.zero_point == "int" and not binary:
        assert (decoded[x == 0] == 0).all(), "0 is exactly representable"

    if not binary:
        step = np.abs(per_weight(tensor.scale, tensor).astype(np.float64))
        smallest, largest = reach(tensor)
        exact = x.astype(np.float64)
        inside = (exact >= smallest - step / 2) & (exact <= largest + step / 2)
        # A quotient, a product and a sum in float32, each off by at most 2^-24 of what takes part in it.
        slack = 2.0**-22 * (np.abs(exact) + np.abs(smallest) + np.abs(largest)) + 2.0**-149
        error = np.abs(exact - decoded)
        assert (error <= step / 2 + slack)[inside].all(), (error / step)[inside].max()
        beyond = np.maximum(smallest - exact, exact - largest)
        assert (error <= np.maximum(step / 2, beyond) + slack).all(), "a clipped weight takes the end of the grid"

    check_metrics(tensor, array)
    rebuilt = replace(
        tensor, scheme=Scheme(**tensor.scheme.as_dict()), grouping=grouping_of(array.shape, tensor.scheme)
    )
    np.testing.assert_array_equal(rebuilt.dequantize(), decoded)
    return tensor


def check_metrics(tensor: QuantizedTensor, array: np.ndarray) -> None:
    """Metrics equal a recomputation in float64."""
    x, decoded = array.astype(np.float32).astype(np.float64), tensor.dequantize().astype(np.float64)
    found = tensor.metrics(array)
    error = np.abs(x - decoded)
    assert found.numel == x.size
    assert found.max_abs_error == pytest.approx(float(error.max()), rel=1e-6, abs=1e-45)
    assert found.sse == pytest.approx(float((error**2).sum()), rel=1e-6, abs=1e-90)
    assert found.power == pytest.approx(float((x**2).sum()), rel=1e-6, abs=1e-90)
    assert found.exact == (not error.any())
    if found.sqnr_db is not None:
        assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / (error**2).sum()), abs=1e-5)
    else:
        assert found.exact or not x.any()
    assert 0 <= found.clipped <= x.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_arrays(name: str, kind: str) -> None:
    for bits in BITS:
        for where in GRANULARITIES:
            fields = {**KINDS[kind], **where}
            if valid(fields, bits):
                check(AWKWARD[name], Scheme(bits=bits, **fields))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["cube", "convolution", "pointwise convolution", "ragged", "bfloat16", "zero", "one row"]
)
def test_channels_along_any_axis(name: str, kind: str) -> None:
    array = AWKWARD[name]
    for axis in range(array.ndim):
        for bits in (1, 4, 8):
            fields = {**KINDS[kind], "granularity": "channel", "axis": axis}
            if not valid(fields, bits):
                continue
            found = check(array, Scheme(bits=bits, **fields))
            from_the_end = quantcli.quantize(array, Scheme(bits=bits, **{**fields, "axis": axis - array.ndim}))
            np.testing.assert_array_equal(from_the_end.codes, found.codes)
            np.testing.assert_array_equal(from_the_end.scale, found.scale)
            # The same as quantizing every channel by itself: of many, some 16 and the last one.
            codes, channels = np.moveaxis(found.codes, axis, 0), np.moveaxis(array, axis, 0)
            count = len(channels)
            for channel in {*range(0, count, max(1, count // 16)), count - 1}:
                alone = quantcli.quantize(
                    np.ascontiguousarray(channels[channel]).reshape(1, -1),
                    Scheme(bits=bits, **{**fields, "axis": 0, "scale_dtype": found.scheme.scale_dtype}),
                )
                np.testing.assert_array_equal(codes[channel].reshape(-1), alone.codes[0])
                assert found.scale.reshape(-1)[channel] == alone.scale[0, 0]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_weights(kind: str, data: st.DataObject) -> None:
    """Round-trip error <= scale/2 per element unless clipped, for all schemes."""
    bits = data.draw(st.sampled_from([b for b in range(1, 17) if valid(KINDS[kind], b)]))
    where = data.draw(st.sampled_from(GRANULARITIES))
    array = data.draw(weights(dtype=data.draw(st.sampled_from([np.float32, np.float16, BF16, np.float64]))))
    check(array, Scheme(bits=bits, **KINDS[kind], **where))


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
@given(values=st.lists(FLOATS, min_size=1, max_size=6), bits=st.integers(1, 16))
@example(values=[3.4028234663852886e38, 1.0], bits=4)
@example(values=[3.3895313892515355e38, -3.3895313892515355e38, 0.0], bits=4)
@example(values=[-3.3895313892515355e38, 1e38], bits=4)
@example(values=[-3.0040553e38, 3.0040553e38], bits=2)
@example(values=[-3.3895313892515355e38] * 3, bits=8)
def test_whatever_is_finite_decodes_to_something_finite(dtype: Any, kind: str, values: list[float], bits: int) -> None:
    """Raises DataError for [...] scales beyond their dtype: what is accepted decodes to finite values, the lowest
    bfloat16 that masks are filled with included."""
    if not valid(KINDS[kind], bits):
        return
    array = (
        np.clip(np.array([values], np.float32), -3.3895313892515355e38, 3.3895313892515355e38).astype(dtype)
        if dtype is BF16
        else np.array([values], np.float32)
    )
    try:
        found = quantcli.quantize(array, Scheme(bits=bits, **KINDS[kind]))
    except DataError:
        return
    assert np.isfinite(found.dequantize()).all()
    assert np.isfinite(found.metrics(array).sse)


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_tiles_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut into tiles is a matter of memory, not of results."""
    arrays = [gaussian(9, 500), gaussian(3, 5, 48), gaussian(1, 3000), gaussian(16, 8, 3, 3)]
    for array in arrays:
        for where in [*GRANULARITIES, {"granularity": "channel", "axis": 1}, {"group_size": 100}]:
            for bits in (1, 4, 8):
                fields = {**KINDS[kind], **where}
                if not valid(fields, bits):
                    continue
                group = grouping_of(array.shape, Scheme(bits=bits, **fields)).group
                if fields["calibration"] in SEARCHING and group > 32:
                    continue  # what lies in one tile is searched, what lies in several by its histogram
                whole = quantcli.quantize(array, Scheme(bits=bits, **fields))
                with monkeypatch.context() as patch:
                    patch.setattr(rows, "TILE", 96)
                    patch.setattr(api, "TILE", 96)
                    parts = quantcli.quantize(array, Scheme(bits=bits, **fields))
                    found = parts.metrics(array)
                if fields["calibration"] == "mean-abs":  # sums are made tile by tile
                    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-3)
                else:
                    np.testing.assert_array_equal(parts.scale, whole.scale)
                np.testing.assert_array_equal(parts.codes, whole.codes)
                assert found.sse == pytest.approx(whole.metrics(array).sse, rel=1e-3)


# ---- what min-max promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["restricted", "full"])
@pytest.mark.parametrize("name", AWKWARD)
def test_symmetric_minmax_clips_nothing_and_leaves_the_lowest_code(name: str, grid: Any) -> None:
    """so the largest weight sits on the outermost code of both grids and -2^(b-1) is never used"""
    for bits in (2, 3, 4, 5, 8):
        for where in GRANULARITIES:
            found = quantcli.quantize(AWKWARD[name], Scheme(bits=bits, grid=grid, calibration="minmax", **where))
            assert found.metrics(AWKWARD[name]).clipped == 0
            assert found.codes.min() > -(1 << (bits - 1))
            x = np.abs(AWKWARD[name].astype(np.float32))
            if x.max() > 2.0**-120:
                assert np.abs(found.codes.astype(int)).reshape(-1)[x.argmax()] == (1 << (bits - 1)) - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_minmax_scales_are_the_range_over_the_steps(bits: int) -> None:
    """Symmetric: max|w| / (2^(b-1)-1). Affine: (max-min) / (2^b-1), the range widened to contain 0."""
    array = gaussian(6, 96, seed=3) + np.arange(-3, 3, dtype=np.float32)[:, None]
    groups = array.astype(np.float64).reshape(6, 3, 32)
    symmetric = quantcli.quantize(array, Scheme(bits=bits, group_size=32, scale_dtype="float32", calibration="minmax"))
    np.testing.assert_array_equal(
        symmetric.scale, (np.abs(groups).max(axis=2) / ((1 << (bits - 1)) - 1)).astype(np.float32)
    )
    affine = quantcli.quantize(
        array, Scheme(bits=bits, group_size=32, symmetric=False, scale_dtype="float32", calibration="minmax")
    )
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    scale = (high - low) / ((1 << bits) - 1)
    np.testing.assert_array_equal(affine.scale, scale.astype(np.float32))
    assert affine.zero_point is not None
    np.testing.assert_array_equal(affine.zero_point, np.rint(-low / scale))
    offset = quantcli.quantize(
        array,
        Scheme(
            bits=bits, group_size=32, symmetric=False, zero_point="float", calibration="minmax", scale_dtype="float32"
        ),
    )
    assert offset.zero_point is not None
    np.testing.assert_array_equal(offset.zero_point, groups.min(axis=2).astype(np.float32))


@pytest.mark.parametrize("name", AWKWARD)
def test_restricted_minmax_is_odd(name: str) -> None:
    """quantize(-x) decodes to -quantize(x)"""
    array = AWKWARD[name]
    for bits in (2, 4, 8, 11):
        for where in GRANULARITIES:
            scheme = Scheme(bits=bits, calibration="minmax", **where)
            there, back = quantcli.quantize(array, scheme), quantcli.quantize(-array, scheme)
            np.testing.assert_array_equal(back.codes, -there.codes)
            np.testing.assert_array_equal(back.scale, there.scale)
            np.testing.assert_array_equal(back.dequantize(), -there.dequantize())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [-30, -7, 1, 40])
def test_powers_of_two_scale_everything(kind: str, power: int) -> None:
    """Float arithmetic has no preferred magnitude: with float32 scales 2^k x gives the codes of x, 2^k its values."""
    factor = np.float32(2.0**power)
    for name in ("ragged", "one outlier", "sparse", "far from zero", "exact halves", "convolution"):
        for bits in (1, 4, 8, 16):
            if not valid(KINDS[kind], bits):
                continue
            scheme = Scheme(bits=bits, **KINDS[kind], scale_dtype="float32", group_size=32)
            plain, scaled = quantcli.quantize(AWKWARD[name], scheme), quantcli.quantize(AWKWARD[name] * factor, scheme)
            np.testing.assert_array_equal(scaled.codes, plain.codes)
            zero = plain.scale == 1  # groups of zeros have scale 1 whatever they are multiplied by
            np.testing.assert_array_equal(scaled.scale[~zero], plain.scale[~zero] * factor)
            np.testing.assert_array_equal(scaled.dequantize(), plain.dequantize() * factor)


def test_signed_extreme_uses_every_code() -> None:
    """scale = -extreme / 2^(b-1), which is negative for a positive extreme; the first of two equal ones counts"""
    array = np.array([[7.0, 0.5, -6.5], [-7.0, 0.5, 6.5], [2.0, -2.0, 0.0], [-2.0, 2.0, 0.0]], np.float32)
    found = quantcli.quantize(array, Scheme(bits=4, calibration="signed-extreme", scale_dtype="float32"))
    np.testing.assert_array_equal(found.scale[:, 0], [-0.875, 0.875, -0.25, 0.25])
    assert found.codes[:, 0].tolist() == [-8, -8, -8, -8]
    many = gaussian(64, 128)
    better = quantcli.quantize(many, Scheme(bits=4, calibration="signed-extreme")).metrics(many).sqnr_db
    plain = quantcli.quantize(many, Scheme(bits=4, calibration="minmax")).metrics(many).sqnr_db
    assert better is not None and plain is not None
    # Expected on normal groups of 128: 19.73 and 18.62 dB; 8192 weights leave about 0.1 dB of chance.
    assert better == pytest.approx(19.73, abs=0.25)
    assert plain == pytest.approx(18.62, abs=0.25)


def test_one_bit_takes_the_mean_and_no_scale_is_better() -> None:
    """Of all a, sum (w - a sign(w))^2 is least at a = mean |w|."""
    array = gaussian(4, 96, seed=5)
    found = quantcli.quantize(array, Scheme(bits=1, group_size=32, scale_dtype="float32"))
    groups = array.astype(np.float64).reshape(4, 3, 32)
    np.testing.assert_allclose(found.scale, np.abs(groups).mean(axis=2), rtol=1e-7)
    np.testing.assert_array_equal(found.codes, np.where(array < 0, -1, 1))
    best = ((groups - np.sign(groups) * found.scale[..., None]) ** 2).sum(axis=2)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert (((groups - np.sign(groups) * found.scale[..., None] * factor) ** 2).sum(axis=2) > best).all()


def test_offsets_are_stored_as_exactly_as_scales_need() -> None:
    """float16 unless it would overflow or lose precision, then float32: an offset rounded by more than a step would
    move the whole group."""
    for centre in (1.0, 1000.0, -37.5):
        array = (gaussian(4, 64, scale=1e-3) + np.float32(centre)).astype(np.float32)
        found = quantcli.quantize(array, Scheme(bits=8, symmetric=False, zero_point="float", calibration="minmax"))
        step = per_weight(found.scale, found)
        assert (np.abs(array - found.dequantize()) <= step).all(), centre
        assert found.metrics(array).clipped == 0


# ---- scale dtypes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("array", "bits", "expected"), [
    (gaussian(4, 64).astype(BF16), 4, "bfloat16"),
    (gaussian(4, 64).astype(np.float16), 4, "float16"),
    (gaussian(4, 64), 4, "float16"),
    (gaussian(4, 64).astype(np.float64), 4, "float16"),
    (gaussian(4, 64), 8, "float16"),
    (gaussian(4, 64), 9, "float32"),
    (gaussian(4, 64).astype(BF16), 12, "float32"),
    (gaussian(4, 64, scale=1e7), 4, "float32"),
    (gaussian(4, 64, scale=1e-4), 4, "float16"),
    (gaussian(4, 64, scale=1e-7), 4, "float32"),
    (gaussian(4, 64, scale=1e-30).astype(BF16), 4, "bfloat16"),
    (gaussian(4, 64, scale=1e30).astype(BF16), 4, "bfloat16"),
    (np.full((1, 4), 6e-8, np.float16), 4, "float32"),
    (np.zeros((2, 64), np.float32), 4, "float16"),
])  # fmt: skip
def test_the_default_scale_dtype(array: np.ndarray, bits: int, expected: str) -> None:
    """the weight's own dtype if that has 16 bits, else float16 unless it would overflow or lose precision, then
    float32; above 8 bits always float32"""
    assert quantcli.quantize(array, Scheme(bits=bits)).scheme.scale_dtype == expected


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_scales_are_rounded_first(kind: str, name: str) -> None:
    """A stored scale is rounded to its storage dtype first and the codes are made with the rounded value."""
    dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": BF16}[name]
    for bits in (1, 4, 8):
        if not valid(KINDS[kind], bits):
            continue
        found = check(AWKWARD["ragged"], Scheme(bits=bits, **KINDS[kind], scale_dtype=name, group_size=32))
        np.testing.assert_array_equal(found.scale, found.scale.astype(dtype).astype(np.float32))
        assert found.scheme.scale_dtype == name
        if found.scheme.zero_point == "float":
            assert found.zero_point is not None
            np.testing.assert_array_equal(found.zero_point, found.zero_point.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    "array", [gaussian(2, 64, scale=1e7), gaussian(2, 64, scale=1e-9)], ids=["overflow", "underflow"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_float16_scale_that_does_not_fit_is_refused(kind: str, array: np.ndarray) -> None:
    """explicit float16 that does not fit is refused: never the largest float16 in its place, never 0"""
    for bits in (b for b in (1, 2, 3, 4, 8) if valid(KINDS[kind], b)):
        if KINDS[kind]["calibration"] == "mean-abs" and np.abs(array).max() < 1:
            continue  # a scale of one bit may be 0
        with pytest.raises(DataError, match="a scale does not fit float16; use --scale-dtype float32"):
            quantcli.quantize(array, Scheme(bits=bits, **KINDS[kind], scale_dtype="float16"))


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BF16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float, kind: str, dtype: Any) -> None:
    array = gaussian(4, 64).astype(dtype)
    array[2, 7] = array[3, 60] = bad
    for where in (*GRANULARITIES, {"granularity": "channel", "axis": 1}):
        for bits in (1, 4):
            if valid({**KINDS[kind], **where}, bits):
                with pytest.raises(DataError) as caught:
                    quantcli.quantize(array, Scheme(bits=bits, **KINDS[kind], **where))
                assert str(caught.value).startswith("2 NaN or infinite values, the first at flat index 135")


def test_float64_beyond_float32_is_refused() -> None:
    array = np.ones((2, 8))
    array[1, 1] = 1e39
    with pytest.raises(DataError, match="1 values beyond the range of float32, the first at flat index 9"):
        quantcli.quantize(array, Scheme(bits=4))


@pytest.mark.parametrize("array", [np.arange(8), np.ones(4, bool), np.ones(4, np.complex64), np.array(["a"]),
                                   np.array([None, 1.0], object), np.ones(4, np.longdouble)],
                         ids=lambda a: str(a.dtype))  # fmt: skip
def test_other_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="cannot be quantized"):
        quantcli.quantize(array, Scheme(bits=4))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_empty_arrays_are_refused(shape: tuple[int, ...]) -> None:
    for scheme in (Scheme(bits=4), Scheme(bits=4, granularity="channel"), Scheme(bits=4, granularity="tensor")):
        with pytest.raises(DataError, match="an empty array cannot be quantized"):
            quantcli.quantize(np.zeros(shape, np.float32), scheme)


def test_metrics_need_the_same_shape() -> None:
    found = quantcli.quantize(gaussian(4, 64), Scheme(bits=4))
    with pytest.raises(DataError, match="shape"):
        found.metrics(gaussian(64, 4))


def test_read_only_arrays_are_fine() -> None:
    array = gaussian(4, 64)
    array.flags.writeable = False
    check(array, Scheme(bits=4, calibration="minmax"))


def test_the_package_shows_its_names() -> None:
    """dir() and Tab show what there is before any of it is used, and that imports no numpy."""
    code = "import sys, quantcli; print(*dir(quantcli)); print('numpy' in sys.modules)"
    names, numpy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    ).stdout.splitlines()
    assert names.split() == sorted(quantcli.__all__) and {"quantize", "Scheme", "open"} < set(names.split())
    assert numpy == "False"
