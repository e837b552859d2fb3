"""Theory next to measurement: a second pass over every quantized tensor and the weights it was made from."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.calibrators.searches import histogram
from quantcli.dtypes import DTYPES
from quantcli.formats import clipped, code_grid, spread_out
from quantcli.kernels import BINARY, LEVELS, OFFSET, CodeGrid, QuantParams, numpy_tiles
from quantcli.layouts.native.model import Model, Tensor
from quantcli.metrics import Metrics
from quantcli.passes.batches import Crew, run
from quantcli.passes.measure import Against
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.tiles import Progress, Visit
from quantcli.scheme import Scheme
from quantcli.tensors import packing
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.tiles import read_tile
from quantcli.theory import bounds as theory
from quantcli.theory.bounds import Parts, Theory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source


BINS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How weights lie on their grid: weights over their scale, in units of a step (affine: with the zero point added),
    so that all groups share one grid. counts: weights in equal bins from low to high, the outer ones with all that lie
    beyond; levels: what the codes stand for, ascending; empty above 8 bits."""

    low: float
    high: float
    counts: list[int]
    levels: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Results of the second pass over a tensor; no histogram where every row has levels of its own."""

    theory: Theory
    histogram: Histogram | None


class _Totals:
    """What the tiles of a tensor add up to."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.scheme is not None
        self.codes = np.zeros(1 << tensor.scheme.bits, np.int64)
        self.bins: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.levels: NDArray[np.float64] | None = None
        self.histogram: dict[str, Any] | None = None
        self.lock = threading.Lock()


def examine(
    model: Model,
    original: Model,
    metrics: Sequence[Metrics | None],
    *,
    threads: int,
    progress: Progress | None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> list[Examined | None]:
    """Theory and histogram of every tensor of a quantized model, None for kept ones; metrics: what was measured. crew:
    the workers that look at it, None for threads here; opening: how they open the models."""
    measured = dict(zip(model, metrics))
    # Theory does not cover weights decoded to infinity.
    wanted = [name for name, m in measured.items() if model[name].scheme and m is not None and math.isfinite(m.sse)]
    items = [Item(name, model[name].stored.info.nbytes, measured[name]) for name in wanted]
    found, made = list[Examined | None](), Examining(model, original)
    run(made, items, threads=threads, progress=progress, crew=crew, opening=opening, take=found.append)
    known = dict(zip(wanted, found))
    return [known.get(name) for name in model]


@dataclass(frozen=True, slots=True)
class Examining:
    """The second pass over the tensors of a quantized model, beside those of its original."""

    model: Model
    original: Model

    @property
    def sources(self) -> tuple[Source, Source]:
        """Both."""
        return self.model.source, self.original.source

    def visit(self, item: Item, advance: Advance) -> Visit:
        """Theory and histogram of a tensor; given are its metrics."""
        tensor, before = self.model[item.name], self.original[item.name]
        plan, totals = tensor.stored.grouping, _Totals(tensor)
        assert plan is not None

        def see(span: TileSpan) -> Parts:
            with np.errstate(all="ignore"):
                parts, nbytes = _see(tensor, before, self.original, totals, span)
            advance(nbytes)
            return parts

        parts: list[Parts] = yield [partial(see, span) for span in plan.tiles()]
        with np.errstate(all="ignore"):  # of damaged parameters
            return _examined(tensor, totals, parts, item.given)


@contextmanager
def opened(first: Callable[[], AbstractContextManager[Against]]) -> Iterator[Examining]:
    """The pass on a worker. first: opens the pass that measures both models."""
    with first() as measuring:
        yield Examining(measuring.model, measuring.original)


def _see(tensor: Tensor, source: Tensor, original: Model, totals: _Totals, span: TileSpan) -> tuple[Parts, int]:
    """The parts of the error of a tile, and bytes of its weights; all else is added to `totals`."""
    scheme, plan = tensor.scheme, tensor.stored.grouping
    assert scheme is not None and plan is not None
    raw = np.empty(span.rows * span.cols * (DTYPES[source.dtype].bits // 8), np.uint8)
    tile = read_tile(source.dtype, plan, span, lambda at, part: original.source.read(tensor.name, at, part.data), raw)
    params, grid = tensor.params(span), code_grid(scheme)
    codes = packing.unpack(tensor.packed(span), span.rows, span.cols, scheme.bits)
    counts = np.bincount(codes.ravel(), minlength=len(totals.codes))
    x = numpy_tiles.floats(tile)
    beyond = clipped(x, params, grid, tile.group)
    parts = theory.split(x, tensor.decoded(span), beyond, _steps(codes, params, grid, x, tile.group))
    levels = _levels(scheme, params)
    bins = _bins(_on_grid(x, params, grid, tile.group), levels) if levels is not None else 0
    with totals.lock:
        totals.codes += counts
        totals.bins += bins
        totals.levels = levels
        totals.histogram = histogram.observe(kernels.load(), tile, "tensor", totals.histogram)
    return parts, len(raw)


def _levels(scheme: Scheme, params: QuantParams) -> NDArray[np.float64] | None:
    """What the codes of a tensor stand for, ascending, in units of the scale; None where rows differ, and where all
    codes stand for the same."""
    grid = code_grid(scheme)
    if grid.mode == LEVELS:
        assert params.codebook is not None
        levels = params.codebook.sorted[0].astype(np.float64)
        return levels if params.codebook.tables == 1 and levels[0] < levels[-1] else None
    if grid.mode == BINARY:
        return np.array([-1.0, 1.0])
    first = grid.umin - (grid.zero if scheme.symmetric else 0)
    return np.arange(first, first + grid.umax - grid.umin + 1, dtype=np.float64) + (0.5 if grid.midrise else 0.0)


def _range(levels: NDArray[np.float64]) -> tuple[float, float]:
    """What the bins cover: the levels and a step more on either side, at least a sixteenth of their range."""
    spare = max((levels[-1] - levels[0]) / 16, (levels[-1] - levels[0]) / max(len(levels) - 1, 1))
    return float(levels[0] - spare), float(levels[-1] + spare)


def _on_grid(x: NDArray[Any], params: QuantParams, grid: CodeGrid, group: int) -> NDArray[Any]:
    """Weights in units of their grid."""
    scale = spread_out(params.scale, x, group)
    scale = np.where(scale == 0, np.float32(1), scale)
    zero = np.float32(0) if params.zero is None else spread_out(params.zero, x, group)
    placed: NDArray[Any] = (x - zero) / scale if grid.mode == OFFSET else x / scale + zero
    return placed


def _bins(placed: NDArray[Any], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    low, high = _range(levels)
    at = np.clip((placed - np.float32(low)) * np.float32(BINS / (high - low)), 0, BINS - 1)
    at[np.isnan(at)] = 0  # the range is so small that its bins have no width
    return np.bincount(at.astype(np.int64).ravel(), minlength=BINS)


def _histogram_of(totals: _Totals) -> Histogram | None:
    if totals.levels is None:
        return None
    low, high = _range(totals.levels)
    shown = totals.levels.tolist() if len(totals.levels) <= 256 else []
    return Histogram(low=low, high=high, counts=totals.bins.tolist(), levels=shown)


def _steps(
    codes: NDArray[Any], params: QuantParams, grid: CodeGrid, x: NDArray[Any], group: int
) -> NDArray[np.float64]:
    """Width of the cell of every weight."""
    scale = np.abs(spread_out(params.scale, x, group)).astype(np.float64)
    if grid.mode == BINARY:
        return np.broadcast_to(2 * scale, x.shape)
    if grid.mode != LEVELS:
        return np.broadcast_to(scale, x.shape)
    assert params.codebook is not None
    book = params.codebook
    ordered = book.sorted.astype(np.float64)
    ends = np.concatenate([book.limits[:, :1], (ordered[:, 1:] + ordered[:, :-1]) / 2, book.limits[:, 1:]], axis=1)
    widths = np.zeros(book.levels.shape)
    np.put_along_axis(widths, book.order.astype(np.intp), np.diff(ends, axis=1), axis=1)
    own = widths[0][codes] if book.tables == 1 else np.take_along_axis(widths, codes.astype(np.intp), 1)
    return own * scale


def _examined(tensor: Tensor, totals: _Totals, parts: list[Parts], metrics: Metrics) -> Examined:
    assert tensor.scheme is not None and totals.histogram is not None
    values, counts = histogram.distinct(totals.histogram)
    predicted = theory.predict(
        bits=tensor.scheme.bits,
        rate=8 * tensor.stored.bytes_out / tensor.stored.info.numel,
        power=metrics.power,
        sse=metrics.sse,
        parts=sum(parts, Parts()),
        codes=totals.codes,
        values=values,
        counts=counts,
    )
    return Examined(theory=predicted, histogram=_histogram_of(totals))
