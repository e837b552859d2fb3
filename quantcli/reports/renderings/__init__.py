"""Renderings of documents, one per file: for people, for tools, for CI. Each writes text to a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from quantcli import registry
from quantcli.reports.documents import Look

if TYPE_CHECKING:
    from quantcli.reports.records import RunReport

Write = Callable[[Sequence[Any], TextIO, Look], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A way to show documents. forms: what it can show, and what writes that: a type of documents, or a protocol for
    all documents that offer what it asks for; the first that fits counts. extensions: of file names that stand for
    it."""

    forms: tuple[tuple[type, Write], ...]
    extensions: tuple[str, ...] = ()

    def writer(self, kind: type) -> Write | None:
        """What writes documents of a type; None where it cannot show them."""
        return next((write for known, write in self.forms if issubclass(kind, known)), None)

    def render(self, documents: Sequence[Any], stream: TextIO, look: Look) -> None:
        """Write documents of one type; no document at all is written in the first form."""
        write = self.writer(type(documents[0])) if documents else self.forms[0][1]
        assert write is not None, "the command asks first"
        write(documents, stream, look)


def able(kind: type) -> tuple[str, ...]:
    """Names of the renderings that can show documents of a type."""
    every = registry.names("reports.renderings")
    return tuple(name for name in every if registry.get("reports.renderings", name).writer(kind) is not None)


def verdict(reports: Sequence[RunReport]) -> bool | None:
    """Whether all gates of all reports were passed; None where there is none."""
    known = [r.passed for r in reports if r.passed is not None]
    return all(known) if known else None
