"""The tables of real clients: the last run had every cell, and a wrong answer fails its cell."""

from __future__ import annotations

import doctest
import importlib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from making import ROOT

PEERS = ROOT / "tests" / "peers"
RESULTS = PEERS / "RESULTS.md"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """How to import a module of tests/peers; it and the modules beside it do not stay."""
    monkeypatch.syspath_prepend(str(PEERS))
    for path in PEERS.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
        monkeypatch.setitem(sys.modules, path.stem, ModuleType(path.stem))  # so that all of them are taken out again
        del sys.modules[path.stem]
    return importlib.import_module


@pytest.fixture
def cells(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("cells")


@pytest.fixture
def zoo(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("zoo")


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
        head = (target, "reported", *(client.head for client in clients))
        rows = found[head]
        cases = [case for case in cells.CASES if case.target == target]
        assert [row[0] for row in rows] == [case.scheme for case in cases]
        for case, (_, reported, *seen) in zip(cases, rows):
            for client, cell in zip(clients, seen, strict=True):
                refused = re.fullmatch(r"no \((\d+)\)", cell)
                assert bool(refused) == bool(client.refusal(case)), (target, case.scheme, client.head)
                assert refused or abs(float(cell) - float(reported)) < 0.5


def test_the_last_run_had_every_model(zoo: ModuleType) -> None:
    """Every model and loader of every target; and those refuse that should."""
    found = tables()
    for target, loaders in zoo.LOADERS.items():
        head = (target, "quantized", "kept", *(loader.head for loader in loaders))
        rows = found[head]
        asked = [model for model in zoo.MODELS if any(model in loader.models for loader in loaders)]
        assert [row[0] for row in rows] == asked
        for model, _, _, *seen in rows:
            for loader, cell in zip(loaders, seen, strict=True):
                if model not in loader.models:
                    assert cell == "-"
                elif (model, target) in zoo.REFUSED:
                    assert cell.startswith("refused (")
                elif model in loader.refuses:
                    assert cell.startswith("no (")
                else:
                    assert float(cell) >= zoo.COARSER.get(model, zoo.CLOSE), (target, model, loader.head)


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ({"cosines": [0.98, 1.0], "finite": True}, ""),
        ({"cosines": [0.96, 1.0], "finite": True}, "to the float model"),
        ({"cosines": [0.98, 1 - 1e-7], "finite": True}, "to the weights that quantcli decodes"),
        ({"cosines": [math.nan, math.nan], "finite": False}, "is not finite"),
        ({"refused": "it only warns of missing_keys: lm_head.weight_packed, 3 in all"}, "missing_keys: lm_head"),
    ],
)
def test_a_model_that_loads_wrongly_fails_its_cell(zoo: ModuleType, answer: dict[str, Any], wrong: str) -> None:
    made = zoo.Made("phi3", "compressed-tensors", Path("model"))
    cell = zoo.judge(made, zoo.Loader(title="transformers"), answer)
    assert wrong in cell.wrong
    assert bool(cell.wrong) == bool(wrong)


def test_only_the_refusal_that_is_known_is_right(zoo: ModuleType) -> None:
    made, loader = zoo.Made("phi3", "awq", Path("model")), zoo.Loader(title="", refuses={"phi3": "no attribute"})
    assert zoo.judge(made, loader, {"refused": "AttributeError: no attribute 'weight'"}).wrong == ""
    assert zoo.judge(made, loader, {"refused": "RuntimeError: size mismatch"}).wrong
    assert "expected to refuse" in zoo.judge(made, loader, {"cosines": [1.0, 1.0], "finite": True}).wrong


def test_examples(cells: ModuleType) -> None:
    for module in (cells, sys.modules["environments"]):
        assert doctest.testmod(module).failed == 0
