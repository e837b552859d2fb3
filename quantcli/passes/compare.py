"""Two models, tensor by tensor: any of float, quantcli and other quantizers' files, by decoding both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, listed, printable
from quantcli.matching import open_original, under_one_name
from quantcli.metrics import NOTHING, Metrics
from quantcli.models import BLOCK, View, open_model
from quantcli.passes.batches import Crew, run
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.tiles import Progress, Visit
from quantcli.stores.pipelines import Member
from quantcli.stores.places import reachable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.stores import Source


def measure(
    pairs: Mapping[str, tuple[View, View]],
    sources: Sequence[Source] = (),
    *,
    threads: int,
    progress: Progress | None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> dict[str, Metrics | None]:
    """Errors of the second of each pair against the first; None where tensors without float values differ. sources:
    what they are read from. crew: the workers that measure, None for threads here; opening: how they open the models.

    Codes are measured as what they stand for, in float32, as kernels multiply with them. Only weights that others were
    quantized from are what their library makes of them, rounded to its dtype, as `quantize` reads them.
    """
    items = [Item(name, b.info.nbytes, splits=a.numeric and b.numeric) for name, (a, b) in pairs.items()]
    made = Comparison(pairs, sources)
    found = run(made, items, threads=threads, progress=progress, crew=crew, opening=opening)
    return dict(zip(pairs, found))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The pass over tensors of two models, side by side."""

    pairs: Mapping[str, tuple[View, View]]
    sources: Sequence[Source] = ()

    def visit(self, item: Item, advance: Advance) -> Visit:
        """The errors of the second of a pair."""
        a, b = self.pairs[item.name]
        if not (a.numeric and b.numeric):
            [same] = yield [partial(_equal, a, b)]
            return Metrics(0.0, 0.0, b.info.numel, 0.0, 0) if same else None

        def errors(first: int, last: int) -> Metrics:
            error = errors_of(*values_of(a, b, first, last))
            advance(b.info.nbytes * (last - first) // b.info.numel)
            return error

        return sum((yield [partial(errors, first, last) for first, last in blocks_of(a, b)]), NOTHING)


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
        both = {name: (ours[name], view) for name, view in theirs.items() if name in ours}
        yield Comparison(both, (a.source, b.source))


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


def pairs_of(
    before: Mapping[str, View], after: Mapping[str, View], place: str
) -> tuple[dict[str, tuple[View, View]], list[str], list[str]]:
    """Tensors by name on both sides, those only after and those only before.

    Raises DataError with all whose shapes differ, and when nothing is on both sides.
    """
    both = {name: (before[name], view) for name, view in after.items() if name in before}
    wrong = [
        f"{printable(name)} is {list(a.info.shape)} and {list(b.info.shape)}"
        for name, (a, b) in both.items()
        if a.info.shape != b.info.shape
    ]
    if wrong:
        count = "1 tensor differs" if len(wrong) == 1 else f"{len(wrong)} tensors differ"
        raise DataError(f"{count} in shape: {listed(wrong)}", place=[place])
    if not both:
        raise DataError("no tensor has the same name in both", place=[place])
    return both, [n for n in after if n not in before], [n for n in before if n not in after]
