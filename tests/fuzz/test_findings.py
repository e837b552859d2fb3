"""What fuzzing found, each as small as it gets: refused in one line now."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from golden.models import DTYPES, weights
from making import GOLDEN_FILES, one_line, raw_file, run, save


def test_a_dimension_beyond_float64(tmp_path: Path) -> None:
    """The size in the message was a float: OverflowError."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"w": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]}}, bytes(4)))
    assert "take more than 2^61 bytes, but its offsets leave 4" in one_line(run("inspect", path), 1)


def test_codes_of_a_weight_that_was_in_floats_of_8_bits(tmp_path: Path) -> None:
    """The line about what they are decoded to had no name for that dtype: StopIteration."""
    source = save(tmp_path / "x.safetensors", {"w": np.clip(weights(3, 70), -1, 1).astype(DTYPES["F8_E5M2"])})
    native, options = tmp_path / "native.safetensors", "--to native --source-layout plain --bits 5 --group-size 32 -q"
    made = run("quantize", source, "-o", native, "--no-default-keep", *options.split())
    assert made.code == 0, made
    moved = run("export", native, "--to", "compressed-tensors", "-o", tmp_path / "out.safetensors", "-q")
    assert "compressed-tensors cannot store it" in one_line(moved, 2)


def test_a_backslash_in_a_name_of_a_pickle(tmp_path: Path) -> None:
    """Python's own parser warned: a second line on standard error, and an exception where warnings are errors."""
    path = tmp_path / "x.pt"
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + b"\x80\x02ccollections\\q\nOrderedDict\n)R.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "it calls collections" in one_line(run("inspect", path), 1)


def test_an_alpha_of_lora_beyond_float64(tmp_path: Path) -> None:
    """It was asked whether it is finite: OverflowError."""
    folder = tmp_path / "plain"
    shutil.copytree(GOLDEN_FILES / "lora" / "plain", folder)
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 10**400}))
    line = one_line(run("quantize", folder / "base", "--lora", folder / "adapter", "-o", tmp_path / "out"), 1)
    assert "is not a number" in line and "lora_alpha" in line


@pytest.mark.parametrize(("golden", "before", "after", "told"), [
    ("dynamic", b"\n\x07E_scale\n", b"\n\x07E_scalu\n", "E_scale: it belongs to codes that become floats"),
    ("linear-zeros", b"\x12\x14int8.convolution_out", b"\x7a\x14int8.convolution_out", "lacks inputs or outputs"),
])  # fmt: skip
def test_codes_of_an_onnx_graph_that_is_damaged(
    golden: str, before: bytes, after: bytes, told: str, tmp_path: Path
) -> None:
    """A scale that its node calls otherwise, and a node without an output: KeyError and IndexError."""
    content, path = (GOLDEN_FILES / "onnx" / f"{golden}.onnx").read_bytes(), tmp_path / "x.onnx"
    assert before in content
    path.write_bytes(content.replace(before, after))
    words = ("quantize", path, "-o", tmp_path / "out.onnx", "--group-size", "32", "--requantize", "-q")
    ran = run(*words)
    assert ran.code in (1, 2) and told in one_line(ran, ran.code)
    assert not (tmp_path / "out.onnx").exists()


def test_an_expression_of_which_python_warns(tmp_path: Path) -> None:
    """Two brackets may mean sets within sets some day: a second line on standard error."""
    source = save(tmp_path / "x.safetensors", {"w[": weights(32, 64)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = run("quantize", source, "-o", tmp_path / "o.safetensors", "--include", "re:w[[]", "-q")
    assert (made.code, made.err) == (0, "")
