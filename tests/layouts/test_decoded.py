"""Weights as other tools store them, against the very tensors that these tools make of them, bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_parts import WORDS, changed, decoded, found_in, made_by_a_tool, only
from making import GOLDEN_FILES, one_line, raw_tensors, run

from quantcli.dtypes import from_float32
from quantcli.errors import DataError

FOLDER = GOLDEN_FILES / "decoded"
"""Written by peers/write_decoded*.py."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.safetensors")), ids=lambda p: p.stem)
def test_weights_are_what_their_tool_makes_of_them(path: Path) -> None:
    parts, config, (dtype, expected) = made_by_a_tool(path)
    found = only(found_in(parts, config))
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert {p.name for p in found.parts} == {name for name in parts if not name.endswith(".bias")}
    rows = expected.reshape(-1, expected.shape[-1])

    def bits(first: int, last: int) -> np.ndarray:
        return from_float32(decoded(found, parts, first, last), dtype).view(WORDS[dtype])

    np.testing.assert_array_equal(bits(0, len(rows)), rows)
    for first, last in [(0, 1), (1, 2), (len(rows) - 3, len(rows)), (3, 11), (len(rows) // 2 - 5, len(rows) // 2 + 6)]:
        np.testing.assert_array_equal(bits(first, last), rows[first:last])


def test_scales_of_activations_and_caches_belong_to_the_weights_beside_them() -> None:
    parts, config, _ = made_by_a_tool(FOLDER / "ct-fp8-channel.safetensors")
    number = ("F32", (), bytes(4))
    own = {**{name.replace("m.", "a.k."): part for name, part in parts.items()}, "a.k.input_scale": number,
           "a.k_scale": number, "a.k.k_scale": number, "b.k_scale": number, "a.logit_scale": number}  # fmt: skip
    found = only(found_in(own, config))
    assert {p.name for p in found.unused} == {"a.k.input_scale", "a.k_scale", "a.k.k_scale"}
    assert {p.name for p in found.parts} == set(own) - {"b.k_scale", "a.logit_scale"}


@pytest.mark.parametrize("setting", ["quant_scale", "quant_zero", "view_as_float"])
def test_what_hqq_quantizes_again_is_refused(setting: str) -> None:
    parts, _, _ = made_by_a_tool(FOLDER / "hqq-4-axis1-bf16.safetensors")
    with pytest.raises(DataError, match=f"HQQ with {setting} is not supported"):
        found_in({**parts, f"m.{setting}": ("U8", (), b"\1")})


def test_weights_whose_inputs_are_multiplied_first_are_refused() -> None:
    for name in ("modelopt-nvfp4", "modelopt-fp8"):
        parts, config, _ = made_by_a_tool(FOLDER / f"{name}.safetensors")
        module = next(n for n in parts if n.endswith(".weight")).removesuffix(".weight")
        with pytest.raises(DataError, match="pre_quant_scale"):
            found_in({**parts, f"{module}.pre_quant_scale": ("F32", (64,), bytes(256))}, config)


FILES = sorted(FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_codes_and_scales_without_each_other_are_refused(path: Path, tmp_path: Path) -> None:
    """None of them is a weight, with a config.json or without."""
    parts, config, _ = made_by_a_tool(path)
    found = only(found_in(parts, config))
    codes, scale, *_ = found.parts
    for number, (gone, said) in enumerate(itertools.product((codes, scale), (config, {}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        left = {name: part for name, part in parts.items() if name != gone.name}
        (folder / "model.safetensors").write_bytes(raw_tensors(left))
        (folder / "config.json").write_text(json.dumps(said))
        if gone is codes and path.stem.startswith(("hqq", "torchao")):
            continue  # plain numbers under plain names are left
        line = one_line(run("quantize", folder, "--requantize", "-o", tmp_path / "out"), 1)
        assert "codes" in line or "missing" in line or "quantized" in line


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_nothing_but_data_errors(data: st.DataObject) -> None:
    """Any part of another shape, dtype or content: decoded or refused."""
    parts, config, _ = made_by_a_tool(data.draw(st.sampled_from(FILES)))
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        dtype, shape, raw = parts[name]
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, max(len(raw) - 1, 0)))
            new = raw[:start] + data.draw(st.binary(max_size=8)) + raw[start:]
            parts[name] = dtype, shape, new[: len(raw)]
        else:
            dtype = data.draw(st.sampled_from([dtype, "U8", "I8", "F8_E4M3", "F16", "F32", "I32"]))
            size = st.integers(0, 4) | st.sampled_from([16, 20, 32, 96])
            parts = changed(
                parts, name, dtype=dtype, shape=tuple(data.draw(st.just(shape) | st.lists(size, max_size=4)))
            )
    said = config if data.draw(st.booleans()) else {}
    try:
        for found in found_in(parts, said):
            rows = int(np.prod(found.shape[:-1]))
            assert decoded(found, parts).size == np.prod(found.shape)
            assert decoded(found, parts, rows // 2).shape[0] == rows - rows // 2
    except DataError as error:
        assert error.place
