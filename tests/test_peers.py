"""The tables of real clients: those in the README are those of the last run, and that run had every cell."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"
RESULTS = PEERS / "RESULTS.md"


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/peers/cells.py; the modules beside it do not stay."""
    monkeypatch.syspath_prepend(str(PEERS))
    for name in ("cells", "environments"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module("cells")
    for name in ("cells", "environments"):
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    return found


def test_the_readme_shows_the_last_run() -> None:
    shown = re.search(r"<!-- peers -->\n(.*?)<!-- /peers -->", (ROOT / "README.md").read_text(), re.DOTALL)
    if shown is None:
        pytest.skip("the README has no <!-- peers --> section")
    assert shown[1].strip() == RESULTS.read_text().strip(), "make peers writes it: run.py --write"


def tables() -> dict[tuple[str, ...], list[list[str]]]:
    """The tables of RESULTS.md by their heads."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for block in RESULTS.read_text().split("\n\n"):
        if block.startswith("|"):
            head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            found[tuple(head)] = rows
    return found


def test_the_last_run_had_every_cell(cells: ModuleType) -> None:
    """Every target, scheme and client, at the versions that are pinned; and those refuse that should."""
    found = tables()
    for target, clients in cells.CLIENTS.items():
        rows = found[(target, "reported", *(client.head for client in clients))]
        cases = [case for case in cells.CASES if case.target == target]
        assert [row[0] for row in rows] == [case.scheme for case in cases]
        for case, (_, reported, *seen) in zip(cases, rows):
            for client, cell in zip(clients, seen, strict=True):
                refused = re.fullmatch(r"no \((\d+)\)", cell)
                assert bool(refused) == bool(client.refusal(case)), (target, case.scheme, client.head)
                assert refused or abs(float(cell) - float(reported)) < 0.5


def test_examples(cells: ModuleType) -> None:
    for module in (cells, sys.modules["environments"]):
        assert doctest.testmod(module).failed == 0
