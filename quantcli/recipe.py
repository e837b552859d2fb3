"""Recipes: schemes by pattern, in YAML.

    default: {bits: 4, group_size: 128}
    rules:
      - {match: "*.down_proj", bits: 8, reason: sensitive}
      - {match: "re:.*layers\\.0\\..*", keep: true}

The last rule that matches a tensor decides. A rule's scheme is the default one with its own keys on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import QuantcliError, UsageError, printable
from quantcli.patterns import compiled
from quantcli.plain import LIMIT, mapping, plain
from quantcli.plan import Rule
from quantcli.scheme import Scheme
from quantcli.stores.files import read_small

_FIELDS = (
    "bits",
    "format",
    "granularity",
    "group_size",
    "axis",
    "symmetric",
    "grid",
    "zero_point",
    "calibration",
    "options",
    "rounding",
    "levels",
    "codebook",
    "scale_dtype",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The default scheme and the rules, in order."""

    default: Scheme
    rules: tuple[Rule, ...]


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file; `overrides` are fields of the default scheme that the command line asks for.

    Raises UsageError or DataError with the line of what is wrong.
    """
    try:
        return parse(plain(read_small(path, LIMIT), path), overrides or {})
    except QuantcliError as error:
        raise (error if error.place[:1] == [path] else UsageError(str(error), place=[path])) from None


def parse(document: Any, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe a document of plain values describes."""
    top = mapping(document, "recipe", ("default", "rules"))
    if not top:
        raise UsageError("the recipe is empty", hint="give it a default scheme, rules or both")
    given = mapping(top.get("default", {}), "default", _FIELDS)
    asked = {**given, **overrides}
    default = _scheme(asked, "default")
    rules = top.get("rules", [])
    if not isinstance(rules, list):
        raise UsageError("it is not a list", place=["rules"])
    return Recipe(default, tuple(_rule(rule, f"rules[{i}]", asked) for i, rule in enumerate(rules)))


def _rule(value: Any, place: str, asked: Mapping[str, Any]) -> Rule:
    fields = mapping(value, place, ("match", "keep", "reason", *_FIELDS))
    pattern, keep, reason = fields.pop("match", None), fields.pop("keep", False), fields.pop("reason", None)
    if not isinstance(pattern, str):
        raise UsageError("it needs a pattern", place=[place, "match"])
    compiled(pattern, f"{place}: match")
    if type(keep) is not bool:
        raise UsageError(f"{printable(repr(keep), 60)} is neither true nor false", place=[place, "keep"])
    if reason is not None and not isinstance(reason, str):
        raise UsageError("it is not text", place=[place, "reason"])
    if keep:
        if fields:
            raise UsageError(f"a tensor that is kept has no {next(iter(fields))}", place=[place])
        return Rule(pattern, None, reason)
    return Rule(pattern, _scheme(_on_top(fields, asked), place), reason)


def _on_top(fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the default scheme with a rule's own fields on top; what these make moot is left out."""
    moot: set[str] = set()
    if "granularity" in fields or "group_size" in fields:
        moot |= {"granularity", "group_size", "axis"}
    if "format" in fields and fields["format"] != asked.get("format", "int"):
        moot |= {"bits", "levels", "codebook", "rounding", "scale_dtype", "grid", "calibration", "options", "symmetric"}
        moot |= {"zero_point"}
    if "calibration" in fields:
        moot |= {"options", "grid"}
    if "symmetric" in fields:
        moot |= {"grid", "zero_point"}
    return {**{k: v for k, v in asked.items() if k not in moot}, **fields}


def _scheme(fields: dict[str, Any], place: str) -> Scheme:
    size = fields.get("group_size")
    if type(size) is int and size in (-1, 0):  # as on the command line
        raise UsageError(f"group_size {size}", place=[place], hint="write granularity: channel or tensor")
    for key in ("bits", "format", "granularity", "symmetric", "zero_point"):
        if key in fields and fields[key] is None:
            raise UsageError("it has no value", place=[place, key])
    if isinstance(fields.get("codebook"), list):
        fields = {**fields, "codebook": tuple(fields["codebook"])}
    try:
        return Scheme(**fields)
    except QuantcliError as error:
        raise error.within(place) from None
    except TypeError:
        raise UsageError("a value is not of its kind", place=[place]) from None


def levels(path: str) -> tuple[float, ...]:
    """The levels of a codebook in a file, ascending: numbers in text, apart by blanks or commas, or a .npy array.

    Raises UsageError where they are none.
    """
    raw = read_small(path, LIMIT)
    try:
        if raw[:6] == b"\x93NUMPY":
            import io

            import numpy as np

            found = [float(v) for v in np.load(io.BytesIO(raw), allow_pickle=False).ravel()]
        else:
            found = [float(word) for word in raw.decode("ascii").replace(",", " ").split()]
    except (ValueError, TypeError, EOFError, OverflowError):
        raise UsageError("it is not a list of numbers", place=[path]) from None
    return tuple(sorted(found))
