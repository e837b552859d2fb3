"""Fake quantization against the real one, and the sample trained with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, ROOT, run
from strategies import AWKWARD, GRANULARITIES, KINDS, gaussian, schemes, weights

import quantcli
from quantcli import DataError, Scheme

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"format": "nf4"}, "fp8": {"format": "fp8_e4m3"}, "midrise": {"format": "midrise", "bits": 3},
    "percentile": {"bits": 4, "calibration": "percentile", "options": {"percentile": 80}, "granularity": "tensor"},
    "codebook": {"format": "codebook", "bits": 3, "group_size": 32},
    "levels": {"format": "codebook", "granularity": "channel"},
    "columns": {"bits": 3, "granularity": "channel", "axis": -1}, "binary": {"bits": 1},
}  # fmt: skip


def check(array: np.ndarray, scheme: Scheme) -> None:
    try:
        tensor = quantcli.quantize(array, scheme)
    except DataError:
        return
    fake = quantcli.fake_quantize(array, scheme)
    np.testing.assert_array_equal(fake.values, tensor.dequantize())
    assert fake.values.dtype == fake.mask.dtype == np.float32
    assert fake.values.shape == fake.mask.shape == array.shape
    assert set(np.unique(fake.mask)) <= {0.0, 1.0}
    assert int((fake.mask == 0).sum()) == tensor.metrics(array).clipped


@pytest.mark.parametrize("name", AWKWARD)
def test_values_are_the_real_ones_and_the_mask_is_what_was_clipped(name: str) -> None:
    """1 inside the range, 0 where clipped"""
    for kind in KINDS:
        for where in GRANULARITIES:
            check(AWKWARD[name], Scheme(bits=3, **KINDS[kind], **where))
    for fields in FORMATS.values():
        check(AWKWARD[name], Scheme(**fields))


@given(data=st.data(), scheme=schemes(max_bits=8))
def test_any_weights(data: st.DataObject, scheme: Scheme) -> None:
    check(data.draw(weights(dtype=data.draw(st.sampled_from([np.float32, BF16, np.float64])))), scheme)


def test_the_gradient_reaches_what_is_inside_only() -> None:
    array = np.array([[0.5, -0.5, 0.1, 40.0]], np.float32)
    options = {"percentile": 66}
    scheme = Scheme(bits=4, granularity="tensor", calibration="percentile", options=options, grid="restricted")
    assert quantcli.fake_quantize(array, scheme).mask.tolist() == [[1, 1, 1, 0]]
    assert quantcli.fake_quantize(gaussian(8, 64), Scheme(bits=4, calibration="minmax")).mask.all()


def test_training_with_the_scheme_beats_quantizing_after_training(tmp_path: Path) -> None:
    """at 2 bits the QAT model, quantized by the CLI with the very same scheme, clearly beats post-training
    quantization"""
    sys.path.insert(0, str(ROOT / "sample_models"))
    try:
        import evaluate
    finally:
        sys.path.pop(0)
    found = {}
    for name in ("digits", "digits-qat"):
        target = tmp_path / f"{name}.safetensors"
        source = ROOT / "sample_models" / f"{name}.safetensors"
        assert run("quantize", source, "-o", target, "--bits", "2", "--group-size", "64", "-q").code == 0
        found[name] = evaluate.evaluate(str(target))["accuracy"]
    assert found["digits-qat"] > found["digits"] + 0.05
    known = json.loads((ROOT / "sample_models" / "digits.json").read_text())["test_accuracy"]
    assert found["digits-qat"] >= known - 0.005
