"""Strict parsers for untrusted text: JSON, and plain YAML (no tags, aliases, merge keys or duplicate keys, every number
written as a number)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from quantcli.errors import DataError, UsageError, printable

LIMIT = 1 << 16
"""Bytes a recipe or configuration may have."""


def mapping(value: Any, place: str, known: Collection[str]) -> dict[str, Any]:
    """A copy of a map whose keys are all known. Raises UsageError for an unknown key, with near misses."""
    if not isinstance(value, dict):
        raise UsageError("it is not a map of keys to values", place=[place])
    for key in value:
        if not isinstance(key, str) or key not in known:
            import difflib

            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"unknown key {printable(repr(key), 60)}", place=[place], hint=hint)
    return dict(value)


def _loader() -> Any:
    """The reader of plain YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases, tags and merge keys, and with duplicate keys refused."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.get_mark())
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if getattr(event, "tag", None) is not None:
                raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=event.start_mark)
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
    return Loader


def lines(text: bytes) -> dict[tuple[str | int, ...], str]:
    """Positions of the values of a YAML document, by the path of keys and numbers to each; values of a map have the
    position of their key. The document has been read by `plain`."""
    import yaml

    found: dict[tuple[str | int, ...], str] = {}

    def walk(node: Any, place: tuple[str | int, ...], mark: Any) -> None:
        found[place] = f"line {mark.line + 1}, column {mark.column + 1}"
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                walk(value, (*place, str(key.value)), key.start_mark)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                walk(value, (*place, number), value.start_mark)

    whole = yaml.compose(text.decode("utf-8"), Loader=_loader())
    if whole is not None:
        walk(whole, (), whole.start_mark)
    return found


def plain(text: bytes, path: str) -> Any:
    """Plain values of a YAML document. Raises UsageError, with line and column where they are known."""
    import yaml

    try:
        decoded = text.decode("utf-8")
    except UnicodeError:
        raise UsageError("it is not valid UTF-8", place=[path]) from None
    try:
        documents = list(yaml.load_all(decoded, Loader=_loader()))  # a SafeLoader, restricted further
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise UsageError(printable(str(error.problem), 200), place=[path, where]) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        raise UsageError(
            f"it is not plain YAML: {printable(str(error).splitlines()[0] if str(error) else '', 200)}", place=[path]
        ) from None
    if len(documents) != 1:
        problem = f"it holds {len(documents)} documents instead of one" if documents else "it is empty"
        raise UsageError(problem, place=[path])
    return documents[0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{printable(digits, 40)} is too large a number")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def strict_json(text: bytes, place: str) -> Any:
    """JSON in UTF-8 without duplicate keys, NaN, numbers beyond float64, lone surrogates or too deep nesting. Raises
    DataError."""
    try:
        decoded = text.decode("utf-8")
        value = _DECODER.decode(decoded)
        if "\\u" in decoded:  # an escape can hold half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise DataError("it is not valid UTF-8", place=[place]) from None
    except RecursionError:
        raise DataError("it is nested too deeply", place=[place]) from None
    except ValueError as error:
        raise DataError(f"it is not valid JSON: {error}", place=[place]) from None
    return value


def strict_items(text: str, first: int, last: int) -> Iterator[tuple[str, Any]]:
    """The items of a map without blanks, from behind its first brace to its last one: of a large one, all at once take
    ten times the memory of its text. Raises ValueError where it is not just that."""
    at, behind, seen = first, ",", set[str]()
    try:
        while behind == ",":
            if text[at] != '"':
                raise ValueError("there is no key")
            key, at = scanstring(text, at + 1)
            if key in seen:
                raise ValueError("a key occurs twice")
            seen.add(key)
            if text[at] != ":":
                raise ValueError("there is no value")
            value, at = _DECODER.scan_once(text, at + 1)  # type: ignore[attr-defined]
            yield key, value
            behind, at = text[at], at + 1
    except (IndexError, StopIteration, RecursionError):
        raise ValueError("it is cut short") from None
    if at != last + 1 or behind != "}":
        raise ValueError("it ends elsewhere")
