"""What headers say of tensors: the bits of torchao's codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from making import load, run, save

NAME, BITS = "up.weight", 3
RECORD = {"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": {"_type": "torch.dtype", "_data": "int3"}}}


def stored(folder: Path, codes: np.ndarray, record: object = RECORD) -> Path:
    """A file as torchao flattens a weight in groups of 32, with what its header says of it."""
    rows, cols = codes.shape
    parts: dict[str, np.ndarray] = {
        "up._weight_qdata": codes.astype(np.int8),
        "up._weight_scale": (np.arange(rows * cols // 32, dtype=np.float32).reshape(rows, -1) + 1) / 1024,
        "up._weight_zero_point": np.zeros((rows, cols // 32), np.int8),
    }
    text = record if isinstance(record, str) else json.dumps(record)
    return save(folder / "torchao.safetensors", parts, {NAME: text})


def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(-4, 4, (16, 64))


def test_codes_have_the_bits_of_their_record(tmp_path: Path) -> None:
    """`inspect` names them, and `export` moves them in so many bits: each is the code times its scale."""
    path = stored(tmp_path, codes())
    assert "w3g32" in run("inspect", path).out
    scale = np.repeat(load(path)["up._weight_scale"].array, 32, axis=1)
    assert run("export", path, "--to", "mlx", "-o", tmp_path / "mlx", "-q").code == 0
    [words] = [s for n, s in load(tmp_path / "mlx" / "model.safetensors").items() if n == NAME]
    assert words.array.shape == (16, 64 * BITS // 32)
    for source in (path, tmp_path / "mlx"):
        out = tmp_path / f"{source.stem}-floats"
        assert run("dequantize", source, "-o", out, "--dtype", "float32", "-q").code == 0
        found = [s.array for f in ([out] if out.is_file() else out.glob("*.safetensors")) for s in load(f).values()]
        np.testing.assert_array_equal(found[0], codes() * scale)


def test_a_code_of_more_bits_than_its_record_says(tmp_path: Path) -> None:
    wrong = codes()
    wrong[3, 5] = 4
    path = stored(tmp_path, wrong)
    for command in (("dequantize", path), ("export", path, "--to", "mlx")):
        ran = run(*command, "-o", tmp_path / "out", "-q")
        assert ran.code == 1 and ran.err.count("\n") == 1, ran
        assert "up.weight: a code or zero point is not a whole number of 3 bits" in ran.err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("record", [
    '{"_type": "IntxUnpackedToInt8Tensor"', {"_type": "IntxUnpackedToInt8Tensor"},
    {**RECORD, "_data": {"target_dtype": {"_data": "int9"}}}, {**RECORD, "_data": {"target_dtype": "int4"}},
    {**RECORD, "_data": [4]},
])  # fmt: skip
def test_invalid_records_are_refused(record: object, tmp_path: Path) -> None:
    ran = run("dequantize", stored(tmp_path, codes(), record), "-o", tmp_path / "out", "-q")
    assert ran.code == 1 and ran.err.count("\n") == 1 and "up.weight: " in ran.err, ran
