"""Weights as other tools store them, against the very tensors that these tools make of them, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from layout_parts import Parts, decoded, found_in, only
from making import GOLDEN_FILES

from quantcli.dtypes import from_float32

FOLDER = GOLDEN_FILES / "decoded"
"""Written by peers/write_decoded*.py."""
WORDS = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def stored(path: Path) -> tuple[Parts, dict[str, Any], tuple[str, np.ndarray]]:
    """The parts in a file, config.json, and the dtype and bits of what the tool makes of them, in C order."""
    raw = path.read_bytes()
    parts: Parts = {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in safetensors.deserialize(raw)
    }
    config = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["config"])
    dtype, shape, values = parts.pop("expected")
    return parts, config, (dtype, np.frombuffer(values, WORDS[dtype]).reshape(shape))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.safetensors")), ids=lambda p: p.stem)
def test_weights_are_what_their_tool_makes_of_them(path: Path) -> None:
    parts, config, (dtype, expected) = stored(path)
    found = only(found_in(parts, config))
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert {p.name for p in found.parts} == set(parts)
    rows = expected.reshape(-1, expected.shape[-1])

    def bits(first: int, last: int) -> np.ndarray:
        return from_float32(decoded(found, parts, first, last), dtype).view(WORDS[dtype])

    np.testing.assert_array_equal(bits(0, len(rows)), rows)
    for first, last in [(0, 1), (1, 2), (len(rows) - 3, len(rows)), (3, 11), (len(rows) // 2 - 5, len(rows) // 2 + 6)]:
        np.testing.assert_array_equal(bits(first, last), rows[first:last])
