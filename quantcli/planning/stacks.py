"""Which entries of a file of statistics are of the experts of a layer, however the file and the model store these: one
by one or all in one tensor, gate and up together or apart, under the names of transformers, Mixtral or mlx-lm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_EXPERT = re.compile(
    r"(.+)\.(?:experts\.switch_glu|experts|switch_mlp)(?:\.(0|[1-9]\d{0,5}))?"
    r"\.(gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)(?:\.weight)?"
)

_PARTS = {"gate_up_proj": "both", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"} | {
    "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip

_ALIKE = {
    "both": ("both", "gate", "up"), "gate": ("gate", "both", "up"), "up": ("up", "both", "gate"), "down": ("down",),
}  # fmt: skip
"""Matrices with the same inputs, by which of them statistics are looked for first."""

Known = Mapping[tuple[str, str], Mapping["int | None", str]]
"""Entries by block and part, then by the number of an expert, None for one of all experts."""


@dataclass(frozen=True, slots=True)
class Found:
    """The entries of a tensor. names: one, or for a tensor of several experts that of each, None where there is none.
    expert: which of the experts in an entry the tensor is. used: all that say something of the same inputs."""

    names: tuple[str | None, ...]
    expert: int | None = None
    used: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The first entry."""
        return next(name for name in self.names if name is not None)


def part_of(name: str) -> tuple[str, int | None, str] | None:
    """The block, the number and the part of a matrix of experts; None for other names.

    >>> part_of("layers.3.block_sparse_moe.experts.17.w3.weight"), part_of("layers.3.mlp.experts.gate_up_proj")
    (('layers.3.mlp', 17, 'up'), ('layers.3.mlp', None, 'both'))
    """
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    own = found[1].removesuffix(".block_sparse_moe")
    block = found[1] if own == found[1] else f"{own}.mlp"
    return block, None if found[2] is None else int(found[2]), _PARTS[found[3]]


def known(names: Iterable[str]) -> Known:
    """The entries that are of experts."""
    found: dict[tuple[str, str], dict[int | None, str]] = {}
    for name in names:
        if (own := part_of(name)) is not None:
            found.setdefault((own[0], own[2]), {})[own[1]] = name
    return found


def find(name: str, count: int, entries: Known) -> Found | None:
    """The entries of a tensor of experts by its name; None where there are none. count: experts in it, where it holds
    several.

    >>> entries = known(["m.experts.0.gate_proj", "m.experts.1.gate_proj", "m.experts.down_proj"])
    >>> find("m.switch_mlp.up_proj.weight", 3, entries).names
    ('m.experts.0.gate_proj', 'm.experts.1.gate_proj', None)
    >>> find("m.experts.1.w2.weight", 0, entries)
    Found(names=('m.experts.down_proj',), expert=1, used=('m.experts.down_proj',))
    """
    own = part_of(name)
    if own is None:
        return None
    block, number, part = own
    alike = [held for other in _ALIKE[part] if (held := entries.get((block, other)))]
    numbers = [number, None] if number is not None else [None]
    for held in alike:
        for wanted in numbers:
            if wanted in held:
                used = tuple(other[wanted] for other in alike if wanted in other)
                return Found((held[wanted],), number if wanted is None else None, used)
    if number is not None or not alike or not count:
        return None
    names = tuple(next((held[n] for held in alike if n in held), None) for n in range(count))
    used = tuple(held[n] for n in range(count) for held in alike if n in held)
    return Found(names, None, used) if used else None
