"""Tables for people: the verdict, what was kept, the worst tensors.

Of a report a header with what matters most, gates, what changed since a baseline, then a row per tensor, worst SQNR
first; of two models that are compared, what their files say of themselves and what only one holds comes last. Other
documents say themselves which lines and tables they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.reports.documents import Line, Look, Plot, Readable
from quantcli.reports.records import Comparison, GateResult, RunReport, TensorReport, equal_line
from quantcli.reports.renderings import Rendering

GROUPS = 20
"""Groups of kept tensors that a table shows at least beside its rows."""

LEGEND = (
    "model: step^2/12 and what clipping cuts off, clipping being its share of the error; uniform, Lloyd-Max: the best "
    "there is with one scale for these weights (N: for normal ones); Shannon, R(D): no coding at the stored rate does "
    "better, for weights like these and for normal ones; entropy: bits per code; saves: what a lossless coder would."
)
"""Of the table of theory."""


def _headline(report: RunReport) -> list[str]:
    s = report.summary
    names = printable(report.source, 200) + (f" -> {printable(report.output, 200)}" if report.output else "")
    measured = "exact" if s.exact else f"SQNR {s.sqnr_db:.2f} dB" if s.sqnr_db is not None else "not measured"
    lines = [
        names,
        f"{100 * s.coverage:.1f} % of {t.count(s.parameters)} parameters quantized, "
        f"{s.bits_per_weight:.3f} bits per weight, {measured}",
    ]
    time = f", {s.seconds:.2f} s" if s.seconds is not None else ""
    lines.append(f"{t.size(s.bytes_in)} -> {t.size(s.bytes_out)} ({s.ratio:.2f} times smaller){time}")
    if s.kept:
        counts = sorted(s.kept.items(), key=lambda kv: -kv[1])
        lines.append("kept: " + ", ".join(f"{n} {printable(reason, 100)}" for reason, n in counts))
    if report.command == "report" and s.sqnr_db is None and not s.exact:
        lines.append("the file stores no errors: --against ORIGINAL measures them")
    equal = equal_line(report)
    return [*lines, equal] if equal is not None else lines


def _worst_first(tensor: TensorReport) -> tuple[bool, float]:
    return tensor.disposition == "kept", math.inf if tensor.sqnr_db is None else tensor.sqnr_db


def _style(tensor: TensorReport) -> str:
    if tensor.disposition == "kept":
        return "dim"
    if tensor.sqnr_db is None:
        return ""
    return "red" if tensor.sqnr_db < 10 else "yellow" if tensor.sqnr_db < 15 else ""


def _rest(rows: list[TensorReport]) -> str:
    known = [r.sqnr_db for r in rows if r.sqnr_db is not None]
    kept = sum(r.disposition == "kept" for r in rows)
    parts = []
    if len(rows) > kept:
        spread = f" ({min(known):.2f} to {max(known):.2f} dB)" if known else ""
        parts.append(f"{len(rows) - kept} quantized{spread}")
    if kept:
        parts.append(f"{kept} kept")
    return f"and {len(rows)} more: {', '.join(parts)}; --all shows them"


def _gate(gate: GateResult, stream: TextIO, colour: bool) -> None:
    from quantcli.reports.gates import shown

    word, code = ("passed", 32) if gate.passed else ("FAILED", 31)
    stream.write(f"\x1b[{code}m{word}\x1b[0m" if colour else word)
    t.line(f"  {gate.title} {shown(gate.gate, gate.limit)}: {gate.message}", stream)


def _comparison(
    found: Comparison,
    stream: TextIO,
    *,
    colour: bool,
    limit: int | None,
    alone: tuple[str, str] = ("new", "vanished"),
    named: int = 10,
) -> None:
    """What changed since the baseline, most lost first; at most so many tensors by name that one side has alone."""
    counts = f"{len(found.changes)} changed, {len(found.new)} new, {len(found.vanished)} vanished"
    stream.write("\n")
    t.line(f"against {printable(found.baseline, 200)}: {counts}", stream)
    for what, names in zip(alone, (found.new, found.vanished)):
        if names:
            more = f" and {len(names) - named} more" if len(names) > named and limit is not None else ""
            shown_names = names if limit is None else names[:named]
            t.line(f"{what}: {', '.join(printable(n) for n in shown_names)}{more}", stream)
    if not found.changes:
        return
    table = t.Table(
        [
            t.Column("changed"),
            t.Column("before", from_width=70),
            t.Column("dB", right=True),
            t.Column("now", from_width=70),
            t.Column("dB", right=True),
            t.Column("change", right=True),
        ]
    )
    for c in found.changes if limit is None else found.changes[: max(5, limit // 2)]:
        delta = "-" if c.delta_db is None else f"{c.delta_db:+.2f}"
        lost = c.delta_db < 0 if c.delta_db is not None else not c.after_exact
        before, after = t.decibels(c.before_db, c.before_exact), t.decibels(c.after_db, c.after_exact)
        table.add(c.tensor, c.before, before, c.after, after, delta, style="yellow" if lost else "")
    t.show(table, stream, colour=colour)
    if len(table.rows) < len(found.changes):
        stream.write(f"and {len(found.changes) - len(table.rows)} more changes; --all shows them\n")


def render(reports: Sequence[RunReport], stream: TextIO, look: Look) -> None:
    """Print the reports one after another."""
    for number, report in enumerate(reports):
        if number:
            stream.write("\n\n")
        _report(report, stream, colour=look.colour, limit=look.limit)


def _report(report: RunReport, stream: TextIO, *, colour: bool, limit: int | None) -> None:
    """One report; at most `limit` tensors, what else was kept and must be seen in groups, the rest in one line."""
    from quantcli.reports.renderings._kept import groups  # and gates too: inspect, which has neither, starts faster

    lines = _headline(report)
    t.line(lines[0], stream, style="1" if colour else "")
    for text in lines[1:]:
        t.line(text, stream)
    if report.gates:
        stream.write("\n")
        for gate in report.gates:
            _gate(gate, stream, colour)
    found, measured_here = report.comparison, report.command == "compare"
    if found is not None and not measured_here:
        _comparison(found, stream, colour=colour, limit=limit)
    stream.write("\n")
    rows = sorted(report.tensors, key=_worst_first)
    shown_rows = rows if limit is None or len(rows) <= limit else rows[: max(1, limit)]
    notable = groups(rows[len(shown_rows) :])[: max(GROUPS, limit or 0)]
    table = t.Table(
        [
            t.Column("tensor"),
            t.Column("shape", from_width=60),
            t.Column("scheme"),
            t.Column("SQNR dB", right=True),
            t.Column("max error", right=True, from_width=100),
            t.Column("clipped", right=True, from_width=110),
            t.Column("bits/w", right=True, from_width=90),
            t.Column("bytes", right=True, from_width=50),
            t.Column("note", from_width=130),
        ]
    )
    for r in shown_rows:
        clipped = "-" if r.clipped_fraction is None else f"{100 * r.clipped_fraction:.2g} %"
        table.add(
            r.name,
            t.shape(r.shape),
            r.scheme or f"kept: {r.reason}",
            "-" if r.disposition == "kept" else t.decibels(r.sqnr_db, r.exact),
            t.number(r.max_abs_error),
            clipped,
            f"{r.bits_per_weight:.3f}",
            t.size(r.bytes_out),
            r.note,
            style=_style(r),
        )
    for g in notable:
        table.add(
            g.name,
            t.shape(g.shape) if g.shape is not None else "",
            f"kept: {g.reason}",
            *("-", "-", "-"),
            f"{g.tensors[0].bits_per_weight:.3f}",
            t.size(g.bytes_out),
            g.note,
            style="dim",
        )
    t.show(table, stream, colour=colour)
    named = {tensor.name for g in notable for tensor in g.tensors}
    left = [r for r in rows[len(shown_rows) :] if r.name not in named]
    if left:
        stream.write(_rest(left) + "\n")
    if found is not None and measured_here and (found.changes or found.new or found.vanished):
        alone = f"only in {printable(report.name, 200)}", f"only in {printable(report.source, 200)}"
        _comparison(found, stream, colour=colour, limit=limit, alone=alone, named=3)
    if any(r.theory is not None for r in rows):
        stream.write("\n")
        t.show(_theory(shown_rows), stream, colour=colour)
        stream.write("\n")
        t.paragraph(LEGEND, stream)


def _theory(rows: list[TensorReport]) -> t.Table:
    """Theory next to measurement: SQNR in dB, the share of clipping in the error, entropy of the codes in bits."""
    table = t.Table(
        [
            t.Column("tensor"),
            t.Column("SQNR dB", right=True),
            t.Column("model", right=True),
            t.Column("clipping", right=True, from_width=90),
            t.Column("uniform", right=True),
            t.Column("Lloyd-Max", right=True),
            t.Column("N uniform", right=True, from_width=120),
            t.Column("N Lloyd-Max", right=True, from_width=120),
            t.Column("Shannon", right=True, from_width=110),
            t.Column("R(D)", right=True),
            t.Column("entropy", right=True, from_width=80),
            t.Column("saves", right=True, from_width=100),
        ]
    )
    for r in rows:
        if r.theory is None:
            continue
        h = r.theory
        best = h.uniform_sqnr_db, h.lloyd_max_sqnr_db, h.gaussian_uniform_sqnr_db, h.gaussian_lloyd_max_sqnr_db
        table.add(
            r.name,
            t.decibels(r.sqnr_db, r.exact),
            t.decibels(h.predicted_sqnr_db, False),
            f"{100 * h.clipping_share:.0f} %",
            *(t.decibels(v, False) for v in (*best, h.shannon_db, h.rate_distortion_db)),
            f"{h.code_entropy:.2f}",
            t.size(h.saving_bytes),
        )
    return table


def _parts(documents: Sequence[Readable], stream: TextIO, look: Look) -> None:
    """Print the lines and tables of other documents."""
    for document in documents:
        for part in document.parts(look):
            if isinstance(part, Line):
                t.line(part.text, stream, style="1" if part.strong and look.colour else "")
            elif isinstance(part, Plot):
                t.plot(part.marks, stream, across=part.across, up=part.up)
            else:
                t.show(part, stream, colour=look.colour)


PROVIDES = Rendering(forms=((RunReport, render), (Readable, _parts)), extensions=("txt",))
