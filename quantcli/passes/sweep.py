"""Many schemes on one model: what each would cost, from reading every tile of the weights once for all of them.

Nothing is written. Codes are made and measured as `quantize` does, so the figures are those it would report.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError, printable
from quantcli.kernels import Sums, Tile, row_bytes
from quantcli.metrics import Metrics, total
from quantcli.passes.batches import Crew, run
from quantcli.passes.performing import Advance, Item
from quantcli.passes.quantize import count_nonfinite, with_wider_scales
from quantcli.passes.tiles import Progress, Visit
from quantcli.planning.entry import with_float32_scales, without_statistics
from quantcli.planning.plan import Plan
from quantcli.planning.recipe_keys import BATCH_NORM
from quantcli.planning.statistics import again as statistics_again
from quantcli.stores import Source
from quantcli.stores.places import reachable
from quantcli.tensors.by_expert import OfExperts, learned
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.fit import Misfit, NotFinite
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.second_order import Degenerate, Output, SecondOrder
from quantcli.tensors.tiles import read_span, read_tile, rotated, span_bytes
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.planning.statistics import InputStatistics


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


@dataclass(frozen=True, slots=True)
class Sent:
    """A decision on its way to a worker, without what is known of the columns, and whether anything is."""

    tensor: Quantized
    weighted: bool


class Amendment(Enum):
    """What a tensor was decided again to have when a setting was tried on it."""

    WIDER = "float32 scales"
    PLAIN = "no statistics"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a setting costs on a tensor: its errors, these by importance where there is one, what they cost in the
    output of its layer where there are statistics, seconds of all threads, and how it turned out otherwise than
    planned."""

    setting: int
    metrics: Metrics
    weighted: tuple[float, float] | None
    output: Output | None
    seconds: float
    amended: tuple[Amendment, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The pass over the tensors of a source, each under all settings. statistics: of inputs, for decisions that were
    sent without."""

    source: Source
    statistics: InputStatistics | None = None

    @property
    def sources(self) -> tuple[Source]:
        """The source."""
        return (self.source,)

    def visit(self, item: Item, advance: Advance) -> Visit:
        """The cost of every setting on a tensor. Given is the decision for it of each, None where it is kept."""
        decided = [(i, self._whole(tensor)) for i, tensor in enumerate(item.given) if tensor is not None]
        run = _Run(self.source, [_Try(i, tensor) for i, tensor in decided], advance)
        yield from run.visit()
        return run.costs

    def _whole(self, tensor: Quantized | Sent) -> Quantized:
        """A decision with what is known of the columns."""
        if not isinstance(tensor, Sent):
            return tensor
        if not tensor.weighted or self.statistics is None:
            return tensor.tensor
        columns = self.statistics.of(tensor.tensor.info, tensor.tensor.grouping)
        return replace(tensor.tensor, columns=columns)


class _Run:
    """A tensor of a source under all settings."""

    def __init__(self, source: Source, tries: list[_Try], advance: Advance) -> None:
        self.source, self._tries, self._advance = source, tries, advance
        self.table = kernels.load()
        self.costs: list[Cost] = []
        self._amended: dict[int, tuple[Amendment, ...]] = defaultdict(tuple)
        self._lock = threading.Lock()

    def visit(self) -> Visit:
        tries = self._tries
        yield from self._learn(tries)
        while shared := self._shared(tries):
            yield [partial(self._do, tries, group, index) for group in shared for index in range(len(group[0].spans))]
            self._conclude(tries)

    def _learn(self, tries: list[_Try]) -> Visit:
        """What statistics say of a tensor, once for all settings that group it into the same columns."""
        known: dict[int, SecondOrder | OfExperts] = {}
        for one in tries:
            columns, cols = one.plan.columns, one.plan.grouping.cols
            if columns is None or not one.plan.scheme.second_order:
                continue
            try:
                if cols not in known:
                    known[cols] = yield from learned(self.table, columns)
                one.trials.second_order = known[cols]
            except Degenerate:
                self._amended[one.setting] += (Amendment.PLAIN,)
                one.plan = without_statistics(one.plan)
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
                weighted = one.plan.columns is not None
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
                self._amended[one.setting] += (Amendment.WIDER,)
                tries[number] = _Try(one.setting, wider, seconds=one.seconds)
                continue
            one.done = True
            tiles = [one.weighted[i] for i in sorted(one.weighted)]
            weighted = (sum(e for e, _ in tiles), sum(p for _, p in tiles)) if tiles else None
            output = reduce(add, (one.outputs[i] for i in sorted(one.outputs))) if one.outputs else None
            self.costs.append(
                Cost(
                    setting=one.setting,
                    metrics=total([one.sums[i] for i in sorted(one.sums)]),
                    weighted=weighted if output is None else (output.error, output.power),
                    output=output,
                    seconds=one.seconds,
                    amended=self._amended[one.setting],
                )
            )


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


def measure(
    source: Source,
    plans: Sequence[Plan],
    *,
    threads: int,
    progress: Progress | None = None,
    crew: Crew | None = None,
    again: Callable[[], AbstractContextManager[Source]] | None = None,
) -> list[Measured]:
    """What every plan would cost on a source. crew: the workers that try the schemes, None for threads here; again:
    how they open the source."""
    tensors = [same for same in zip(*(plan.tensors for plan in plans)) if any(t.scheme is not None for t in same)]
    opening = None
    if crew is not None and again is not None:
        opening = partial(opened, again, _known_of(plans))
    send = _sent if opening is not None else (lambda tensor: tensor)
    items = [
        Item(same[0].info.name, same[0].info.nbytes, tuple(None if t.scheme is None else send(t) for t in same))
        for same in tensors
    ]
    found = list[Sequence[Cost]]()
    run(Sweep(source), items, threads=threads, progress=progress, crew=crew, opening=opening, take=found.append)
    source.check_unchanged()
    costs = [{cost.setting: cost for cost in own} for own in found]
    return [_measured(number, plan, tensors, costs) for number, plan in enumerate(plans)]


def _measured(
    number: int, plan: Plan, tensors: Sequence[Sequence[Decided]], costs: Sequence[Mapping[int, Cost]]
) -> Measured:
    """What a plan turned out to cost. The power of weights is the same in all plans: it was found once."""
    own = [(same[number], cost[number], cost) for same, cost in zip(tensors, costs) if number in cost]
    metrics = {t.info.name: replace(c.metrics, power=cost[min(cost)].metrics.power) for t, c, cost in own}
    weighted = {t.info.name: c.weighted for t, c, _ in own if c.weighted is not None}
    amended = {t.info.name: _amended(t, c.amended) for t, c, _ in own if c.amended}
    outputs = {t.info.name: c.output for t, c, _ in own if c.output is not None}
    return Measured(plan.amended(amended), metrics, sum(c.seconds for _, c, _ in own), weighted, outputs)


def _amended(tensor: Decided, how: Sequence[Amendment]) -> Decided:
    """A decision as it turned out."""
    for amendment in how:
        assert tensor.scheme is not None
        plain = amendment is Amendment.PLAIN
        tensor = without_statistics(tensor) if plain else with_float32_scales(tensor)
    return tensor


def _sent(tensor: Quantized) -> Sent:
    """A decision that can be pickled: second moments are read from a file."""
    return Sent(replace(tensor, columns=None), tensor.columns is not None)


Known = tuple[str, str, str]
"""Path, digest and key of statistics."""


def _known_of(plans: Sequence[Plan]) -> Known | None:
    """The statistics that plans were made with."""
    requests = [plan.request for plan in plans if plan.request is not None]
    found = next((r.statistics for r in requests if r.statistics is not None), None)
    if found is None:
        return None
    path = found.path if found.path == BATCH_NORM else reachable(found.path)
    return path, found.digest, found.key


@contextmanager
def opened(again: Callable[[], AbstractContextManager[Source]], known: Known | None) -> Iterator[Sweep]:
    """The pass on a worker. again: opens the source; known: the statistics of its inputs."""
    with again() as source:
        yield Sweep(source, statistics_again(source, *known) if known is not None else None)
