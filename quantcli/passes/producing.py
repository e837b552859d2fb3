"""Where the codes that a layout writes come from: made from floats, or taken from a file that holds them.

A producer stands for one tensor. `prepare` does what comes before its first piece can be written: passes over its
weights that find parameters, or nothing. `piece` opens the codes for one piece of work of a layout's writer (see
`layouts.writer.Piece`); what a piece needs again is remembered until it ends. `end` tells what is known when all are
done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.asking import rival
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.kernels import QuantParams, Sums, Tile, joined_blocks, row_bytes
from quantcli.kernels.codebook import codebook as sorted_levels
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import Codes, Raw
from quantcli.passes import stacking
from quantcli.passes.largest import Largest, sharing
from quantcli.passes.tiles import Visit, once
from quantcli.stores import Source, is_stream
from quantcli.tensors.by_expert import learned
from quantcli.tensors.decided import Decided, Kept, Quantized
from quantcli.tensors.digest import Digested
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.settle import part, spread
from quantcli.tensors.tiles import read_span, span_bytes
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats
    from quantcli.tensors.info import TensorInfo
    from quantcli.tensors.second_order import Output


class Producer(Protocol):
    """One tensor on its way into a file."""

    @property
    def tensor(self) -> Decided:
        """What was decided for it."""

    def prepare(self) -> Visit:
        """What must be done before its codes can be made. Raises NotFinite and Misfit."""

    def piece(self) -> AbstractContextManager[Codes | Raw]:
        """Its codes, or the bytes that are kept, for one piece of work."""

    def end(self) -> Result | None:
        """What is known of it once every piece is done; None where nothing was measured."""


class Buffers(threading.local):
    """A thread's buffers: pages that were touched once are three times as fast as fresh ones."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, size: int) -> NDArray[np.uint8]:
        """`size` bytes, the same ones for the same name until more are asked for."""
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, np.uint8)
        return self._held[name][:size]


_buffers = Buffers()


def _passed(source: Source, name: str, held: Digested, start: int, size: int) -> None:
    """Tell a source that a block is done with, unless all are read once more for SHA-256."""
    if held.kind != "sha256":
        source.passed(name, start, size)


def _ended(source: Source, info: TensorInfo, held: Digested) -> str | None:
    """The digest of a tensor, with which the source is told that the tensor is done with."""
    found = held.found()
    source.passed(info.name, 0, info.nbytes)
    source.release(info.name)
    return found


class Copying:
    """A tensor that is kept: its bytes as they are in the source."""

    def __init__(self, source: Source, tensor: Kept, digest_kind: str) -> None:
        self.tensor, self._source = tensor, source
        self._bytes = Digested(partial(source.read, tensor.info.name), tensor.info.nbytes, digest_kind)

    def prepare(self) -> Visit:
        """Nothing."""
        return once([])

    @contextmanager
    def piece(self) -> Iterator[Raw]:
        """The bytes; those that were read are done with when the piece ends."""
        kept = _Bytes(self._bytes)
        yield kept
        for start, size in kept.done:
            _passed(self._source, self.tensor.info.name, self._bytes, start, size)

    def end(self) -> Result:
        """The digest."""
        return Result(None, _ended(self._source, self.tensor.info, self._bytes))


class _Bytes:
    """The bytes of a kept tensor for one piece of work, and which of them were read."""

    def __init__(self, held: Digested) -> None:
        self._held, self.done = held, list[tuple[int, int]]()

    def read_bytes(self, name: str, start: int, size: int) -> NDArray[np.uint8]:
        found = _buffers.take("raw", size)
        self._held.fill(start, found.data)
        self.done.append((start, size))
        return found


def trials_of(tensor: Quantized) -> Trials:
    """What is tried on a tensor; min-max is not compared where the plain error is not what counts."""
    return Trials(tensor, rival=rival(tensor.scheme) if tensor.columns is None else None)


def searching(trials: Trials, see: Callable[[int], None]) -> Visit:
    """What is learned from statistics, then the passes of trials, each over all their spans. see: takes in a span by
    its number in the pass. Raises Degenerate."""
    if trials.columns is not None and trials.chosen.scheme.second_order:
        trials.second_order = yield from learned(kernels.load(), trials.columns)
    while trials.spans:
        yield [partial(see, index) for index in range(len(trials.spans))]
        trials.conclude()


class Encoding:
    """A tensor that is quantized from the floats of a source, tile by tile as its layout cuts it."""

    def __init__(self, source: Source, tensor: Quantized, digest_kind: str, largest: Largest) -> None:
        self.tensor = tensor
        self.table = kernels.load()
        self.trials = trials_of(tensor)
        self.tiles = list(tensor.grouping.tiles())
        self.sums: list[Sums | None] = [None] * len(self.tiles)
        self.rivals: list[float | None] = [None] * len(self.tiles)
        self.outputs: list[Output | None] = [None] * len(self.tiles)
        self.bytes = Digested(partial(source.read, tensor.info.name), tensor.info.nbytes, digest_kind)
        self._source, self._largest = source, largest
        self._sample: dict[TileSpan, Tile] = {}

    def prepare(self) -> Visit:
        """The passes that find parameters, one after another."""
        yield from self._largest.tell(self.trials)
        yield from searching(self.trials, self._see)
        self._sample.clear()

    def _see(self, index: int) -> None:
        """One span of a pass. Those of a sample stay in memory for the next passes, with their ranges."""
        span, strips = self.trials.spans[index], self.trials.by_strips
        fit, tile = self.trials.chosen, self._sample.get(span)
        if tile is None:
            size = span_bytes(fit, span, strips=strips)
            raw = np.empty(size, np.uint8) if fit.sampling else _buffers.take("raw", size)
            tile = read_span(fit, span, self._fill, raw, strips=strips)
            if fit.sampling:
                self._sample[span] = tile
        self.trials.see(self.table, tile, index)

    def _fill(self, start: int, block: NDArray[np.uint8]) -> None:
        self._source.read(self.tensor.info.name, start, block.data)

    @contextmanager
    def piece(self) -> Iterator[Codes]:
        """The codes. Making them raises NotFinite and Misfit."""
        codes = _Tiles(self)
        yield codes
        info, cols = self.tensor.info, self.tensor.grouping.cols
        size = DTYPES[info.dtype].bits // 8
        for span in codes.made:
            start = (span.row * cols + span.col) * size
            _passed(self._source, info.name, self.bytes, start, span.rows * span.cols * size)

    def encode(self, index: int, packed: Bytes) -> QuantParams:
        """Write the codes of a tile; its parameters. What that cost is remembered."""
        span = self.tiles[index]
        raw = _buffers.take("raw", span_bytes(self.trials.chosen, span, strips=False))
        tile: Tile = read_span(self.trials.chosen, span, self._fill, raw, strips=False)
        made = self.trials.encode(self.table, tile, span, packed)
        start = (span.row * self.tensor.grouping.cols + span.col) * DTYPES[self.tensor.info.dtype].bits // 8
        if self.sums[index] is None:
            self.bytes.see(start, raw.data)
            self.rivals[index] = made.rival
            self.outputs[index] = made.output
            self.sums[index] = made.sums
        return made.params

    def end(self) -> Result:
        """Errors of all tiles together, the digest, and the scheme that was chosen."""
        sizes = [span.rows * span.cols for span in self.tiles]
        measured = [(sums, size) for sums, size in zip(self.sums, sizes) if sums is not None]
        assert len(measured) == len(self.tiles), f"{self.tensor.info.name}: codes requested by nobody"
        errors = [error for error in self.rivals if error is not None]
        minmax = sum(errors) if errors and len(errors) == len(self.rivals) else self.trials.minmax_sse
        digest = _ended(self._source, self.tensor.info, self.bytes)
        costs = [output for output in self.outputs if output is not None]
        output = reduce(add, costs) if costs else None
        self.trials.second_order = None  # the largest there is in memory
        return Result(metric.total(measured), digest, self.trials.chosen.scheme, minmax, output)


class _Tiles:
    """The codes of a tensor for one piece of work: each tile is made when it is asked for, and kept as long as rows of
    it are left to take. Parameters are kept until the piece ends, for writers ask for them last."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding, self._plan = encoding, encoding.tensor.grouping
        self._bits = encoding.tensor.scheme.bits
        self._packed: dict[int, Bytes] = {}
        self._left: dict[int, int] = {}
        self._params: dict[int, QuantParams] = {}
        self.made: list[TileSpan] = []

    def _covering(self, span: TileSpan) -> Iterator[tuple[int, TileSpan]]:
        """The tiles that hold a span, by number."""
        tiles, plan = self._encoding.tiles, self._plan
        first = tiles[0]
        if first.cols == plan.cols:
            begin, end = span.row // first.rows, -(-(span.row + span.rows) // first.rows)
            yield from ((index, tiles[index]) for index in range(begin, end))
            return
        across = -(-plan.cols // first.cols)
        for row in range(span.row, span.row + span.rows):
            for col in range(span.col // first.cols, -(-(span.col + span.cols) // first.cols)):
                index = row * across + col
                yield index, tiles[index]

    def _make(self, index: int, packed: Bytes) -> None:
        self._params[index] = self._encoding.encode(index, packed)
        self.made.append(self._encoding.tiles[index])

    def _held(self, index: int, tile: TileSpan) -> Bytes:
        """The codes of a tile, (rows, bytes)."""
        if index not in self._packed:
            width = row_bytes(tile.cols, self._bits)
            packed = np.empty(tile.rows * width, np.uint8)
            self._make(index, packed)
            self._packed[index], self._left[index] = packed.reshape(tile.rows, width), tile.rows * width
        return self._packed[index]

    def packed(self, span: TileSpan) -> Bytes:
        width = row_bytes(span.cols, self._bits)
        found = _buffers.take("packed", span.rows * width)
        out = found.reshape(span.rows, width)
        for index, tile in self._covering(span):
            top, bottom = max(tile.row, span.row), min(tile.row + tile.rows, span.row + span.rows)
            left, right = max(tile.col, span.col), min(tile.col + tile.cols, span.col + span.cols)
            rows = slice(top - span.row, bottom - span.row)
            whole = (bottom - top, right - left) == (tile.rows, tile.cols)
            if whole and index not in self._packed and (span.cols == tile.cols or span.rows == 1):
                at = (left - span.col) * self._bits // 8
                self._make(index, found[rows.start * width + at :][: tile.rows * row_bytes(tile.cols, self._bits)])
                continue
            begin, end = (left - tile.col) * self._bits // 8, row_bytes(right - tile.col, self._bits)
            at = (left - span.col) * self._bits // 8
            piece = self._held(index, tile)[top - tile.row : bottom - tile.row, begin:end]
            out[rows, at : at + piece.shape[1]] = piece
            self._left[index] -= piece.size
            if self._left[index] <= 0:
                del self._packed[index]
        return found

    def params(self, span: TileSpan) -> QuantParams:
        whole = self._encoding.trials.chosen.whole
        if whole is not None:
            tensor = self._encoding.tensor
            stored = QuantParams(*self.scales(span), part(whole, span, self._plan).codebook)
            return spread(stored, tensor.info, tensor.scheme, self._plan)
        found = [self._of_tile(index, tile, span) for index, tile in self._covering(span)]
        if len(found) == 1:
            return found[0]
        wide = self._encoding.tiles[0].cols != self._plan.cols

        def joined(values: list[Any]) -> Any:
            across = len(found) // span.rows if wide else 1
            rows = [np.concatenate(values[at : at + across], axis=1) for at in range(0, len(values), across)]
            return np.concatenate(rows)

        zeros = [p.zero for p in found if p.zero is not None]
        books = [p.codebook for p in found if p.codebook is not None]
        own_rows = bool(books) and books[0].tables > 1
        book = sorted_levels(np.concatenate([b.levels for b in books])) if own_rows else books[0] if books else None
        blocks = joined_blocks([p.blocks for p in found if p.blocks is not None], joined)
        return QuantParams(joined([p.scale for p in found]), joined(zeros) if zeros else None, book, blocks)

    def _of_tile(self, index: int, tile: TileSpan, span: TileSpan) -> QuantParams:
        """The parameters of what a tile and a span have in common."""
        if index not in self._params:
            self._held(index, tile)
        params = self._params[index]
        top, bottom = max(tile.row, span.row), min(tile.row + tile.rows, span.row + span.rows)
        left, right = max(tile.col, span.col), min(tile.col + tile.cols, span.col + span.cols)
        if (bottom - top, right - left) == (tile.rows, tile.cols):
            return params
        group = self._plan.group
        rows = slice(top - tile.row, bottom - tile.row)
        groups = slice((left - tile.col) // group, -(-(right - tile.col) // group))

        def cut(values: Floats) -> Floats:
            return values[rows, groups]

        book = params.codebook
        if book is not None and book.tables > 1:
            book = book.rows(rows.start, rows.stop)
        blocks = None if params.blocks is None else params.blocks.cut(rows, groups)
        return QuantParams(cut(params.scale), None if params.zero is None else cut(params.zero), book, blocks)

    def scales(self, span: TileSpan) -> tuple[Floats, Floats | None]:
        stored = self._encoding.trials.chosen.stored
        if stored is None:
            params, height = self.params(span), self._plan.height
            assert span.row % height == 0, "spans that write scales begin with a block"
            return params.scale[::height], params.zero
        if self._plan.shared == "columns":
            return stored.scale, stored.zero
        rows = slice(span.row, span.row + span.rows)
        return stored.scale[rows], None if stored.zero is None else stored.zero[rows]

    def overall(self) -> float:
        return self._encoding.trials.chosen.store.overall

    def levels(self, span: TileSpan) -> Floats:
        book = self.params(span).codebook
        assert book is not None
        return book.levels


class Taking:
    """A tensor of a file that holds its codes already, or is kept there."""

    def __init__(self, tensor: Decided, stored: Codes | Raw) -> None:
        self.tensor, self._stored = tensor, stored

    def prepare(self) -> Visit:
        """Nothing."""
        return once([])

    def piece(self) -> AbstractContextManager[Codes | Raw]:
        """The stored codes."""
        return nullcontext(self._stored)

    def end(self) -> None:
        """Nothing was measured."""


Produce = Callable[[Sequence[str]], Iterator[Producer]]
"""The producers of tensors that are written one after another by one thread, by their names."""


def from_floats(
    source: Source, tensors: Mapping[str, Decided], digest_kind: str, whole: Source | None = None
) -> Produce:
    """Producers of the tensors of a source, by their names, as it was decided for them. whole: the source of all
    tensors, where this one is a part of it. Raises DataError where a pipe would have to be read twice."""

    def read(name: str, start: int, block: NDArray[np.uint8]) -> None:
        (whole or source).read(name, start, block.data)

    if is_stream(source) and (shared := next(filter(None, (sharing(n, tensors) for n in tensors)), None)):
        problem = f"the scale of {printable(shared[0])} is shared with {printable(shared[1])}"
        hint = "name a file: from a pipe tensors are read one after another"
        raise DataError(problem, place=[source.path], hint=hint)
    largest = Largest(tensors, read)

    def one(tensor: Decided) -> Producer:
        if tensor.scheme is None:
            return Copying(source, tensor, digest_kind)
        return Encoding(source, tensor, digest_kind, largest)

    def produce(names: Sequence[str]) -> Iterator[Producer]:
        wanted = [tensors[name] for name in names]
        for rules, run in stacking.runs(wanted) if len(wanted) > 1 and not is_stream(source) else [(None, wanted)]:
            together: Iterator[Producer] | None = None
            if rules is not None and len(run) > 1:
                raw = _buffers.take("raw", sum(tensor.info.nbytes for tensor in run))
                together = stacking.stacked(source, run, rules, digest_kind, raw)
            yield from together if together is not None else map(one, run)

    return produce
