"""Tensors on their way into another layout."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantcli.layouts.writer import Codes, Raw
from quantcli.models import View
from quantcli.tensors.decided import Decided

if TYPE_CHECKING:
    from quantcli.metrics import Metrics
    from quantcli.stores import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """A tensor on its way into another layout.

    decided: what it is there, of a weight whose codes cannot be moved what is nearest to it. codes: what a writer
    takes. view: the tensor as floats. scheme: as its file has it, None for floats. obstacle: why no layout can have its
    codes. metrics: what its file says the codes cost.
    """

    decided: Decided
    codes: Codes | Raw
    view: View
    scheme: str | None
    bytes_in: int
    obstacle: str = ""
    metrics: Metrics | None = None


class Movable(Mapping[str, Moving]):
    """The tensors of a model by the names they are moved under. source: where they are; notes: what there is to say of
    them, for people."""

    def __init__(self, source: Source, tensors: Mapping[str, Moving], notes: tuple[str, ...] = ()) -> None:
        self.source, self._tensors, self.notes = source, tensors, notes

    def __getitem__(self, name: str) -> Moving:
        return self._tensors[name]

    def values(self) -> ValuesView[Moving]:
        """The tensors in order."""
        return self._tensors.values()

    def items(self) -> ItemsView[str, Moving]:
        """Names and tensors in order."""
        return self._tensors.items()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
