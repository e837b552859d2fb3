"""The interface of documents, and the parts that people read: lines, tables, plots.

A document is the result of a command, as a record. Every document has plain values, for programs; those that have rows
or parts are shown by every rendering that takes these.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from quantcli.each import Each
from quantcli.terminal import Table

SCHEMA_VERSION = 1

PEOPLE_ONLY: Mapping[str, bool] = {"people_only": True}
"""Metadata of a field that is not among the plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """How to show a document: in colour, with at most so many rows of a table (None for all), with all details, and in
    ASCII alone."""

    colour: bool = False
    limit: int | None = None
    verbose: bool = False
    ascii_only: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, empty between two blocks. strong: a title; passed: the verdict it is about; wrapped: a paragraph,
    which a terminal divides into lines; lead: what comes before it, at the left of all of them."""

    text: str = ""
    strong: bool = False
    passed: bool | None = None
    wrapped: bool = False
    lead: str = ""

    @property
    def verdict(self) -> str:
        """The verdict in a word that comes before the text; empty for a line that is about none."""
        return "" if self.passed is None else "passed" if self.passed else "FAILED"

    @property
    def words(self) -> str:
        """Verdict and text."""
        return f"{self.verdict} {self.text}" if self.verdict else f"{self.lead}{self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Marks (x, y, character) over two axes, for terminals."""

    marks: Sequence[tuple[float, float, str]]
    across: str
    up: str


Part: TypeAlias = Line | Table | Plot
"""A part of a document."""


@runtime_checkable
class Document(Protocol):
    """The result of a command."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` and `command` first; all numbers finite."""


@runtime_checkable
class Outlined(Protocol):
    """A document that can be written record by record."""

    def outline(self) -> dict[str, Any]:
        """What its plain values are made of: maps, lists and values, with records as they are."""


@runtime_checkable
class Readable(Protocol):
    """A document that has parts for people."""

    def parts(self, display: Display) -> Iterator[Part]:
        """Its lines and tables, in order."""


@runtime_checkable
class Tabular(Protocol):
    """A document that is a table of figures."""

    def rows(self) -> Iterable[Sequence[object]]:
        """Its rows, the names of the columns first."""


def document(command: str, record: Any) -> dict[str, Any]:
    """The plain values of a document."""
    return {"schema_version": SCHEMA_VERSION, "command": command, **plain(record)}


IF_ANY: Mapping[str, bool] = {"if_any": True}
"""Metadata of a field that is among the plain values where it is not None."""


_LEAVES = frozenset((str, int, bool, type(None)))
"""Types of values that are plain already, which most are."""


def outline(record: Any) -> dict[str, Any]:
    """The fields of a record that are among its plain values, as they are."""
    shown, if_any = _shown(cast(Hashable, type(record)))
    found = {name: getattr(record, name) for name in shown}
    for name in if_any:
        if found[name] is None:
            del found[name]
    return found


def plain(value: Any) -> Any:
    """Records as maps, all the way down; null for a number that is not finite, for JSON has none."""
    if type(value) in _LEAVES:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, Each)):
        return [plain(inner) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(one) for name, one in outline(value).items()}
    return value


@cache
def _shown(kind: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of a type of record that are among its plain values, and those of them that are so where they are not
    None."""
    shown = [f for f in fields(kind) if "people_only" not in f.metadata]
    return tuple(f.name for f in shown), tuple(f.name for f in shown if "if_any" in f.metadata)
