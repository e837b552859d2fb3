"""Whether a quantized file is what it says: what it holds is possible, and with its original, true.

By itself: headers are as they were written; shapes, kept tensors (by digest), padding, and the range of codes, scales,
zero points and levels. Another code or scale that is possible too cannot be told from the right one.

With the original: names, types, shapes and digests of its tensors; every code is found again from the stored parameters
with the very rounding that was used, and the errors are measured again. A file of the same version of quantcli also has
its parameters found again: a scale may differ in its last bit and leave all codes and the sum of errors as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import __version__, kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES
from quantcli.each import Each
from quantcli.formats import code_grid
from quantcli.kernels import QuantParams, Sums, Tile
from quantcli.layouts.native.model import Model, Tensor
from quantcli.matching import open_original
from quantcli.models import open_model
from quantcli.passes import checks, verify_whole
from quantcli.passes.batches import Crew, run
from quantcli.passes.findings import CHECKS, OF_ORIGINALS, Findings, Verified
from quantcli.passes.largest import Largest
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.producing import searching
from quantcli.passes.tiles import COPY, Progress, Task, Visit
from quantcli.planning.statistics import load
from quantcli.stores.pipelines import Member
from quantcli.stores.places import reachable
from quantcli.tensors import digits
from quantcli.tensors.digest import Digested, kind_of
from quantcli.tensors.fit import Misfit, NotFinite
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.second_order import Degenerate
from quantcli.tensors.tiles import as_tile, read_span, span_bytes
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes
    from quantcli.layouts.native.stored import StoredQuantized
    from quantcli.planning.statistics import InputStatistics
    from quantcli.stores import Source
    from quantcli.tensors.decided import Decided


def verify(
    model: Model,
    original: Model | None,
    *,
    threads: int,
    progress: Progress | None,
    statistics: InputStatistics | None = None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> Verified:
    """What is wrong with a quantized model. statistics: what its columns were weighed by, where that is known. crew:
    the workers that look at tensors, None for threads here; opening: how they open the models. Raises DataError when a
    file cannot be read to its end."""
    found = Findings()
    made = Verification(model, original, statistics)
    verify_whole.headers(model, found)
    if original is not None:
        verify_whole.names_and_shapes(model, original, found)
        if not made.again:
            found.unchecked.append(f"scales are not recomputed: another version wrote them, not {__version__}")
    items = Each(
        len(model), lambda: map(made.item, model.values()), lambda n: made.item(model[model.entries[n].info.name])
    )
    run(made, items, threads=threads, progress=progress, crew=crew, opening=opening, take=found.put)
    model.source.check_unchanged()
    return Verified(
        tensors=len(model),
        quantized=sum(t.scheme is not None for t in model.values()),
        against=original.source.path if original is not None else None,
        findings=found.ordered(model),
        unchecked=tuple(dict.fromkeys(found.unchecked)),
        checks=CHECKS if original is not None else tuple(c for c in CHECKS if c not in OF_ORIGINALS),
    )


WEIGHTED = ("scales weighted by importances", "--importance"), ("codes and scales chosen by statistics", "--statistics")


class Verification:
    """The pass over the tensors of a model, and the passes it takes to find parameters again."""

    def __init__(self, model: Model, original: Model | None, statistics: InputStatistics | None) -> None:
        self.model, self.original, self.statistics = model, original, statistics
        self.table = kernels.load()
        self.again = all(d.tool == f"quantcli {__version__}" for d in model.documents)
        self.largest = Largest(_Comparable(self), self._original)

    @property
    def sources(self) -> list[Source]:
        """What is read."""
        return [one.source for one in (self.model, self.original) if one is not None]

    def item(self, tensor: Tensor) -> Item:
        """A tensor, with the bytes that are read of it."""
        stored = tensor.stored
        whole = stored.grouping is None or self.is_comparable(tensor)
        return Item(stored.info.name, stored.info.nbytes if whole else stored.bytes_out)

    def is_comparable(self, tensor: Tensor) -> bool:
        """Whether the original has a tensor of this name, dtype and shape."""
        other = self.original.get(tensor.name) if self.original is not None else None
        return other is not None and verify_whole.alike(tensor, other)

    def visit(self, item: Item, advance: Advance) -> Visit:
        """What is wrong with a tensor."""
        return _Look(self, item.name, advance).visit()

    def source_of(self, name: str) -> Tensor:
        """A tensor of the original."""
        assert self.original is not None
        return self.original[name]

    def _original(self, name: str, start: int, block: NDArray[np.uint8]) -> None:
        _read(self.source_of(name), start, block.data)


class _Comparable(Mapping[str, "Decided"]):
    """What was decided for the tensors that can be compared with the original."""

    def __init__(self, run: Verification) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Decided:
        tensor = self._run.model[name]
        if not self._run.is_comparable(tensor):
            raise KeyError(name)
        return tensor.stored.decided

    def __iter__(self) -> Iterator[str]:
        return (tensor.name for tensor in self._run.model.values() if self._run.is_comparable(tensor))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def opened(member: Member, before: Member | None, *, as_float: bool, statistics: str | None) -> Iterator[Verification]:
    """The pass on a worker. before: the original, where there is one."""
    with ExitStack() as stack:
        model, original = stack.enter_context(open_model(member.path, variant=member.variant)), None
        if before is not None:
            names = model.stored
            floats = open_original(before.path, names, as_float=as_float, variant=before.variant)
            original = stack.enter_context(floats).stored
        yield Verification(model.stored, original, load(statistics) if statistics is not None else None)


def opening_of(member: Member, before: Member | None, *, as_float: bool, statistics: str | None) -> Opening:
    """How workers open a model, and its original. statistics: the path of what its columns were weighed by."""
    own = replace(member, path=reachable(member.path))
    other = replace(before, path=reachable(before.path)) if before is not None else None
    weighed = reachable(statistics) if statistics is not None else None
    return partial(opened, own, other, as_float=as_float, statistics=weighed)


class _Look:
    """What is found on one tensor."""

    def __init__(self, run: Verification, name: str, advance: Advance) -> None:
        self.run, self.name, self._advance = run, name, advance
        self.tensor, self.table = run.model[name], run.table
        self._comparable = run.is_comparable(self.tensor)
        self.found = Findings()
        self.add = partial(self.found.add, name)

    def visit(self) -> Visit:
        """Look at all of it."""
        yield from self._visit()
        return self.found.of_tensor()

    def _visit(self) -> Visit:
        tensor, run, name = self.tensor, self.run, self.name
        stored = tensor.stored
        if stored.digest is None:
            self.found.unchecked.append("the header has no digests of the original weights")
        if stored.grouping is not None and not self._comparable:
            yield [partial(checks.whole, self.add, tensor), *self._tiles(None, None)]
            return
        # The original bytes of a kept tensor are in the file itself.
        origin = tensor if stored.grouping is None else run.source_of(name)
        weights = Digested(partial(_read, origin), origin.stored.info.nbytes, kind_of(stored.digest))
        if stored.grouping is None:
            starts = range(0, stored.info.nbytes, COPY)
            yield weights.apart() + [partial(self._kept, start, weights) for start in starts]
        else:
            again = self._trials(stored) if run.again else None
            if again is not None:
                try:
                    yield from run.largest.tell(again)
                    yield from searching(again, partial(self._see, again))
                except (NotFinite, Misfit, Degenerate):
                    self.add("scales", "its method finds no scales for the weights of the original")
                    again = None
            first: list[Task] = [partial(checks.whole, self.add, tensor), *weights.apart()]
            found = yield [*first, *self._tiles(weights, again)]
            sums = found[len(first) :]
            if None not in sums:
                self._metrics(metric.total(sums))
        if weights.found() != stored.digest:
            if stored.grouping is None:
                self.add("digest", "its bytes do not have the digest in the header")
            else:
                self.add("source", "the original's bytes do not have the digest in the header")

    def _trials(self, stored: StoredQuantized) -> Trials | None:
        """What finds the parameters of a tensor again; None where its importances or statistics are not known."""
        columns = None
        if stored.statistics is not None:
            if self.run.statistics is None:
                known = WEIGHTED[stored.scheme.second_order]
                self.found.unchecked.append(f"{known[0]} are not recomputed without {known[1]}")
                return None
            columns = self.run.statistics.of(stored.info, stored.grouping)
            if columns is None or columns.digest != stored.statistics:
                what = "statistics" if stored.scheme.second_order else "importances"
                self.add("scales", f"it was weighted by other {what}")
                return None
        return Trials(replace(stored.decided, columns=columns), rival=None)

    def _tiles(self, weights: Digested | None, again: Trials | None) -> list[Task]:
        plan = self.tensor.stored.grouping
        assert plan is not None
        return [partial(self._tile, span, weights, again) for span in plan.tiles()]

    def _kept(self, start: int, weights: Digested) -> None:
        """A run of bytes of a tensor that is stored as it was."""
        tensor, name = self.tensor, self.name
        size = min(COPY, tensor.stored.info.nbytes - start)
        block = tensor.read_bytes(name, start, size)
        weights.see(start, block.data)
        if self._comparable:
            same = self.run.source_of(name).read_bytes(name, start, size) == block
            if not same.all():
                at = (start + int(same.argmin())) * 8 // DTYPES[tensor.dtype].bits
                index = checks.index_of(at, tensor.shape)
                self.add("source", "its bytes differ from the original", at, index=index)
        self._advance(size)

    # -- tiles of quantized tensors

    def _see(self, again: Trials, index: int) -> None:
        """One span of a pass that finds parameters again."""
        span, source = again.spans[index], self.run.source_of(self.name)

        def read(start: int, block: NDArray[np.uint8]) -> None:
            _read(source, start, block.data)

        raw = np.empty(span_bytes(again.chosen, span, strips=again.by_strips), np.uint8)
        tile = read_span(again.chosen, span, read, raw, strips=again.by_strips)
        with np.errstate(all="ignore"):  # of an original that is another one
            again.see(self.table, tile, index)

    def _tile(self, span: TileSpan, weights: Digested | None, again: Trials | None) -> tuple[Sums, int] | None:
        """A tile; its errors, where it can be compared with its original."""
        tensor, add = self.tensor, self.add
        plan = tensor.stored.grouping
        assert plan is not None
        packed = tensor.packed(span)
        with np.errstate(all="ignore"):  # of damaged parameters
            checks.padding(add, tensor, packed, span)
            params = checks.params(add, tensor, span)
            if weights is None:
                if params is not None:
                    checks.codes(add, tensor, packed, span, params, self.table)
                self._advance(len(packed))
                return None
            size = DTYPES[tensor.dtype].bits // 8
            start = (span.row * plan.cols + span.col) * size
            raw = self.run.source_of(self.name).read_bytes(self.name, start, span.rows * span.cols * size)
            weights.see(start, raw.data)
            sums = None
            if params is not None:
                tile = as_tile(raw, tensor.dtype, span, plan.group)
                sums = self._codes(tile, span, params, packed, again), span.rows * span.cols
                if again is not None and again.second_order is None:
                    self._params(tile, span, params, again)
        self._advance(len(raw))
        return sums

    def _params(
        self,
        tile: Tile,
        span: TileSpan,
        params: QuantParams,
        again: Trials,
        made: QuantParams | None = None,
    ) -> None:
        """Whether the parameters of a tile are those that its method finds, which may be known."""
        scheme, plan = again.chosen.scheme, again.plan
        try:
            wanted = again.params(self.table, tile, span) if made is None else made
        except (NotFinite, Misfit):
            self.add("scales", "its method finds no scales for the weights of the original")
            return
        zero = wanted.zero
        if zero is not None and scheme.zero_point == "int":
            zero = zero + np.float32(0)  # no -0
        own, found_again = (p.scale[:: plan.height] for p in (params, wanted))
        pairs = [("a scale", own, found_again), ("a zero point", params.zero, zero)]
        if params.codebook is not None and wanted.codebook is not None:
            pairs.append(("a level", params.codebook.levels, wanted.codebook.levels))
        for what, stored, found in pairs:
            if stored is not None and found is not None:
                where = checks.differ(stored, found)
                checks.place_in(self.add, f"{what} is not what its method computes", where, span, plan)

    def _codes(self, tile: Tile, span: TileSpan, params: QuantParams, packed: Bytes, trials: Trials | None) -> Sums:
        """The errors of a tile; its codes are found again with the very rounding they were made with. trials: with
        which parameters are found again."""
        stored = self.tensor.stored
        assert stored.scheme is not None and stored.grouping is not None
        grid = code_grid(stored.scheme)
        again = np.empty(len(packed), np.uint8)
        if trials is not None and trials.second_order is not None:
            try:
                made = trials.encode(self.table, tile, span, again)
            except (NotFinite, Misfit):
                self.add("scales", "its method finds no scales for the weights of the original")
                return self.table.measure(tile, params, grid, packed)
            self._params(tile, span, params, trials, made.params)
            sums = made.sums
        elif stored.scheme.second_order:  # codes follow from the statistics, which are not at hand
            return self.table.measure(tile, params, grid, packed)
        else:
            sums = self.table.encode(tile, params, grid, again, preserve=stored.scheme.preserves_sums)
        if np.array_equal(again, packed):
            return sums
        expected, found = self._unpacked(again, span, grid.bits), self._unpacked(packed, span, grid.bits)
        wrong = expected != found
        if wrong.any():  # else it is the padding
            first = int(wrong.argmax())
            at = checks.flat(first, span, stored.grouping)
            self.add(
                "codes",
                "a code is not the one of its weight under the stored scales",
                at,
                int(wrong.sum()),
                index=checks.index_of(at, stored.info.shape),
                stored=int(found[first]),
                expected=int(expected[first]),
            )
        return self.table.measure(tile, params, grid, packed)

    def _unpacked(self, packed: Bytes, span: TileSpan, bits: int) -> NDArray[Any]:
        """The codes of a tile as they are stored."""
        kind = self.tensor.stored.grouping.digits if self.tensor.stored.grouping is not None else None
        found: NDArray[Any] = checks.unpacked(self.table, packed, span, bits).ravel()
        return found if kind is None else digits.canonical(found, kind)

    def _metrics(self, found: metric.Metrics) -> None:
        stored = self.tensor.stored.metrics
        assert stored is not None
        for what, word in (
            ("power", "power of the weights"),
            ("sse", "squared error"),
            ("max_abs_error", "largest error"),
            ("clipped", "number of clipped weights"),
        ):
            if getattr(stored, what) != getattr(found, what):
                numbers = f"{getattr(stored, what)!r} in the header, {getattr(found, what)!r} measured"
                self.add("metrics", f"the {word} is {numbers}")


def _read(tensor: Tensor, start: int, block: memoryview) -> None:
    block[:] = tensor.read_bytes(tensor.name, start, len(block)).data
