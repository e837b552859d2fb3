"""8-bit floats in blocks, written out here value by value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import Parts, changed, check_every_piece, decoded, floats, found_in, only

from quantcli.errors import DataError


def stated(height: Any, width: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "fp8", "weight_block_size": [height, width]}}


def made(shape: tuple[int, ...], height: int, width: int) -> tuple[Parts, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    grid = (*shape[:-2], -(-shape[-2] // height), -(-shape[-1] // width))
    scale = rng.uniform(0.1, 2, grid).astype(np.float32)
    parts: Parts = {"m.weight": ("F8_E4M3", shape, codes.tobytes()), "m.weight_scale_inv": floats(scale, "F32")}
    each = np.repeat(np.repeat(scale, height, -2), width, -1)[..., : shape[-2], : shape[-1]]
    return parts, (codes.astype(np.float32) * each).reshape(-1, shape[-1])


def test_blocks() -> None:
    for shape, height, width in [((37, 50), 16, 16), ((64, 30), 16, 128), ((3, 20, 10), 8, 4), ((16, 16), 16, 16)]:
        parts, expected = made(shape, height, width)
        found = only(found_in(parts, stated(height, width)))
        assert (found.name, found.shape, found.bits) == ("m.weight", shape, 8)
        assert found.scheme == f"fp8-e4m3b{height}x{width}"
        check_every_piece(found, parts, expected)


def test_blocks_without_config_are_the_quotients_of_the_shapes() -> None:
    parts, expected = made((32, 48), 16, 12)
    found = only(found_in(parts))
    assert found.scheme == "fp8-e4m3b16x12"
    check_every_piece(found, parts, expected)
    with pytest.raises(DataError, match=r"differ in size; .*config\.json"):
        found_in(made((37, 50), 16, 16)[0])


def test_one_scale() -> None:
    parts, _ = made((4, 6), 4, 6)
    expected = np.frombuffer(parts["m.weight"][2], ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(4, 6) * 0.5
    for scale in (np.array(0.5), np.array([0.5])):
        own = {**parts, "m.weight_scale_inv": floats(scale, "BF16")}
        assert only(found_in(own)).scheme == "fp8-e4m3t"
        check_every_piece(only(found_in(own)), own, expected)


GOOD = made((37, 50), 16, 16)[0]
WRONG: dict[str, tuple[Parts, Any, str]] = {
    "blocks": (GOOD, stated(16, 32), "do not match blocks of 16 x 32"),
    "no block": (GOOD, stated(0, 16), "not a height and a width"),
    "block of text": (GOOD, stated("16", 16), "not a height and a width"),
    "scale": (changed(GOOD, "m.weight_scale_inv", dtype="I32"), stated(16, 16), "is I32"),
    "dimensions": (changed(GOOD, "m.weight_scale_inv", shape=(12,)), stated(16, 16), "do not match"),
    "vector": (changed(GOOD, "m.weight", shape=(37,)), {}, "1 dimension"),
    "empty": (changed(GOOD, "m.weight_scale_inv", shape=(0, 4)), {}, "is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_malformed_is_told(case: str) -> None:
    parts, config, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        found_in(parts, config)
    assert message in str(caught.value)


def test_scales_must_be_finite() -> None:
    parts = {**GOOD, "m.weight_scale_inv": floats(np.full((3, 4), np.nan), "F32")}
    with pytest.raises(DataError, match="not finite"):
        decoded(only(found_in(parts, stated(16, 16))), parts)


@settings(max_examples=200)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    parts = dict(GOOD)
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        dtype = data.draw(st.sampled_from([parts[name][0], "F16", "F32", "U8"]))
        shape = data.draw(st.lists(st.integers(0, 6) | st.sampled_from([37, 50]), max_size=3).map(tuple))
        parts = changed(parts, name, dtype=dtype, shape=shape)
    config = data.draw(st.sampled_from([{}, stated(16, 16), stated(1, 1), stated(100, 100)]))
    try:
        for found in found_in(parts, config):
            assert decoded(found, parts).size == np.prod(found.shape)
    except DataError as error:
        assert error.place


def test_others_are_left_alone() -> None:
    assert found_in({"m.weight": GOOD["m.weight"]}) == []
    assert found_in({"m.weight": floats(np.ones((2, 2)), "F16"), "m.weight_scale_inv": floats(np.ones(1), "F32")}) == []
