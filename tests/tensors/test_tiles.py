"""Arrays that are quantized tile by tile where a tile has as many weights as a row, or as a few groups of one; and
weights that no scale fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from making import BF16
from strategies import gaussian

import quantcli
from quantcli import DataError, Scheme
from quantcli.tensors import api, rows
from quantcli.tensors.api import NonFinite, nonfinite

NEAREST: dict[str, Any] = {"group_size": 32, "rounding": "nearest"}
"""Rounding that preserves sums does so within a tile."""
SCHEMES: list[dict[str, Any]] = [
    {"bits": 4, **NEAREST}, {"bits": 3, **NEAREST, "symmetric": False},
    {"bits": 4, **NEAREST, "symmetric": False, "zero_point": "float"}, {"format": "nf4", "group_size": 32},
    {"bits": 4, "granularity": "channel", "calibration": "minmax"},
    {"bits": 8, "granularity": "tensor", "calibration": "minmax"},
]  # fmt: skip
OF_ROWS: list[dict[str, Any]] = [
    {"bits": 4, "granularity": "channel"}, {"format": "codebook", "bits": 2, "granularity": "channel"},
    {"format": "codebook", "bits": 3, "granularity": "channel", "scale_dtype": "float32"},
]  # fmt: skip
"""Schemes that search in whole rows, and in histograms where these lie in several tiles."""
CASES = [(scheme, width) for scheme in SCHEMES for width in (95, 96, 97, 192, 400)]
CASES += [(scheme, width) for scheme in OF_ROWS for width in (95, 96)]


@pytest.mark.parametrize(
    ("scheme", "width"), CASES, ids=lambda s: "-".join(map(str, s.values())) if isinstance(s, dict) else s
)
def test_rows_as_long_as_a_tile(scheme: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut into tiles is a matter of memory: rows of a tile, one weight less and more, and of several tiles."""
    array = gaussian(4, width, seed=width)
    whole = quantcli.quantize(array, Scheme(**scheme))
    monkeypatch.setattr(rows, "TILE", 96)
    monkeypatch.setattr(api, "TILE", 96)
    parts = quantcli.quantize(array, Scheme(**scheme))
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_array_equal(parts.scale, whole.scale)
    if whole.zero_point is not None:
        np.testing.assert_array_equal(parts.zero_point, whole.zero_point)
    np.testing.assert_array_equal(parts.dequantize(), whole.dequantize())
    assert parts.metrics(array).sse == pytest.approx(whole.metrics(array).sse, rel=1e-6)


@pytest.mark.parametrize(("values", "words"), [
    ([1.0, np.nan, 1e39], "2 NaN or infinite values, the first at flat index 101"),
    ([1.0, 1e39, -1e300], "2 values beyond the range of float32, the first at flat index 101"),
    ([np.inf, 1.0, 1.0], "1 NaN or infinite values, the first at flat index 100"),
])  # fmt: skip
def test_what_is_not_finite(values: list[float], words: str) -> None:
    found = nonfinite(np.array(values).view(np.uint8), "F64", 100)
    assert found.describe() == words
    fine = nonfinite(np.array([1.0, 2.0]).view(np.uint8), "F64", 7)
    assert (fine.count, fine.first, fine.beyond) == (0, 0, False)
    for sum_ in (fine + found, found + fine):
        assert sum_.describe() == words


def test_infinite_weights_of_less_than_64_bits_are_not_beyond_a_range() -> None:
    for dtype, name in ((np.float32, "F32"), (np.float16, "F16"), (BF16, "BF16")):
        found = nonfinite(np.array([1.0, np.inf]).astype(dtype).view(np.uint8), name, 0)
        assert (found.count, found.first, found.beyond) == (1, 1, False)


def test_all_that_is_not_finite_is_counted() -> None:
    one, other = NonFinite(2, 5, False), NonFinite(3, 9, True)
    assert (one + other).describe() == "5 values beyond the range of float32, the first at flat index 5"


def test_an_array_of_one_weight() -> None:
    found = quantcli.quantize(np.array([[3.5]], np.float32), bits=8, calibration="minmax")
    assert found.dequantize().tolist() == pytest.approx(np.array([[3.5]]), rel=1e-3)
    with pytest.raises(DataError, match="an empty array cannot be quantized"):
        quantcli.quantize(np.zeros((0, 3), np.float32), bits=8)
