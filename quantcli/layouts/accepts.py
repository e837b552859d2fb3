"""The schemes that a target can store: in words, what is wrong with another one, and the nearest one to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantcli import asking
from quantcli.scheme import IN_SUPER_BLOCKS, ONE_BYTE, PUBLISHED, SUPER_BLOCKS, Scheme

_STORED = {
    "plain": "scales that are floats",
    "e8m0": "scales that are powers of two",
    "e4m3": "E4M3 scales",
    "e4m3-alone": "E4M3 scales and none of the tensor",
    "super-blocks": "scales in super-blocks, which only GGUF has",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepts:
    """The schemes a target can store.

    groups: every group size must be a multiple of one of these, None for any. granularities: those supported.
    symmetric, zero_points, storage: as in `Scheme`. asymmetric_bits: those of `bits` that asymmetric codes may have,
    None for all. activations: those a configuration may ask for. rotations: how many columns may be rotated together.
    others: further schemes that it can store; of storages of one byte, groups have just one of the sizes.

    >>> Accepts(bits=(4,), groups=(32, 64)).describe()
    'int of 4 bits, symmetric or asymmetric, in groups of a multiple of 32, per channel or per tensor'
    """

    formats: tuple[str, ...] = ("int",)
    bits: tuple[int, ...]
    groups: tuple[int, ...] | None = None
    granularities: tuple[str, ...] = ("group", "channel", "tensor")
    symmetric: tuple[bool, ...] = (True, False)
    zero_points: tuple[str, ...] = ("int",)
    asymmetric_bits: tuple[int, ...] | None = None
    storage: str = "plain"
    activations: tuple[str, ...] = ("none",)
    rotations: tuple[int, ...] = (0,)
    others: tuple[Accepts, ...] = ()

    def describe(self) -> str:
        """The schemes in words."""
        return "; ".join([self._described(), *(other.describe() for other in self.others)])

    def _described(self) -> str:
        if self.storage == "super-blocks":
            return _listed([name.upper() for (form, _, _), (name, _) in SUPER_BLOCKS.items() if form in self.formats])
        if self.storage != "plain":
            return _listed([self._published(form) for form in self.formats])
        parts = [f"{' or '.join(self.formats)} of {_listed(self.bits)} bits"]
        if self.formats == ("int",):
            kinds = ["symmetric"] if True in self.symmetric else []
            kinds += ["asymmetric"] if False in self.symmetric else []
            details = [f"of {_listed(self.asymmetric_bits)} bits"] if self.asymmetric_bits else []
            details += ["float offsets too"] if "float" in self.zero_points else []
            parts.append(" or ".join(kinds) + (f" ({', '.join(details)})" if details else ""))
        parts += [] if self.rotations == (0,) else [f"{_listed(self.rotations)} columns rotated together"]
        where = []
        if "group" in self.granularities:
            where.append("in groups" + (f" of a multiple of {min(self.groups)}" if self.groups else ""))
        where += ["in blocks"] if "block" in self.granularities else []
        where += [f"per {g}" for g in self.granularities if g not in ("group", "block")]
        return ", ".join([*parts, _listed(where)])

    def _published(self, form: str) -> str:
        return PUBLISHED[form, self.storage, "group", (self.groups or (0,))[0]]

    def obstacle(self, scheme: Scheme) -> str | None:
        """The property of a scheme that the target cannot store; None when it can store the scheme."""
        kinds = (self, *self.others)
        found = [kind._obstacle(scheme) for kind in kinds]
        if None in found:
            return None
        like = [why for kind, why in zip(kinds, found) if scheme.format in kind.formats]
        stored = [
            why for kind, why in zip(kinds, found) if scheme.format in kind.formats and kind.storage == scheme.storage
        ]
        return [*stored, *like, *found][0]

    def _obstacle(self, scheme: Scheme) -> str | None:
        if scheme.format not in self.formats:
            return f"the format {scheme.format}"
        if scheme.storage != self.storage:
            return f"{scheme.format} with {_STORED[scheme.storage]}"
        if scheme.activations not in self.activations:
            return f"inputs quantized to {scheme.activations}"
        if scheme.rotation not in self.rotations:
            return f"rotations of {scheme.rotation} columns"
        if scheme.bits not in self.bits:
            return f"{scheme.bits} bit{'s' if scheme.bits != 1 else ''}"
        if scheme.granularity not in self.granularities:
            return f"one scale per {scheme.granularity}"
        if scheme.granularity == "channel" and scheme.axis != 0:
            return f"channels of axis {scheme.axis}"
        if scheme.symmetric not in self.symmetric:
            return "symmetric codes" if scheme.symmetric else "zero points"
        if not scheme.symmetric and not self._asymmetric(scheme.bits):
            return f"{scheme.bits} bits with zero points"
        if scheme.family == "int" and not scheme.symmetric and scheme.zero_point not in self.zero_points:
            return f"{scheme.zero_point} offsets"
        if scheme.granularity == "group" and not self._holds(scheme.group_size):
            return f"groups of {scheme.group_size}"
        if scheme.granularity == "block" and scheme.group_size not in (self.groups or (scheme.group_size,)):
            return f"blocks of {scheme.group_size} x {scheme.group_size}"
        return None

    def _holds(self, group: int) -> bool:
        if self.storage != "plain":
            return self.groups is None or group in self.groups
        return self.groups is None or any(group % g == 0 for g in self.groups)

    def _asymmetric(self, bits: int) -> bool:
        return self.asymmetric_bits is None or bits in self.asymmetric_bits

    def smaller(self, group: int) -> list[int]:
        """The usual group sizes below one that the target can store, the largest first."""
        return [g for g in (1024, 512, 256, 128, 64, 32, 16) if g < group and self._holds(g)]

    def nearest(self, scheme: Scheme) -> Scheme:
        """The scheme the target can store that is closest to another one: not fewer bits, not larger groups, where
        possible.

        >>> from quantcli import Scheme
        >>> Accepts(bits=(4, 8), groups=(32,)).nearest(Scheme(bits=5, group_size=48)).name
        'w8g32'
        """
        kinds = (self, *self.others)
        like = [kind for kind in kinds if scheme.format in kind.formats] or [
            kind for kind in kinds if kind.formats[0].startswith(scheme.format[:3])
        ]
        others = [kind for kind in kinds if kind.storage != IN_SUPER_BLOCKS]  # asked for by name
        like = like or [min(others, key=lambda kind: kind._apart(scheme.bits))]
        like = [kind for kind in like if kind.storage == scheme.storage] or like
        return like[0]._nearest(scheme)

    def _apart(self, bits: int) -> tuple[bool, int]:
        """How far its widths are from another one; fewer bits are farther than more."""
        return max(self.bits) < bits, min(abs(own - bits) for own in self.bits)

    def _nearest(self, scheme: Scheme) -> Scheme:
        """The same without the others."""
        bits = next((b for b in self.bits if b >= scheme.bits), self.bits[-1])
        form = scheme.format if scheme.format in self.formats else self.formats[0]
        symmetric = scheme.symmetric if scheme.symmetric in self.symmetric else self.symmetric[0]
        symmetric = symmetric or form != "int" or not self._asymmetric(bits)
        granularity: Any = scheme.granularity
        if granularity not in self.granularities:
            granularity = "group" if "group" in self.granularities else self.granularities[0]
        group = (scheme.group_size or 128) if granularity in ("group", "block") else None
        if group is not None and self.groups and (self.storage != "plain" or granularity == "block"):
            group = self.groups[0]
        elif group is not None and not self._holds(group):
            group = next(iter(self.smaller(group)), min(self.groups or (group,)))
        offset = scheme.zero_point if not symmetric and scheme.zero_point in self.zero_points else "int"
        own = asking.Scheme(format=form)
        return asking.Scheme(
            format=form,
            bits=bits if form == "int" else own.bits,
            granularity=granularity,
            group_size=group,
            symmetric=symmetric,
            zero_point=offset,
            scale_dtype=next((dtype for dtype, storage in ONE_BYTE.items() if storage == self.storage), None),
        )


def _listed(items: Sequence[Any]) -> str:
    words = [str(i) for i in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
