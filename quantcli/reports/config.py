"""The configuration of a project: its gates, and the models a bare `quantcli report` measures.

    gates:
      min_sqnr: 18
      max_size: 3.9GB
      rules:                            # the last rule that matches and names a gate decides
        - {match: "*.down_proj.*", min_tensor_sqnr: 25}
    models:
      - {file: out/model-w4g128.safetensors, against: model.safetensors, baseline: baseline.json}
      - {file: out/model-w8c.safetensors, gates: {min_sqnr: 35}}
      - {file: out/model-w3g64.safetensors, against: model.safetensors, statistics: stats.safetensors}

Paths are relative to the file's folder. A model's own gates go on top of those for all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from quantcli.errors import QuantcliError, UsageError
from quantcli.patterns import compiled
from quantcli.reports.gates import NAMES, TENSOR_GATES, GateRule, Gates, parsed
from quantcli.stores.places import is_url, local, pinned, read_small
from quantcli.strict import LIMIT, mapping, plain

NAME = "quantcli.yaml"
_PATHS, _MODELS = ("file", "against", "baseline", "like", "statistics"), ("file", "against", "like")
"""Keys that hold paths, and those of models, which may be URLs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A file to report on, what to measure it against, the statistics of inputs that predict errors of outputs, the
    report or (like) the model to compare it with, and its gates."""

    file: str
    against: str | None
    baseline: str | None
    gates: Gates
    like: str | None = None
    statistics: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Gates for everything and the models listed."""

    path: str
    gates: Gates
    models: tuple[ModelEntry, ...]


def load(path: str) -> Config:
    """The configuration in a file. Raises UsageError with the place of what is wrong."""
    raw = read_small(path, LIMIT)
    try:
        return _parse(plain(raw, path), path)
    except QuantcliError as error:
        raise (error if error.place[:1] == [path] else error.within(path)) from None


def _parse(document: Any, path: str) -> Config:
    top = mapping(document, "configuration", ("gates", "models"))
    gates = _gates(top.get("gates", {}), "gates")
    models = top.get("models", [])
    if not isinstance(models, list):
        raise UsageError("it is not a list", place=["models"])
    folder = os.path.dirname(path)
    entries = tuple(_model(value, f"models[{i}]", folder, gates) for i, value in enumerate(models))
    if not entries and not gates.given:
        raise UsageError("it names neither gates nor models")
    return Config(path=path, gates=gates, models=entries)


def _model(value: Any, place: str, folder: str, gates: Gates) -> ModelEntry:
    fields = mapping(value, place, (*_PATHS, "gates"))
    own = _gates(fields.pop("gates", {}), f"{place}: gates")
    paths: dict[str, str | None] = dict.fromkeys(_PATHS)
    for key, path in fields.items():
        if not isinstance(path, str) or not path:
            raise UsageError("it is not a path", place=[place, key])
        try:
            found = pinned(path) if key in _MODELS else local(path)
        except UsageError as error:
            raise error.within(f"{place}: {key}") from None
        paths[key] = found if is_url(found) else os.path.join(folder, found)
    if paths["file"] is None:
        raise UsageError("it has no file", place=[place])
    return ModelEntry(
        file=paths["file"],
        against=paths["against"],
        baseline=paths["baseline"],
        like=paths["like"],
        statistics=paths["statistics"],
        gates=own.over(gates),
    )


def _gates(value: Any, place: str) -> Gates:
    fields = mapping(_underscored(value), place, (*NAMES, "rules"))
    rules = fields.pop("rules", [])
    if not isinstance(rules, list):
        raise UsageError("it is not a list", place=[place, "rules"])
    return Gates(
        **_limits(fields, place), rules=tuple(_rule(rule, f"{place}: rules[{i}]") for i, rule in enumerate(rules))
    )


def _rule(value: Any, place: str) -> GateRule:
    fields = mapping(_underscored(value), place, ("match", *TENSOR_GATES))
    match = fields.pop("match", None)
    if not isinstance(match, str):
        raise UsageError("it needs a pattern", place=[place, "match"])
    compiled(match, f"{place}: match")
    if not fields:
        raise UsageError("it names no gate", place=[place])
    return GateRule(match=match, limits=_limits(fields, place))


def _limits(fields: dict[str, Any], place: str) -> dict[str, float]:
    try:
        return {name: parsed(name, limit) for name, limit in fields.items()}
    except UsageError as error:
        raise error.within(place) from None


def _underscored(value: Any) -> Any:
    """Keys as they are called here; on the command line they have dashes."""
    if not isinstance(value, dict):
        return value
    return {k.replace("-", "_") if isinstance(k, str) else k: v for k, v in value.items()}
