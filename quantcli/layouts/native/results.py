"""What is known of the tensors of a model that is written.

As records the results of 100,000 small tensors would take 38 MiB, more than all else that is known of them.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from itertools import count
from operator import eq
from struct import Struct

from quantcli.each import Each, Numbered
from quantcli.layouts.native.document import Result
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme

_FIGURES = Struct("<ddddq")
"""Squared error, power, largest error, squared error of min-max, and clipped weights."""


_Kind = tuple["Scheme | None", "int | None", bool, bool]
"""What the results of many tensors have in common."""


class Results(Numbered["Result | None"]):
    """Results in the order of tensors, None for those that have none; a record of one is made when it is asked for.

    >>> found = Results()
    >>> found.append(Result(Metrics(1.0, 4.0, 16, 0.5, 2), "00ff", None, minmax_sse=2.0))
    >>> found[0]
    Result(metrics=Metrics(sse=1.0, power=4.0, numel=16, max_abs_error=0.5, clipped=2), digest='00ff', scheme=None, \
minmax_sse=2.0, output=None)
    """

    __slots__ = ("_digests", "_figures", "_kinds", "_known", "_numbers", "_others", "_width")

    def __init__(self) -> None:
        self._figures, self._digests, self._numbers = bytearray(), bytearray(), array("I")
        self._known, self._kinds = list[_Kind](), dict[tuple[int, int | None, bool, bool], int]()
        self._others = dict[int, Result | None]()  # the few whose outputs are known, or that are not of the usual form
        self._width = 0  # bytes of a digest

    @classmethod
    def of(cls, results: Iterable[Result | None]) -> Results:
        """Such a list of these results."""
        found = cls()
        for result in results:
            found.append(result)
        return found

    def append(self, result: Result | None) -> None:
        """Add a result at the end."""
        number, figures, digest = self._packed(len(self._numbers), result)
        self._numbers.append(number)
        self._figures += figures
        self._digests += digest

    def put(self, place: int, result: Result) -> None:
        """Set a result in place of another one."""
        self._others.pop(place, None)
        self._numbers[place], figures, digest = self._packed(place, result)
        self._figures[place * len(figures) : (place + 1) * len(figures)] = figures
        self._digests[place * len(digest) : (place + 1) * len(digest)] = digest

    def _packed(self, place: int, result: Result | None) -> tuple[int, bytes, bytes]:
        """What a result has in common with others, by its number, and its figures and digest as bytes."""
        if result is None:
            return self._apart(place, result)
        m, digest, other = result.metrics, result.digest, result.minmax_sse
        raw = b"" if digest is None else bytes.fromhex(digest)
        if raw and not self._width:
            self._widen(len(raw))
        if result.output is not None or (digest is not None and len(raw) != self._width):
            return self._apart(place, result)
        number = self._number(result.scheme, None if m is None else m.numel, other is not None, digest is not None)
        minmax, digits = 0.0 if other is None else other, raw or bytes(self._width)
        if m is None:
            return number, _FIGURES.pack(0, 0, 0, minmax, 0), digits
        return number, _FIGURES.pack(m.sse, m.power, m.max_abs_error, minmax, m.clipped), digits

    def _number(self, scheme: Scheme | None, numel: int | None, compared: bool, digested: bool) -> int:
        """The number of what results have in common: the scheme, the number of weights (None where nothing was
        measured), and whether there are a squared error of min-max and a digest."""
        number = self._kinds.setdefault((id(scheme), numel, compared, digested), len(self._known))
        if number == len(self._known):
            self._known.append((scheme, numel, compared, digested))
        return number

    def _apart(self, place: int, result: Result | None) -> tuple[int, bytes, bytes]:
        """Keep a result as it is, beside a place that holds nothing."""
        self._others[place] = result
        return 0, bytes(_FIGURES.size), bytes(self._width)

    def _widen(self, width: int) -> None:
        """Make room for digests of so many bytes."""
        self._width, self._digests = width, bytearray(width * len(self._numbers))

    @property
    def metrics(self) -> Sequence[Metrics | None]:
        """The errors alone, None where nothing was measured."""

        def errors(result: Result | None) -> Metrics | None:
            return None if result is None else result.metrics

        return Each(len(self), lambda: map(errors, self), lambda number: errors(self.at(number)))

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, number: int) -> Result | None:
        """The result of the tensor of a number."""
        if self._others and number in self._others:
            return self._others[number]
        scheme, numel, compared, digested = self._known[self._numbers[number]]
        sse, power, largest, minmax, clipped = _FIGURES.unpack_from(self._figures, number * _FIGURES.size)
        return Result(
            None if numel is None else Metrics(sse, power, numel, largest, clipped),
            self._digests[number * self._width : (number + 1) * self._width].hex() if digested else None,
            scheme,
            minmax if compared else None,
        )


class NamedResults(MutableMapping[str, Result]):
    """Results by the names of tensors, in the order in which they are given, by any thread."""

    __slots__ = ("_held", "_places", "_turn")

    def __init__(self) -> None:
        self._held, self._places, self._turn = Results(), dict[str, int](), threading.Lock()

    def in_order(self, names: Iterable[str]) -> Results:
        """The results of these tensors, none where nothing is known of one."""
        wanted = array("q", (self._places.get(name, -1) for name in names))
        if len(wanted) == len(self._held) and all(map(eq, wanted, count())):
            return self._held
        return Results.of(self._held.at(place) if place >= 0 else None for place in wanted)

    def __setitem__(self, name: str, result: Result) -> None:
        with self._turn:  # of two threads with one place the later one's result would be that of both
            place = self._places.setdefault(name, len(self._held))
            if place < len(self._held):
                self._held.put(place, result)
            else:
                self._held.append(result)

    def __getitem__(self, name: str) -> Result:
        found = self._held[self._places[name]]
        assert found is not None
        return found

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
