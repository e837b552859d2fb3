"""The report on a quantized model, and several of them in one document: what was done, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.notebook import table
from quantcli.planning import kinds
from quantcli.reports import run_tables
from quantcli.reports.documents import PEOPLE_ONLY, SCHEMA_VERSION, Display, Line, Part, outline, plain
from quantcli.reports.gathered import Glance
from quantcli.reports.records import (
    LEFT_OUT,
    Comparison,
    ComponentReport,
    FileReport,
    GateResult,
    Summary,
    TensorReport,
)

LEGEND = (
    "model: step^2/12 and what clipping cuts off, clipping being its share of the error; uniform, Lloyd-Max: the best "
    "there is with one scale for these weights (N: for normal ones); Shannon, R(D): no coding at the stored rate does "
    "better, for weights like these and for normal ones; entropy: bits per code; saves: what a lossless coder would."
)
"""Of the table of theory."""

COLUMNS = (
    "name", "dtype", "shape", "disposition", "reason", "note", "scheme", "bits", "format", "granularity", "group_size",
    "symmetric", "calibration", "rounding", "mse", "nmse", "sqnr_db", "exact", "max_abs_error", "clipped_fraction",
    "bits_per_weight", "bytes_in", "bytes_out",
)  # fmt: skip
"""Figures of a tensor in tables for programs."""

BEFORE = ("source_scheme", "source_sqnr_db")
"""What is known of a tensor that was decoded before it was quantized."""

OF_SOURCE = ("decoded_from", "arranged", "preset")
"""What was done to the whole source, and the preset."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunReport:
    """A report on one output; passed: whether all gates were, None without gates. equal: names of tensors whose
    original weights are the same, byte for byte, the largest first. decoded_from: the layout of the source, where it is
    quantized already. arranged: what was done to experts that are stored in another arrangement than the target's.
    preset: the one that was chosen for the model, empty where none was. evaluation: the figure of the user's own
    evaluation, where one was asked for. files: of the source, where it is a folder and
    one is made from it. components: of a pipeline, whose tensors have names such as `unet/conv_in.weight`. glance:
    at the tensors, where there was one already."""

    command: str
    source: str
    output: str | None
    decoded_from: str = ""
    arranged: str = ""
    preset: str = ""
    passed: bool | None = None
    summary: Summary
    gates: list[GateResult] = field(default_factory=list)
    tensors: Sequence[TensorReport]
    comparison: Comparison | None = None
    warnings: list[str] = field(default_factory=list)
    equal: Sequence[Sequence[str]] = field(default_factory=list)
    files: list[FileReport] = field(default_factory=list)
    components: list[ComponentReport] = field(default_factory=list)
    evaluation: float | None = None
    glance: Glance | None = field(default=None, metadata=PEOPLE_ONLY)

    @property
    def name(self) -> str:
        """The file it is about."""
        return self.output or self.source

    @property
    def left_out(self) -> int:
        """How many tensors of the source the output does not hold."""
        return sum(tensor.disposition == LEFT_OUT for tensor in self.tensors)

    def failed(self) -> Mapping[str, Sequence[GateResult]]:
        """The gates that tensors do not pass, by the names of these."""
        found: dict[str, list[GateResult]] = {}
        for gate in self.gates:
            for failure in gate.failures:
                found.setdefault(failure.tensor, []).append(gate)
        return found

    def outline(self) -> dict[str, Any]:
        """What `as_dict` holds, with records as they are."""
        found = {"schema_version": SCHEMA_VERSION, **outline(self)}
        if not self.components:
            del found["components"]
        if self.evaluation is None:
            del found["evaluation"]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first; all numbers finite; `components` only of pipelines, `evaluation`
        only where there was one."""
        return {key: plain(value) for key, value in self.outline().items()}

    def parts(self, display: Display) -> Iterator[Part]:
        """The verdict, what changed since a baseline, every tensor with the worst first, and theory where it was asked
        for; of two models that are compared, what changed and what only one holds comes last."""
        glance = self.glance or Glance.at(self.tensors)
        yield from _head(self, glance)
        if self.components:
            yield from run_tables.components(self.components)
        found, compared = self.comparison, self.command == "compare"
        if found is not None and not compared:
            yield from run_tables.changes(found, display, alone=("new", "vanished"), named=10)
        yield Line()
        order = glance.worst_first(display.limit)
        seen = [self.tensors[number] for number in order]
        yield from run_tables.tensors(seen, glance.rest(order, self.tensors), display)
        if found is not None and compared and (found.changes or found.new or found.vanished):
            alone = f"only in {printable(self.name, 200)}", f"only in {printable(self.source, 200)}"
            yield from run_tables.changes(found, display, alone=alone, named=3)
        if glance.theory:
            yield Line()
            yield run_tables.theory(seen)
            yield Line()
            yield Line(LEGEND, wrapped=True)

    def __repr__(self) -> str:
        s = self.summary
        figures = f"{s.tensors} tensors, {s.quantized} quantized, {t.decibels(s.sqnr_db, s.exact)} dB"
        return f"RunReport({self.command} {printable(self.name)!r}: {figures}, {t.size(s.bytes_out)})"

    def _repr_html_(self) -> str:
        rows = (
            (
                r.name,
                "x".join(map(str, r.shape)),
                r.scheme or r.reason,
                t.decibels(r.sqnr_db, r.exact),
                t.size(r.bytes_out),
            )
            for r in self.tensors
        )
        from html import escape

        return f"<p>{escape(repr(self))}</p>{table(('tensor', 'shape', 'scheme', 'SQNR dB', 'bytes'), rows)}"


@dataclass(frozen=True, slots=True)
class RunReports:
    """The reports that one command makes, one for each model, as a document."""

    reports: Sequence[RunReport]

    @property
    def gates(self) -> list[GateResult]:
        """The gates of all."""
        return [gate for report in self.reports for gate in report.gates]

    @property
    def passed(self) -> bool | None:
        """Whether all gates were passed; None where there is none."""
        gates = self.gates
        return all(gate.passed for gate in gates) if gates else None

    def as_dict(self) -> dict[str, Any]:
        """One report as it is, several in `reports`."""
        return {key: plain(value) for key, value in self.outline().items()}

    def outline(self) -> dict[str, Any]:
        """What `as_dict` holds, with records as they are."""
        documents = [report.outline() for report in self.reports]
        if len(documents) == 1:
            return documents[0]
        command = self.reports[0].command if self.reports else "report"
        return {"schema_version": SCHEMA_VERSION, "command": command, "passed": self.passed, "reports": documents}

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per tensor; `failed` names the gates that it does not pass. Behind it is what it was made from."""
        yield ["file", *COLUMNS, "failed", *BEFORE, *OF_SOURCE]
        for report in self.reports:
            failed, whole = report.failed(), [getattr(report, column) for column in OF_SOURCE]
            for tensor in report.tensors:
                gates = " ".join(gate.gate for gate in failed.get(tensor.name, ()))
                figures, before = ([getattr(tensor, column) for column in names] for names in (COLUMNS, BEFORE))
                yield [report.name, *figures, gates, *before, *whole]

    def parts(self, display: Display) -> Iterator[Part]:
        """The reports one after another; together they have as many rows as one would have."""
        if display.limit is not None and len(self.reports) > 1:
            display = replace(display, limit=max(3, display.limit // len(self.reports)))
        for number, report in enumerate(self.reports):
            yield from [Line(), Line()] if number else []
            yield from report.parts(display)


def equal_line(report: RunReport) -> str | None:
    """Which tensors are equal, in a line; None when none are."""
    if not report.equal:
        return None
    shown = []
    for names in report.equal[:3]:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        shown.append(" = ".join(printable(n, 200) for n in names[:4]) + more)
    more = f"; and {len(report.equal) - 3} more such sets" if len(report.equal) > 3 else ""
    return f"equal weights: {'; '.join(shown)}{more}"


def origin_lines(report: RunReport) -> list[str]:
    """What was done to the source before it was quantized, which preset was chosen for it, and which components of a
    pipeline are not quantized, and why."""
    kept = [f"{printable(c.name, 100)}: kept whole, {c.kept}" for c in report.components if c.kept]
    return [
        *([f"source: {report.decoded_from}"] if report.decoded_from else []),
        *([report.arranged] if report.arranged else []),
        *kinds.about(report.preset),
        *kept,
    ]


def _head(report: RunReport, glance: Glance) -> Iterator[Line]:
    """What it is about, the figures of the whole model, and every gate."""
    s = report.summary
    output = f" -> {printable(report.output, 200)}" if report.output else ""
    yield Line(printable(report.source, 200) + output, strong=True)
    yield from map(Line, origin_lines(report))
    measured = "exact" if s.exact else f"SQNR {s.sqnr_db:.2f} dB" if s.sqnr_db is not None else "not measured"
    covered = f"{100 * s.coverage:.1f} % of {t.count(s.parameters)} parameters quantized"
    yield Line(f"{covered}, {s.bits_per_weight:.3f} bits per weight, {measured}")
    time = f", {s.seconds:.2f} s" if s.seconds is not None else ""
    yield Line(f"{t.size(s.bytes_in)} -> {t.size(s.bytes_out)} ({t.change(s.bytes_in, s.bytes_out)}){time}")
    if s.weighted or s.output is not None:
        yield Line(weighted_line(report))
    if report.evaluation is not None:
        yield Line(f"evaluation {report.evaluation:.6g}")
    counts = sorted(s.kept.items(), key=lambda kv: -kv[1])
    kept = "kept: " + ", ".join(f"{n} {printable(reason, 100)}" for reason, n in counts) if counts else ""
    left = f"left out: {len(glance.left_out)}, which the target does not use" if glance.left_out else ""
    if kept or left:
        yield Line("; ".join(line for line in (kept, left) if line))
    if report.command == "report" and s.sqnr_db is None and not s.exact:
        yield Line("the file stores no errors: --against ORIGINAL measures them")
    if glance.decoded:
        yield Line("errors against what was decoded; what its codes had cost is not stored: compare with the original")
    equal = equal_line(report)
    if equal is not None:
        yield Line(equal)
    if report.gates:
        yield Line()
    for gate in report.gates:
        yield Line(f"{gate.title} {gate.shown_limit}: {gate.message}", passed=gate.passed)


def weighted_line(report: RunReport) -> str:
    """How many tensors were quantized by what is known of their layers' inputs, and what that is worth there."""
    s = report.summary
    line = f"{s.weighted} of {s.quantized} quantized tensors weighted by their layers' inputs"
    if s.output is None:
        return line
    costs = ["exact" if v is None else f"{v:.2f} dB" for v in (s.output.sqnr_db, s.output.plain_sqnr_db)]
    if s.output.plain_error is None:  # measured afterwards, whatever the tensors were quantized by
        known = sum(tensor.output is not None for tensor in report.tensors)
        line = f"statistics of the inputs of {known} of {s.quantized} quantized tensors"
        return f"{line}: predicted SQNR of outputs {costs[0]}"
    return f"{line}: predicted SQNR of outputs {costs[0]}, {costs[1]} without"
