"""The tables of a report on a quantized model: components, tensors, theory, and what changed since another report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.reports.documents import Display, Line, Part
from quantcli.reports.gathered import Rest
from quantcli.reports.kept import groups
from quantcli.reports.records import Comparison, ComponentReport, TensorReport

KEPT = 20
"""Groups of kept tensors that are shown at least beside the rows of a table."""


def components(found: Sequence[ComponentReport]) -> Iterator[Part]:
    """The components of a pipeline, one after another."""
    table = t.Table(
        [
            t.Column("component"),
            t.Column("class", from_width=100),
            t.Column("tensors", right=True, from_width=90),
            t.Column("quantized", right=True),
            t.Column("SQNR dB", right=True),
            t.Column("bits/w", right=True),
            t.Column("bytes before", right=True, from_width=60),
            t.Column("bytes", right=True),
        ]
    )
    for c in found:
        table.add(
            c.name,
            c.kind,
            f"{c.tensors:,}",
            f"{100 * c.coverage:.1f} %" if c.quantized else "-",
            t.decibels(c.sqnr_db, c.exact) if c.quantized or c.sqnr_db is not None else "-",
            f"{c.bits_per_weight:.3f}",
            t.size(c.bytes_in),
            t.size(c.bytes_out),
            style="" if c.quantized else "dim",
        )
    yield Line()
    yield table


def changes(found: Comparison, display: Display, *, alone: tuple[str, str], named: int) -> Iterator[Part]:
    """What changed, most lost first. alone: what to call the tensors that one side has alone, of which so many are
    named."""
    counts = f"{len(found.changes)} changed, {len(found.new)} new, {len(found.vanished)} vanished"
    yield Line()
    yield Line(f"against {printable(found.baseline, 200)}: {counts}")
    for what, names in zip(alone, (found.new, found.vanished)):
        if names:
            seen = names if display.limit is None else names[:named]
            more = f" and {len(names) - len(seen)} more" if len(seen) < len(names) else ""
            yield Line(f"{what}: {', '.join(printable(n) for n in seen)}{more}")
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
    for c in found.changes if display.limit is None else found.changes[: max(5, display.limit // 2)]:
        delta = "-" if c.delta_db is None else f"{c.delta_db:+.2f}"
        before, after = t.decibels(c.before_db, c.before_exact), t.decibels(c.after_db, c.after_exact)
        table.add(c.tensor, c.before, before, c.after, after, delta, style="yellow" if c.lost else "")
    yield table
    if len(table.rows) < len(found.changes):
        yield Line(f"and {len(found.changes) - len(table.rows)} more changes; --all shows them")


def _costs(tensor: TensorReport) -> tuple[str, str]:
    """The predicted SQNR of the output of a layer, and what it would be without statistics."""
    found = tensor.output
    if found is None:
        return "-", "-"
    plain = t.decibels(found.plain_sqnr_db, found.plain_error == 0) if found.plain_error is not None else "-"
    return t.decibels(found.sqnr_db, found.error == 0), plain


def tensors(seen: Sequence[TensorReport], rest: Rest, display: Display) -> Iterator[Part]:
    """Some tensors; of the others those that were kept and must be seen, in groups, and the rest in a line. Where the
    errors of codes are known that were decoded to make these, they stand beside."""
    earlier, weighted = any(r.source_sqnr_db is not None for r in seen), rest.outputs
    before = [t.Column("source", from_width=110), t.Column("source dB", right=True, from_width=90)] if earlier else []
    table = t.Table(
        [
            t.Column("tensor"),
            t.Column("shape", from_width=60),
            *before,
            t.Column("scheme"),
            t.Column("SQNR dB", right=True),
            *[t.Column("output dB", right=True), t.Column("without", right=True, from_width=90)][:weighted],
            t.Column("max error", right=True, from_width=100),
            t.Column("clipped", right=True, from_width=110),
            t.Column("bits/w", right=True, from_width=90),
            t.Column("bytes", right=True, from_width=50),
            t.Column("note", from_width=130),
        ]
    )
    for r in seen:
        table.add(
            r.name,
            t.shape(r.shape),
            *([r.source_scheme or "-", t.decibels(r.source_sqnr_db, False)] if earlier else []),
            r.became,
            "-" if r.kept else t.decibels(r.sqnr_db, r.exact),
            *_costs(r)[:weighted],
            t.number(r.max_abs_error),
            "-" if r.clipped_fraction is None else f"{100 * r.clipped_fraction:.2g} %",
            f"{r.bits_per_weight:.3f}",
            t.size(r.bytes_out),
            r.note,
            style=_style(r),
        )
    notable = groups(rest.notable)
    shown = max(KEPT, display.limit or 0)
    for g in notable[:shown]:
        table.add(
            g.name,
            t.shape(g.shape) if g.shape is not None else "",
            *(["-", "-"] if earlier else []),
            g.tensors[0].became,
            *("-", "-", "-", *["-"] * weighted),
            f"{g.tensors[0].bits_per_weight:.3f}",
            t.size(g.bytes_out),
            g.note,
            style="dim",
        )
    yield table
    for g in notable[shown:]:
        for r in g.tensors:
            rest.count(r)
    if line := rest.line():
        yield Line(line)


def _style(tensor: TensorReport) -> str:
    if tensor.kept:
        return "dim"
    if tensor.sqnr_db is None:
        return ""
    return "red" if tensor.sqnr_db < 10 else "yellow" if tensor.sqnr_db < 15 else ""


def theory(rows: Sequence[TensorReport]) -> t.Table:
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
