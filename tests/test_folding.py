"""Adapters that are folded into a model: the numbers of PEFT's merge_and_unload, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents
from making import ROOT, load, one_line, run, save
from strategies import gaussian

from quantcli import folding
from quantcli.dtypes import to_float32
from quantcli.folding import folded
from quantcli.stores import Source, open_source

GOLDEN = ROOT / "tests" / "golden" / "lora"
MERGED = ("plain", "bfloat16", "rslora", "patterns", "embedding", "saved", "conv1d", "bias")


def values(source: Source, name: str, *, step: int = 0) -> np.ndarray:
    """A tensor as it is read: at once, or in so many bytes at a time."""
    info = next(i for i in source.infos() if i.name == name)
    raw = np.empty(info.nbytes, np.uint8)
    for start in range(0, info.nbytes, step or max(info.nbytes, 1)):
        part = raw[start : start + (step or info.nbytes)]
        source.read(name, start, part.data)
    return to_float32(raw, info.dtype).reshape(info.shape)


@pytest.mark.parametrize("case", MERGED)
@pytest.mark.parametrize("step", [0, 52, 4096])
def test_what_merge_and_unload_gives(case: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """to the last places of float32, or of bfloat16, to which PEFT rounds twice; nothing else is changed"""
    monkeypatch.setattr(folding, "BLOCK", 64)
    wanted = load(GOLDEN / case / "changed.safetensors")
    with ExitStack() as stack:
        base = stack.enter_context(closing(open_source(str(GOLDEN / case / "base"))))
        found = folded(stack, base, str(GOLDEN / case / "adapter"))
        assert set(found.notes) == set(wanted)
        for info in base.infos():
            before, after = values(base, info.name), values(found, info.name, step=step)
            if info.name not in wanted:
                np.testing.assert_array_equal(before, after)
                continue
            true = to_float32(np.frombuffer(wanted[info.name].data, np.uint8), wanted[info.name].dtype)
            close = {"rtol": 2.0**-7, "atol": 1e-3} if info.dtype == "BF16" else {"rtol": 1e-5, "atol": 1e-7}
            np.testing.assert_allclose(after.ravel(), true, **close)  # type: ignore[arg-type]
            assert not np.array_equal(before, after)
