"""Errors measured again: stored codes against the original weights, with the sums the writer made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, listed, printable
from quantcli.formats import code_grid
from quantcli.kernels import QuantParams, Sums
from quantcli.layouts import evidence
from quantcli.layouts.native import alike
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.model import Model, Tensor
from quantcli.layouts.native.results import Results
from quantcli.layouts.native.stored import StoredTensor
from quantcli.matching import open_original
from quantcli.metrics import Metrics
from quantcli.models import open_model
from quantcli.passes.batches import Crew, run
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.tiles import COPY, Progress, Visit
from quantcli.stores import signals
from quantcli.stores.pipelines import Member
from quantcli.stores.places import reachable
from quantcli.tensors.digest import Digested, digest_of, kind_of
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.tiles import as_tile

if TYPE_CHECKING:
    from quantcli.kernels import Bytes
    from quantcli.stores import Source


def against(
    model: Model,
    original: Model,
    *,
    threads: int,
    check_digests: bool,
    progress: Progress | None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> Sequence[Metrics | None]:
    """Metrics of every tensor of a quantized model against the original one; None for kept tensors. crew: the workers
    that measure, None for threads here; opening: how they open the models.

    Raises DataError when a tensor is missing in either, has another shape, or (with check_digests) was made from
    other weights: a report against the wrong original would look like a bad quantization.
    """
    _check(model, original, known=check_digests and all(t.stored.digest is not None for t in model.values()))
    items = [Item(names[0], _nbytes(model, names), names) for names in _runs(model, original)]
    made = Against(model, original, check_digests)
    found, changed, order = Results(), list[str](), iter(items)

    def take(of_run: Sequence[tuple[Metrics | None, bool]]) -> None:
        for name, (metrics, same) in zip(next(order).given, of_run):
            found.append(Result(metrics, None))
            if not same:
                changed.append(name)

    run(made, items, threads=threads, progress=progress, crew=crew, opening=opening, take=take)
    if changed:
        raise DataError(
            f"these are not the weights the file was made from (digests differ){_itself(original)}",
            place=[original.source.path, printable(changed[0])],
            hint="use --ignore-digest to measure anyway",
        )
    original.source.check_unchanged()
    return found.metrics


@dataclass(frozen=True, slots=True)
class Against:
    """The pass over the tensors of a quantized model, beside those of its original."""

    model: Model
    original: Model
    check_digests: bool

    @property
    def sources(self) -> tuple[Source, Source]:
        """Both."""
        return self.model.source, self.original.source

    def visit(self, item: Item, advance: Advance) -> Visit:
        """Of each tensor of a run its metrics, None for a kept one, and whether its original has the digest that the
        file tells, which is taken for granted where none is wanted. Given are their names."""
        if len(item.given) > 1:
            [found] = yield [partial(self._together, item.given, advance)]
            return found
        stored, original = self.model[item.name].stored, self.original[item.name]
        kind = self._digest_of(stored)
        weights = Digested(partial(self.original.source.read, item.name), original.stored.info.nbytes, kind)
        if stored.grouping is None:
            yield weights.alone(COPY, advance)
            return [(None, self._is_same(stored, weights.found()))]
        reads = weights.apart()
        spans = list(stored.grouping.tiles())
        sums = yield [*reads, *(partial(self._measured, item.name, weights, advance, span) for span in spans)]
        return [(metric.total(sums[len(reads) :]), self._is_same(stored, weights.found()))]

    def _digest_of(self, stored: StoredTensor) -> str:
        """The kind of the digest that is wanted."""
        return kind_of(stored.digest) if self.check_digests else "none"

    def _is_same(self, stored: StoredTensor, digest: str | None) -> bool:
        return not self.check_digests or digest == stored.digest

    def _together(self, names: Sequence[str], advance: Advance) -> list[tuple[Metrics | None, bool]]:
        """The same of small tensors that are alike, read at once."""
        tensors, info = [self.model[name] for name in names], self.original[names[0]].stored.info
        raw = np.empty((len(names), info.nbytes), np.uint8)
        self.original.source.read_each(names, raw.reshape(-1).data)
        kinds = [self._digest_of(t.stored) for t in tensors]
        same = [self._is_same(t.stored, digest_of(row.data, k)) for t, row, k in zip(tensors, raw, kinds)]
        measured = repeat(None) if tensors[0].scheme is None else self._errors(tensors, raw, info.dtype)
        advance(raw.size)
        return list(zip(measured, same))

    @staticmethod
    def _errors(tensors: Sequence[Tensor], raw: Bytes, dtype: str) -> Iterator[Metrics]:
        """The metrics of tensors that are alike. raw: the bytes of each in the original."""
        scheme, plan = tensors[0].scheme, tensors[0].stored.grouping
        assert scheme is not None and plan is not None
        packed, params = alike.codes(tensors[0], [tensor.name for tensor in tensors])
        grid, table = code_grid(scheme), kernels.load()
        span, rows, numel = TileSpan(0, plan.rows, 0, plan.cols), plan.rows, plan.rows * plan.cols
        for number, own in enumerate(raw):
            at = slice(number * rows, (number + 1) * rows)
            tile, codes = as_tile(own, dtype, span, plan.group), packed[at].reshape(-1)
            sums = table.measure(tile, QuantParams(params.scale[at], None, params.codebook), grid, codes)
            yield Metrics(sums.sse, sums.power, numel, sums.max_abs, sums.clipped)

    def _measured(self, name: str, weights: Digested, advance: Advance, span: TileSpan) -> tuple[Sums, int]:
        tensor = self.model[name]
        scheme, plan = tensor.stored.scheme, tensor.stored.grouping
        assert scheme is not None and plan is not None
        dtype = self.original[name].dtype
        size = DTYPES[dtype].bits // 8
        raw = np.empty(span.rows * span.cols * size, np.uint8)
        weights.fill((span.row * plan.cols + span.col) * size, raw.data)
        tile = as_tile(raw, dtype, span, plan.group)
        found = kernels.load().measure(tile, tensor.params(span), code_grid(scheme), tensor.packed(span))
        advance(len(raw))
        return found, span.rows * span.cols


def _runs(model: Model, original: Model) -> Iterator[tuple[str, ...]]:
    """Names of tensors that follow each other and are measured together, or one by one."""

    def kinds() -> Iterator[tuple[str, object, int]]:
        for name, tensor in model.items():
            stored, dtype = tensor.stored, original[name].dtype
            kind = alike.kind_of(tensor)
            if stored.scheme is None and alike.is_small(tensor.shape):
                kind = None, None, "", "", tensor.shape
            yield name, kind and (kind, dtype), stored.info.numel

    return map(tuple, alike.cut(kinds()))


def _nbytes(model: Model, names: Sequence[str]) -> int:
    """What tensors that are alike count for in the progress."""
    return len(names) * model[names[0]].stored.info.nbytes


@contextmanager
def opened(path: Member, before: Member, *, as_float: bool, check_digests: bool) -> Iterator[Against]:
    """The pass on a worker, by the paths of both models."""
    with (
        open_model(path.path, variant=path.variant) as model,
        open_original(before.path, model, as_float=as_float, variant=before.variant) as original,
    ):
        yield Against(model.stored, original.stored, check_digests)


def opening_of(
    path: Member, before: Member, *, as_float: bool, check_digests: bool
) -> Callable[[], AbstractContextManager[Against]]:
    """How workers open a quantized model and its original."""
    own, other = (replace(member, path=reachable(member.path)) for member in (path, before))
    return partial(opened, own, other, as_float=as_float, check_digests=check_digests)


def _check(model: Model, original: Model, *, known: bool) -> None:
    """Raise DataError with all that does not match: nothing is measured then. known: whether digests tell that these
    are the weights the model was made from; others that are quantized are not floats to measure against."""
    if original.source.decoded_from and not known:
        raise DataError(
            f"the original is quantized itself: {original.source.decoded_from}",
            place=[original.source.path],
            hint="name the floats it was made from, or use compare",
        )
    seen = None if known else evidence.found_in(original.source, evidence.beside(original.source.path))
    if seen is not None and seen.certain:
        raise DataError(
            f"the original is quantized itself ({seen})",
            place=[original.source.path],
            hint="name the floats it was made from, or use compare",
        )
    found = []
    for name, tensor in model.items():
        before = original.get(name)
        if before is None:
            found.append(f"{printable(name)} is not in the original")
        elif before.shape != tensor.shape:
            found.append(f"{printable(name)} is {list(tensor.shape)}, and {list(before.shape)} in the original")
        elif tensor.scheme is not None and not DTYPES[before.dtype].quantizable:
            found.append(f"{printable(name)} is {before.dtype} in the original")
    found += [f"{printable(name)} is only in the original" for name in original if name not in model]
    if found:
        whole = signals.may_hold(original.source) and any(t.dtype in signals.DIVISORS for t in original.values())
        raise DataError(
            f"{len(found)} tensor{'s do' if len(found) > 1 else ' does'} not match: {listed(found)}",
            place=[model.source.path, original.source.path],
            hint=f"{signals.OPTION} reads the integers of the original as a signal" if whole else None,
        )


def _itself(original: Model) -> str:
    decoded = original.source.decoded_from
    return f"; the original is quantized itself: {decoded}" if decoded else ""
