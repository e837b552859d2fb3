"""What `quantcli.quantize` makes of an array is what the command stores in a native file, whatever the scheme: codes,
scales, zero points and levels; and both are what the reader that `help file-format` prints decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.roundtrip import wrong
from making import BF16, run, save
from strategies import gaussian

import quantcli
from quantcli.tensors import api, rows
from quantcli.tensors.rows import TileSpan

SCHEMES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "groups": (["--group-size", 32], {"group_size": 32}),
    "channels": (["--bits", 8, "--group-size", -1], {"bits": 8, "granularity": "channel"}),
    "tensor": (["--bits", 5, "--group-size", 0], {"bits": 5, "granularity": "tensor"}),
    "columns": (["--bits", 6, "--granularity", "channel", "--axis", 1, "--asymmetric"],
                {"bits": 6, "granularity": "channel", "axis": 1, "symmetric": False}),
    "one bit by columns": (["--bits", 1, "--granularity", "channel", "--axis", 1],
                           {"bits": 1, "granularity": "channel", "axis": 1}),
    "percentile by tensor": (["--calibration", "percentile", "--group-size", 0],
                             {"calibration": "percentile", "granularity": "tensor"}),
    "zero points": (["--asymmetric", "--group-size", 16], {"symmetric": False, "group_size": 16}),
    "wide zero points": (["--bits", 12, "--asymmetric", "--group-size", 48],
                         {"bits": 12, "symmetric": False, "group_size": 48}),
    "offsets": (["--asymmetric", "--zero-point", "float", "--group-size", 32],
                {"symmetric": False, "zero_point": "float", "group_size": 32}),
    "blocks": (["--type", "fp8-e4m3", "--granularity", "block", "--group-size", 16],
               {"format": "fp8-e4m3", "granularity": "block", "group_size": 16}),
    "a scale of the tensor": (["--type", "fp4", "--group-size", 16, "--scale-dtype", "float8_e4m3"],
                              {"format": "fp4", "group_size": 16, "scale_dtype": "float8_e4m3"}),
    "powers of two": (["--type", "fp4", "--group-size", 32, "--scale-dtype", "float8_e8m0"],
                      {"format": "fp4", "group_size": 32, "scale_dtype": "float8_e8m0"}),
    "fixed levels": (["--type", "nf4", "--group-size", 64], {"format": "nf4", "group_size": 64}),
    "levels of groups": (["--type", "codebook", "--bits", 3, "--group-size", 32],
                         {"format": "codebook", "bits": 3, "group_size": 32}),
    "levels of rows": (["--type", "codebook", "--bits", 2, "--group-size", -1],
                       {"format": "codebook", "bits": 2, "granularity": "channel"}),
    "levels of the tensor": (["--type", "codebook", "--bits", 3, "--group-size", 0],
                             {"format": "codebook", "bits": 3, "granularity": "tensor"}),
    "digits": (["--levels", 3, "--group-size", 32], {"format": "codebook", "levels": 3, "group_size": 32}),
}  # fmt: skip
ARRAY = gaussian(40, 160, seed=4) * np.exp(gaussian(40, 1, seed=5))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("dtype", "tile"), [(np.float32, None), (BF16, None), (BF16, 512), (np.float32, 96)])
def test_arrays_and_files_are_quantized_alike(
    name: str, dtype: Any, tile: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """also where both are made in tiles of a few rows, or of parts of rows"""
    options, asked = SCHEMES[name]
    array = ARRAY.astype(dtype)
    if tile is not None:
        for module in (rows, api):
            monkeypatch.setattr(module, "TILE", tile if name != "blocks" else 16 * 160)  # rows of blocks fit a tile
    source, out = save(tmp_path / "m.safetensors", {"w": array}), tmp_path / "q.safetensors"
    found = quantcli.quantize(array, **asked)
    ran = run("quantize", source, *options, "--no-default-keep", "-o", out, "-q")
    assert ran.code == 0, ran
    with quantcli.open(str(out)) as model:
        stored = model["w"].quantized()
        values = model["w"].numpy()
        np.testing.assert_array_equal(stored.codes, found.codes)
        np.testing.assert_array_equal(stored.scale, found.scale)
        assert (stored.zero_point is None) == (found.zero_point is None)
        if found.zero_point is not None:
            np.testing.assert_array_equal(stored.zero_point, found.zero_point)
            wide = found.scheme.bits > 8
            expected = np.float32 if found.scheme.zero_point == "float" else np.uint16 if wide else np.uint8
            assert stored.zero_point is not None
            assert stored.zero_point.dtype == found.zero_point.dtype == expected
        np.testing.assert_array_equal(values, found.dequantize())
        height_of_all = stored.grouping.rows
        if stored.grouping.shared != "columns":
            height = stored.grouping.height
            some = TileSpan(height, height_of_all - height, 0, 160)
            np.testing.assert_array_equal(model["w"].decoded(some), values[height:])
        assert model["w"].stored.metrics == found.metrics(array)
    assert wrong(array, out) is None
