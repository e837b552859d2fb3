"""What reports say of all tensors together, gathered from one after another: of a million, no list is made."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from quantcli.each import Each
from quantcli.layouts.reader import is_published
from quantcli.metrics import Metrics
from quantcli.reports.records import LEFT_OUT, OutputReport, Summary, TensorReport, errors
from quantcli.tensors.second_order import Output


@dataclass(slots=True)
class Totals:
    """Sums over the tensors of a report."""

    parameters: int = 0
    covered: int = 0
    written: int = 0
    weighted: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    output: Output | None = None

    def add(self, t: TensorReport) -> None:
        """Take in a tensor."""
        self.weighted += t.weighted
        if t.output is not None:
            cost = Output(t.output.error, t.output.plain_error, t.output.power)
            self.output = cost if self.output is None else self.output + cost
        if t.disposition != LEFT_OUT:
            size = math.prod(t.shape)
            self.parameters, self.written = self.parameters + size, self.written + 1
            self.covered += size if t.disposition == "quantized" else 0
            if t.kept:
                self.kept[t.reason] += 1

    def summary(self, whole: Metrics | None, *, bytes_in: int, bytes_out: int, seconds: float | None) -> Summary:
        """The summary of these tensors. whole: the errors of all that were measured, None where none was."""
        parameters = self.parameters
        return Summary(
            parameters=parameters,
            tensors=self.written,
            quantized=self.written - sum(self.kept.values()),
            kept=dict(self.kept),
            coverage=self.covered / parameters if parameters else 0.0,
            bits_per_weight=8 * bytes_out / parameters if parameters else 0.0,
            **errors(whole),
            exact=whole is not None and whole.exact,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            ratio=bytes_in / bytes_out if bytes_out else 0.0,
            seconds=seconds,
            weighted=self.weighted,
            output=None if self.output is None else OutputReport.of(self.output),
        )


def summarize(
    tensors: Iterable[TensorReport],
    whole: Metrics | None,
    *,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
) -> Summary:
    """The summary of these tensors, as `Totals.summary` gives it."""
    totals = Totals()
    for t in tensors:
        totals.add(t)
    return totals.summary(whole, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds)


@dataclass(slots=True)
class Glance:
    """What must be known of all tensors before any is shown: which are kept, their SQNR, how many are left out, whether
    some are decoded from codes whose errors are not known, and whether there is theory."""

    kept: bytearray = field(default_factory=bytearray)
    sqnr: array[float] = field(default_factory=lambda: array("d"))
    left_out: int = 0
    decoded: bool = False
    theory: bool = False

    @classmethod
    def at(cls, tensors: Iterable[TensorReport]) -> Glance:
        """The one at these tensors."""
        found = cls()
        for r in tensors:
            found.add(r)
        return found

    def add(self, r: TensorReport) -> None:
        """Take in the next tensor."""
        self.kept.append(r.kept)
        self.sqnr.append(math.inf if r.sqnr_db is None else r.sqnr_db)
        self.left_out += r.disposition == LEFT_OUT
        self.decoded = self.decoded or bool(r.scheme and r.source_sqnr_db is None and is_coded(r.source_scheme))
        self.theory = self.theory or r.theory is not None

    def worst_first(self, limit: int | None) -> list[int]:
        """The numbers of tensors, of at most so many but one, the worst first and kept ones last."""
        count = len(self.kept) if limit is None else max(1, limit)
        return heapq.nsmallest(count, range(len(self.kept)), key=lambda n: (self.kept[n], self.sqnr[n]))


def is_coded(scheme: str | None) -> bool:
    """Whether a tensor was decoded from codes that are an approximation of an original."""
    return scheme is not None and not is_published(scheme)


class Equal:
    """Which tensors are equal: of one dtype, shape and digest. Of each 8 bytes are kept."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys = array("q")

    def add(self, t: TensorReport) -> None:
        """Take in the next tensor."""
        known = t.digest is not None and t.bytes_in
        self._keys.append(hash((t.digest, t.dtype, tuple(t.shape))) if known else hash((len(self._keys), "")))

    def found(self, told: Callable[[int], Told], name: Callable[[int], str]) -> list[Sequence[str]]:
        """Names of tensors that are equal, the largest first: tied weights, as a head that is the embedding, or copies.
        told, name: of a tensor by its number."""
        sets = [(told(held[0])[0], held) for held in self._sets(told)]
        return [_named(held, name) for _, held in sorted(sets, key=lambda one: (-one[0], one[1][0]))]

    def _sets(self, told: Callable[[int], Told]) -> Iterator[Sequence[int]]:
        """The numbers of tensors that are equal, in order."""
        import numpy as np

        keys = np.frombuffer(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")
        same = np.zeros(len(order) + 1, np.int8)  # as the one before
        ordered = keys[order]
        same[1:-1] = ordered[1:] == ordered[:-1]
        del ordered
        steps = np.diff(same)
        for first, last in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)):
            held: dict[Told, array[int]] = {}  # keys may be the same by chance
            for number in order[first : last + 1].tolist():
                held.setdefault(told(number), array("I")).append(number)
            yield from (numbers for one, numbers in held.items() if len(numbers) > 1 and one[0] and one[-1] is not None)


Told = tuple[int, str, tuple[int, ...], "str | None"]
"""Bytes, dtype, shape and digest of a tensor."""


def _named(held: Sequence[int], name: Callable[[int], str]) -> Sequence[str]:
    return Each(len(held), lambda: map(name, held), lambda at: name(held[at]))


def equal(tensors: Sequence[TensorReport]) -> list[Sequence[str]]:
    """Names of tensors that are equal, as `Equal.found` gives them."""
    gathered = Equal()
    for t in tensors:
        gathered.add(t)

    def told(number: int) -> Told:
        t = tensors[number]
        return t.bytes_in, t.dtype, tuple(t.shape), t.digest

    return gathered.found(told, lambda number: tensors[number].name)


class Named:
    """A warning about some tensors, the first few by name."""

    __slots__ = ("_first", "_what", "count")

    def __init__(self, what: str) -> None:
        self._what, self._first, self.count = what, list[str](), 0

    def add(self, name: str) -> None:
        """Take in the name of a tensor."""
        self.count += 1
        if self.count <= 3:
            self._first.append(name)

    def lines(self) -> list[str]:
        """The warning; none where there are no such tensors."""
        if not self.count:
            return []
        more = f" and {self.count - 3} more" if self.count > 3 else ""
        return [f"{self._what}: {', '.join(self._first)}{more}"]


def named(what: str, names: Iterable[str]) -> list[str]:
    """A warning about these tensors; none where there are none."""
    gathered = Named(what)
    for name in names:
        gathered.add(name)
    return gathered.lines()
