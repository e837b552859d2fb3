"""What can be verified of models that have no header of quantcli: those of another tool, and components kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from quantcli.errors import DataError
from quantcli.models import View
from quantcli.passes import compare
from quantcli.passes.findings import Findings, Verified
from quantcli.passes.tiles import once, walk


def decodable(
    views: Mapping[str, View], before: Mapping[str, View] | None, against: str | None, *, threads: int
) -> Verified:
    """What is wrong with a model another tool quantized: whether all of it can be decoded, to finite numbers, and with
    its original whether names and shapes are those. Its codes are not found again: how it rounds only it knows."""
    found = Findings()
    weights = {name: view for name, view in views.items() if view.scheme is not None}

    def decode(name: str, first: int, last: int) -> None:
        try:
            if not np.isfinite(weights[name].read(first, last)).all():
                found.add(name, "scales", "a decoded weight is not finite", first)
        except DataError as error:
            found.add(name, "scales", error.problem)

    walk((once([partial(decode, n, *run) for run in view.blocks]) for n, view in weights.items()), threads=threads)
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
            found.add(name, "source", "it is missing here")
        elif before[name].info.shape != views[name].info.shape:
            found.add(name, "source", f"it is {list(before[name].info.shape)} in the original")
        else:
            same.append(name)
    return same


def unchanged(
    views: Mapping[str, View], before: Mapping[str, View] | None, against: str | None, *, threads: int
) -> Verified:
    """What is wrong with a component that is kept whole: whether its tensors are those of the original. Values of
    another dtype are not compared."""
    found = Findings()
    if before is not None:
        names = _by_name(found, views, before)
        pairs = {n: (before[n], views[n]) for n in names if before[n].info.dtype == views[n].info.dtype}
        for name, metrics in compare.measure(pairs, threads=threads, progress=None).items():
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
