"""Whether a quantized file is what it says: what it holds is possible, and with its original, true.

By itself: headers are as they were written; shapes, kept tensors (by digest), padding, and the range of codes, scales,
zero points and levels. Another code or scale that is possible too cannot be told from the right one.

With the original: names, types, shapes and digests of its tensors; every code is found again from the stored parameters
with the very rounding that was used, and the errors are measured again. A file of the same version of quantcli also has
its parameters found again: a scale may differ in its last bit and leave all codes and the sum of errors as they are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli import __version__, kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES
from quantcli.errors import printable
from quantcli.formats import code_grid
from quantcli.kernels import QuantParams, Sums, Tile
from quantcli.layouts.native.model import Model, Tensor
from quantcli.passes import checks, folder_checks
from quantcli.passes.findings import CHECKS, OF_ORIGINALS, Findings, Verified
from quantcli.passes.largest import Largest
from quantcli.passes.producing import searching
from quantcli.passes.tiles import COPY, Progress, Task, Visit, begun, walk
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


def verify(
    model: Model,
    original: Model | None,
    *,
    threads: int,
    progress: Progress | None,
    importance: InputStatistics | None = None,
) -> Verified:
    """What is wrong with a quantized model. importance: what its columns were weighed by, where that is known. Raises
    DataError when a file cannot be read to its end."""
    found = Findings()
    run = _Run(model, original, found, importance)
    run.headers()
    if original is not None:
        run.compare(original)
    run.tensors(threads, progress)
    model.source.check_unchanged()
    return Verified(
        tensors=len(model),
        quantized=sum(t.scheme is not None for t in model.values()),
        against=original.source.path if original is not None else None,
        findings=found.ordered(model),
        unchecked=tuple(dict.fromkeys(run.unchecked)),
        checks=CHECKS if original is not None else tuple(c for c in CHECKS if c not in OF_ORIGINALS),
    )


WEIGHTED = ("scales weighted by importances", "--importance"), ("codes and scales chosen by statistics", "--statistics")


class _Run:
    """One pass over the tensors of a model, and the passes it takes to find parameters again."""

    def __init__(
        self,
        model: Model,
        original: Model | None,
        found: Findings,
        importance: InputStatistics | None,
    ) -> None:
        self.model, self.original, self.importance = model, original, importance
        self.table = kernels.load()
        self.add = found.add
        self.unchecked: list[str] = []
        self._again = all(d.tool == f"quantcli {__version__}" for d in model.documents)
        self._comparable: set[str] = set()
        self._largest = Largest({}, self._original)
        self._advance = begun(None, 0)

    # -- before any weight

    def headers(self) -> None:
        """Whether every header is as it was written, and every file has one of ours."""
        source = self.model.source
        documents = iter(self.model.documents)
        for name, shard in source.shards.items():
            place = f"{printable(name)}: " if name else ""
            if not shard.documents:
                self.add("", "structure", f"{place}it has no quantcli header")
                continue
            intact = next(documents).intact
            if intact is None:
                self.unchecked.append("the header has no digest of its own")
            elif not intact:
                self.add("", "structure", f"{place}the header was changed after it was written")
        if source.folder is not None:
            for problem in folder_checks.faults(source, source.folder, [t.stored for t in self.model.values()]):
                self.add("", "structure", problem)

    def compare(self, original: Model) -> None:
        """Whether names, types and shapes are those of the original."""
        for name, tensor in self.model.items():
            if name not in original:
                self.add(name, "source", "it is not in the original")
                continue
            info, here = original[name].stored.info, tensor.stored.info
            if (info.dtype, info.shape) != (here.dtype, here.shape):
                there = f"{info.dtype} {list(info.shape)}"
                self.add(name, "source", f"it is {there} in the original, not {here.dtype} {list(here.shape)}")
            else:
                self._comparable.add(name)
        for name in original:
            if name not in self.model:
                self.add(name, "source", "it is missing here")
        if not self._again:
            self.unchecked.append(f"scales are not recomputed: another version wrote them, not {__version__}")

    # -- a tensor

    def tensors(self, threads: int, progress: Progress | None) -> None:
        """Check every tensor."""
        side = self.model if self.original is None else self.original
        self._advance = begun(progress, sum(f.size for f in side.source.files()))
        decided = {name: tensor.stored.decided for name, tensor in self.model.items() if name in self._comparable}
        self._largest = Largest(decided, self._original)
        walk((self._visit(name) for name in self.model), threads=threads)

    def _visit(self, name: str) -> Visit:
        tensor = self.model[name]
        stored = tensor.stored
        if stored.digest is None:
            self.unchecked.append("the header has no digests of the original weights")
        if stored.grouping is not None and name not in self._comparable:
            yield [partial(checks.whole, partial(self.add, name), tensor), *self._tiles(name, None, None)]
            return
        # The original bytes of a kept tensor are in the file itself.
        origin = tensor if stored.grouping is None else self._source(name)
        weights = Digested(partial(_read, origin), origin.stored.info.nbytes, kind_of(stored.digest))
        if stored.grouping is None:
            starts = range(0, stored.info.nbytes, COPY)
            yield weights.apart() + [partial(self._kept, name, start, weights) for start in starts]
        else:
            again = self._trials(stored) if self._again else None
            if again is not None:
                try:
                    yield from self._largest.tell(again)
                    yield from searching(again, partial(self._see, name, again))
                except (NotFinite, Misfit, Degenerate):
                    self.add(name, "scales", "its method finds no scales for the weights of the original")
                    again = None
            first: list[Task] = [partial(checks.whole, partial(self.add, name), tensor), *weights.apart()]
            found = yield [*first, *self._tiles(name, weights, again)]
            sums = found[len(first) :]
            if None not in sums:
                self._metrics(name, metric.total(sums))
        if weights.found() != stored.digest:
            if stored.grouping is None:
                self.add(name, "digest", "its bytes do not have the digest in the header")
            else:
                self.add(name, "source", "the original's bytes do not have the digest in the header")

    def _trials(self, stored: StoredQuantized) -> Trials | None:
        """What finds the parameters of a tensor again; None where its importances or statistics are not known."""
        columns = None
        if stored.importance is not None:
            if self.importance is None:
                known = WEIGHTED[stored.scheme.second_order]
                self.unchecked.append(f"{known[0]} are not recomputed without {known[1]}")
                return None
            columns = self.importance.of(stored.info, stored.grouping)
            if columns is None or columns.digest != stored.importance:
                what = "statistics" if stored.scheme.second_order else "importances"
                self.add(stored.info.name, "scales", f"it was weighted by other {what}")
                return None
        return Trials(replace(stored.decided, importance=columns), rival=None)

    def _tiles(self, name: str, weights: Digested | None, again: Trials | None) -> list[Task]:
        plan = self.model[name].stored.grouping
        assert plan is not None
        return [partial(self._tile, name, span, weights, again) for span in plan.tiles()]

    def _original(self, name: str, start: int, block: NDArray[np.uint8]) -> None:
        _read(self._source(name), start, block.data)

    def _source(self, name: str) -> Tensor:
        assert self.original is not None
        return self.original[name]

    def _kept(self, name: str, start: int, weights: Digested) -> None:
        """A run of bytes of a tensor that is stored as it was."""
        tensor = self.model[name]
        size = min(COPY, tensor.stored.info.nbytes - start)
        block = tensor.read_bytes(name, start, size)
        weights.see(start, block.data)
        if name in self._comparable:
            same = self._source(name).read_bytes(name, start, size) == block
            if not same.all():
                at = (start + int(same.argmin())) * 8 // DTYPES[tensor.dtype].bits
                index = checks.index_of(at, tensor.shape)
                self.add(name, "source", "its bytes differ from the original", at, index=index)
        self._advance(size)

    # -- tiles of quantized tensors

    def _see(self, name: str, again: Trials, index: int) -> None:
        """One span of a pass that finds parameters again."""
        span, source = again.spans[index], self._source(name)

        def read(start: int, block: NDArray[np.uint8]) -> None:
            _read(source, start, block.data)

        raw = np.empty(span_bytes(again.chosen, span, strips=again.by_strips), np.uint8)
        tile = read_span(again.chosen, span, read, raw, strips=again.by_strips)
        with np.errstate(all="ignore"):  # of an original that is another one
            again.see(self.table, tile, index)

    def _tile(
        self, name: str, span: TileSpan, weights: Digested | None, again: Trials | None
    ) -> tuple[Sums, int] | None:
        """A tile; its errors, where it can be compared with its original."""
        tensor, add = self.model[name], partial(self.add, name)
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
            raw = self._source(name).read_bytes(name, start, span.rows * span.cols * size)
            weights.see(start, raw.data)
            sums = None
            if params is not None:
                tile = as_tile(raw, tensor.dtype, span, plan.group)
                sums = self._codes(name, tile, span, params, packed, again), span.rows * span.cols
                if again is not None and again.second_order is None:
                    self._params(name, tile, span, params, again)
        self._advance(len(raw))
        return sums

    def _params(
        self,
        name: str,
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
            self.add(name, "scales", "its method finds no scales for the weights of the original")
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
                checks.place_in(partial(self.add, name), f"{what} is not what its method computes", where, span, plan)

    def _codes(
        self, name: str, tile: Tile, span: TileSpan, params: QuantParams, packed: Bytes, trials: Trials | None
    ) -> Sums:
        """The errors of a tile; its codes are found again with the very rounding they were made with. trials: with
        which parameters are found again."""
        stored = self.model[name].stored
        assert stored.scheme is not None and stored.grouping is not None
        grid = code_grid(stored.scheme)
        again = np.empty(len(packed), np.uint8)
        if trials is not None and trials.second_order is not None:
            try:
                made = trials.encode(self.table, tile, span, again)
            except (NotFinite, Misfit):
                self.add(name, "scales", "its method finds no scales for the weights of the original")
                return self.table.measure(tile, params, grid, packed)
            self._params(name, tile, span, params, trials, made.params)
            sums = made.sums
        elif stored.scheme.second_order:  # codes follow from the statistics, which are not at hand
            return self.table.measure(tile, params, grid, packed)
        else:
            sums = self.table.encode(tile, params, grid, again, preserve=stored.scheme.preserves_sums)
        if np.array_equal(again, packed):
            return sums
        expected, found = (checks.unpacked(self.table, p, span, grid.bits).ravel() for p in (again, packed))
        wrong = expected != found
        if wrong.any():  # else it is the padding
            first = int(wrong.argmax())
            at = checks.flat(first, span, stored.grouping)
            self.add(
                name,
                "codes",
                "a code is not the one of its weight under the stored scales",
                at,
                int(wrong.sum()),
                index=checks.index_of(at, stored.info.shape),
                stored=int(found[first]),
                expected=int(expected[first]),
            )
        return self.table.measure(tile, params, grid, packed)

    def _metrics(self, name: str, found: metric.Metrics) -> None:
        stored = self.model[name].stored.metrics
        assert stored is not None
        for what, word in (
            ("power", "power of the weights"),
            ("sse", "squared error"),
            ("max_abs_error", "largest error"),
            ("clipped", "number of clipped weights"),
        ):
            if getattr(stored, what) != getattr(found, what):
                numbers = f"{getattr(stored, what)!r} in the header, {getattr(found, what)!r} measured"
                self.add(name, "metrics", f"the {word} is {numbers}")


def _read(tensor: Tensor, start: int, block: memoryview) -> None:
    block[:] = tensor.read_bytes(tensor.name, start, len(block)).data
