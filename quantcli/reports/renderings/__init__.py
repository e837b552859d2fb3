"""Renderings of reports, one per file: for people, for tools, for CI. Each writes text to a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from quantcli.reports.records import RunReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a terminal wants it: in colour, and at most so many tensors of each report, None for all."""

    colour: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A way to show reports: what writes them, and the extensions of file names that stand for it."""

    render: Callable[[Sequence[RunReport], TextIO, Look], None]
    extensions: tuple[str, ...] = ()


def verdict(reports: Sequence[RunReport]) -> bool | None:
    """Whether all gates of all reports were passed; None where there is none."""
    known = [r.passed for r in reports if r.passed is not None]
    return all(known) if known else None
