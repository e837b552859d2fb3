"""Verifications: what was checked of a quantized file, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.passes.findings import MISSING, Finding, Verified
from quantcli.reports.documents import PEOPLE_ONLY, Display, Line, Part, document
from quantcli.reports.page import many_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A verification. source: the original it was checked against. unchecked: what could not be checked, and why.
    checks: what was; of_parts: by component of a pipeline; names: the tensors that a table shows. files: how many a
    statement names, where these were checked instead of tensors."""

    file: str
    source: str | None
    passed: bool
    tensors: int
    quantized: int
    findings: list[Finding]
    unchecked: list[str]
    checks: list[str] = field(metadata=PEOPLE_ONLY)
    of_parts: Mapping[str, Sequence[str]] = field(metadata=PEOPLE_ONLY)
    names: list[str] = field(metadata=PEOPLE_ONLY)
    files: int | None = field(default=None, metadata=PEOPLE_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("verify", self)

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per finding."""
        names = [f.name for f in fields(Finding)]
        yield ["file", *names]
        for finding in self.findings:
            yield [self.file, *(getattr(finding, name) for name in names)]

    def parts(self, display: Display) -> Iterator[Part]:
        """The verdict, every check on every tensor shown, and the findings in words."""
        how = f" against {printable(self.source, 200)}" if self.source is not None else ""
        what = f"{many_tensors(self.tensors)}, {self.quantized:,} quantized"
        if self.files is not None:
            what = "1 file" if self.files == 1 else f"{self.files:,} files"
        if self.passed:
            yield Line(f"{printable(self.file, 200)}: ok{how}: {what}; {', '.join(self.checks)}")
        else:
            yield Line(f"{printable(self.file, 200)}: FAILED{how}: {what}, {_wrong(self.findings)}")
        for check in self.unchecked:
            yield Line(f"not checked: {check}")
        if self.names:
            yield Line()
            yield self._table(display)
            yield from _more(self.names, display)
        if self.findings:
            yield Line()
        for finding in self.findings[: display.limit]:
            yield Line(finding.line())
        yield from _more(self.findings, display)

    def _table(self, display: Display) -> t.Table:
        table = t.Table([t.Column("tensor"), *(t.Column(check) for check in self.checks)])
        failed = {(f.tensor, f.check) for f in self.findings}
        for name in self.names[: display.limit]:
            own = self.of_parts.get(name.partition("/")[0], self.checks)
            marks = ["FAILED" if (name, c) in failed else "ok" if c in own else "-" for c in self.checks]
            table.add(name, *marks, style="red" if "FAILED" in marks else "")
        return table


def _wrong(findings: Sequence[Finding]) -> str:
    """How many tensors have findings; those that only the original has are counted apart."""
    missing = {f.tensor for f in findings if f.tensor and f.problem == MISSING}
    counts = (len({f.tensor for f in findings if f.tensor} - missing), "wrong"), (len(missing), "missing")
    return ", ".join(f"{count:,} {word}" for count, word in counts if count or word == "wrong")


def _more(found: Sequence[object], display: Display) -> Iterator[Line]:
    """How many are not shown, if any."""
    if display.limit is not None and len(found) > display.limit:
        yield Line(f"and {len(found) - display.limit} more; --all shows them")


def report_of(file: str, found: Verified, names: Sequence[str], *, files: int | None = None) -> VerifyReport:
    """The report on a verification. names: tensors to show even where nothing is wrong, before the others. files: how
    many were checked by a statement, instead of tensors."""
    return VerifyReport(
        file=file,
        source=found.against,
        passed=found.passed,
        tensors=found.tensors,
        quantized=found.quantized,
        findings=list(found.findings),
        unchecked=list(found.unchecked),
        checks=list(found.checks),
        of_parts=found.of_parts,
        names=[]
        if files is not None
        else list(dict.fromkeys([*names, *(f.tensor for f in found.findings if f.tensor)])),
        files=files,
    )
