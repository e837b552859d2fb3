"""Sweeps: what each of many settings costs on a model, which are on the Pareto front, and what a bit is worth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.layouts.native import parts
from quantcli.metrics import DB_PER_BIT, NOTHING
from quantcli.reports.documents import PEOPLE_ONLY, Display, Line, Part, Plot, document
from quantcli.scheme import Scheme
from quantcli.stores.pipelines import within

if TYPE_CHECKING:
    from quantcli.passes.sweep import Measured
    from quantcli.tensors.info import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting. bytes_out: of the file, exact; bytes_data: of its tensors, without the header. sqnr_db, mse: over
    all quantized weights; sqnr_db is None where all are exact. worst_tensor, worst_sqnr_db: the lowest. seconds: of
    all threads together, without reading. output_sqnr_db: predicted, of the outputs of all layers that there are
    statistics of; None without any. pareto: whether no setting with as few bytes of data is better, and none that is
    as good has fewer."""

    scheme: str
    bits: int
    format: str
    granularity: str
    group_size: int | None
    symmetric: bool
    calibration: str
    rounding: str
    bytes_out: int
    bytes_data: int
    bits_per_weight: float
    sqnr_db: float | None
    mse: float
    worst_tensor: str
    worst_sqnr_db: float | None
    seconds: float
    pareto: bool = False
    output_sqnr_db: float | None = None

    @property
    def quality_db(self) -> float | None:
        """What settings are compared by: of the outputs of layers where statistics tell that, else of the weights."""
        return self.sqnr_db if self.output_sqnr_db is None else self.output_sqnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """dB per bit of settings that differ in bits only, by least squares over those from 2 bits on."""

    series: str
    low_bits: int
    high_bits: int
    db_per_bit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All settings, in the order asked for, and the slopes measured. plot: whether a terminal draws them too."""

    source: str
    bytes_in: int
    parameters: int
    law_db_per_bit: float
    points: list[Point]
    slopes: list[Slope]
    seconds: float
    plot: bool = field(metadata=PEOPLE_ONLY)

    @property
    def of_outputs(self) -> bool:
        """Whether settings are compared by what the outputs of layers lose."""
        return any(p.output_sqnr_db is not None for p in self.points)

    @property
    def axis(self) -> str:
        """What settings are compared by, for the axis of a chart."""
        return "dB of outputs" if self.of_outputs else "dB"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("sweep", self)

    @property
    def extent(self) -> str:
        """How much was measured, in words."""
        settings = f"{len(self.points)} setting{'s' if len(self.points) > 1 else ''}"
        return f"{settings} on {t.count(self.parameters)} parameters, {t.size(self.bytes_in)}"

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per setting."""
        names = [f.name for f in fields(Point)]
        yield ["source", *names]
        for point in self.points:
            yield [self.source, *(getattr(point, name) for name in names)]

    def parts(self, display: Display) -> Iterator[Part]:
        """Every setting, those on the Pareto front marked with *, and what a bit is worth."""
        yield Line(f"{printable(self.source, 200)}: {self.extent}, {self.seconds:.2f} s")
        yield Line()
        yield self._table()
        if self.slopes:
            yield Line()
            yield Line(f"a bit is worth {self.law_db_per_bit:.2f} dB by the law; measured:")
        for s in self.slopes:
            yield Line(f"{s.db_per_bit:.2f} dB from {s.low_bits} to {s.high_bits} bits, {s.series}")
        if self.plot:
            marks = [
                (p.bits_per_weight, p.quality_db, "*" if p.pareto else "o")
                for p in self.points
                if p.quality_db is not None
            ]
            yield Line()
            yield Plot(marks=marks, across="bits per weight", up=self.axis)

    def _table(self) -> t.Table:
        outputs = [t.Column("output dB", right=True)] if self.of_outputs else []
        table = t.Table(
            [
                t.Column("scheme"),
                t.Column("calibration"),
                *outputs,
                t.Column("SQNR dB", right=True),
                t.Column("bits/w", right=True),
                t.Column("bytes", right=True),
                t.Column("", from_width=40),
                t.Column("worst dB", right=True, from_width=80),
                t.Column("worst tensor", from_width=110),
                t.Column("s", right=True, from_width=60),
            ]
        )
        for p in self.points:
            table.add(
                p.scheme,
                p.calibration,
                *([t.decibels(p.output_sqnr_db, p.sqnr_db is None)] if outputs else []),
                t.decibels(p.sqnr_db, p.sqnr_db is None),
                f"{p.bits_per_weight:.3f}",
                t.size(p.bytes_out),
                "*" if p.pareto else "",
                t.decibels(p.worst_sqnr_db, p.worst_sqnr_db is None),
                p.worst_tensor,
                f"{p.seconds:.2f}",
                style="bold" if p.pareto else "",
            )
        return table


def report_of(
    settings: Sequence[tuple[str, Scheme]],
    measured: Mapping[str, Sequence[Measured]],
    sizes: Sequence[int],
    *,
    kept: Sequence[TensorInfo],
    source: str,
    bytes_in: int,
    seconds: float,
    plot: bool,
) -> SweepReport:
    """The report on a sweep. settings: schemes, with what they are called; measured: by model, what each cost; sizes:
    bytes of all files with each; kept: the tensors of components that are kept whole."""
    models = [{name: own[i] for name, own in measured.items()} for i in range(len(settings))]
    parameters = sum(t.info.numel for one in models[0].values() for t in one.plan.tensors)
    parameters += sum(info.numel for info in kept)
    beside = sum(info.nbytes for info in kept)
    points = [
        replace(_point(scheme, found, size, parameters, beside), scheme=name)
        for (name, scheme), found, size in zip(settings, models, sizes)
    ]
    return SweepReport(
        source=source,
        bytes_in=bytes_in,
        parameters=parameters,
        law_db_per_bit=DB_PER_BIT,
        points=_with_front(points),
        slopes=_slopes(points),
        seconds=seconds,
        plot=plot,
    )


def _point(scheme: Scheme, models: Mapping[str, Measured], size: int, parameters: int, beside: int) -> Point:
    found = {within(name, tensor): m for name, one in models.items() for tensor, m in one.metrics.items()}
    whole = sum(found.values(), NOTHING)
    outputs = [output for one in models.values() for output in one.outputs.values()]
    worst = min(found, key=lambda name: (math.inf if found[name].sqnr_db is None else found[name].sqnr_db, name))
    return Point(
        scheme=scheme.name,
        bits=scheme.bits,
        format=scheme.format,
        granularity=scheme.granularity,
        group_size=scheme.group_size or None,
        symmetric=scheme.symmetric,
        calibration=scheme.calibration,
        rounding=scheme.rounding or "",
        bytes_out=size,
        bytes_data=beside + sum(parts.nbytes(t) for one in models.values() for t in one.plan.tensors),
        bits_per_weight=8 * size / parameters,
        sqnr_db=whole.sqnr_db,
        mse=whole.mse,
        worst_tensor=worst,
        worst_sqnr_db=found[worst].sqnr_db,
        seconds=sum(one.seconds for one in models.values()),
        output_sqnr_db=reduce(add, outputs).sqnr_db if outputs else None,
    )


def _quality(point: Point) -> float:
    return math.inf if point.quality_db is None else point.quality_db


def _with_front(points: list[Point]) -> list[Point]:
    """The points, those on the Pareto front marked.

    Sizes are those of the data: the header names the method, and min-max with its shorter name is not the better for
    it. Only between settings of the same data and quality does the smaller file count.
    """

    def merits(p: Point) -> tuple[int, float, int]:
        return -p.bytes_data, _quality(p), -p.bytes_out

    def dominated(p: Point) -> bool:
        return any(
            q.bytes_data <= p.bytes_data and _quality(q) >= _quality(p) and merits(q) > merits(p) for q in points
        )

    return [replace(p, pareto=not dominated(p)) for p in points]


def _slopes(points: list[Point]) -> list[Slope]:
    """The slope of every series of two bit widths or more."""
    series: dict[str, list[Point]] = defaultdict(list)
    for p in points:
        if p.quality_db is not None and p.bits >= 2 and p.format == "int":
            where = f"groups of {p.group_size}" if p.group_size else f"per {p.granularity}"
            kind = "" if p.symmetric else ", zero points"
            series[f"{p.calibration}, {where}{kind}"].append(p)
    found = []
    for name, members in series.items():
        bits = np.array([p.bits for p in members], float)
        if len(set(bits)) > 1:
            x, y = bits - bits.mean(), np.array([p.quality_db for p in members])
            slope = float((x * (y - y.mean())).sum() / (x * x).sum())
            found.append(Slope(series=name, low_bits=int(bits.min()), high_bits=int(bits.max()), db_per_bit=slope))
    return found
