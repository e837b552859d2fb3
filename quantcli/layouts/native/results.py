"""What is known of the tensors of a file that is written, by name.

As records the results of 100,000 small tensors would take 38 MiB, more than all else that is known of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from struct import Struct

from quantcli.layouts.native.document import Result
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme

_FIGURES = Struct("<ddddqqi")
"""Squared error, power, largest error, squared error of min-max (NaN: not compared), weights, clipped ones, and the
scheme by its number. The bytes of the digest follow."""


class PackedResults(MutableMapping[str, Result]):
    """Results by the names of tensors, in the order in which they are given; a record of one is made when it is asked
    for.

    >>> found = PackedResults()
    >>> found["w"] = Result(Metrics(1.0, 4.0, 16, 0.5, 2), "00ff", None, minmax_sse=2.0)
    >>> found["w"]
    Result(metrics=Metrics(sse=1.0, power=4.0, numel=16, max_abs_error=0.5, clipped=2), digest='00ff', scheme=None, \
minmax_sse=2.0, output=None)
    """

    __slots__ = ("_held", "_numbers", "_schemes")

    def __init__(self) -> None:
        self._held: dict[str, bytes | Result] = {}  # records of kept tensors, and of the few whose outputs are known
        self._schemes = list[Scheme | None]()
        self._numbers = dict[int, int]()  # by the id of a scheme

    def __setitem__(self, name: str, result: Result) -> None:
        self._held[name] = self._packed(result) or result

    def __getitem__(self, name: str) -> Result:
        held = self._held[name]
        if isinstance(held, Result):
            return held
        sse, power, largest, minmax, numel, clipped, number = _FIGURES.unpack_from(held)
        return Result(
            Metrics(sse, power, numel, largest, clipped),
            held[_FIGURES.size :].hex() or None,
            self._schemes[number],
            None if math.isnan(minmax) else minmax,
        )

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def _packed(self, result: Result) -> bytes | None:
        """A result as bytes; None for one that does not fit."""
        m, other = result.metrics, math.nan if result.minmax_sse is None else result.minmax_sse
        if m is None or result.output is not None or (result.minmax_sse is not None and math.isnan(other)):
            return None
        digest = bytes.fromhex(result.digest) if result.digest is not None else b""
        number = self._numbers.setdefault(id(result.scheme), len(self._schemes))
        if number == len(self._schemes):
            self._schemes.append(result.scheme)
        return _FIGURES.pack(m.sse, m.power, m.max_abs_error, other, m.numel, m.clipped, number) + digest
