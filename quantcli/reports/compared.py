"""What is reported of a model against another one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from quantcli.reports.build import pair_report, rows
from quantcli.reports.joined import Reported
from quantcli.reports.records import Change, Comparison, TensorReport, loss_first
from quantcli.stores.compact import Names

if TYPE_CHECKING:
    from quantcli.metrics import Metrics
    from quantcli.models import View


def of_pairs(
    pairs: Mapping[str, tuple[View, View]],
    metrics: Sequence[Metrics | None],
    alone: tuple[list[str], list[str]],
    *,
    source: str,
    bytes_in: int,
    bytes_out: int,
) -> Reported:
    """What is reported of a model against another one: a tensor that is not floating point but differs, or float but
    not the same, is `changed`, one that is the same `kept`. alone: names only in the second, and only in the first."""
    floats, names, changed = bytearray(), Names(), _Changed()
    for name, (a, b) in pairs.items():
        changed.add(len(names), _change(a, b))
        names.add(name)
        floats.append(a.scheme is None and b.scheme is None)

    def made() -> Iterator[TensorReport]:
        return (pair_report(*pair, m) for (_, pair), m in zip(pairs.items(), metrics))

    def one(number: int) -> TensorReport:
        return pair_report(*pairs[names[number]], metrics[number])

    def change(number: int) -> Change:
        found = _change(*pairs[names[number]])
        assert found is not None
        return found

    return Reported(
        tensors=rows(len(pairs), made, one),
        metrics=metrics,
        floats=floats,
        comparison=Comparison(
            baseline=source, changes=changed.in_order(names, change), new=alone[0], vanished=alone[1]
        ),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


class _Changed:
    """Which tensors changed, and by how much."""

    def __init__(self) -> None:
        self._numbers, self._deltas = array("I"), array("d")

    def add(self, number: int, change: Change | None) -> None:
        """Take in the tensor of a number, and what changed of it, if anything did."""
        if change is not None:
            self._numbers.append(number)
            self._deltas.append(loss_first(change)[0])

    def in_order(self, names: Sequence[str], make: Callable[[int], Change]) -> Sequence[Change]:
        """The changes, what lost most first. make: makes that of the tensor of a number."""
        places = sorted(range(len(self._numbers)), key=lambda at: names[self._numbers[at]])
        places.sort(key=self._deltas.__getitem__)
        order = array("I", map(self._numbers.__getitem__, places))
        return rows(len(order), lambda: map(make, order), lambda number: make(order[number]))


def _change(a: View, b: View) -> Change | None:
    """What changed from the first to the second by what their files say of themselves, where both say something."""

    def recorded(view: View) -> tuple[float | None, bool]:
        found = view.stored.stored.metrics if view.stored is not None else None
        return found.sqnr_db if found is not None else None, view.scheme is None or bool(found and found.exact)

    (before, was_exact), (after, is_exact) = recorded(a), recorded(b)
    silent = (before is None and not was_exact) or (after is None and not is_exact)
    if silent or (a.scheme == b.scheme and before == after):
        return None
    return Change(
        tensor=b.info.name,
        before_db=before,
        before_exact=was_exact,
        after_db=after,
        after_exact=is_exact,
        delta_db=after - before if before is not None and after is not None else None,
        before=a.scheme or a.info.dtype,
        after=b.scheme or b.info.dtype,
    )
