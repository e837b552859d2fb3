"""Every rendering that is registered, of every kind of report: complete, harmless, the same on a screen and in a file.

What single renderings hold is in the tests of gates, pages and escaping.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from making import run, save
from strategies import HOSTILE, gaussian

from quantcli import registry
from quantcli.cli import _naming

RENDERINGS = registry.names("reports.renderings")

REPORTS: dict[str, list[str]] = {
    "measured": ["report", "q.safetensors"],
    "again": ["report", "q.safetensors", "--against", "model.safetensors", "--theory"],
    "passed": ["report", "q.safetensors", "--min-sqnr", "1", "--max-bpw", "99"],
    "failed": ["report", "q.safetensors", "--min-tensor-sqnr", "40", "--max-mse", "1e-9"],
    "several": ["report", "q.safetensors", "q2.safetensors", "--min-sqnr", "15"],
    "baseline": ["report", "q.safetensors", "--baseline", "b.json", "--max-regression", "0.1"],
    "compared": ["compare", "model.safetensors", "q.safetensors"],
    "exact": ["compare", "model.safetensors", "model.safetensors"],
    "no floats": ["compare", "ids.safetensors", "ids.safetensors"],
}
"""Command lines by what is special about their reports."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with names that mean something elsewhere, what is made of it, and one without a weight."""
    place = tmp_path_factory.mktemp("renderings")
    model = {name: gaussian(4, 32, seed=i) for i, name in enumerate(HOSTILE)} | {"zero": np.zeros((4, 32), np.float32)}
    save(place / "model.safetensors", model)
    save(place / "ids.safetensors", {"ids": np.arange(4)})
    for name, bits in (("q", 4), ("q2", 2)):
        words = ["--no-default-keep", "--group-size", 32, "--bits", bits, "-q", "-o", place / f"{name}.safetensors"]
        assert run("quantize", place / "model.safetensors", *words).code == 0
    (place / "b.json").write_text(run("report", place / "q.safetensors", "--json").out)
    return place


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize("name", RENDERINGS)
def test_every_report_is_rendered(
    name: str, kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a control character, and but for those meant for it no command to a log that shows it."""
    monkeypatch.chdir(folder)
    out = tmp_path / "report"
    ran = run(*REPORTS[kind], "--format", name, "-o", f"{name}={out}")
    assert ran.code == (1 if kind in ("failed", "several") else 0), ran
    written = out.read_text(encoding="utf-8")
    for text in (ran.out, written):
        assert not text or text.endswith("\n")
        lines = text.split("\n")
        assert all(line.replace("\t", " ").isprintable() for line in lines)
        assert not any("##[" in line or "##vso[" in line for line in lines)
        assert name == "github" or not any(line.lstrip().startswith("::") for line in lines)
    assert written == ran.out or name == "table"  # which is cut to the screen


@pytest.mark.parametrize("name", RENDERINGS)
def test_its_extensions_stand_for_it(name: str, folder: Path, tmp_path: Path) -> None:
    for extension in registry.get("reports.renderings", name).extensions:
        assert _naming.renderings()[extension] == name
        out = tmp_path / f"r.{extension}"
        ran = run("report", folder / "q.safetensors", "--format", name, "-o", out)
        assert ran.code == 0 and (out.read_text(encoding="utf-8") == ran.out or name == "table")


def test_an_extension_stands_for_one_rendering() -> None:
    used = Counter(e for name in RENDERINGS for e in registry.get("reports.renderings", name).extensions)
    assert set(used.values()) == {1}
