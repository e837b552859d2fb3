"""What the errors of stored codes cost in the outputs of layers, as statistics of their inputs predict it: whatever
layout the codes are in, and whoever chose them, by the sums that `quantize` makes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError, UsageError, printable
from quantcli.experts import transposed
from quantcli.floats import decoded
from quantcli.layouts.native import model as native
from quantcli.models import Model, View
from quantcli.passes.batches import run
from quantcli.passes.compare import values_of
from quantcli.passes.performing import Advance, Item
from quantcli.passes.tiles import Progress, Visit
from quantcli.planning.plan import check_memory
from quantcli.planning.recipe_keys import BATCH_NORM, HELP
from quantcli.planning.statistics import InputStatistics, inputs_first, load, of_norms
from quantcli.tensors.by_expert import learned
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.second_order import Degenerate, Output

if TYPE_CHECKING:
    from quantcli.stores import Source
    from quantcli.tensors.by_expert import OfExperts
    from quantcli.tensors.decided import Columns
    from quantcli.tensors.rows import Grouping
    from quantcli.tensors.second_order import SecondOrder

    Views = Mapping[str, View]

NO_OUTPUTS = "of mean squares alone no errors of outputs follow: means or second moments of a layer's inputs are needed"


@dataclass(frozen=True, slots=True)
class Predicted:
    """The pass over the quantized tensors whose inputs are known. known: what is known, and the rows that meet it."""

    pairs: Mapping[str, tuple[View, View]]
    known: Mapping[str, tuple[Columns, Grouping]]
    sources: Sequence[Source]

    def measured(self, threads: int, progress: Progress | None) -> dict[str, Output]:
        """What errors cost in the outputs of layers, by the names of their weights, where that is known. Raises
        DataError for moments that no inputs have, and for weights that are not finite."""
        items = [Item(name, pair[1].info.nbytes) for name, pair in self.pairs.items()]
        found = list[Output | None]()
        run(self, items, threads=threads, progress=progress, take=found.append)
        for source in self.sources:
            source.check_unchanged()
        return {item.name: output for item, output in zip(items, found) if output is not None}

    def visit(self, item: Item, advance: Advance) -> Visit:
        """What errors cost in the output of a layer; None where its inputs were 0 in all samples."""
        columns, rows = self.known[item.name]
        try:
            how = yield from learned(kernels.load(), columns)
        except Degenerate:
            return None
        costs = yield [partial(self._cost, item, how, span, advance) for span in _spans(rows)]
        found = [cost for cost in costs if cost is not None]
        return reduce(add, found) if found else None

    def _cost(self, item: Item, how: SecondOrder | OfExperts, span: TileSpan, advance: Advance) -> Output | None:
        """That of some rows; None where nothing is known of the inputs of any."""
        (before, after), rows = self.pairs[item.name], self.known[item.name][1]
        first = span.row * span.cols
        values = values_of(before, after, first, first + span.rows * span.cols)
        weights, codes = (np.ascontiguousarray(v).reshape(span.rows, span.cols) for v in values)
        if not (np.isfinite(weights).all() and np.isfinite(codes).all()):
            problem = "it holds NaN or infinity, of which no error of an output follows"
            raise DataError(problem, place=[self.sources[-1].path, printable(item.name)], hint="leave out --statistics")
        parts = [(part, own) for part, own in how.parts(span, rows) if own is not None]
        costs = [own.cost(kernels.load(), weights[part], codes[part]) for part, own in parts]
        advance(item.nbytes * span.rows // max(rows.rows, 1))
        return reduce(add, costs) if costs else None


def _spans(rows: Grouping) -> Iterator[TileSpan]:
    """Tiles of whole rows, for an error counts with those of all other columns."""
    height = rows.tile_rows or 1
    for row in range(0, rows.rows, height):
        yield TileSpan(row, min(height, rows.rows - row), 0, rows.cols)


def prepared(
    path: str, original: Model, views: tuple[Views, Views], source: Source, *, memory: int | None
) -> tuple[Predicted, str]:
    """The pass over a model, and what there is to say of the statistics. path: a file of them, or `batch-norm`. views:
    the tensors of the original and of the quantized model, under the same names; source: of the latter. memory: bytes
    that the second moments of one layer may take.

    Raises UsageError, before any weight is read, for statistics that are none of these layers' inputs, or of which
    nothing about outputs follows.
    """
    if path == BATCH_NORM:
        from quantcli.planning.batch_norms import assumed

        found = of_norms(original.source)
        line = assumed(len(found.entries))
    else:
        found = load(path)
        line = found.left_over([view.info for view in views[0].values()], original.path)
    if not found.of_outputs:
        raise UsageError(NO_OUTPUTS, place=[path, "--statistics"], hint=HELP)
    coded = [name for name, view in views[1].items() if view.scheme is not None and name in views[0]]
    before, after = _inputs_last(original, views, source, coded)
    known = dict(_known(found, before, coded, memory))
    pairs = {name: (before[name], after[name]) for name in known}
    return Predicted(pairs, known, (original.source, source)), line


def _known(
    statistics: InputStatistics, before: Views, coded: Sequence[str], memory: int | None
) -> Iterator[tuple[str, tuple[Columns, Grouping]]]:
    """What is known of the inputs of quantized tensors, by name."""
    for name in coded:
        rows = statistics.rows(before[name].info)
        columns = statistics.of(before[name].info, rows)
        if columns is not None and columns.correlated:
            check_memory(columns, memory, [printable(name), "--statistics"])
            yield name, (columns, rows)


def _inputs_last(
    original: Model, views: tuple[Views, Views], source: Source, coded: Sequence[str]
) -> tuple[Views, Views]:
    """The tensors with inputs as columns: matrices that both models have as [in, out] are read transposed. What a
    layout has as [out, in] was matched with the original like that."""
    before, after = views
    turned = inputs_first(original.source)
    names = {name for name in coded if name in turned and after[name].outputs_first is not True}
    if not names or any(before[name].info.shape != original[name].info.shape for name in names):
        return views
    floats = _transposed(original, original.source, names), _transposed(after, source, names)
    return {**before, **floats[0]}, {**after, **floats[1]}


def _transposed(views: Views, source: Source, names: Set[str]) -> Views:
    """Some matrices of a source, decoded to float32 and transposed."""
    own = {name: views[name] for name in sorted(names)}
    floats = decoded(source, own, dict.fromkeys(own, "F32"), moved=True)
    return Model(native.Model(transposed(floats, names)), source.path, {})
