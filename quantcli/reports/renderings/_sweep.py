"""A sweep as a web page: SQNR against bits per weight with the Pareto front, and every setting in a sortable table."""

from __future__ import annotations

import itertools
from typing import TextIO

from quantcli import terminal as t
from quantcli.reports import svg
from quantcli.reports.documents import Display
from quantcli.reports.page import Column, box, breakable, cell, decibels_cell, escaped, figure, page, row
from quantcli.reports.swept import Point, SweepReport


def render(found: SweepReport, stream: TextIO, display: Display) -> None:
    """Write the page of a sweep."""
    body = [
        svg.definitions(),
        '<main>\n<section class="report">',
        f'<h1 class="file">{breakable(found.source)}</h1>',
        f'<p class="from">{found.extent}</p>',
        f'<div class="charts">\n{_chart(found)}\n</div>',
        _slopes(found),
        f"<h3>{len(found.points)} settings</h3>\n{_table(found)}",
        "</section>\n</main>",
    ]
    stream.write(page(f"{escaped(found.source, 200)}: sweep", "\n".join(body)))


def _chart(found: SweepReport) -> str:
    xs = [p.bits_per_weight for p in found.points]
    ys = [p.quality_db for p in found.points if p.quality_db is not None] or [0.0]
    front = sorted((p.bits_per_weight, p.quality_db) for p in found.points if p.pareto and p.quality_db is not None)
    what = "SQNR of outputs" if found.of_outputs else "SQNR"
    chart = svg.Chart(
        label=f"{what} against bits per weight of {len(found.points)} settings",
        x=svg.axis(min(xs), max(xs), "bits per weight", least=1.0),
        y=svg.axis(min(ys), max(ys), found.axis, least=2.0),
        marks=[_mark(p) for p in found.points],
        lines=[svg.Line(kind="model", start=a, end=b) for a, b in itertools.pairwise(front)],
    )
    keys = [f"{svg.key(svg.shape(bits))} {bits} bits" for bits in sorted({p.bits for p in found.points})]
    return figure("Error against size", chart, [*keys, f"{svg.line_key('model')} Pareto front"], "")


def _mark(p: Point) -> svg.Mark:
    figures = f"{t.decibels(p.quality_db, p.quality_db is None)} dB, {p.bits_per_weight:.3f} bits per weight"
    text = f"{escaped(p.scheme)} {escaped(p.calibration)}\n{figures}"
    return svg.Mark(x=p.bits_per_weight, y=p.quality_db, shape=svg.shape(p.bits), text=text)


def _slopes(found: SweepReport) -> str:
    """What a bit is worth, by the law and as measured."""
    if not found.slopes:
        return ""
    columns = [Column("series"), Column("bits"), Column("dB per bit", numeric=True), Column("law", numeric=True)]
    rows = [
        row(
            cell(escaped(s.series), numeric=False),
            cell(f"{s.low_bits} to {s.high_bits}", numeric=False),
            cell(f"{s.db_per_bit:.2f}"),
            cell(f"{found.law_db_per_bit:.2f}"),
        )
        for s in found.slopes
    ]
    return f"<h3>What a bit is worth</h3>\n{box('slopes', columns, rows)}"


def _table(found: SweepReport) -> str:
    columns = [
        Column("scheme"),
        Column("calibration"),
        *([Column("output dB", numeric=True)] if found.of_outputs else []),
        Column("SQNR dB", numeric=True),
        Column("bits/w", numeric=True),
        Column("bytes", numeric=True),
        Column("worst dB", numeric=True),
        Column("worst tensor"),
        Column("seconds", numeric=True),
        Column("front"),
    ]
    rows = [
        row(
            cell(escaped(p.scheme), numeric=False),
            cell(escaped(p.calibration), numeric=False),
            *([decibels_cell(p.output_sqnr_db, p.sqnr_db is None)] if found.of_outputs else []),
            decibels_cell(p.sqnr_db, p.sqnr_db is None),
            cell(f"{p.bits_per_weight:.3f}"),
            cell(t.size(p.bytes_out), value=float(p.bytes_out)),
            decibels_cell(p.worst_sqnr_db, p.worst_sqnr_db is None),
            cell(breakable(p.worst_tensor), numeric=False),
            cell(f"{p.seconds:.2f}"),
            cell("Pareto" if p.pareto else "", numeric=False),
        )
        for p in found.points
    ]
    return box("settings", columns, rows, "data")
