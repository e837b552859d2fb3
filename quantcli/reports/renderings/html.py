"""HTML: one web page with charts and sortable tables.

It loads nothing from elsewhere. Verdict, key figures, charts and every tensor are in the HTML; its script only sorts
and filters tables and names the tensor of a mark in a chart. Texts from files are escaped, and never part of the
script; the page allows only the script whose digest it names. The same reports make the same page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from quantcli import terminal as t
from quantcli.passes.examine import Histogram
from quantcli.reports import svg
from quantcli.reports.documents import Display, Line, Part, Plot, Readable
from quantcli.reports.page import (
    NAME,
    Column,
    box,
    breakable,
    cell,
    decibels_cell,
    escaped,
    many_tensors,
    page,
    row,
)
from quantcli.reports.records import Change, Comparison, GateResult, TensorReport, shown
from quantcli.reports.renderings import Rendering, _sweep
from quantcli.reports.renderings._charts import charts
from quantcli.reports.run import RunReport, RunReports, origin_lines
from quantcli.reports.swept import SweepReport
from quantcli.theory.bounds import Theory

WORST = 12
"""Histograms in sight; the others are folded."""
HISTOGRAMS = 200
"""Most histograms of a page: they are its largest part."""
SEEN = 6
"""Warnings in sight; the others are folded."""

LEGEND = (
    "model: rounding as step²/12 and the measured clipping; uniform, Lloyd-Max: the best quantizer with one scale, or "
    "one set of levels, for these weights; R(D): the bound for normal weights at the stored rate; all in dB. "
    "entropy: bits per code. The bar divides the squared error: what clipping cut off, hatched, and what rounding cost."
)


def render(document: RunReports, stream: TextIO, display: Display) -> None:
    """Write the page."""
    body, reports = [svg.definitions(), "<main>"], document.reports
    if len(reports) != 1:
        body.append(_index(document))
    body += [
        _report(report, number, len(reports), max(WORST, HISTOGRAMS // len(reports)))
        for number, report in enumerate(reports, 1)
    ]
    body.append("</main>")
    stream.write(page(_title(document), "\n".join(body)))


# ---- pieces -------------------------------------------------------------------------------------------------------


def _names(what: str, names: Sequence[str]) -> str:
    """A folded list of names, nothing where there are none."""
    if not names:
        return ""
    items = "".join(f"<li>{breakable(n)}</li>" for n in names)
    return f'<details class="names"><summary>{len(names):,} {what}</summary><ul>{items}</ul></details>'


def _worst_first(tensor: TensorReport) -> tuple[bool, bool, float]:
    """Lowest SQNR, then exact, then not measured, then kept tensors."""
    unknown = tensor.sqnr_db is None and not tensor.exact
    return tensor.kept, unknown, math.inf if tensor.sqnr_db is None else tensor.sqnr_db


# ---- the head of a page and of a report ---------------------------------------------------------------------------


def _judged(gates: Sequence[GateResult]) -> str:
    failed = sum(not g.passed for g in gates)
    one = len(gates) == 1
    if failed:
        return "the gate failed" if one else f"{failed} of {len(gates)} gates failed"
    return "the gate was passed" if one else f"all {len(gates)} gates passed"


def _verdict(passed: bool | None, gates: Sequence[GateResult]) -> str:
    """The verdict in words, sign and colour; nothing without gates."""
    if passed is None:
        return ""
    kind, sign = ("passed", "✓") if passed else ("failed", "✗")
    words = _judged(gates)
    return (
        f'<p class="verdict {kind}"><span class="sign" aria-hidden="true">{sign}</span> '
        f"<strong>{words[0].upper()}{words[1:]}</strong></p>"
    )


def _title(document: RunReports) -> str:
    reports, gates = document.reports, document.gates
    what = escaped(reports[0].name, NAME) if len(reports) == 1 else f"{len(reports)} reports"
    return f"{what}: {_judged(gates)}" if gates else f"{what}: quantization report"


def _index(document: RunReports) -> str:
    """What the reports are about, each with its verdict and figures."""
    columns = [
        Column("report"), Column("gates"), Column("SQNR dB", True), Column("bits/w", True),
        Column("size", True), Column("before / after", True),
    ]  # fmt: skip
    rows, reports = [], document.reports
    for number, report in enumerate(reports, 1):
        s = report.summary
        judged = "–" if report.passed is None else f"{'✓' if report.passed else '✗'} {_judged(report.gates)}"
        kind = "" if report.passed is None else "good" if report.passed else "bad"
        rows.append(
            row(
                f'<th scope="row"><a href="#r{number}">{breakable(report.name)}</a></th>',
                f'<td class="{kind}">{judged}</td>',
                decibels_cell(s.sqnr_db, s.exact),
                cell(f"{s.bits_per_weight:.3f}"),
                cell(t.size(s.bytes_out)),
                cell(f"{s.ratio:.2f}"),
            )
        )
    head = f"<header>\n{_verdict(document.passed, document.gates)}\n"
    return f"{head}<h1>{len(reports)} reports</h1>\n{box('reports', columns, rows) if rows else ''}\n</header>"


def _report(report: RunReport, number: int, reports: int, histograms: int) -> str:
    """The section of one report."""
    level = "h1" if reports == 1 else "h2"
    parts = [
        _verdict(report.passed, report.gates),
        f'<{level} class="file">{breakable(report.name)}</{level}>',
        f'<p class="from">from {breakable(report.source)}</p>' if report.output else "",
        *(f'<p class="from">{breakable(line)}</p>' for line in origin_lines(report)),
        _figures(report),
        _gates(report.gates),
        _warnings(report.warnings),
        _comparison(report.comparison) if report.comparison is not None else "",
        charts(report),
        _all_tensors(report),
        _theory(report.tensors),
        _histograms(report.tensors, histograms),
    ]
    return f'<section class="report" id="r{number}">\n' + "\n".join(p for p in parts if p) + "\n</section>"


def _figures(report: RunReport) -> str:
    """The key figures."""
    s = report.summary
    measured = "exact" if s.exact else f"{s.sqnr_db:.2f} <small>dB</small>" if s.sqnr_db is not None else "–"
    error = "not measured" if s.sqnr_db is None and not s.exact else f"largest error {t.number(s.max_abs_error)}"
    kept = sorted(s.kept.items(), key=lambda kv: (-kv[1], kv[0]))
    reasons = ", ".join(f"{n:,} <bdi>{escaped(reason, 60)}</bdi>" for reason, n in kept[:12])
    others = [f"kept: {reasons}" if kept else "", f"left out: {report.left_out:,}" if report.left_out else ""]
    than = f"{(change := t.change(s.bytes_in, s.bytes_out))} {'as' if change == 'as large' else 'than'}"
    found = [
        ("SQNR", measured, error),
        ("bits per weight", f"{s.bits_per_weight:.3f}", "every byte of the output counted"),
        ("size", _united(t.size(s.bytes_out)), f"{than} {t.size(s.bytes_in)}"),
        ("coverage", f"{100 * s.coverage:.1f} <small>%</small>", f"of {t.count(s.parameters)} parameters quantized"),
        ("tensors quantized", f"{s.quantized:,} <small>of {s.tensors:,}</small>", "; ".join(filter(None, others))),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><dd>{more}</dd></div>\n" for name, value, more in found)
    return f'<dl class="figures">\n{items}</dl>'


def _united(size: str) -> str:
    """A size with its unit set small."""
    value, _, unit = size.partition(" ")
    return f"{value} <small>{unit}</small>"


def _gates(gates: Sequence[GateResult]) -> str:
    """A row per gate, with the tensors that fail it."""
    if not gates:
        return ""
    columns = [Column(""), Column("gate"), Column("limit", True), Column("measured", True), Column("failing")]
    rows = []
    for g in gates:
        result, kind = ("✓ passed", "good") if g.passed else ("✗ failed", "bad")
        measured = shown(g.gate, g.value) if g.failures and g.value is not None else g.message
        rows.append(
            row(
                f'<td class="{kind}">{result}</td>',
                f'<th scope="row">{escaped(g.title)}</th>',
                cell(g.shown_limit),
                cell(escaped(measured)),
                f'<td class="failing">{_failing(g)}</td>',
            )
        )
    return f"<h3>Gates</h3>\n{box('gates', columns, rows, 'gates')}"


def _failing(gate: GateResult) -> str:
    if not gate.failures:
        return "" if gate.passed else "the model"
    items = "".join(f"<li>{breakable(f.tensor)}: {escaped(f.message)}</li>" for f in gate.failures)
    state = " open" if len(gate.failures) <= 3 else ""
    return f"<details{state}><summary>{many_tensors(len(gate.failures))}</summary><ul>{items}</ul></details>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = [f"<li>{escaped(w)}</li>" for w in warnings]
    listed = f"<ul>{''.join(items[:SEEN])}</ul>"
    if items[SEEN:]:
        rest = "".join(items[SEEN:])
        listed += f"<details><summary>{len(items) - SEEN:,} more</summary><ul>{rest}</ul></details>"
    return f'<div class="warnings"><h3>Warnings</h3>{listed}</div>'


def _comparison(found: Comparison) -> str:
    """What changed since the baseline, or from one model to the other."""
    lost = sum(c.lost for c in found.changes)
    lines = [
        "<h3>What changed</h3>",
        f"<p>Against {breakable(found.baseline)}: {len(found.changes):,} changed, {lost:,} of them lost; "
        f"{len(found.new):,} new, {len(found.vanished):,} vanished.</p>",
    ]
    if found.changes:
        columns = [
            Column("tensor"), Column("before"), Column("dB", True), Column("now"), Column("dB", True),
            Column("change", True),
        ]  # fmt: skip
        lines.append(box("changes since the baseline", columns, [_change(c) for c in found.changes], "data"))
    return "\n".join([*lines, _names("new", found.new), _names("vanished", found.vanished)])


def _change(change: Change) -> str:
    before, after = t.decibels(change.before_db, change.before_exact), t.decibels(change.after_db, change.after_exact)
    delta = "-" if change.delta_db is None else f"{change.delta_db:+.2f}"
    return row(
        f'<th scope="row">{breakable(change.tensor)}</th>',
        cell(escaped(change.before, NAME), numeric=False),
        cell(before, value=math.inf if before == "exact" else None),
        cell(escaped(change.after, NAME), numeric=False),
        cell(after, value=math.inf if after == "exact" else None),
        f'<td class="n {"bad" if change.lost else "good"}">{"▼" if change.lost else "▲"} {delta.replace("-", "−")}</td>'
        if change.delta_db is not None
        else cell("-"),
    )


# ---- tensors ------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("#", True), Column("tensor"), Column("shape", True), Column("scheme"),
    Column("SQNR dB", True, "ascending"), Column("max error", True), Column("clipped", True),
    Column("bits/w", True), Column("bytes", True), Column("note"),
)  # fmt: skip


def _all_tensors(report: RunReport) -> str:
    """A row per tensor, worst first."""
    failed = report.failed()
    found = sorted(enumerate(report.tensors, 1), key=lambda pair: _worst_first(pair[1]))
    rows = [_tensor(number, tensor, failed.get(tensor.name, ())) for number, tensor in found]
    head = f"<h3>{many_tensors(len(rows)).capitalize()}</h3>"
    return f"{head}\n{box('tensors', COLUMNS, rows, 'data')}" if rows else f"{head}"


def _tensor(number: int, r: TensorReport, failed: Sequence[GateResult]) -> str:
    marks = "".join(f' <span class="bad">✗ {escaped(gate.title)}</span>' for gate in failed)
    return row(
        cell(str(number)),
        f'<th scope="row">{breakable(r.name)}{marks}</th>',
        cell(t.shape(r.shape), value=math.prod(r.shape)),
        cell(escaped(r.became if r.kept else r.scheme or "-", NAME), numeric=False),
        cell("-") if r.kept else decibels_cell(r.sqnr_db, r.exact),
        cell(t.number(r.max_abs_error)),
        cell("-" if r.clipped_fraction is None else f"{100 * r.clipped_fraction:.2g} %"),
        cell(f"{r.bits_per_weight:.3f}"),
        cell(t.size(r.bytes_out), value=r.bytes_out),
        cell(escaped(r.note), numeric=False),
        kind="kept" if r.kept else "",
    )


# ---- theory and histograms ----------------------------------------------------------------------------------------


def _theory(tensors: Sequence[TensorReport]) -> str:
    """Theory for each tensor, where it was requested."""
    known = [(r, r.theory) for r in sorted(tensors, key=_worst_first) if r.theory is not None]
    if not known:
        return ""
    columns = [
        Column("tensor"), Column("SQNR dB", True, "ascending"), Column("clipping | rounding", True),
        Column("model", True), Column("uniform", True), Column("Lloyd-Max", True), Column("R(D)", True),
        Column("entropy", True),
    ]  # fmt: skip
    rows = [_theory_row(r, h) for r, h in known]
    table = box("theory of each tensor", columns, rows, "data")
    return f'<h3>Beside theory</h3>\n<p class="more">{LEGEND}</p>\n{table}'


def _theory_row(r: TensorReport, h: Theory) -> str:
    return row(
        f'<th scope="row">{breakable(r.name)}</th>',
        decibels_cell(r.sqnr_db, r.exact),
        f'<td class="n split">{100 * h.clipping_share:.0f} % {svg.split_bar(h.clipping_share)}</td>',
        *(
            cell(t.decibels(v, False))
            for v in (h.predicted_sqnr_db, h.uniform_sqnr_db, h.lloyd_max_sqnr_db, h.rate_distortion_db)
        ),
        cell(f"{h.code_entropy:.2f}"),
    )


def _histograms(tensors: Sequence[TensorReport], most: int) -> str:
    """How the weights of the worst tensors lie on their grids."""
    known = [(r, r.histogram) for r in sorted(tensors, key=_worst_first) if r.histogram is not None]
    if not known:
        return ""
    drawn = [_one_histogram(r, h) for r, h in known[:most]]
    caption = "Weights divided by their scale; thin lines are the levels of the grid. Lowest SQNR first."
    if len(known) > most:
        caption += f" Only the {most:,} worst of {many_tensors(len(known))} are drawn, to keep the page small."
    parts = ["<h3>Weights on their grid</h3>", f'<p class="more">{caption}</p>', _multiples(drawn[:WORST])]
    if drawn[WORST:]:
        summary = f"<summary>{len(drawn) - WORST:,} more, up to the {len(drawn):,} worst</summary>"
        parts.append(f'<details class="multiples-more">{summary}\n{_multiples(drawn[WORST:])}\n</details>')
    return "\n".join(parts)


def _multiples(figures: Sequence[str]) -> str:
    inside = "\n".join(figures)
    return f'<div class="multiples">\n{inside}\n</div>'


def _one_histogram(r: TensorReport, found: Histogram) -> str:
    drawing = svg.histogram(found) or '<p class="empty">nothing to draw</p>'
    return (
        f"<figure><figcaption>{breakable(r.name)}<span>{escaped(r.scheme or '', NAME)}, "
        f"{t.decibels(r.sqnr_db, r.exact)}{'' if r.sqnr_db is None else ' dB'}</span></figcaption>{drawing}"
        f'<p class="ends"><span>{t.number(found.low)}</span><span>{t.number(found.high)}</span></p></figure>'
    )


# ---- other documents ----------------------------------------------------------------------------------------------


def _parts(document: Readable, stream: TextIO, display: Display) -> None:
    """Write the lines and tables of a document that has no page of its own."""
    found = list(document.parts(display))
    title = next((part.text for part in found if isinstance(part, Line)), "quantcli")
    body = ['<main>\n<section class="report">', *(_part(part) for part in found), "</section>\n</main>"]
    stream.write(page(escaped(title, NAME), "\n".join(piece for piece in body if piece)))


def _part(part: Part) -> str:
    """A line or a table; a plot is for terminals."""
    if isinstance(part, Line):
        level = 'h1 class="file"' if part.strong else 'p class="from"'
        return f"<{level}>{breakable(part.words)}</{level.split()[0]}>" if part.words else ""
    if isinstance(part, Plot):
        return ""
    columns = [Column(escaped(c.title), c.right) for c in part.columns]
    rows = [
        row(
            f'<th scope="row">{breakable(cells[0])}</th>',
            *(cell(escaped(text, NAME), numeric=c.right) for text, c in zip(cells[1:], part.columns[1:])),
        )
        for cells in part.all_rows()
    ]
    return box("tensors", columns, rows)


PROVIDES = Rendering(
    forms=((RunReports, render), (SweepReport, _sweep.render), (Readable, _parts)),
    extensions=("htm", "html"),
)
