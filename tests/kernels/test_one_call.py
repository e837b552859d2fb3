"""`quantize`, which does everything in one call, against the separate calls of numpy, of which it is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_parts import KINDS, needs_native, tile_of, variants

from quantcli import Scheme
from quantcli.asking import rival
from quantcli.kernels import BF16, F16, Kernels, Made, Tile, row_bytes
from quantcli.kernels.numpy_kernels import NumpyKernels
from quantcli.scheme import AUTO
from quantcli.tensors.decided import Quantized
from quantcli.tensors.fit import Misfit, largest
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of
from quantcli.tensors.settle import default_scale_dtype
from quantcli.tensors.trials import Trials

pytestmark = needs_native

DTYPES = {BF16: "BF16", F16: "F16"}

SCHEMES: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 4, "calibration": "minmax"},
    {"bits": 4, "calibration": "signed-extreme"},
    {"bits": 4, "calibration": "mse", "grid": "restricted"},
    {"bits": 4, "symmetric": False},
    {"bits": 4, "symmetric": False, "calibration": "minmax"},
    {"bits": 2},
    {"bits": 3, "calibration": "mse", "options": {"effort": "best"}},
    {"bits": 5, "symmetric": False, "calibration": "mse"},
    {"bits": 8},
    {"bits": 8, "calibration": "minmax", "rounding": "sum-preserving"},
    {"bits": 8, "symmetric": False, "calibration": "mse"},
    {"bits": 12, "calibration": "minmax"},
    {"bits": 16, "symmetric": False, "calibration": "mse"},
    {"format": "fp8-e4m3"},
    {"format": "fp8-e4m3", "calibration": "mse"},
    {"format": "fp8-e5m2", "calibration": "mse", "scale_dtype": "float32", "options": {"effort": "fast"}},
    {"format": "fp4", "calibration": "mse", "options": {"effort": "best"}},
    {"format": "fp8-e4m3", "calibration": "mse", "scale_dtype": "float8_e8m0"},
    {"format": "fp4", "calibration": "mse", "scale_dtype": "float8_e8m0", "options": {"effort": "best"}},
    {"format": "fp4", "scale_dtype": "float8_e8m0"},
    {"format": "fp4", "calibration": "mse", "scale_dtype": "float8_e4m3"},
    {"format": "fp4", "scale_dtype": "float8_e4m3"},
    {"format": "fp4", "calibration": "mse", "scale_dtype": "float8_e4m3_alone", "options": {"effort": "fast"}},
    {"format": "nf4"},
    {"format": "fp8-e4m3", "granularity": "block"},
    {"format": "fp8-e4m3", "granularity": "block", "calibration": "mse"},
    {"format": "fp8-e4m3", "granularity": "block", "calibration": "mse", "scale_dtype": "float8_e8m0"},
    {"format": "mu-law"},
]
SIZES = [1, 5, 16, 32, 48, 64, 128, 10**6]


def trials_of(tile: Tile, scheme: Scheme, scale_dtype: str) -> Trials:
    info = TensorInfo("w", DTYPES.get(tile.kind, "F32"), (tile.rows, tile.cols))
    tensor = Quantized(
        info=info, scheme=scheme, grouping=grouping_of(info.shape, scheme), scale_dtype=scale_dtype, reason=""
    )
    trials = Trials(tensor, rival=rival(scheme))
    trials.take_largest(float(largest(NumpyKernels(), tile)))
    return trials


def made(kernels: Kernels, tile: Tile, trials: Trials, bits: int) -> tuple[bytes, Made] | None:
    """Codes and what is known of them; None where the scales do not fit."""
    packed = np.full(tile.rows * row_bytes(tile.cols, bits) + 64, 0xA5, np.uint8)
    span = TileSpan(0, tile.rows, 0, tile.cols)
    try:
        found = trials.encode(kernels, tile, span, packed[:-64])
    except Misfit:
        return None
    assert (packed[-64:] == 0xA5).all()
    return packed[:-64].tobytes(), found


def alike(values: np.ndarray, kind: int, asked: dict[str, Any], size: int, scale_dtype: str) -> list[bool]:
    """Assert that every variant makes what numpy does; whether each did it in one call."""
    block = asked.get("granularity") == "block"
    group = min(size, values.shape[1], 128 if block else size)
    whole = not block and size == 10**6 and "float8_e4m3" not in asked.get("scale_dtype", "")  # which is for groups
    scheme = Scheme(**asked, **({"granularity": "channel"} if whole else {"group_size": group}))
    if scheme.scale_dtype != AUTO:
        scale_dtype = default_scale_dtype(scheme, "F32")
    tile = tile_of(values, kind, group)
    wanted = made(NumpyKernels(), tile, trials_of(tile, scheme, scale_dtype), scheme.bits)
    in_one = []
    for table in variants():
        trials = trials_of(tile, scheme, scale_dtype)
        found = made(table, tile, trials, scheme.bits)
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert found[0] == wanted[0]
            assert found[1].sums == wanted[1].sums
            assert found[1].rival == wanted[1].rival
            np.testing.assert_array_equal(found[1].params.scale, wanted[1].params.scale)
            assert (found[1].params.zero is None) == (wanted[1].params.zero is None)
            if wanted[1].params.zero is not None:
                np.testing.assert_array_equal(found[1].params.zero, wanted[1].params.zero)
        rule = trials.chosen.rule
        assert rule is not None
        other = None if trials.rival is None else trials.rival.rule
        in_one.append(table.quantize(tile, rule, other, None) is not None)
    return in_one


@pytest.mark.parametrize("asked", SCHEMES, ids=lambda asked: "-".join(map(str, asked.values())))
def test_ordinary_weights_are_quantized_in_one_call(asked: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for number, (rows, cols) in enumerate([(3, 256), (5, 320), (2, 1000), (70, 1024)]):
        values = (rng.standard_normal((rows, cols)) * 0.5).astype(np.float32)
        values[0, : cols // 2] = 0  # groups of zeros
        for kind in KINDS:
            for size in (32, 128, 10**6) if number else SIZES[2:]:  # scales of few weights may be small
                scale_dtype = "F32" if asked.get("bits", 8) > 8 or number == 1 else DTYPES.get(kind, "F16")
                assert all(alike(values, kind, asked, size, scale_dtype)), (rows, cols, kind, size)


@pytest.mark.parametrize("asked", SCHEMES, ids=lambda asked: "-".join(map(str, asked.values())))
def test_zeros_are_quantized_in_one_call(asked: dict[str, Any]) -> None:
    """Pruned and padded tensors are no slower than others, and are measured alike: so too weights of one value that
    comes back exactly."""
    zeros = np.zeros((6, 256), np.float32)
    zeros[2, ::3] = -0.0
    for kind, size in ((BF16, 64), (F16, 10**6)):
        scale_dtype = "F32" if asked.get("bits", 8) > 8 else DTYPES[kind]
        in_one = alike(zeros, kind, asked, size, scale_dtype)
        assert all(in_one) or asked["format"] == "mu-law"  # which has no level 0
    alike(np.full((6, 256), 0.5, np.float32), BF16, asked, 64, "BF16")


@settings(max_examples=150)
@given(data=st.data())
def test_any_weights_are_quantized_alike(data: st.DataObject) -> None:
    """Infinite scales, those that float16 does not hold, zeros and groups of all sizes among them."""
    rows, cols = data.draw(st.integers(1, 20)), data.draw(st.one_of(st.integers(1, 300), st.sampled_from([512, 1056])))
    seed, kind = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols)) * 10.0 ** data.draw(st.integers(-42, 38))
    spread = data.draw(st.sampled_from([0, 3, 12]))
    values = values * 10.0 ** rng.integers(-spread, spread + 1, (rows, 1))
    values[rng.random(values.shape) < data.draw(st.sampled_from([0.0, 0.05, 0.9]))] = 0
    if data.draw(st.booleans()):
        values = np.abs(values)
    limit = 3e38 if kind != F16 else 65504.0
    values = np.clip(values, -limit, limit).astype(np.float32)
    asked, size = data.draw(st.sampled_from(SCHEMES)), data.draw(st.sampled_from(SIZES))
    alike(values, kind, asked, size, data.draw(st.sampled_from(["BF16", "F16", "F32"])))
