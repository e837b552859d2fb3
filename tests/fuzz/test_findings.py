"""What fuzzing found, each as small as it gets: refused in one line now."""

from __future__ import annotations

from pathlib import Path

from making import one_line, raw_file, run


def test_a_dimension_beyond_float64(tmp_path: Path) -> None:
    """The size in the message was a float: OverflowError."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"w": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]}}, bytes(4)))
    assert "take more than 2^61 bytes, but its offsets leave 4" in one_line(run("inspect", path), 1)
