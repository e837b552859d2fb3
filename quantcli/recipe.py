"""Recipes: schemes by pattern, in YAML.

    default: {bits: 4, group_size: 128}
    rules:
      - {match: "*.down_proj", bits: 8, reason: sensitive}
      - {match: "re:.*layers\\.0\\..*", keep: true}

The last rule that matches a tensor decides. A rule's scheme is the default one with its own keys on top. Plain YAML
only: no tags, no aliases or merge keys, no duplicate keys, every number written as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.patterns import compiled
from quantcli.plan import Rule
from quantcli.scheme import Scheme
from quantcli.stores.files import read_small

LIMIT = 1 << 16
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
        return parse(_yaml(read_small(path, LIMIT), path), overrides or {})
    except QuantcliError as error:
        raise (error if error.place[:1] == [path] else UsageError(str(error), place=[path])) from None


def parse(document: Any, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe a document of plain values describes."""
    top = _mapping(document, "recipe", ("default", "rules"))
    if not top:
        raise UsageError("the recipe is empty", hint="give it a default scheme, rules or both")
    given = _mapping(top.get("default", {}), "default", _FIELDS)
    asked = {**given, **overrides}
    default = _scheme(asked, "default")
    rules = top.get("rules", [])
    if not isinstance(rules, list):
        raise UsageError("it is not a list", place=["rules"])
    return Recipe(default, tuple(_rule(rule, f"rules[{i}]", asked) for i, rule in enumerate(rules)))


def _rule(value: Any, place: str, asked: Mapping[str, Any]) -> Rule:
    fields = _mapping(value, place, ("match", "keep", "reason", *_FIELDS))
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


def _mapping(value: Any, place: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError("it is not a map of keys to values", place=[place])
    for key in value:
        if not isinstance(key, str) or key not in known:
            import difflib

            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"unknown key {printable(repr(key), 60)}", place=[place], hint=hint)
    return dict(value)


def _yaml(text: bytes, path: str) -> Any:
    """Plain values of a YAML document. Raises DataError with line and column."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases and merge keys, and with duplicate keys refused."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.get_mark())
            self.depth += 1
            if self.depth > 30:
                raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key.start_mark)
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(problem="merge keys are not allowed", problem_mark=key.start_mark)
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    # YAML 1.1 reads 010 as 8 and 2:08 as 128; only numbers that look like numbers are numbers here.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, expression) for tag, expression in found if not tag.endswith((":int", ":timestamp", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    import re

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$"), list("-+0123456789")
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
    try:
        decoded = text.decode("utf-8")
    except UnicodeError:
        raise DataError("it is not valid UTF-8", place=[path]) from None
    try:
        documents = list(yaml.load_all(decoded, Loader=Loader))  # a SafeLoader without its sharp edges
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise DataError(printable(str(error.problem), 200), place=[path, where]) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise DataError(
            f"it is not plain YAML: {printable(str(error).splitlines()[0] if str(error) else '', 200)}", place=[path]
        ) from None
    if len(documents) != 1:
        raise (
            UsageError(f"it holds {len(documents)} documents instead of one", place=[path])
            if documents
            else UsageError("the recipe is empty", place=[path])
        )
    return documents[0]
