"""What can be verified of models that have no header of quantcli: those of another tool, and components kept whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.errors import DataError
from quantcli.matching import open_original, under_one_name
from quantcli.models import View, open_model
from quantcli.passes import compare
from quantcli.passes.batches import Crew, run
from quantcli.passes.findings import MISSING, Findings, Verified
from quantcli.passes.performing import Advance, Item, Opening
from quantcli.passes.tiles import Visit
from quantcli.stores.pipelines import Member
from quantcli.stores.places import reachable

if TYPE_CHECKING:
    from quantcli.stores import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Who looks at the tensors. sources: what they are read from. threads: of this process; crew: workers instead of
    these; opening: how they open the models for what is done with them."""

    sources: Sequence[Source]
    threads: int
    crew: Crew | None = None
    opening: Opening | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """The pass that decodes tensors, by their names."""

    views: Mapping[str, View]
    sources: Sequence[Source]

    def visit(self, item: Item, advance: Advance) -> Visit:
        """What is wrong with the weights of a tensor, each with its place."""
        read = self.views[item.name].read

        def decode(first: int, last: int) -> tuple[str, int] | None:
            try:
                return None if np.isfinite(read(first, last)).all() else ("a decoded weight is not finite", first)
            except DataError as error:
                return error.problem, 0

        found = yield [partial(decode, *block) for block in self.views[item.name].blocks]
        return [one for one in found if one is not None]


@contextmanager
def opened(member: Member, before: Member | None, *, as_float: bool) -> Iterator[Decoding]:
    """The pass on a worker. before: the original, where there is one."""
    with ExitStack() as stack:
        model = stack.enter_context(open_model(member.path, variant=member.variant))
        if before is None:
            yield Decoding(model, (model.source,))
            return
        floats = open_original(before.path, (), as_float=as_float, variant=before.variant)
        original = stack.enter_context(floats)
        _, theirs, _ = under_one_name(original, model)
        yield Decoding(theirs, (original.source, model.source))


def opening_of(member: Member, before: Member | None, *, as_float: bool) -> Opening:
    """How workers open a model whose tensors they decode. before: its original, by which tensors have their names."""
    own = replace(member, path=reachable(member.path))
    other = replace(before, path=reachable(before.path)) if before is not None else None
    return partial(opened, own, other, as_float=as_float)


def decodable(views: Mapping[str, View], before: Mapping[str, View] | None, against: str | None, how: How) -> Verified:
    """What is wrong with a model another tool quantized: whether all of it can be decoded, to finite numbers, and with
    its original whether names and shapes are those. Its codes are not found again: how it rounds only it knows."""
    found = Findings()
    weights = {name: view for name, view in views.items() if view.scheme is not None}
    items = [Item(name, view.info.nbytes, splits=True) for name, view in weights.items()]
    made, each = Decoding(weights, how.sources), list[list[tuple[str, int]]]()
    run(made, items, threads=how.threads, crew=how.crew, opening=how.opening, take=each.append)
    for name, wrong in zip(weights, each):
        for problem, at in wrong:
            found.add(name, "scales", problem, at)
    if before is not None:
        _by_name(found, views, before)
    return Verified(
        tensors=len(views),
        quantized=len(weights),
        against=against,
        findings=found.ordered(views),
        unchecked=("another tool wrote it: there are no digests, and codes are not recomputed",),
        checks=("structure", "scales", *(["source"] if before is not None else [])),
    )


def _by_name(found: Findings, views: Mapping[str, View], before: Mapping[str, View]) -> list[str]:
    """Add what differs in names and shapes between a model and its original; the names of all tensors that do not."""
    same = []
    for name in dict.fromkeys([*views, *before]):
        if name not in before:
            found.add(name, "source", "it is not in the original")
        elif name not in views:
            found.add(name, "source", MISSING)
        elif before[name].info.shape != views[name].info.shape:
            found.add(name, "source", f"it is {list(before[name].info.shape)} in the original")
        else:
            same.append(name)
    return same


def unchanged(views: Mapping[str, View], before: Mapping[str, View] | None, against: str | None, how: How) -> Verified:
    """What is wrong with a component that is kept whole: whether its tensors are those of the original. Values of
    another dtype are not compared."""
    found = Findings()
    if before is not None:
        names = _by_name(found, views, before)
        pairs = {n: (before[n], views[n]) for n in names if before[n].info.dtype == views[n].info.dtype}
        measured = compare.measure(
            pairs, how.sources, threads=how.threads, progress=None, crew=how.crew, opening=how.opening
        )
        for name, metrics in zip(pairs, measured):
            if metrics is None or not metrics.exact:
                found.add(name, "source", "its values are not those of the original")
    return Verified(
        tensors=len(views),
        quantized=0,
        against=against,
        findings=found.ordered(views),
        unchecked=() if before is not None else ("kept whole, so there is nothing to check without --source",),
        checks=("structure", *(["source"] if before is not None else [])),
    )
