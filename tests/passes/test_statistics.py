"""Statistics of values, against numpy on the whole tensor at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, run, save

KINDS = {"BF16": BF16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


@pytest.mark.parametrize("spoilt", [False, True], ids=["finite", "not finite"])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_several_blocks(kind: str, spoilt: bool, tmp_path: Path) -> None:
    """Counted by pattern from 2^17 values of 16 bits on, and piece by piece otherwise."""
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((3, 1 << 20)) * 0.1 + 0.3).astype(KINDS[kind])
    weights[0, :2] = -4, 0
    if spoilt:
        weights[1, 5:9] = np.inf, -np.inf, np.nan, np.nan
    path = save(tmp_path / "m.safetensors", {"a": weights, "b": weights[0, :999], "c": weights[1, 5:9]})
    found: dict[str, Any] = {t["name"]: t["stats"] for t in run("inspect", path, "--stats", "--json").json["tensors"]}
    for name, values in (("a", weights), ("b", weights[0, :999]), ("c", weights[1, 5:9])):
        exact = values.astype(np.float64).ravel()
        exact = exact[np.isfinite(exact)]
        stats = found[name]
        assert stats["nonfinite"] == values.size - exact.size
        if not exact.size:
            assert stats["min"] is None and stats["mean"] is None and sum(stats["histogram"]) == 0
            continue
        assert (stats["min"], stats["max"]) == (exact.min(), exact.max())
        assert stats["mean"] == pytest.approx(exact.mean(), rel=1e-12)
        assert stats["std"] == pytest.approx(exact.std(), rel=1e-12)
        assert stats["histogram"] == np.histogram(exact, 16)[0].tolist()
        assert stats["outlier_ratio"] == np.mean(np.abs(exact - exact.mean()) > 4 * exact.std())
