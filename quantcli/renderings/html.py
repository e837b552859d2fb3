"""One web page that needs nothing but itself: verdict, key figures, charts, and every tensor in a sortable table.

All of it is in the HTML; the script beside it only sorts and filters tables and tells what a mark in a chart stands
for. Whatever comes from files is escaped, and never inside the script, of which the page names the digest, so that no
other one runs. The same reports make the same page.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from quantcli import terminal as t
from quantcli.examining import Histogram
from quantcli.gates import shown
from quantcli.renderings import Look, Rendering, _svg, verdict
from quantcli.renderings._page import (
    NAME,
    Column,
    box,
    breakable,
    cell,
    decibels_cell,
    escaped,
    figure,
    page,
    row,
)
from quantcli.report import Change, Comparison, GateResult, RunReport, TensorReport
from quantcli.theory import Theory

WORST = 12
"""Histograms in sight; the others are folded."""
HISTOGRAMS = 200
"""Most histograms of a page: they are its largest part."""
SEEN = 6
"""Warnings in sight; the others are folded."""
PER_BIT = 20 * math.log10(2)
"""dB that a bit more is worth."""

LEGEND = (
    "model: rounding as step²/12 and the measured clipping; uniform, Lloyd-Max: the best quantizer with one scale, or "
    "one set of levels, for these weights; R(D): the bound for normal weights at the stored rate; all in dB. "
    "entropy: bits per code. The bar divides the squared error: what clipping cut off, hatched, and what rounding cost."
)


def render(reports: Sequence[RunReport], stream: TextIO, look: Look) -> None:
    """Write the page."""
    body = [_svg.definitions(), "<main>"]
    if len(reports) != 1:
        body.append(_index(reports))
    body += [
        _report(report, number, len(reports), max(WORST, HISTOGRAMS // len(reports)))
        for number, report in enumerate(reports, 1)
    ]
    body.append("</main>")
    stream.write(page(_title(reports), "\n".join(body)))


# ---- pieces -------------------------------------------------------------------------------------------------------


def _names(what: str, names: Sequence[str]) -> str:
    """A folded list of names, nothing where there are none."""
    if not names:
        return ""
    items = "".join(f"<li>{breakable(n)}</li>" for n in names)
    return f'<details class="names"><summary>{len(names):,} {what}</summary><ul>{items}</ul></details>'


def _tensors(number: int) -> str:
    return f"{number:,} tensor{'' if number == 1 else 's'}"


def _worst_first(tensor: TensorReport) -> tuple[bool, bool, float]:
    """Lowest SQNR, then exact, then not measured, then kept tensors."""
    unknown = tensor.sqnr_db is None and not tensor.exact
    return tensor.disposition == "kept", unknown, math.inf if tensor.sqnr_db is None else tensor.sqnr_db


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


def _title(reports: Sequence[RunReport]) -> str:
    what = escaped(reports[0].name, NAME) if len(reports) == 1 else f"{len(reports)} reports"
    gates = [g for r in reports for g in r.gates]
    return f"{what}: {_judged(gates)}" if gates else f"{what}: quantization report"


def _index(reports: Sequence[RunReport]) -> str:
    """What the reports are about, each with its verdict and figures."""
    columns = [
        Column("report"), Column("gates"), Column("SQNR dB", True), Column("bits/w", True),
        Column("size", True), Column("times smaller", True),
    ]  # fmt: skip
    rows = []
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
    head = f"<header>\n{_verdict(verdict(reports), [g for r in reports for g in r.gates])}\n"
    return f"{head}<h1>{len(reports)} reports</h1>\n{box('reports', columns, rows) if rows else ''}\n</header>"


def _report(report: RunReport, number: int, reports: int, histograms: int) -> str:
    """The section of one report."""
    level = "h1" if reports == 1 else "h2"
    parts = [
        _verdict(report.passed, report.gates),
        f'<{level} class="file">{breakable(report.name)}</{level}>',
        f'<p class="from">from {breakable(report.source)}</p>' if report.output else "",
        _figures(report),
        _gates(report.gates),
        _warnings(report.warnings),
        _comparison(report.comparison) if report.comparison is not None else "",
        _charts(report),
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
    found = [
        ("SQNR", measured, error),
        ("bits per weight", f"{s.bits_per_weight:.3f}", "every byte of the output counted"),
        ("size", _united(t.size(s.bytes_out)), f"{s.ratio:.2f} times smaller than {t.size(s.bytes_in)}"),
        ("coverage", f"{100 * s.coverage:.1f} <small>%</small>", f"of {t.count(s.parameters)} parameters quantized"),
        ("tensors quantized", f"{s.quantized:,} <small>of {s.tensors:,}</small>", f"kept: {reasons}" if kept else ""),
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
                f'<th scope="row">{escaped(g.gate.replace("_", "-"))}</th>',
                cell(shown(g.gate, g.limit)),
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
    return f"<details{state}><summary>{_tensors(len(gate.failures))}</summary><ul>{items}</ul></details>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = [f"<li>{escaped(w)}</li>" for w in warnings]
    said = f"<ul>{''.join(items[:SEEN])}</ul>"
    if items[SEEN:]:
        rest = "".join(items[SEEN:])
        said += f"<details><summary>{len(items) - SEEN:,} more</summary><ul>{rest}</ul></details>"
    return f'<div class="warnings"><h3>Warnings</h3>{said}</div>'


def _comparison(found: Comparison) -> str:
    """What changed since the baseline, or from one model to the other."""
    lost = sum(c.delta_db < 0 if c.delta_db is not None else not c.after_exact for c in found.changes)
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
    lost = change.delta_db is None or change.delta_db < 0
    return row(
        f'<th scope="row">{breakable(change.tensor)}</th>',
        cell(escaped(change.before, NAME), numeric=False),
        cell(before, value=math.inf if before == "exact" else None),
        cell(escaped(change.after, NAME), numeric=False),
        cell(after, value=math.inf if after == "exact" else None),
        f'<td class="n {"bad" if lost else "good"}">{"▼" if lost else "▲"} {delta.replace("-", "−")}</td>'
        if change.delta_db is not None
        else cell("-"),
    )


# ---- charts -------------------------------------------------------------------------------------------------------


def _charts(report: RunReport) -> str:
    """Both charts, or why there are none."""
    quantized = [r for r in report.tensors if r.disposition == "quantized"]
    drawn = [r for r in quantized if r.exact or r.sqnr_db is not None]
    if not drawn:
        why = "No SQNR was measured" if quantized else "No tensor is quantized"
        return f'<p class="empty">{why}, so there is nothing to draw.</p>'
    without = len(quantized) - len(drawn)
    more = f"{_tensors(without)} without a measured SQNR left out" if without else ""
    return f'<div class="charts">\n{_per_layer(drawn, report, more)}\n{_against_bits(drawn)}\n</div>'


def _marks(drawn: Sequence[TensorReport], places: Iterable[float]) -> list[_svg.Mark]:
    """A mark per tensor; what it says: the name, then on a line of its own the figures."""
    return [
        _svg.Mark(
            x=x,
            y=None if r.exact else r.sqnr_db,
            shape=_svg.shape(r.bits),
            text=f"{escaped(r.name, NAME)}\n{escaped(r.scheme or '', NAME)}, {_measured(r)}, "
            f"{r.bits_per_weight:.3f} bits per weight",
        )
        for r, x in zip(drawn, places)
    ]


def _measured(tensor: TensorReport) -> str:
    return "exact" if tensor.exact else f"{tensor.sqnr_db:.2f} dB"


def _range(drawn: Sequence[TensorReport], *others: float | None) -> tuple[float, float]:
    """The least and the largest SQNR of tensors and of what else is drawn."""
    known = [v for v in (*(None if r.exact else r.sqnr_db for r in drawn), *others) if v is not None]
    return min(known, default=0.0), max(known, default=1.0)


def _per_layer(drawn: Sequence[TensorReport], report: RunReport, more: str) -> str:
    model = None if report.summary.exact else report.summary.sqnr_db
    low, high = _range(drawn, model)
    title, ticks, lines = _places([r.name for r in drawn])
    chart = _svg.Chart(
        label=f"SQNR of {_tensors(len(drawn))} in file order, {low:.2f} to {high:.2f} dB",
        x=_svg.Axis(low=0.0, high=float(len(drawn)), title=title, ticks=ticks, lines=lines),
        y=_svg.axis(low, high, "dB", least=1.0),
        marks=_marks(drawn, (i + 0.5 for i in range(len(drawn)))),
        lines=[] if model is None else [_svg.Line(kind="model", start=(0.0, model), end=(float(len(drawn)), model))],
    )
    keys = _bits_keys(drawn)
    if model is not None:
        keys.append(f"{_svg.line_key('model')} model, {model:.2f} dB")
    return figure("SQNR per layer", chart, keys, more)


def _against_bits(drawn: Sequence[TensorReport]) -> str:
    rates = [r.bits_per_weight for r in drawn]
    across = _svg.axis(min(rates), max(rates), "bits per weight", least=1.0)
    low, high = _range(drawn, PER_BIT * min(rates), PER_BIT * max(rates))
    chart = _svg.Chart(
        label=f"SQNR of {_tensors(len(drawn))} against bits per weight, {min(rates):.3f} to {max(rates):.3f}",
        x=across,
        y=(down := _svg.axis(low, high, "dB", least=1.0)),
        marks=_marks(drawn, rates),
        lines=_slope(across, down),
    )
    keys = [*_bits_keys(drawn), f"{_svg.line_key('slope')} {PER_BIT:.2f} dB per bit, the bound for normal weights"]
    return figure("Error against bits", chart, keys, "")


def _slope(across: _svg.Axis, down: _svg.Axis) -> list[_svg.Line]:
    """The part within the axes of the line on which every bit is worth 6.02 dB and none is worth nothing."""
    start, end = max(across.low, down.low / PER_BIT), min(across.high, down.high / PER_BIT)
    if start >= end:
        return []
    return [_svg.Line(kind="slope", start=(start, PER_BIT * start), end=(end, PER_BIT * end))]


def _bits_keys(drawn: Sequence[TensorReport]) -> list[str]:
    """Which mark stands for how many bits, and how often it is drawn."""
    counts = Counter(r.bits for r in drawn)
    order = sorted(counts.items(), key=lambda kv: math.inf if kv[0] is None else kv[0])
    return [f"{_svg.key(_svg.shape(bits))} {_bits(bits)} ({n:,})" for bits, n in order]


def _bits(bits: int | None) -> str:
    return "bits unknown" if bits is None else f"{bits} bit{'' if bits == 1 else 's'}"


def _places(names: Sequence[str]) -> tuple[str, list[tuple[float, str]], list[float]]:
    """Title, labels and dividing lines of the axis of tensors: by layer where names number layers one after another,
    else by place."""
    starts: list[tuple[int, str]] = []
    for i, name in enumerate(names):
        found = re.search(r"(?:^|[._])([0-9]{1,6})(?=[._])", name)
        layer = found[1] if found else ""
        if not starts or starts[-1][1] != layer:
            starts.append((i, layer))
    numbered = [layer for _, layer in starts if layer]
    if len(numbered) < 2 or len(set(numbered)) < len(numbered):
        at = _svg.axis(1, len(names), "", least=1.0).ticks
        inside = [(v - 0.5, f"{v:.0f}") for v, text in at if 1 <= v <= len(names) and float(text).is_integer()]
        return "tensor in file order", inside if len(inside) > 1 else [(0.5, "1")], []
    ends = [i for i, _ in starts[1:]] + [len(names)]
    middles = [((i + end) / 2, layer) for (i, layer), end in zip(starts, ends) if layer]
    every = -(-len(middles) // 10)
    lines = [float(i) for i, _ in starts[1:]] if len(starts) <= 60 else []
    return "layer, tensors in file order", middles[::every], lines


# ---- tensors ------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("#", True), Column("tensor"), Column("shape", True), Column("scheme"),
    Column("SQNR dB", True, "ascending"), Column("max error", True), Column("clipped", True),
    Column("bits/w", True), Column("bytes", True), Column("note"),
)  # fmt: skip


def _all_tensors(report: RunReport) -> str:
    """A row per tensor, worst first."""
    failed: dict[str, list[str]] = {}
    for gate in report.gates:
        for failure in gate.failures:
            failed.setdefault(failure.tensor, []).append(gate.gate.replace("_", "-"))
    found = sorted(enumerate(report.tensors, 1), key=lambda pair: _worst_first(pair[1]))
    rows = [_tensor(number, tensor, failed.get(tensor.name, [])) for number, tensor in found]
    head = f"<h3>{_tensors(len(rows)).capitalize()}</h3>"
    return f"{head}\n{box('tensors', COLUMNS, rows, 'data')}" if rows else f"{head}"


def _tensor(number: int, r: TensorReport, failed: Sequence[str]) -> str:
    kept = r.disposition == "kept"
    marks = "".join(f' <span class="bad">✗ {escaped(gate)}</span>' for gate in failed)
    return row(
        cell(str(number)),
        f'<th scope="row">{breakable(r.name)}{marks}</th>',
        cell(t.shape(r.shape), value=math.prod(r.shape)),
        cell(escaped(f"kept: {r.reason}" if kept else r.scheme or "-", NAME), numeric=False),
        cell("-") if kept else decibels_cell(r.sqnr_db, r.exact),
        cell(t.number(r.max_abs_error)),
        cell("-" if r.clipped_fraction is None else f"{100 * r.clipped_fraction:.2g} %"),
        cell(f"{r.bits_per_weight:.3f}"),
        cell(t.size(r.bytes_out), value=r.bytes_out),
        cell(escaped(r.note), numeric=False),
        kind="kept" if kept else "",
    )


# ---- theory and histograms ----------------------------------------------------------------------------------------


def _theory(tensors: Sequence[TensorReport]) -> str:
    """What theory says of each tensor, where it was asked."""
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
        f'<td class="n split">{100 * h.clipping_share:.0f} % {_svg.split_bar(h.clipping_share)}</td>',
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
    told = "Weights divided by their scale; thin lines are the levels of the grid. Lowest SQNR first."
    if len(known) > most:
        told += f" Only the {most:,} worst of {_tensors(len(known))} are drawn, to keep the page small."
    parts = ["<h3>Weights on their grid</h3>", f'<p class="more">{told}</p>', _multiples(drawn[:WORST])]
    if drawn[WORST:]:
        summary = f"<summary>{len(drawn) - WORST:,} more, up to the {len(drawn):,} worst</summary>"
        parts.append(f'<details class="multiples-more">{summary}\n{_multiples(drawn[WORST:])}\n</details>')
    return "\n".join(parts)


def _multiples(figures: Sequence[str]) -> str:
    inside = "\n".join(figures)
    return f'<div class="multiples">\n{inside}\n</div>'


def _one_histogram(r: TensorReport, found: Histogram) -> str:
    drawing = _svg.histogram(found) or '<p class="empty">nothing to draw</p>'
    return (
        f"<figure><figcaption>{breakable(r.name)}<span>{escaped(r.scheme or '', NAME)}, "
        f"{t.decibels(r.sqnr_db, r.exact)}{'' if r.sqnr_db is None else ' dB'}</span></figcaption>{drawing}"
        f'<p class="ends"><span>{t.number(found.low)}</span><span>{t.number(found.high)}</span></p></figure>'
    )


PROVIDES = Rendering(summary="one self-contained web page", render=render)
