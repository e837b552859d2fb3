"""Markdown: a comment for a pull request.

The verdict first, then the worst tensors, details folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from quantcli import terminal as t
from quantcli.reports.documents import Display, Line, Plot, Readable
from quantcli.reports.kept import groups
from quantcli.reports.markup import code, text
from quantcli.reports.records import Comparison, GateResult, TensorReport
from quantcli.reports.renderings import Rendering
from quantcli.reports.run import RunReport, RunReports, origin_lines

WORST = 5
WARNINGS = 10
ROOM = 60_000
"""Characters: a comment on GitHub may have 65,536."""


def render(document: RunReports, stream: TextIO, display: Display) -> None:
    """Write the comment."""
    reports = document.reports
    parts = [_headline(document.gates), *(_report(report, ROOM // len(reports)) for report in reports)]
    stream.write("\n\n".join(parts) + "\n")


def _headline(gates: Sequence[GateResult]) -> str:
    failed = sum(not g.passed for g in gates)
    if not gates:
        return "### quantcli"
    if not failed:
        return f"### ✅ quantcli: {len(gates)} of {len(gates)} gates passed"
    return f"### ❌ quantcli: {failed} of {len(gates)} gates failed"


def _report(report: RunReport, room: int) -> str:
    s = report.summary
    lines = [
        f"{code(report.name)}: SQNR **{t.decibels(s.sqnr_db, s.exact)}{'' if s.exact else ' dB'}**, "
        f"{s.bits_per_weight:.3f} bits per weight, {t.size(s.bytes_out)} ({t.change(s.bytes_in, s.bytes_out)}), "
        f"{100 * s.coverage:.1f} % of {t.count(s.parameters)} parameters quantized"
    ]
    lines += ["", *(f"- {text(line)}" for line in origin_lines(report))] if origin_lines(report) else []
    lines += ["", *(f"- warning: {text(w)}" for w in report.warnings[:WARNINGS])] if report.warnings else []
    if report.gates:
        lines += ["", "| gate | limit | measured | |", "| --- | --- | --- | --- |"]
        for g in report.gates:
            lines.append(f"| {g.title} | {g.shown_limit} | {text(g.message)} | {'✅' if g.passed else '❌'} |")
    if report.comparison is not None:
        lines += ["", *_comparison(report.comparison)]
    quantized = sorted((r for r in report.tensors if r.disposition == "quantized"), key=_sqnr)
    if quantized:
        lines += ["", f"Lowest SQNR of {len(quantized)} tensors:", "", *_table(quantized[:WORST])]
    notable = groups(report.tensors)[:WORST]
    if notable:
        lines += ["", "| kept | reason | tensors | bytes |", "| --- | --- | ---: | ---: |"]
        lines += [f"| {code(g.name)} | {text(g.reason)} | {len(g.tensors)} | {t.size(g.bytes_out)} |" for g in notable]
    head = "\n".join(lines)
    return f"{head}\n\n{_folded(report, room - len(head) - 400)}"


def _comparison(found: Comparison) -> list[str]:
    lost = sum(c.lost for c in found.changes)
    lines = [
        f"Against {code(found.baseline)}: {lost} of {len(found.changes)} changed tensors lost, "
        f"{len(found.new)} new, {len(found.vanished)} vanished."
    ]
    if found.changes:
        lines += ["", "| tensor | before | now | change |", "| --- | --- | ---: | ---: |"]
        for c in found.changes[:WORST]:
            delta = "-" if c.delta_db is None else f"{c.delta_db:+.2f} dB"
            before, after = t.decibels(c.before_db, c.before_exact), t.decibels(c.after_db, c.after_exact)
            lines.append(f"| {code(c.tensor)} | {text(c.before)} {before} | {text(c.after)} {after} | {delta} |")
    names = [
        *(f"new: {code(n)}" for n in found.new[:10]),
        *(f"vanished: {code(n)}" for n in found.vanished[:10]),
    ]
    return [*lines, *(["", ", ".join(names)] if names else [])]


def _folded(report: RunReport, room: int) -> str:
    rows = _fitting(_table(sorted(report.tensors, key=lambda r: (r.kept, _sqnr(r)))), room)
    return f"<details><summary>All {len(report.tensors)} tensors</summary>\n\n{rows}\n\n</details>"


def _fitting(rows: Sequence[str], room: int, what: str = "tensors") -> str:
    """A table, of which the last rows are left out where it takes more than so many characters."""
    shown_rows, used = list(rows[:2]), 0
    for row in rows[2:]:
        used += len(row) + 1
        if used > room:
            break
        shown_rows.append(row)
    left = len(rows) - len(shown_rows)
    more = f"\n\nand {left} more {what}, left out for the size of a comment" if left else ""
    return "\n".join(shown_rows) + more


def _table(tensors: Sequence[TensorReport]) -> list[str]:
    lines = ["| tensor | shape | scheme | SQNR dB | max error | bits/w |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for r in tensors:
        sqnr = "-" if r.kept else t.decibels(r.sqnr_db, r.exact)
        lines.append(
            f"| {code(r.name)} | {t.shape(r.shape)} | {text(r.became)} | {sqnr} | {t.number(r.max_abs_error)} "
            f"| {r.bits_per_weight:.3f} |"
        )
    return lines


def _sqnr(tensor: TensorReport) -> float:
    return math.inf if tensor.sqnr_db is None else tensor.sqnr_db


def _parts(document: Readable, stream: TextIO, display: Display) -> None:
    """Write the lines and tables of another document."""
    blocks = list[str]()
    for part in document.parts(display):
        if isinstance(part, Line):
            blocks += [f"### {code(part.words)}" if part.strong else text(part.words)] if part.words else []
        elif not isinstance(part, Plot):
            head = "| " + " | ".join(text(c.title) for c in part.columns) + " |"
            rule = "| " + " | ".join("---:" if c.right else "---" for c in part.columns) + " |"
            rows = ["| " + " | ".join([code(r[0]), *map(text, r[1:])]) + " |" for r in part.all_rows()]
            blocks.append(_fitting([head, rule, *rows], ROOM - sum(map(len, blocks)) - 400, "rows"))
    stream.write("\n\n".join(blocks) + "\n")


PROVIDES = Rendering(forms=((RunReports, render), (Readable, _parts)), extensions=("md",))
