"""Recipes: schemes by pattern, in YAML.

    default: {bits: 4, group_size: 128}
    rules:
      - {match: "*.down_proj", bits: 8, reason: sensitive}
      - {match: "re:.*layers\\.0\\..*", keep: true}
      - {match: "*.vision_tower.*", keep: true, optional: true}
    ties: ["re:(.*)\\.(?:wq|wk|wv)"]
    importance: activations.safetensors

The last rule that matches a tensor decides. A rule's scheme is the default one with its own keys on top; an optional
rule may match nothing. Tensors that match an expression of `ties` and agree in its first group get one scheme.
Beside these a recipe may hold what are options otherwise: `include` and `exclude` (lists of patterns), `keep_defaults:
false`, `on_nonfinite`, `digest`, `max_shard_size`, `to`, `container`. Presets are recipes by name (presets/NAME.yaml).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from quantcli.asking import SchemeRequest, decided_at
from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.layouts.writer import checked
from quantcli.patterns import compiled
from quantcli.planning import recipe_keys
from quantcli.planning.named import fields as named_fields
from quantcli.planning.named import named
from quantcli.planning.recipe_keys import BATCH_NORM, IMPORTANCE, STATISTICS
from quantcli.planning.request import Request, Rule
from quantcli.scheme import Scheme
from quantcli.stores.places import read_small
from quantcli.strict import LIMIT, lines, mapping, plain

_PRESETS = os.path.join(os.path.dirname(__file__), "presets")


def _spelt_out(value: Any, place: str) -> Any:
    """A map in which `scheme: W4A16`, or a shorthand instead of a map, is replaced by what it stands for."""
    name = value if isinstance(value, str) else value.get("scheme") if isinstance(value, dict) else None
    if name is None:
        return value
    fields = named(name, place)
    if isinstance(value, str):
        return fields
    return over(fields, {k: v for k, v in value.items() if k != "scheme"})


def over(fields: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with some of them replaced; another granularity takes its size along."""
    return {k: v for k, v in fields.items() if k != "group_size" or "granularity" not in own} | dict(own)


ROUNDED = ("rounding", "calibration")
"""Fields of a scheme that decide how it rounds."""

NATIVE = "native"
"""The target that can store everything."""

SETTINGS = {"on_nonfinite": ("refuse", "keep"), "digest": ("xxh3", "sha256", "none")}
"""What else changes the bytes of a file, and the choices there are."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for all, as a request and as the scheme it comes to, the rules in order, what is tied, the file of
    importances (None: to be named) with the digest it is to have, and the options that it sets, no others."""

    asked: SchemeRequest
    default: Scheme
    rules: tuple[Rule, ...]
    ties: tuple[str, ...] = ()
    importance: tuple[str | None, str | None] | None = None
    statistics: tuple[str | None, str | None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False
    """Whether it was read from a file or is a preset that was named."""

    @property
    def schemes(self) -> list[Scheme]:
        """The default scheme and those of the rules."""
        return [self.default, *(rule.scheme for rule in self.rules if rule.scheme is not None)]

    @property
    def rounding_given(self) -> bool:
        """Whether a rounding, or a calibration, which decides about it, is asked for anywhere."""
        given = any(getattr(self.asked, name) is not None for name in ROUNDED)
        return given or any(rule.rounding_given for rule in self.rules)

    def scheme(self, fields: Mapping[str, Any]) -> Scheme:
        """The default scheme with these fields on top."""
        return decided_at(self.asked.with_rule(fields, "default"), "default")


def presets() -> list[str]:
    """The names of the presets."""
    return sorted(name.removesuffix(".yaml") for name in os.listdir(_PRESETS) if name.endswith(".yaml"))


@cache
def preset(name: str) -> Recipe:
    """A preset by its name, as it is."""
    return load(name)


def load(
    path: str | None, overrides: Mapping[str, Any] | None = None, rules: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> Recipe:
    """The recipe in a file or of a preset, or an empty one; `overrides` are fields of the default scheme that the
    command line asks for, `rules` come after those of the file, each with its place.

    Raises UsageError with the line of what is wrong, QuantcliError where it cannot be read.
    """
    if path is None:
        return _with_rules(parse({"default": {}}, overrides or {}), rules)
    raw = _text(os.path.join(_PRESETS, f"{path}.yaml") if path in presets() else path)
    document = plain(raw, path)
    where = lines(raw)
    try:
        found = parse(document, overrides or {}, os.path.dirname(path))
    except QuantcliError as error:
        raise UsageError(error.problem, place=[path, *_line(error, where), *error.place], hint=error.hint) from None
    placed = (replace(r, place=f"{path}: {where['rules', i]}") for i, r in enumerate(found.rules))
    return _with_rules(replace(found, rules=tuple(placed), given=True), rules)


def _line(error: QuantcliError, where: Mapping[tuple[str | int, ...], str]) -> list[str]:
    """Line and column of what an error is about, as near as is known."""
    steps: list[str | int] = [int(s) if s.isdigit() else s for p in error.place for s in re.findall(r"\w+", p)]
    steps += re.findall(r"unknown key '(\w+)'", error.problem)
    place: tuple[str | int, ...] = ()
    for step in steps:
        place = (*place, step) if (*place, step) in where else place
    return [where[place]] if place else []


def _text(path: str) -> bytes:
    try:
        return read_small(path, LIMIT)
    except QuantcliError as error:
        if not os.path.lexists(path) and not os.path.dirname(path):
            import difflib

            near = difflib.get_close_matches(path, presets(), n=1)
            error.hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(presets())}"
        raise


def _with_rules(recipe: Recipe, rules: Sequence[tuple[str, Mapping[str, Any]]]) -> Recipe:
    more = tuple(_rule(dict(rule), place, recipe.asked) for place, rule in rules)
    return replace(recipe, rules=recipe.rules + more)


def parse(document: Any, overrides: Mapping[str, Any], folder: str = "") -> Recipe:
    """The recipe a document of plain values describes; files it names lie in `folder`."""
    top = mapping(document, "recipe", recipe_keys.RECIPE)
    if not top:
        raise UsageError("the recipe is empty", hint="give it a default scheme, rules or both")
    given = mapping(_spelt_out(top.get("default", {}), "default"), "default", recipe_keys.SCHEME)
    asked = SchemeRequest.of(over(given, overrides), "default")
    default = decided_at(asked, "default")
    rules = top.get("rules", [])
    if not isinstance(rules, list):
        raise UsageError("it is not a list", place=["rules"])
    return Recipe(
        asked=asked,
        default=default,
        rules=tuple(_rule(rule, f"rules[{i}]", asked) for i, rule in enumerate(rules)),
        ties=_ties(top.get("ties", [])),
        importance=_file(IMPORTANCE, top, folder),
        statistics=_file(STATISTICS, top, folder),
        options={name: _option(name, top[name]) for name in recipe_keys.OPTIONS if name in top},
    )


def _ties(values: Any) -> tuple[str, ...]:
    """The expressions of `ties`."""
    if not isinstance(values, list):
        raise UsageError("it is not a list", place=["ties"])
    for i, tie in enumerate(values):
        if not isinstance(tie, str) or not tie.startswith("re:"):
            problem = f"{printable(repr(tie), 100)} is not a regular expression"
            raise UsageError(problem, place=[f"ties[{i}]"], hint=r"such as re:(.*)\.(?:wq|wk|wv)")
        compiled(tie, f"ties[{i}]")
    return tuple(values)


def _file(name: str, top: Mapping[str, Any], folder: str) -> tuple[str | None, str | None] | None:
    """File and digest of the importances, or statistics, that a recipe names. Raises UsageError where it names both."""
    value = top.get(name)
    if value is None:
        return None
    if {IMPORTANCE, STATISTICS} <= top.keys():
        problem = "a recipe names importances or statistics, not both"
        raise UsageError(problem, place=[name], hint="leave one of the keys out")
    found = mapping({"file": value} if isinstance(value, str) else value, name, ("file", "xxh3"))
    path, digest = found.get("file"), found.get("xxh3")
    for key, word in (("file", path), ("xxh3", digest)):
        if word is not None and (not isinstance(word, str) or not word):
            raise UsageError("it is not text", place=[name, key])
    if path is None and digest is None:
        raise UsageError("it has no file name", place=[name])
    return path if path in (None, BATCH_NORM) else os.path.join(folder, path), digest


_SWITCHES = ("keep_defaults", "keep_embeddings", "container", "allow_unweighted", "convolution_sums")


def _option(name: str, value: Any) -> Any:
    """The value of an option in a recipe. Raises UsageError for what it cannot be."""
    shown = printable(repr(value), 60)
    if name in ("include", "exclude"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{shown} is not a list of patterns", place=[name])
        return tuple(value)
    if name in _SWITCHES and type(value) is not bool:
        raise UsageError(f"{shown} is neither true nor false", place=[name])
    if name == "max_shard_size" and (type(value) is not int or value < 1):
        raise UsageError(f"{shown} is not a number of bytes", place=[name])
    if name == "to" and value != NATIVE:
        if not isinstance(value, str):
            raise UsageError(f"{shown} is not a target", place=[name], hint="export --list names them")
        return checked(value, name)
    if name in SETTINGS and value not in SETTINGS[name]:
        raise UsageError(f"{shown} is not one of {', '.join(SETTINGS[name])}", place=[name])
    return value


def _rule(value: Any, place: str, asked: SchemeRequest) -> Rule:
    fields = mapping(_spelt_out(value, place), place, (*recipe_keys.RULE, *recipe_keys.SCHEME))
    pattern, reason = fields.pop("match", None), fields.pop("reason", None)
    keep, optional, preset = fields.pop("keep", False), fields.pop("optional", False), fields.pop("preset", "")
    if not isinstance(pattern, str):
        raise UsageError("it needs a pattern", place=[place, "match"])
    compiled(pattern, f"{place}: match")
    for key, value in (("keep", keep), ("optional", optional)):
        if type(value) is not bool:
            raise UsageError(f"{printable(repr(value), 60)} is neither true nor false", place=[place, key])
    if reason is not None and not isinstance(reason, str):
        raise UsageError("it is not text", place=[place, "reason"])
    if preset and (preset not in presets() or not keep):
        problem = f"{printable(repr(preset), 60)} is not a preset" if keep else "presets keep tensors only"
        raise UsageError(problem, place=[place, "preset"], hint="leave the key out")
    if keep:
        if fields:
            raise UsageError(f"a tensor that is kept has no {next(iter(fields))}", place=[place])
        return Rule(pattern, None, reason, optional=optional, preset=preset, place=place)
    scheme = decided_at(asked.with_rule(fields, place), place)
    given = not fields.keys().isdisjoint(ROUNDED)
    return Rule(pattern, scheme, reason, optional=optional, place=place, rounding_given=given)


def override(text: str) -> tuple[str, dict[str, Any]]:
    """The rule that PATTERN:key=value,... or PATTERN:keep stands for, after its place. Raises UsageError for any
    other text.

    >>> override("*.down_proj:bits=8,group-size=32")[1]
    {'match': '*.down_proj', 'bits': 8, 'group_size': 32}
    """
    pattern, colon, fields = text.rpartition(":")
    if not colon or not pattern or pattern == "re":
        raise UsageError(f"{printable(repr(text), 100)} is not PATTERN:bits=8,...", place=["--override"])
    rule: dict[str, Any] = {"match": pattern}
    for part in fields.split(","):
        key, equals, value = part.partition("=")
        name = key.strip().replace("-", "_")
        if not equals and (name == "keep" or named_fields(key.strip()) is not None):
            rule |= {"keep": True} if name == "keep" else {"scheme": key.strip()}
            continue
        if not equals or not name or name in rule:
            raise UsageError(f"{printable(repr(part), 100)} is not key=value, or is given twice", place=["--override"])
        rule[name] = plain(value.encode("utf-8", "surrogateescape"), "--override")
    return f"--override {printable(text, 100)}", rule


def request_of(values: Mapping[str, Any], schemes: Sequence[Scheme]) -> Request:
    """The request that `Request.as_dict` gave these plain values; of importances only the digest is known. Raises
    DataError for values it never gives."""

    def numbered(number: Any) -> Scheme:
        if type(number) is not int or not 0 <= number < len(schemes):
            raise TypeError
        return schemes[number]

    try:
        rules = []
        for entry in values.get("rules", []):
            usual: list[Any] = [None, None, None, False, ""]
            pattern, number, reason, optional, preset = [*entry, *usual[len(entry) :]] if len(entry) > 1 else []
            compiled(pattern, "rules")
            if not (reason is None or isinstance(reason, str)) or optional not in (False, True):
                raise TypeError
            if preset and (preset not in presets() or number is not None):
                raise TypeError
            scheme = None if number is None else numbered(number)
            rules.append(Rule(pattern, scheme, reason, optional=optional, preset=preset))
        known = [name for name in recipe_keys.OPTIONS if name in values and name not in SETTINGS]
        said = {name: _option(name, values[name]) for name in known}
        said["ties"] = _ties(values.get("ties", []))
        said.setdefault("convolution_sums", False)
        for name in (IMPORTANCE, STATISTICS):
            if name in values:
                from quantcli.planning.statistics import InputStatistics  # of such recipes alone, some milliseconds

                said["statistics"] = InputStatistics("", {}, str(values[name]), key=name)
        return Request(scheme=numbered(values["default"]), rules=tuple(rules), **said)
    except (QuantcliError, TypeError, ValueError, KeyError, AttributeError):
        raise DataError("the recipe in its header is damaged") from None
