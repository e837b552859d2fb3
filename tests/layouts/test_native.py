"""`quantcli.open`: tensors by name, whole or in pieces, quantized or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making import BF16, run, save
from strategies import gaussian

import quantcli
from quantcli import DataError, QuantcliError, Scheme
from quantcli.tensors.rows import TileSpan

TENSORS = {
    "w": gaussian(40, 96),
    "b": gaussian(40).astype(BF16),
    "ids": np.arange(6).reshape(2, 3),
    "s": np.array(1.5, np.float32),
}


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    source = save(tmp_path / "m.safetensors", TENSORS)
    assert run("quantize", source, "-o", tmp_path / "q.safetensors", "--group-size", "32", "--asymmetric").code == 0
    return tmp_path / "q.safetensors"


def test_original_names_dtypes_and_shapes(quantized: Path) -> None:
    for path in (quantized.parent / "m.safetensors", quantized):
        with quantcli.open(str(path)) as model:
            assert sorted(model) == sorted(TENSORS) and len(model) == 4 and "w" in model and "w_packed" not in model
            assert {n: t.shape for n, t in model.items()} == {n: a.shape for n, a in TENSORS.items()}
            assert {n: t.dtype for n, t in model.items()} == {"w": "F32", "b": "BF16", "ids": "I64", "s": "F32"}
            assert [t.name for t in model.values()] == list(model)
            with pytest.raises(KeyError):
                _ = model["missing"]


def test_values(quantized: Path) -> None:
    expected = quantcli.quantize(TENSORS["w"], Scheme(bits=4, group_size=32, symmetric=False))
    with quantcli.open(str(quantized)) as model:
        assert model.is_quantized and model["w"].scheme == Scheme(bits=4, group_size=32, symmetric=False)
        np.testing.assert_array_equal(model["w"].numpy(), expected.dequantize())
        np.testing.assert_array_equal(model["w"].quantized().codes, expected.codes)
        np.testing.assert_array_equal(model["w"].quantized().zero_point, expected.zero_point)
        for name in ("b", "ids", "s"):
            assert model[name].scheme is None
            np.testing.assert_array_equal(
                model[name].numpy(), TENSORS[name].astype(np.float32) if name == "b" else TENSORS[name]
            )
            with pytest.raises(DataError, match="it is not quantized"):
                model[name].quantized()


def test_pieces(quantized: Path) -> None:
    """Zero points of rows that do not begin a band of 32, and columns that begin inside a row."""
    expected = quantcli.quantize(TENSORS["w"], Scheme(bits=4, group_size=32, symmetric=False)).dequantize()
    with quantcli.open(str(quantized)) as model:
        for row, rows in ((0, 40), (1, 1), (7, 30), (31, 2), (33, 7), (39, 1)):
            np.testing.assert_array_equal(model["w"].decoded(TileSpan(row, rows, 0, 96)), expected[row : row + rows])
        for col, cols in ((0, 32), (32, 64), (64, 32)):
            found = model["w"].decoded(TileSpan(35, 1, col, cols))
            np.testing.assert_array_equal(found, expected[35:36, col : col + cols])


def test_a_path_may_be_a_path(quantized: Path) -> None:
    with quantcli.open(quantized) as model:  # type: ignore[arg-type]
        assert len(model) == 4


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(QuantcliError, match="no such file"):
        quantcli.open(str(tmp_path / "missing"))


def test_a_closed_model_holds_no_descriptor(quantized: Path) -> None:
    import os

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with quantcli.open(str(quantized)) as model:
            model["w"].numpy()
        with pytest.raises(QuantcliError):
            quantcli.open(str(quantized.parent / "missing"))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
