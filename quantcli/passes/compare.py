"""Two models, tensor by tensor: any of float, quantcli and other quantizers' files, by decoding both."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, ItemsView, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, listed, printable
from quantcli.layouts.native import alike
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.results import Results
from quantcli.matching import open_original, under_one_name
from quantcli.metrics import NOTHING, Metrics
from quantcli.models import BLOCK, Model, View, open_model
from quantcli.passes.batches import Crew, run
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.tiles import Progress, Visit
from quantcli.stores.pipelines import Member
from quantcli.stores.places import reachable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo


def measure(
    pairs: Mapping[str, tuple[View, View]],
    sources: Sequence[Source] = (),
    *,
    threads: int,
    progress: Progress | None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> Sequence[Metrics | None]:
    """Errors of the second of each pair against the first, in their order; None where tensors without float values
    differ. sources: what they are read from. crew: the workers that measure, None for threads here; opening: how they
    open the models.

    Codes are measured as what they stand for, in float32, as kernels multiply with them. Only weights that others were
    quantized from are what their library makes of them, rounded to its dtype, as `quantize` reads them.
    """
    found = Results()

    def take(measured: Metrics | list[Metrics] | None) -> None:
        for one in measured if isinstance(measured, list) else [measured]:
            found.append(Result(one, None))

    made, items = Comparison(pairs, sources), list(_items(pairs))
    run(made, items, threads=threads, progress=progress, crew=crew, opening=opening, take=take)
    return found.metrics


def _items(pairs: Mapping[str, tuple[View, View]]) -> Iterator[Item]:
    """Pairs that follow each other and are measured together, their names given, or one by one."""

    def kinds() -> Iterator[tuple[tuple[str, int, bool], Hashable, int]]:
        for name, (a, b) in pairs.items():
            both = _kind(a, name), _kind(b, name)
            yield (name, b.info.nbytes, a.numeric and b.numeric), None if None in both else both, b.info.numel

    for of_run in alike.cut(kinds()):
        (name, nbytes, numeric), several = of_run[0], len(of_run) > 1
        given = tuple(name for name, _, _ in of_run) if several else None
        yield Item(name, nbytes * len(of_run), given, splits=numeric and not several)


def _kind(view: View, name: str) -> Hashable:
    """What tensors that are read together have in common; None for one that is read by itself."""
    tensor = view.stored
    kind = None if tensor is None or tensor.name != name else alike.kind_of(tensor)
    return None if kind is None or tensor is None else (kind, id(tensor.source))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The pass over tensors of two models, side by side."""

    pairs: Mapping[str, tuple[View, View]]
    sources: Sequence[Source] = ()

    def visit(self, item: Item, advance: Advance) -> Visit:
        """The errors of the second of a pair, or of several that are alike."""
        if item.given:
            [found] = yield [partial(self._together, item, advance)]
            return found
        a, b = self.pairs[item.name]
        if not (a.numeric and b.numeric):
            [same] = yield [partial(_equal, a, b)]
            return Metrics(0.0, 0.0, b.info.numel, 0.0, 0) if same else None

        def errors(first: int, last: int) -> Metrics:
            error = errors_of(*values_of(a, b, first, last))
            advance(b.info.nbytes * (last - first) // b.info.numel)
            return error

        return sum((yield [partial(errors, first, last) for first, last in blocks_of(a, b)]), NOTHING)

    def _together(self, item: Item, advance: Advance) -> list[Metrics]:
        """The errors of small pairs that are alike, read at once."""
        before, after = (alike.floats(view.stored, item.given) for view in self.pairs[item.name] if view.stored)
        found = list(map(errors_of, before, after))
        advance(item.nbytes)
        return found


def blocks_of(a: View, b: View) -> tuple[tuple[int, int], ...]:
    """The runs of weights in which two tensors are best read side by side."""
    return (a if a.stored is None and b.stored is not None else b).blocks


def values_of(a: View, b: View, first: int, last: int) -> tuple[Floats, Floats]:
    """A run of weights of two tensors: of the second what codes stand for, of the first what that was made from."""
    return a.read(first, last) if b.encoded is not None else a.rounded(first, last), b.read(first, last)


@contextmanager
def opened(before: Member, after: Member, *, as_float: bool, original: bool = False) -> Iterator[Comparison]:
    """The comparison of two models on a worker, by the paths of both. original: whether the first is what the second
    was made from, for a report, whose tensors are arranged as they are there."""
    with ExitStack() as stack:
        b = stack.enter_context(open_model(after.path, variant=after.variant))
        if original:
            a = stack.enter_context(open_original(before.path, (), as_float=as_float, variant=before.variant))
        else:
            a = stack.enter_context(open_model(before.path, as_float=as_float, variant=before.variant))
        ours, theirs, _ = under_one_name(a, b)
        yield Comparison(Pairs(ours, theirs), (a.source, b.source))


def opening_of(before: Member, after: Member, *, as_float: bool, original: bool = False) -> Opening:
    """How workers open two models."""
    first, second = (replace(member, path=reachable(member.path)) for member in (before, after))
    return partial(opened, first, second, as_float=as_float, original=original)


def errors_of(before: Floats, after: Floats) -> Metrics:
    """Errors of decoded weights; of what is not finite only that it is the same on both sides."""
    sse, power, largest = kernels.load().difference(np.ascontiguousarray(before), np.ascontiguousarray(after))
    if math.isfinite(power + sse):
        return Metrics(sse, power, before.size, largest, 0)
    odd = ~(np.isfinite(before) & np.isfinite(after))
    if not np.array_equal(before[odd], after[odd], equal_nan=True):
        return Metrics(math.inf, 0.0, before.size, math.inf, 0)
    found = errors_of(np.where(odd, np.float32(0), before), np.where(odd, np.float32(0), after))
    return replace(found, numel=before.size)


def _equal(a: View, b: View) -> bool:
    """Whether tensors of which one is not floating point hold the same numbers, or of types numpy lacks the same
    bytes."""
    kinds = [DTYPES[v.info.dtype].numpy for v in (a, b)]
    if a.info.dtype == b.info.dtype:
        kinds = ["u1", "u1"]
    if a.scheme is not None or b.scheme is not None or kinds[0] is None or kinds[1] is None:
        return False
    return all(np.array_equal(x, y) for x, y in zip(_runs_of(a, kinds[0]), _runs_of(b, kinds[1])))


def _runs_of(view: View, kind: str) -> Iterator[NDArray[Any]]:
    """The stored elements of a tensor, seen as numpy's type of that name, 4 million at a time."""
    assert view.stored is not None
    step = 4 * BLOCK * np.dtype(kind).itemsize
    for at in range(0, view.info.nbytes, step):
        yield view.stored.read_bytes(view.stored.name, at, min(step, view.info.nbytes - at)).view(kind)


class Pairs(Mapping[str, "tuple[View, View]"]):
    """Tensors by name on both sides, each pair of which is made when it is asked for: those of 100,000 small tensors
    take 200 MiB. new: names that only the second side has."""

    def __init__(self, before: Mapping[str, View], after: Mapping[str, View]) -> None:
        self._before, self._after = before, after
        others = iter(before)  # of which most are in the same order
        self.new = [name for name in after if name != next(others, None) and name not in before]
        alone = set(self.new)
        self._names: Collection[str] = [name for name in after if name not in alone] if alone else after

    @property
    def vanished(self) -> list[str]:
        """Names that only the first side has."""
        return [name for name in self._before if name not in self._after] if len(self) < len(self._before) else []

    def __getitem__(self, name: str) -> tuple[View, View]:
        return self._before[name], self._after[name]

    def items(self) -> ItemsView[str, tuple[View, View]]:
        """Names and pairs in order."""
        return _InOrder(self)

    def in_order(self) -> Iterator[tuple[str, tuple[View, View]]]:
        """The same: where that is the order of both sides, none is looked up by its name."""
        if self.new:
            yield from ((name, self[name]) for name in self._names)
            return
        others = zip(self._before, self._before.values())
        for (name, b), (other, a) in zip(zip(self._after, self._after.values()), chain(others, repeat(("", None)))):
            yield name, (a if a is not None and name == other else self._before[name], b)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _InOrder(ItemsView[str, "tuple[View, View]"]):
    """Names and pairs, as `Pairs.in_order` gives them."""

    _mapping: Pairs

    def __iter__(self) -> Iterator[tuple[str, tuple[View, View]]]:
        return self._mapping.in_order()


def pairs_of(before: Mapping[str, View], after: Mapping[str, View], place: str) -> Pairs:
    """Tensors by name on both sides.

    Raises DataError with all whose shapes differ, and when nothing is on both sides.
    """
    both = Pairs(before, after)
    wrong = []
    if not _same(before, after):
        shapes = ((name, list(a.info.shape), list(b.info.shape)) for name, (a, b) in both.items())
        wrong = [f"{printable(name)} is {ours} and {theirs}" for name, ours, theirs in shapes if ours != theirs]
    if wrong:
        count = "1 tensor differs" if len(wrong) == 1 else f"{len(wrong)} tensors differ"
        raise DataError(f"{count} in shape: {listed(wrong)}", place=[place])
    if not both:
        raise DataError("no tensor has the same name in both", place=[place])
    return both


def _same(before: Mapping[str, View], after: Mapping[str, View]) -> bool:
    """Whether both have the same names and shapes in the same order, as most have."""
    each = (views.kinds() if isinstance(views, Model) else _kinds(views) for views in (before, after))
    return len(before) == len(after) and all((a.name, a.shape) == (b.name, b.shape) for (a, _), (b, _) in zip(*each))


def _kinds(views: Mapping[str, View]) -> Iterator[tuple[TensorInfo, bool]]:
    return ((view.info, view.scheme is not None) for view in views.values())
