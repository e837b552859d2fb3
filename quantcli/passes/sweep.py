"""Many schemes on one model: what each would cost, from reading every tile of the weights once for all of them.

Nothing is written. Codes are made and measured as `quantize` does, so the figures are those it would report.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError, printable
from quantcli.kernels import Sums, Tile, row_bytes
from quantcli.metrics import Metrics, total
from quantcli.passes.quantize import count_nonfinite, with_wider_scales
from quantcli.passes.tiles import Progress, Visit, begun, walk
from quantcli.planning.entry import without_statistics
from quantcli.planning.plan import Plan
from quantcli.stores import Source
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.fit import Misfit, NotFinite
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.second_order import Degenerate, Output, SecondOrder, learned
from quantcli.tensors.tiles import read_span, read_tile, rotated, span_bytes
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True)
class _Try:
    """A setting on a tensor."""

    setting: int
    plan: Quantized
    trials: Trials = field(init=False)
    sums: dict[int, tuple[Sums, int]] = field(default_factory=dict)
    weighted: dict[int, tuple[float, float]] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    seconds: float = 0.0
    misfit: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        self.trials = Trials(self.plan, rival=None)

    @property
    def spans(self) -> Sequence[TileSpan]:
        """What is seen or encoded next."""
        return self.trials.spans or list(self.plan.grouping.tiles())


class _Run:
    """The tensors of a source under all plans."""

    def __init__(self, source: Source, plans: Sequence[Plan], progress: Progress | None) -> None:
        self.source, self.plans = source, plans
        self.table = kernels.load()
        self.metrics: list[dict[str, Metrics]] = [{} for _ in plans]
        self.weighted: list[dict[str, tuple[float, float]]] = [{} for _ in plans]
        self.outputs: list[dict[str, Output]] = [{} for _ in plans]
        self.seconds = [0.0 for _ in plans]
        self.amended: list[dict[str, Decided]] = [{} for _ in plans]
        self._lock = threading.Lock()
        self._advance = begun(progress, sum(t.info.nbytes for t in plans[0].tensors if t.scheme is not None))

    def visits(self) -> Iterator[Visit]:
        for tensors in zip(*(plan.tensors for plan in self.plans)):
            yield self._visit([_Try(i, t) for i, t in enumerate(tensors) if t.scheme is not None])

    def _visit(self, tries: list[_Try]) -> Visit:
        yield from self._learn(tries)
        while shared := self._shared(tries):
            yield [partial(self._do, tries, group, index) for group in shared for index in range(len(group[0].spans))]
            self._conclude(tries)

    def _learn(self, tries: list[_Try]) -> Visit:
        """What statistics say of a tensor, once for all settings that group it into the same columns."""
        known: dict[int, SecondOrder] = {}
        for one in tries:
            columns, cols = one.plan.importance, one.plan.grouping.cols
            if columns is None or not one.plan.scheme.second_order:
                continue
            try:
                if cols not in known:
                    known[cols] = yield from learned(self.table, columns)
                one.trials.second_order = known[cols]
            except Degenerate:
                self.amended[one.setting][one.plan.info.name] = one.plan = without_statistics(one.plan)
                one.trials = Trials(one.plan, rival=None)

    @staticmethod
    def _shared(tries: list[_Try]) -> list[list[_Try]]:
        """Settings that are not done, those together that take the same tiles next."""
        shared: dict[Any, list[_Try]] = defaultdict(list)
        for one in tries:
            if not one.done:
                grouping = one.plan.grouping
                strips = one.trials.by_strips and bool(one.trials.spans)
                shared[grouping.rows, grouping.cols, tuple(one.spans), one.setting if strips else None].append(one)
        return list(shared.values())

    def _do(self, tries: list[_Try], group: list[_Try], index: int) -> None:
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
        """The weights of a span as a setting groups them, read once for all of a round."""
        grouping, info, fit = one.plan.grouping, one.plan.info, one.trials.chosen

        def read(at: int, part: NDArray[np.uint8]) -> None:
            self.source.read(info.name, at, part.data)

        if one.trials.spans and one.trials.by_strips:
            return read_span(fit, span, read, np.empty(span_bytes(fit, span, strips=True), np.uint8), strips=True)
        if grouping.group not in tiles:
            if tiles:
                tiles[grouping.group] = replace(next(iter(tiles.values())), group=grouping.group, seen={})
            else:
                raw = np.empty(span_bytes(fit, span, strips=False), np.uint8)
                tiles[grouping.group] = read_tile(info.dtype, grouping, span, read, raw)
        return rotated(tiles[grouping.group], fit.scheme)

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
                made = one.trials.encode(self.table, tile, span, packed)
                one.sums[index] = made.sums, span.rows * span.cols
                if made.output is not None:
                    one.outputs[index] = made.output
                elif weighted and packed is not None:
                    one.weighted[index] = one.trials.weighted(self.table, tile, span, made.params, packed)
        except Misfit:
            one.misfit = True
        with self._lock:
            one.seconds += time.perf_counter() - began

    def _conclude(self, tries: list[_Try]) -> None:
        """End a round: conclude passes, add up what was encoded, and start again what did not fit."""
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
                wider = with_wider_scales(one.plan, self.source)
                self.amended[one.setting][one.plan.info.name] = wider
                tries[number] = _Try(one.setting, wider, seconds=one.seconds)
                continue
            one.done = True
            name = one.plan.info.name
            self.metrics[one.setting][name] = total([one.sums[i] for i in sorted(one.sums)])
            if one.weighted:
                tiles = [one.weighted[i] for i in sorted(one.weighted)]
                self.weighted[one.setting][name] = sum(e for e, _ in tiles), sum(p for _, p in tiles)
            if one.outputs:
                whole = reduce(add, (one.outputs[i] for i in sorted(one.outputs)))
                self.outputs[one.setting][name] = whole
                self.weighted[one.setting][name] = whole.error, whole.power
            with self._lock:
                self.seconds[one.setting] += one.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan as it would turn out, the metrics of its quantized tensors, the time that took all threads, squared error
    and power of tensors whose columns have importances, by these, and what errors cost in the outputs of layers of
    whose inputs there are statistics."""

    plan: Plan
    metrics: dict[str, Metrics]
    seconds: float
    weighted: dict[str, tuple[float, float]]
    outputs: dict[str, Output]


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
        amended = plan.amended(run.amended[i])
        outputs = {name: run.outputs[i][name] for name in order if name in run.outputs[i]}
        measured.append(Measured(amended, metrics_of, run.seconds[i], run.weighted[i], outputs))
    return measured
