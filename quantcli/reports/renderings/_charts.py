"""The charts of a report's page: SQNR per layer, and error against bits."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from quantcli.metrics import DB_PER_BIT
from quantcli.reports import svg
from quantcli.reports.page import NAME, escaped, figure, many_tensors
from quantcli.reports.records import TensorReport
from quantcli.reports.run import RunReport


def charts(report: RunReport) -> str:
    """Both charts, or why there are none."""
    quantized = [r for r in report.tensors if r.disposition == "quantized"]
    drawn = [r for r in quantized if r.exact or r.sqnr_db is not None]
    if not drawn:
        why = "No SQNR was measured" if quantized else "No tensor is quantized"
        return f'<p class="empty">{why}, so there is nothing to draw.</p>'
    without = len(quantized) - len(drawn)
    more = f"{many_tensors(without)} without a measured SQNR left out" if without else ""
    return f'<div class="charts">\n{_per_layer(drawn, report, more)}\n{_against_bits(drawn)}\n</div>'


def _marks(drawn: Sequence[TensorReport], places: Iterable[float]) -> list[svg.Mark]:
    """A mark per tensor; what it says: the name, then on a line of its own the figures."""
    return [
        svg.Mark(
            x=x,
            y=None if r.exact else r.sqnr_db,
            shape=svg.shape(r.bits),
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
    chart = svg.Chart(
        label=f"SQNR of {many_tensors(len(drawn))} in file order, {low:.2f} to {high:.2f} dB",
        x=svg.Axis(low=0.0, high=float(len(drawn)), title=title, ticks=ticks, lines=lines),
        y=svg.axis(low, high, "dB", least=1.0),
        marks=_marks(drawn, (i + 0.5 for i in range(len(drawn)))),
        lines=[] if model is None else [svg.Line(kind="model", start=(0.0, model), end=(float(len(drawn)), model))],
    )
    keys = _bits_keys(drawn)
    if model is not None:
        keys.append(f"{svg.line_key('model')} model, {model:.2f} dB")
    return figure("SQNR per layer", chart, keys, more)


def _against_bits(drawn: Sequence[TensorReport]) -> str:
    rates = [r.bits_per_weight for r in drawn]
    across = svg.axis(min(rates), max(rates), "bits per weight", least=1.0)
    low, high = _range(drawn, DB_PER_BIT * min(rates), DB_PER_BIT * max(rates))
    chart = svg.Chart(
        label=f"SQNR of {many_tensors(len(drawn))} against bits per weight, {min(rates):.3f} to {max(rates):.3f}",
        x=across,
        y=(down := svg.axis(low, high, "dB", least=1.0)),
        marks=_marks(drawn, rates),
        lines=_slope(across, down),
    )
    keys = [*_bits_keys(drawn), f"{svg.line_key('slope')} {DB_PER_BIT:.2f} dB per bit, the bound for normal weights"]
    return figure("Error against bits", chart, keys, "")


def _slope(across: svg.Axis, down: svg.Axis) -> list[svg.Line]:
    """The part within the axes of the line on which every bit is worth 6.02 dB and none is worth nothing."""
    start, end = max(across.low, down.low / DB_PER_BIT), min(across.high, down.high / DB_PER_BIT)
    if start >= end:
        return []
    return [svg.Line(kind="slope", start=(start, DB_PER_BIT * start), end=(end, DB_PER_BIT * end))]


def _bits_keys(drawn: Sequence[TensorReport]) -> list[str]:
    """Which mark stands for how many bits, and how often it is drawn."""
    counts = Counter(r.bits for r in drawn)
    order = sorted(counts.items(), key=lambda kv: math.inf if kv[0] is None else kv[0])
    return [f"{svg.key(svg.shape(bits))} {_bits(bits)} ({n:,})" for bits, n in order]


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
        at = svg.axis(1, len(names), "", least=1.0).ticks
        inside = [(v - 0.5, f"{v:.0f}") for v, text in at if 1 <= v <= len(names) and float(text).is_integer()]
        return "tensor in file order", inside if len(inside) > 1 else [(0.5, "1")], []
    ends = [i for i, _ in starts[1:]] + [len(names)]
    middles = [((i + end) / 2, layer) for (i, layer), end in zip(starts, ends) if layer]
    every = -(-len(middles) // 10)
    lines = [float(i) for i, _ in starts[1:]] if len(starts) <= 60 else []
    return "layer, tensors in file order", middles[::every], lines
