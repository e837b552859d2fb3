"""Renderings of documents, one per file: for people, for tools, for CI. Each writes a document to a stream as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from quantcli import registry
from quantcli.reports.documents import Display

Write = Callable[[Any, TextIO, Display], None]


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

    def render(self, document: Any, stream: TextIO, display: Display) -> None:
        """Write a document."""
        write = self.writer(type(document))
        assert write is not None, "the command asks first"
        write(document, stream, display)


def able(kind: type) -> tuple[str, ...]:
    """Names of the renderings that can show documents of a type."""
    every = registry.names("reports.renderings")
    return tuple(name for name in every if registry.get("reports.renderings", name).writer(kind) is not None)
