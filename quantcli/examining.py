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
from quantcli.theory import Theory
from quantcli.workers import Crew, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Look:
    """What the tiles of a tensor add up to."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.scheme is not None
        self.codes = np.zeros(1 << tensor.scheme.bits, np.int64)
        self.parts: dict[int, tuple[float, float]] = {}
        self.histogram: dict[str, Any] | None = None
        self.lock = threading.Lock()


def examine(
    model: Model, original: Model, metrics: list[Metrics | None], *, threads: int, progress: Progress | None
) -> list[Theory | None]:
    """Theory of every tensor of a quantized model, None for kept ones; metrics: what was measured."""
    looks = {name: _Look(tensor) for name, tensor in model.items() if tensor.scheme is not None}
    if progress is not None:
        progress.start(sum(model[name].stored.info.nbytes for name in looks))

    def tasks() -> Iterator[Task]:
        for name, look in looks.items():
            plan = model[name].stored.layout
            assert plan is not None
            for index, span in enumerate(plan.tiles()):
                yield partial(see, name, look, index, span)

    def see(name: str, look: _Look, index: int, span: TileSpan) -> None:
        nbytes = _see(model[name], original[name], original, look, index, span)
        if progress is not None:
            progress.advance(nbytes)

    Crew(tasks(), threads).run()
    return [
        _theory(tensor, looks[name], found) if name in looks and found is not None else None
        for (name, tensor), found in zip(model.items(), metrics)
    ]


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
    error = (x - tensor.decoded(span)).astype(np.float64)
    cut = clipped(x, params, grid, tile.group)
    step = np.where(cut, 0.0, _steps(codes, params, grid, x, tile.group))
    parts = float((error[cut] ** 2).sum()), float((step * step).sum()) / 12
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
    parts = [look.parts[i] for i in sorted(look.parts)]
    return theory.beside(
        bits=tensor.scheme.bits,
        rate=8 * tensor.stored.bytes_out / tensor.stored.info.numel,
        power=metrics.power,
        sse=metrics.sse,
        clipping_sse=sum(p[0] for p in parts),
        predicted_rounding=sum(p[1] for p in parts),
        codes=look.codes,
        values=values,
        counts=counts,
    )
