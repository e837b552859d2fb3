"""Kept tensors that must be seen where a table is cut: all but norms, biases and what is no weight, grouped by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantcli.planning.reasons import REASONS
from quantcli.planning.unquantized import common_name, pattern_of
from quantcli.reports.records import TensorReport


@dataclass(frozen=True, slots=True)
class Group:
    """Kept tensors whose names differ in numbers only: their common name and what is common of their shapes."""

    name: str
    reason: str
    tensors: tuple[TensorReport, ...]

    @property
    def shape(self) -> list[int] | None:
        """The shape, where all have the same."""
        first = self.tensors[0].shape
        return first if all(t.shape == first for t in self.tensors) else None

    @property
    def bytes_out(self) -> int:
        """Bytes of all."""
        return sum(t.bytes_out for t in self.tensors)

    @property
    def note(self) -> str:
        """How many they are, or what is noted of the only one."""
        one = self.tensors[0].note
        return one if len(self.tensors) == 1 else f"{len(self.tensors)} tensors{'; ' if one else ''}{one}"


def is_notable(tensor: TensorReport) -> bool:
    """Whether a reader of the report must see that it was kept."""
    return tensor.kept and tensor.reason in REASONS and not REASONS[tensor.reason].expected


def groups(tensors: Sequence[TensorReport]) -> list[Group]:
    """The notable ones among some tensors, the largest groups first."""
    found: dict[tuple[str, str], list[TensorReport]] = {}
    for t in tensors:
        if is_notable(t):
            found.setdefault((pattern_of(t.name, t.reason), t.reason), []).append(t)
    made = [
        Group(common_name([t.name for t in held], reason) if len(held) > 1 else held[0].name, reason, tuple(held))
        for (_, reason), held in found.items()
    ]
    return sorted(made, key=lambda g: (-g.bytes_out, g.name))
