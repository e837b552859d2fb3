"""Theory beside measurement: a second look at every quantized tensor against the weights it was made from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels, packing, theory
from quantcli.calibrators import _histogram
from quantcli.codes import clipped, code_grid, spread_out
from quantcli.dtypes import DTYPES
from quantcli.fitting import as_tile
from quantcli.grouping import TileSpan
from quantcli.kernels import BINARY, LEVELS, CodeGrid, QuantParams, numpy_kernels
from quantcli.metrics import Metrics
from quantcli.pipeline import Progress
from quantcli.reading import Model, Tensor
from quantcli.theory import Parts, Theory
from quantcli.workers import Crew, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Look:
    """What the tiles of a tensor add up to."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.scheme is not None
        self.codes = np.zeros(1 << tensor.scheme.bits, np.int64)
        self.parts: dict[int, Parts] = {}
        self.histogram: dict[str, Any] | None = None
        self.lock = threading.Lock()


def examine(
    model: Model, original: Model, metrics: list[Metrics | None], *, threads: int, progress: Progress | None
) -> list[Theory | None]:
    """Theory of every tensor of a quantized model, None for kept ones; metrics: what was measured."""
    measured = dict(zip(model, metrics))
    wanted = [name for name, tensor in model.items() if tensor.scheme is not None and measured[name] is not None]
    looks: dict[str, _Look] = {}
    known: dict[str, Theory] = {}
    if progress is not None:
        progress.start(sum(model[name].stored.info.nbytes for name in wanted))

    def tasks() -> Iterator[Task]:
        for name in wanted:
            plan = model[name].stored.layout
            assert plan is not None
            looks[name] = _Look(model[name])
            spans = list(plan.tiles())
            for index, span in enumerate(spans):
                yield partial(see, name, len(spans), index, span)

    def see(name: str, tiles: int, index: int, span: TileSpan) -> None:
        look = looks[name]
        nbytes = _see(model[name], original[name], original, look, index, span)
        with look.lock:
            complete = len(look.parts) == tiles and looks.pop(name, None) is not None
        if complete:  # here, so that at no time more histograms exist than tensors being read
            found = measured[name]
            assert found is not None
            known[name] = _theory(model[name], look, found)
        if progress is not None:
            progress.advance(nbytes)

    Crew(tasks(), threads).run()
    return [known.get(name) for name in model]


def _see(tensor: Tensor, source: Tensor, original: Model, look: _Look, index: int, span: TileSpan) -> int:
    scheme, plan = tensor.scheme, tensor.stored.layout
    assert scheme is not None and plan is not None
    size = DTYPES[source.dtype].bits // 8
    raw = np.empty(span.rows * span.cols * size, np.uint8)
    original.source.read(tensor.name, (span.row * plan.cols + span.col) * size, raw.data)
    tile = as_tile(raw, source.dtype, span, plan.group)
    params, grid = tensor.params(span), code_grid(scheme)
    codes = packing.unpack(tensor.packed(span), span.rows, span.cols, scheme.bits)
    counts = np.bincount(codes.ravel(), minlength=len(look.codes))
    x = numpy_kernels.floats(tile)
    beyond = clipped(x, params, grid, tile.group)
    parts = theory.split(x, tensor.decoded(span), beyond, _steps(codes, params, grid, x, tile.group))
    with look.lock:
        look.codes += counts
        look.parts[index] = parts
        look.histogram = _histogram.observe(kernels.load(), tile, "tensor", look.histogram)
    return len(raw)


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


def _theory(tensor: Tensor, look: _Look, metrics: Metrics) -> Theory:
    assert tensor.scheme is not None and look.histogram is not None
    values, counts = _histogram.distinct(look.histogram)
    return theory.beside(
        bits=tensor.scheme.bits,
        rate=8 * tensor.stored.bytes_out / tensor.stored.info.numel,
        power=metrics.power,
        sse=metrics.sse,
        parts=sum((look.parts[i] for i in sorted(look.parts)), Parts()),
        codes=look.codes,
        values=values,
        counts=counts,
    )
