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
from quantcli.metrics import Metrics, Sum
from quantcli.reports.kept import is_notable
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


class Counted:
    """The errors that the figures over all tensors are of: those of tensors that are quantized on either side; where
    none is, of those that changed; and where none did, of all. Large numbers that are off by a rounding would drown the
    errors of codes."""

    def __init__(self) -> None:
        self._codes, self._changed, self._all = _Measured(), _Measured(), _Measured()

    def add(self, t: TensorReport, metrics: Metrics | None, *, floating: bool) -> None:
        """Take in a tensor and its errors, None where they were not measured. floating: whether it is in floating point
        on both sides."""
        self._all.add(metrics)
        if not t.kept:
            self._changed.add(metrics)
            if not floating:
                self._codes.add(metrics)

    @property
    def found(self) -> Metrics | None:
        """The errors, together; None where nothing was measured."""
        return next((known for known in (self._codes, self._changed) if known.asked), self._all).found


class _Measured:
    """Metrics of tensors of which some were not measured. asked: how many tensors there are."""

    def __init__(self) -> None:
        self.asked, self._sum = 0, Sum()

    def add(self, m: Metrics | None) -> None:
        """Take in those of a tensor."""
        self.asked += 1
        if m is not None:
            self._sum.add(m)

    @property
    def found(self) -> Metrics | None:
        """Those of all together; None where there are none."""
        return self._sum.found if self._sum.count else None


@dataclass(slots=True)
class Rest:
    """Tensors that are not shown one by one: those that must be seen all the same, how many others there are of each
    kind, and the range of their SQNR. outputs: columns that what errors cost in outputs takes, of all tensors."""

    outputs: int
    notable: Sequence[TensorReport]
    kept: int
    gone: int
    quantized: int
    least: float
    most: float

    def count(self, r: TensorReport) -> None:
        """Take in a tensor that is only counted."""
        gone = r.disposition == LEFT_OUT
        self.gone, self.kept = self.gone + gone, self.kept + (r.kept and not gone)
        self.quantized += not r.kept
        if r.sqnr_db is not None:
            self.least, self.most = min(self.least, r.sqnr_db), max(self.most, r.sqnr_db)

    def line(self) -> str:
        """How many tensors there are of each kind; empty where there are none."""
        spread = f" ({self.least:.2f} to {self.most:.2f} dB)" if self.least <= self.most else ""
        counts = ((self.quantized, f"quantized{spread}"), (self.kept, "kept"), (self.gone, LEFT_OUT))
        told = ", ".join(f"{n} {word}" for n, word in counts if n)
        return f"and {sum(n for n, _ in counts)} more: {told}; --all shows them" if told else ""


@dataclass(slots=True)
class Glance:
    """What must be known of all tensors before any is shown: which are kept, their SQNR, the numbers of those that are
    left out and of those that must be seen though they are kept, whether some are decoded from codes whose errors are
    not known, whether there is theory, and how many columns what errors cost in outputs takes."""

    kept: bytearray = field(default_factory=bytearray)
    sqnr: array[float] = field(default_factory=lambda: array("d"))
    left_out: array[int] = field(default_factory=lambda: array("I"))
    notable: array[int] = field(default_factory=lambda: array("I"))
    decoded: bool = False
    theory: bool = False
    outputs: int = 0

    @classmethod
    def at(cls, tensors: Iterable[TensorReport]) -> Glance:
        """The one at these tensors."""
        found = cls()
        for r in tensors:
            found.add(r)
        return found

    def add(self, r: TensorReport) -> None:
        """Take in the next tensor."""
        kept, number = r.kept, len(self.kept)
        self.kept.append(kept)
        self.sqnr.append(math.inf if r.sqnr_db is None else r.sqnr_db)
        if kept and r.disposition == LEFT_OUT:
            self.left_out.append(number)
        if kept and is_notable(r):
            self.notable.append(number)
        self.decoded = self.decoded or bool(r.scheme and r.source_sqnr_db is None and is_coded(r.source_scheme))
        self.theory = self.theory or r.theory is not None
        if r.output is not None:  # of two columns, the second is what there would be without statistics
            self.outputs = max(self.outputs, 1 if r.output.plain_error is None else 2)

    def worst_first(self, limit: int | None) -> list[int]:
        """The numbers of tensors, of at most so many but one, the worst first and kept ones last."""
        count = len(self.kept) if limit is None else max(1, limit)
        return heapq.nsmallest(count, range(len(self.kept)), key=lambda n: (self.kept[n], self.sqnr[n]))

    def rest(self, seen: Sequence[int], tensors: Sequence[TensorReport]) -> Rest:
        """What there is to say of the tensors but those of these numbers."""
        apart = set(seen)
        notable = [number for number in self.notable if number not in apart]
        apart.update(notable)
        kept = sum(self.kept) - sum(self.kept[number] for number in apart)
        gone = sum(number not in apart for number in self.left_out)
        others = len(self.kept) - len(apart)
        known = [v for number, v in enumerate(self.sqnr) if v < math.inf and number not in apart] if others else []
        return Rest(
            outputs=self.outputs,
            notable=[tensors[number] for number in notable],
            kept=kept - gone,
            gone=gone,
            quantized=others - kept,
            least=min(known, default=math.inf),
            most=max(known, default=-math.inf),
        )


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


def told_of(tensors: Sequence[TensorReport]) -> tuple[Callable[[int], Told], Callable[[int], str]]:
    """What `Equal.found` is told of these tensors."""

    def told(number: int) -> Told:
        t = tensors[number]
        return t.bytes_in, t.dtype, tuple(t.shape), t.digest

    return told, lambda number: tensors[number].name


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
