"""What verifying a file has found: checks, findings, and how they are gathered from many threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from quantcli.errors import printable
from quantcli.stores.pipelines import prefixed, within

CHECKS = ("structure", "scales", "padding", "ranges", "digest", "source", "codes", "metrics")
"""Kinds of check, in the order in which they are reported."""

OF_ORIGINALS = ("source", "codes", "metrics")
"""What takes the original."""


MISSING = "it is missing here"
"""The problem of what only the original has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong. tensor: empty for the file or folder itself. index: of the first weight, or of the first
    parameter in its own tensor, where it is so; count: how many there are. stored, expected: codes."""

    tensor: str
    check: str
    problem: str
    index: list[int] | None = None
    count: int = 1
    stored: int | None = None
    expected: int | None = None

    def line(self) -> str:
        """The finding as one line."""
        parts = [f"{printable(self.tensor)}: " if self.tensor else "", f"{self.check}: {self.problem}"]
        if self.index is not None:
            parts.append(f"{', the first' if self.count > 1 else ''} at {self.index}")
        if self.stored is not None:
            parts.append(f": {self.stored} stored" + ("" if self.expected is None else f", {self.expected} expected"))
        return "".join(parts) + (f" ({self.count} of them)" if self.count > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was checked and what is wrong; unchecked: what could not be checked, and why."""

    tensors: int
    quantized: int
    against: str | None
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    checks: tuple[str, ...]
    of_parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The checks of each component of a pipeline."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def joined(found: Mapping[str, Verified], against: str | None) -> Verified:
    """What was checked of several models, and what is wrong with them: components of a pipeline, whose names their
    tensors get, or a single one under an empty name."""
    return Verified(
        tensors=sum(one.tensors for one in found.values()),
        quantized=sum(one.quantized for one in found.values()),
        against=against,
        findings=tuple(_within(name, finding) for name, one in found.items() for finding in one.findings),
        unchecked=tuple(prefixed(name, line) for name, one in found.items() for line in one.unchecked),
        checks=tuple(c for c in CHECKS if any(c in one.checks for one in found.values())),
        of_parts={name: one.checks for name, one in found.items()},
    )


def _within(name: str, finding: Finding) -> Finding:
    """A finding about one of several models."""
    if finding.tensor:
        return replace(finding, tensor=within(name, finding.tensor))
    return replace(finding, problem=prefixed(name, finding.problem))


@dataclass(slots=True)
class _Found:
    """What one check has found on one tensor; `at` orders findings."""

    at: int
    count: int
    finding: Finding


@dataclass(frozen=True, slots=True)
class OfTensor:
    """What was found on one tensor, to be put beside what was found on others. unchecked: what could not be."""

    found: Sequence[_Found] = ()
    unchecked: Sequence[str] = ()


_NOTHING = OfTensor()
"""What is found on most tensors."""


class Findings:
    """Findings from several threads; of those alike the first in file order counts, whoever comes first."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], _Found] = {}
        self._lock = threading.Lock()
        self.unchecked: list[str] = []

    def add(self, name: str, check: str, problem: str, at: int = 0, count: int = 1, **more: Any) -> None:
        """Note something that is wrong; of several alike the first counts."""
        finding = Finding(tensor=name, check=check, problem=problem, **more)
        with self._lock:
            known = self._found.setdefault((name, check, problem), _Found(at, 0, finding))
            known.count += count
            if at < known.at:
                known.at, known.finding = at, finding

    def of_tensor(self) -> OfTensor:
        """What was found, where all of it is on one tensor."""
        return OfTensor(list(self._found.values()), self.unchecked) if self._found or self.unchecked else _NOTHING

    def put(self, more: OfTensor) -> None:
        """Take in what was found on another tensor."""
        for one in more.found:
            self._found[one.finding.tensor, one.finding.check, one.finding.problem] = one
        self.unchecked += [line for line in more.unchecked if line not in self.unchecked]

    def ordered(self, names: Iterable[str]) -> tuple[Finding, ...]:
        """All that is wrong, in the order of these names."""
        wanted = {found.finding.tensor for found in self._found.values()}
        order = {name: i for i, name in enumerate(chain([""], names)) if name in wanted} if wanted else {}
        found = sorted(
            self._found.values(),
            key=lambda f: (order.get(f.finding.tensor, math.inf), CHECKS.index(f.finding.check), f.at),
        )
        return tuple(replace(f.finding, count=f.count) for f in found)
