"""What of a plan stays in floating point where that is much of the output, and what would change it; and the reverse:
what is quantized that a preset for such models would keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from quantcli.asking import changed
from quantcli.errors import QuantcliError, printable
from quantcli.layouts.writer import named
from quantcli.patterns import compiled
from quantcli.planning import recipe
from quantcli.planning.kinds import LONGEST
from quantcli.planning.plan import make
from quantcli.planning.reasons import ALL, OVERRIDE, REASONS, TABLES, TABLES_TOO, which
from quantcli.planning.request import Request, Rule
from quantcli.tensors.decided import Decided
from quantcli.terminal import size

if TYPE_CHECKING:
    from quantcli.scheme import Scheme
    from quantcli.tensors.info import TensorInfo

MUCH = 0.2
"""The share of the output from which on kept weights are worth a warning."""

FLOOR = 1 << 16
"""Bytes of kept weights below which there is nothing to gain."""

PRESET = "llm"

LIGHT = 0.02
"""The share of what is kept below which a group is not worth mentioning."""

_SHOWN = 3
_PLAIN = re.compile(r"[\w./:+*-]+")
"""Names that a shell takes as they are between quotes."""


class Sized(Protocol):
    """A tensor as a plan or a native file describes it, and what it takes there."""

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape of the original."""

    @property
    def scheme(self) -> Scheme | None:
        """How it is quantized, None where it is not."""

    @property
    def reason(self) -> str:
        """Why it is so."""

    @property
    def note(self) -> str:
        """A note for people."""

    @property
    def bytes_out(self) -> int:
        """Bytes in the output."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A planned tensor and its bytes in the output."""

    tensor: Decided
    bytes_out: int

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape of the original."""
        return self.tensor.info

    @property
    def scheme(self) -> Scheme | None:
        """How it is quantized, None where it is not."""
        return self.tensor.scheme

    @property
    def reason(self) -> str:
        """Why it is so."""
        return self.tensor.reason

    @property
    def note(self) -> str:
        """A note for people."""
        return self.tensor.note


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors whose names differ in numbers only, kept for one reason."""

    pattern: str
    reason: str
    tensors: tuple[Sized, ...]

    @property
    def bytes_out(self) -> int:
        """Bytes of them all."""
        return sum(t.bytes_out for t in self.tensors)

    def __str__(self) -> str:
        many = f"{len(self.tensors)} tensors, " if len(self.tensors) > 1 else ""
        return f"{printable(self.pattern, 160)} ({many}{size(self.bytes_out)}, {self.reason})"


def pattern_of(name: str, reason: str = "") -> str:
    """A name with a star for every number in it; of a tensor of a component that is kept whole, for all of it.

    >>> pattern_of("model.layers.12.mlp.experts.3.up_proj.weight"), pattern_of("vae/conv_in.weight", "component")
    ('model.layers.*.mlp.experts.*.up_proj.weight', 'vae/*')
    """
    if reason == "component":
        return f"{name.partition('/')[0]}/*"
    return _NUMBER.sub("*", name)


_NUMBER = re.compile(r"(?<![A-Za-z])\d+(?![A-Za-z])")


def common_name(names: Sequence[str], reason: str = "") -> str:
    """What names of one `pattern_of` have in common: a star for every number that is not the same in all.

    >>> common_name(["layers.61.experts.0.up_proj", "layers.61.experts.1.up_proj"]), common_name(["clip_2/norm"])
    ('layers.61.experts.*.up_proj', 'clip_2/norm')
    """
    if reason == "component":
        return pattern_of(names[0], reason)
    columns = map(set, zip(*map(_NUMBER.findall, names)))
    parts = iter(["*" if len(column) > 1 else column.pop() for column in columns])
    return _NUMBER.sub(lambda _: next(parts), names[0])


def grouped(tensors: Iterable[Sized]) -> list[Group]:
    """Sized tensors by what they are called and why they are kept, the largest groups first."""
    found: dict[tuple[str, str], list[Sized]] = {}
    for t in tensors:
        found.setdefault((pattern_of(t.info.name, t.reason), t.note or t.reason), []).append(t)
    groups = [
        Group(common_name([t.info.name for t in held], held[0].reason), why, tuple(held))
        for (_, why), held in found.items()
    ]
    return sorted(groups, key=lambda g: (-g.bytes_out, g.pattern))


class MostlyKept:
    """The warning about weights that stay in floating point where they take much of the output.

    request: what was asked of these tensors, where it is known: then the line says what would change it. what: names
    the output they are in.
    """

    def __init__(self, request: Request | None = None, *, what: str = "the output") -> None:
        self._request, self._what, self._whole, self._room = request, what, 0, 0
        self._wanted = which(lambda reason: reason.wanted)
        self._wanted |= TABLES if request is not None and request.keep_embeddings else frozenset()

    def _counts(self, t: Sized) -> bool:
        return t.scheme is None and t.reason not in self._wanted

    def add(self, t: Sized) -> None:
        """Take in a tensor."""
        self._whole += t.bytes_out
        if self._counts(t):
            self._room += t.bytes_out

    def lines(self, tensors: Iterable[Sized]) -> list[str]:
        """The warning about these tensors, which were taken in; none where it is little."""
        room, request = self._room, self._request
        if room < FLOOR or room <= MUCH * self._whole:
            return []
        groups = [g for g in grouped(filter(self._counts, tensors)) if g.bytes_out > LIGHT * room][:_SHOWN]
        others = [t.info.name for t in tensors if t.scheme is not None] if request is not None else []
        ways = [_way(group, request, others) if request is not None else "" for group in groups]
        rest = room - sum(g.bytes_out for g in groups)
        more = f"; and {size(rest)} more" if rest > LIGHT * room else ""
        if len(set(ways)) == 1:
            shown, advice = _together(groups), f"; use {ways[0]}" if ways[0] else ""
        else:
            shown = "; ".join(f"{group}{f', use {way}' if way else ''}" for group, way in zip(groups, ways))
            advice = ""
        share = f"{100 * room / self._whole:.0f} % of {self._what} ({size(room)})"
        return [f"{share} is not quantized: {shown}{more}{advice}"]


def unquantized(tensors: Iterable[Sized], request: Request | None = None, *, by_rules: bool = False) -> list[str]:
    """What `AnotherKind` and `MostlyKept` say of these tensors."""
    other, kept = AnotherKind(by_rules=by_rules), MostlyKept(request)
    for t in tensors:
        other.add(t)
        kept.add(t)
    return [*other.lines(), *kept.lines(tensors)]


def _together(groups: Sequence[Group]) -> str:
    """Groups with one way out: of those that a target cannot store the largest alone says why."""
    first, others = groups[0], groups[1:]
    if not others or any(group.tensors[0].reason != "target" for group in groups):
        return "; ".join(map(str, groups))
    named = ", ".join(f"{printable(group.pattern, 80)} ({size(group.bytes_out)})" for group in others)
    return f"{first}; likewise {named}"


def _way(group: Group, request: Request, others: Sequence[str]) -> str:
    """The options with which a group would be quantized, found by planning it again; empty where there are none.
    others: names of tensors that are quantized, which no suggested rule may change."""
    alone = replace(request, include=(), exclude=(), ties=(), statistics=None)
    alone = replace(alone, rules=tuple(replace(rule, optional=True) for rule in request.rules))
    named_alone = bool(_PLAIN.fullmatch(group.pattern)) and not any(map(compiled(group.pattern, OVERRIDE), others))
    ways = _others(group, alone, named_alone=named_alone)
    way = next((options for options, other in ways if _quantizes(group, other)), "")
    return f"{way} (not for loaders of {request.to})" if way.startswith("--to native") else way


def _others(group: Group, request: Request, *, named_alone: bool) -> Iterator[tuple[str, Request]]:
    """Other requests that might quantize a group, with the options that make them. named_alone: whether a rule can name
    the group by its pattern, and it alone."""
    scheme, reason = request.scheme, group.tensors[0].reason
    native = replace(request, to=None, container=False, unsplit={})
    if reason == "target" and request.to is not None:
        for group_size in _smaller(request):
            yield f"--group-size {group_size}", replace(request, scheme=changed(scheme, group_size=group_size))
        yield "--to native", native
    ways = REASONS[reason].ways
    if OVERRIDE not in ways:
        return
    for option, other in [("", request), *([("--to native ", native)] if request.to is not None else [])]:
        for bits in dict.fromkeys((8, scheme.bits)) if named_alone else ():
            for changes in ({}, *({"group_size": group_size} for group_size in _smaller(other))):
                sized = "".join(f",group-size={group_size}" for group_size in changes.values())
                with_rule = _with_rule(other, group, {"bits": bits, **changes})
                if with_rule is not None:
                    yield f"{option}{OVERRIDE} '{group.pattern}:bits={bits}{sized}'", with_rule
        if TABLES_TOO in ways:
            yield f"{option}{TABLES_TOO}", replace(other, keep_embeddings=False)
        rules = tuple(rule for rule in other.rules if not rule.preset)
        yield f"{option}{ALL}", replace(other, keep_defaults=False, rules=rules)


def _smaller(request: Request) -> list[int]:
    """Smaller groups that the target of a request has too."""
    size_now = request.scheme.group_size
    return [] if request.to is None or not size_now else named(request.to).accepts.smaller(size_now)


def _with_rule(request: Request, group: Group, changes: dict[str, int]) -> Request | None:
    """A request with an extra rule; None where there is no such scheme, such as 4-bit floats of 8 bits."""
    try:
        scheme = changed(request.scheme, **changes)
    except QuantcliError:
        return None
    return replace(request, rules=(*request.rules, Rule(group.pattern, scheme)))


def _quantizes(group: Group, request: Request) -> bool:
    """Whether a request leaves nothing of a group in floating point."""
    try:
        return all(t.scheme is not None for t in make([t.info for t in group.tensors], request).tensors)
    except QuantcliError:
        return False


@dataclass(slots=True)
class _Alike:
    """Tensors whose names differ in numbers only: the name of the first, how many they are, and their bytes before and
    after."""

    first: str
    count: int = 0
    nbytes: int = 0
    bytes_out: int = 0


class AnotherKind:
    """The warning about parts of a language model that are quantized like the rest, though the preset for such models
    keeps them: vision and audio towers, state spaces. by_rules: whether tensors that have a rule count too."""

    def __init__(self, *, by_rules: bool = False) -> None:
        self._by_rules, self._found = by_rules, dict[str, _Alike]()

    def add(self, t: Sized) -> None:
        """Take in a tensor."""
        if t.scheme is None or not (self._by_rules or t.reason == "default"):
            return
        name = _NUMBER.sub("0", t.info.name[-LONGEST:])  # no rule of the preset is about a layer by its number
        held = self._found.get(name)
        if held is None:
            held = self._found[name] = _Alike(t.info.name)
        held.count += 1
        held.nbytes += t.info.nbytes
        held.bytes_out += t.bytes_out

    def lines(self) -> list[str]:
        """The warning; none where there are no such parts."""
        if sum(held.nbytes for held in self._found.values()) < FLOOR:
            return []
        rules = [(r, compiled(r.pattern, PRESET)) for r in recipe.preset(PRESET).rules if r.scheme is None]
        parts: dict[str, list[_Alike]] = {}
        for name, held in self._found.items():
            rule = next((r for r, test in rules if test(name)), None)
            if rule is not None:
                parts.setdefault(rule.reason or rule.pattern, []).append(held)
        whole = sum(held.bytes_out for held in self._found.values())
        if 2 * sum(held.bytes_out for those in parts.values() for held in those) > whole:
            return []  # a vision model rather than a language model that sees
        return [line for why, those in parts.items() for line in _listed(those, why)]


def _listed(those: Sequence[_Alike], why: str) -> list[str]:
    """The line about tensors in a few words, with what they took; none where that is little."""
    count, nbytes = sum(held.count for held in those), sum(held.nbytes for held in those)
    if nbytes < FLOOR:
        return []
    more = f" and {count - 1} more ({size(nbytes)}) are" if count > 1 else f" ({size(nbytes)}) is"
    them = "them" if count > 1 else "it"
    first = printable(those[0].first, 160)
    return [f"{first}{more} quantized like the rest ({why}); --recipe {PRESET} keeps {them}"]
