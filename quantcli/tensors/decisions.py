"""What was decided for all tensors of a model, in a few bytes for each: a model may have a million."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial

from quantcli.each import Numbered, Reordered
from quantcli.tensors.decided import Decided
from quantcli.tensors.info import TensorInfo


class Decisions(Numbered[Decided]):
    """What was decided for tensors, in order: the record of one is made when it is asked for. As records they take 350
    bytes each; what is decided is the same for most tensors of a kind.

    infos: the tensors; tensors: what was decided for each of them.

    >>> from quantcli.tensors.decided import Kept
    >>> infos = [TensorInfo("a.bias", "F32", (8,)), TensorInfo("b.bias", "F32", (8,))]
    >>> found = Decisions(infos, [Kept(info=info, reason="bias") for info in infos])
    >>> found[1].info.name, len(found), [(first.info.name, count) for first, count in found.alike()]
    ('b.bias', 2, [('a.bias', 2)])
    """

    __slots__ = ("_firsts", "_infos", "_makers", "_numbers")

    def __init__(self, infos: Sequence[TensorInfo], tensors: Iterable[Decided]) -> None:
        self._infos, self._numbers = infos, array("I")
        self._firsts, known = list[Decided](), dict[Hashable, int]()
        for tensor in tensors:
            number = known.setdefault(_kind(tensor), len(known))
            if number == len(self._firsts):
                self._firsts.append(tensor)
            self._numbers.append(number)
        self._makers = list(map(_maker, self._firsts))

    @classmethod
    def of(cls, tensors: Iterable[Decided]) -> Decisions:
        """Such a list of these records."""
        held = list(tensors)
        return cls([tensor.info for tensor in held], held)

    def alike(self) -> Iterator[tuple[Decided, int]]:
        """The first of all tensors of a dtype and shape for which the same was decided, and how many they are."""
        counts = Counter(self._numbers)
        return ((first, counts[number]) for number, first in enumerate(self._firsts))

    def sorted_within(self, ends: Iterable[int], key: Callable[[Decided], int]) -> Decisions:
        """The same decisions, of which those from each of some numbers to the next are in the order of a key, which
        depends on what was decided alone."""
        keys, order, begin = list(map(key, self._firsts)), array("I"), 0
        for end in ends:
            order.extend(sorted(range(begin, end), key=lambda number: keys[self._numbers[number]]))
            begin = end
        found = Decisions(Reordered(self._infos, order), ())
        found._numbers = array("I", map(self._numbers.__getitem__, order))
        found._firsts, found._makers = self._firsts, self._makers
        return found

    def amended(self, changes: Mapping[str, Decided]) -> Decisions:
        """These decisions with others for some tensors, by their names."""
        return Decisions(self._infos, (changes.get(tensor.info.name, tensor) for tensor in self))

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, number: int) -> Decided:
        """What was decided for the tensor of a number."""
        return self._makers[self._numbers[number]](info=self._infos[number])

    def between(self, first: int, last: int) -> Iterator[Decided]:
        """What was decided for tensors that follow each other."""
        return self._made(self._infos[first:last], self._numbers[first:last])

    def __iter__(self) -> Iterator[Decided]:
        return self._made(self._infos, self._numbers)

    def _made(self, infos: Sequence[TensorInfo], numbers: Sequence[int]) -> Iterator[Decided]:
        makers = self._makers
        return (makers[number](info=info) for info, number in zip(infos, numbers))


def _kind(tensor: Decided) -> Hashable:
    """What a tensor has in common with others, and what was decided for it."""
    info = tensor.info
    if tensor.scheme is None:
        return info.dtype, info.shape, tensor.reason, tensor.note
    held = id(tensor.scheme), id(tensor.grouping), id(tensor.columns)  # by the first of these tensors
    return info.dtype, info.shape, tensor.reason, tensor.note, tensor.scale_dtype, tensor.input_scale, held


def _maker(first: Decided) -> Callable[..., Decided]:
    """What makes the record of a tensor for which the same was decided."""
    names = [field.name for field in fields(first) if field.name != "info"]
    return partial(type(first), **{name: getattr(first, name) for name in names})


def alike(tensors: Sequence[Decided]) -> Iterable[tuple[Decided, int]]:
    """Tensors that stand for all of a dtype and shape for which the same was decided, and how many those are."""
    return tensors.alike() if isinstance(tensors, Decisions) else ((tensor, 1) for tensor in tensors)


def by_name(tensors: Sequence[Decided]) -> Mapping[str, Decided]:
    """What was decided for tensors, by their names; where their records are yet to be made, they are made when the
    first is looked for."""
    return _ByName(tensors) if isinstance(tensors, Decisions) else {tensor.info.name: tensor for tensor in tensors}


class _ByName(Mapping[str, Decided]):
    """Decisions by name, of which all records are made when the first is looked for."""

    __slots__ = ("_found", "_tensors")

    def __init__(self, tensors: Decisions) -> None:
        self._tensors = tensors
        self._found: dict[str, Decided] | None = None

    @property
    def _held(self) -> dict[str, Decided]:
        if self._found is None:
            self._found = {tensor.info.name: tensor for tensor in self._tensors}
        return self._found

    def __getitem__(self, name: str) -> Decided:
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._tensors)
