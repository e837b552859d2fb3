"""Many schemes on one model: what each would cost, from one look at every tile of the weights for all of them.

Nothing is written. Codes are made and measured as `quantize` does, so the figures are those it would report, and sizes
are those of the file it would write.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError, printable
from quantcli.kernels import Sums, Tile, row_bytes
from quantcli.layouts.native import parts
from quantcli.metrics import DB_PER_BIT, NOTHING, Metrics, total
from quantcli.passes.quantize import count_nonfinite
from quantcli.passes.tiles import Progress, Visit, begun, walk
from quantcli.planning.plan import Plan, with_float32_scales
from quantcli.scheme import AUTO, Scheme
from quantcli.stores import Source
from quantcli.tensors.api import scale_misfit
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.fit import Misfit, NotFinite, Trials, read_span, read_tile, span_bytes
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting. bytes_out: of the file, exact; bytes_data: of its tensors, without the header. sqnr_db, mse: over
    all quantized weights; sqnr_db is None where all are exact. worst_tensor, worst_sqnr_db: the lowest. seconds: of
    all threads together, without reading. pareto: whether no setting with as few bytes of data is better, and none
    that is as good has fewer."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """dB per bit of settings that differ in bits only, by least squares over those from 2 bits on."""

    series: str
    low_bits: int
    high_bits: int
    db_per_bit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All settings, in the order asked for, and the slopes measured."""

    source: str
    bytes_in: int
    parameters: int
    law_db_per_bit: float
    points: list[Point]
    slopes: list[Slope]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return {"schema_version": 1, "command": "sweep", **asdict(self)}


@dataclass(slots=True)
class _Try:
    """A setting on a tensor."""

    setting: int
    plan: Quantized
    trials: Trials
    sums: dict[int, tuple[Sums, int]] = field(default_factory=dict)
    weighted: dict[int, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    misfit: bool = False
    done: bool = False

    @property
    def spans(self) -> Sequence[TileSpan]:
        """What is seen or encoded next."""
        assert self.plan.layout is not None
        return self.trials.spans or list(self.plan.layout.tiles())


def _try(setting: int, plan: Quantized) -> _Try:
    importance = plan.importance.values if plan.importance else None
    trials = Trials(plan.info, plan.scheme, plan.layout, plan.scale_dtype, rival=None, importance=importance)
    return _Try(setting, plan, trials)


class _Run:
    """The tensors of a source under all plans."""

    def __init__(self, source: Source, plans: Sequence[Plan], progress: Progress | None) -> None:
        self.source, self.plans = source, plans
        self.table = kernels.load()
        self.metrics: list[dict[str, Metrics]] = [{} for _ in plans]
        self.weighted: list[dict[str, tuple[float, float]]] = [{} for _ in plans]
        self.seconds = [0.0 for _ in plans]
        self.amended: list[dict[str, Decided]] = [{} for _ in plans]
        self._lock = threading.Lock()
        self._advance = begun(progress, sum(t.info.nbytes for t in plans[0].tensors if t.scheme is not None))

    def visits(self) -> Iterator[Visit]:
        for tensors in zip(*(plan.tensors for plan in self.plans)):
            yield self._visit([_try(i, t) for i, t in enumerate(tensors) if t.scheme is not None])

    def _visit(self, tries: list[_Try]) -> Visit:
        while shared := self._shared(tries):
            yield [
                partial(self._look, tries, group, index) for group in shared for index in range(len(group[0].spans))
            ]
            self._conclude(tries)

    @staticmethod
    def _shared(tries: list[_Try]) -> list[list[_Try]]:
        """Settings that are not done, those together that look at the same tiles next."""
        shared: dict[Any, list[_Try]] = defaultdict(list)
        for one in tries:
            if not one.done:
                layout = one.plan.layout
                strips = one.trials.by_strips and bool(one.trials.spans)
                shared[layout.rows, layout.cols, tuple(one.spans), one.setting if strips else None].append(one)
        return list(shared.values())

    def _look(self, tries: list[_Try], group: list[_Try], index: int) -> None:
        span = group[0].spans[index]
        tiles: dict[int, Tile] = {}
        info = group[0].plan.info
        try:
            for one in group:
                if not one.misfit:
                    self._one(one, index, span, self._tile(one, span, tiles), whole=one.setting == tries[0].setting)
                if not one.trials.spans:
                    self._advance(info.nbytes * span.rows * span.cols // (info.numel * len(tries)))
        except NotFinite:
            found = count_nonfinite(self.source, group[0].plan)
            raise DataError(
                found.describe(), place=[self.source.path, printable(info.name)], hint="leave it out with --exclude"
            ) from None

    def _tile(self, one: _Try, span: TileSpan, tiles: dict[int, Tile]) -> Tile:
        """The weights of a span as a setting groups them, read once for all of the same look."""
        layout, info, fit = one.plan.layout, one.plan.info, one.trials.chosen
        assert layout is not None

        def read(at: int, part: NDArray[np.uint8]) -> None:
            self.source.read(info.name, at, part.data)

        if one.trials.spans and one.trials.by_strips:
            return read_span(fit, span, read, np.empty(span_bytes(fit, span, strips=True), np.uint8), strips=True)
        if layout.group not in tiles:
            if tiles:
                tiles[layout.group] = replace(next(iter(tiles.values())), group=layout.group, seen={})
            else:
                raw = np.empty(span_bytes(fit, span, strips=False), np.uint8)
                tiles[layout.group] = read_tile(info.dtype, layout, span, read, raw)
        return tiles[layout.group]

    def _one(self, one: _Try, index: int, span: TileSpan, tile: Tile, *, whole: bool) -> None:
        """See or encode a tile; only with `whole` the power of the weights is found, which is the same for all."""
        began = time.perf_counter()
        try:
            if one.trials.spans:
                one.trials.see(self.table, tile, index)
            else:
                packed: NDArray[np.uint8] | None = None
                weighted = one.plan.importance is not None
                if whole or weighted:
                    packed = np.empty(span.rows * row_bytes(span.cols, one.trials.chosen.scheme.bits), np.uint8)
                sums, params = one.trials.encode(self.table, tile, span, packed)
                one.sums[index] = sums, span.rows * span.cols
                if weighted and packed is not None:
                    one.weighted[index] = one.trials.weighted(self.table, tile, span, params, packed)
        except Misfit:
            one.misfit = True
        with self._lock:
            one.seconds += time.perf_counter() - began

    def _conclude(self, tries: list[_Try]) -> None:
        """End a look: passes are concluded, what was encoded is added up, what did not fit is begun anew."""
        for number, one in enumerate(tries):
            if one.done:
                continue
            if one.trials.spans and not one.misfit:
                try:
                    one.trials.conclude()
                    continue
                except Misfit:
                    one.misfit = True
            if one.misfit:
                scheme = one.plan.scheme
                assert scheme is not None
                if scheme.scale_dtype != AUTO or one.plan.scale_dtype == "F32":
                    raise scale_misfit(scheme).within(self.source.path, printable(one.plan.info.name))
                wider = with_float32_scales(one.plan)
                self.amended[one.setting][one.plan.info.name] = wider
                tries[number] = _try(one.setting, wider)
                tries[number].seconds = one.seconds
                continue
            one.done = True
            name = one.plan.info.name
            self.metrics[one.setting][name] = total([one.sums[i] for i in sorted(one.sums)])
            if one.weighted:
                tiles = [one.weighted[i] for i in sorted(one.weighted)]
                self.weighted[one.setting][name] = sum(e for e, _ in tiles), sum(p for _, p in tiles)
            with self._lock:
                self.seconds[one.setting] += one.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan as it would turn out, the metrics of its quantized tensors, the time that took all threads, and squared
    error and power of tensors whose columns have importances, by these."""

    plan: Plan
    metrics: dict[str, Metrics]
    seconds: float
    weighted: dict[str, tuple[float, float]]


def measure(source: Source, plans: Sequence[Plan], *, threads: int, progress: Progress | None = None) -> list[Measured]:
    """What every plan would cost on a source."""
    run = _Run(source, plans, progress)
    walk(run.visits(), threads=threads)
    source.check_unchanged()
    power: dict[str, float] = {}
    for found in run.metrics:
        for name, metrics in found.items():
            power.setdefault(name, metrics.power)
    measured = []
    for i, plan in enumerate(plans):
        found = run.metrics[i]
        order = [t.info.name for t in plan.tensors if t.info.name in found]  # in which they are added up later
        metrics_of = {name: replace(found[name], power=power[name]) for name in order}
        measured.append(Measured(plan.amended(run.amended[i]), metrics_of, run.seconds[i], run.weighted[i]))
    return measured


def sweep(
    source: Source,
    schemes: Sequence[Scheme],
    plans: Sequence[Plan],
    size_of: Callable[[Plan], int],
    *,
    shown: str,
    threads: int,
    progress: Progress | None = None,
) -> Sweep:
    """What each scheme costs on a source; plans: one for each scheme. size_of: bytes of the file a plan leads to."""
    began = time.perf_counter()
    parameters = sum(t.info.numel for t in plans[0].tensors)
    points = [
        _point(scheme, found, size_of(found.plan), parameters)
        for scheme, found in zip(schemes, measure(source, plans, threads=threads, progress=progress))
    ]
    return Sweep(
        source=shown,
        bytes_in=sum(f.size for f in source.files()),
        parameters=parameters,
        law_db_per_bit=DB_PER_BIT,
        points=_with_front(points),
        slopes=_slopes(points),
        seconds=time.perf_counter() - began,
    )


def _point(scheme: Scheme, measured: Measured, size: int, parameters: int) -> Point:
    found = measured.metrics
    whole = sum(found.values(), NOTHING)
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
        bytes_data=sum(parts.nbytes(t) for t in measured.plan.tensors),
        bits_per_weight=8 * size / parameters,
        sqnr_db=whole.sqnr_db,
        mse=whole.mse,
        worst_tensor=worst,
        worst_sqnr_db=found[worst].sqnr_db,
        seconds=measured.seconds,
    )


def _quality(point: Point) -> float:
    return math.inf if point.sqnr_db is None else point.sqnr_db


def _with_front(points: list[Point]) -> list[Point]:
    """The points, those on the Pareto front marked.

    Sizes are those of the data: the header names the method, and min-max with its shorter name is not the better for
    it. Only between settings of the same data and quality does the smaller file count.
    """

    def merits(p: Point) -> tuple[int, float, int]:
        return -p.bytes_data, _quality(p), -p.bytes_out

    def beaten(p: Point) -> bool:
        return any(
            q.bytes_data <= p.bytes_data and _quality(q) >= _quality(p) and merits(q) > merits(p) for q in points
        )

    return [replace(p, pareto=not beaten(p)) for p in points]


def _slopes(points: list[Point]) -> list[Slope]:
    """The slope of every series of two bit widths or more."""
    series: dict[str, list[Point]] = defaultdict(list)
    for p in points:
        if p.sqnr_db is not None and p.bits >= 2 and p.format == "int":
            where = f"groups of {p.group_size}" if p.group_size else f"per {p.granularity}"
            kind = "" if p.symmetric else ", zero points"
            series[f"{p.calibration}, {where}{kind}"].append(p)
    found = []
    for name, members in series.items():
        bits = np.array([p.bits for p in members], float)
        if len(set(bits)) > 1:
            x, y = bits - bits.mean(), np.array([p.sqnr_db for p in members])
            slope = float((x * (y - y.mean())).sum() / (x * x).sum())
            found.append(Slope(series=name, low_bits=int(bits.min()), high_bits=int(bits.max()), db_per_bit=slope))
    return found
