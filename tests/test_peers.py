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

from quantcli import Scheme, registry
from quantcli.layouts.writer import named as writer_of
from quantcli.planning.named import fields, usual_names
from quantcli.scheme import STATIC

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
                assert (cell == "-") == (not client.asked(case))
                if cell == "-":
                    continue
                refused = re.fullmatch(r"no \((\d+)\)", cell)
                assert bool(refused) == bool(client.refusal(case)), (target, case.scheme, client.head)
                assert refused or client.bytewise(case) or abs(float(cell) - float(reported)) < 0.5


def kind_of(**fields: Any) -> tuple[object, ...]:
    """What tells schemes apart that are stored differently, whatever their groups and the inputs of layers are."""
    scheme = Scheme(**fields)
    return scheme.format, scheme.bits, scheme.granularity, scheme.storage, scheme.symmetric, scheme.rotation


def kind_of_case(case: Any) -> tuple[object, ...]:
    """That of a case: of its name, of the type that most tensors of a file have, or of its options."""
    name = case.option("scheme") or re.sub("_[SML]$|_MOE$", "", case.option("to").partition(":")[2])
    found = fields("FP8_BLOCK" if case.target == "fp8-blocks" else name)
    if found is None:
        options = {"format": "type", "bits": "bits", "scale_dtype": "scale-dtype", "zero_point": "zero-point"}
        found = {key: case.option(word) for key, word in options.items() if case.option(word)}
        found |= {"bits": int(found["bits"])} if "bits" in found else {}
        found["symmetric"] = "--asymmetric" not in case.flags
        size = case.option("group-size")
        places = {"-1": {"granularity": "channel"}, "0": {"granularity": "tensor"}}
        found |= places.get(size, {"group_size": int(size)} if size else {})
    return kind_of(**found)


def test_every_kind_of_scheme_has_a_cell(cells: ModuleType) -> None:
    """Every kind of a target, and every scheme that has a name and that the target accepts."""
    assert set(cells.CLIENTS) == set(registry.names("layouts", "WRITES")) - {"native"}
    for target in cells.CLIENTS:
        cases, writer = [case for case in cells.CASES if case.target == target], writer_of(target)
        assert {f"{target}:{kind}" for kind in writer.kinds} <= {case.to for case in cases}
        found = {kind_of_case(case) for case in cases}
        for name in usual_names():
            wanted = fields(name)
            assert wanted is not None
            accepted = writer.accepts.obstacle(Scheme(**wanted)) is None
            if accepted and wanted["activations"] not in STATIC:  # no scales of inputs are measured here
                assert kind_of(**wanted) in found, (target, name)


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


def test_the_last_run_of_audits_and_signatures() -> None:
    """Every tool's file was consistent with its base and with no other, and nobody took what was changed."""
    found = tables()
    rows = found["made by", "tensors", "scheme", "method", "verdict", "two exchanged"]
    assert len(rows) == 10 and {tuple(row[4:]) for row in rows} == {("consistent", "both named")}
    signed, changed, forged = found["", "model-signing", "securesystemslib", "quantcli"]
    assert signed[1:] == ["yes", "yes", "yes"] and changed[1] == changed[3] == forged[2] == "no"
