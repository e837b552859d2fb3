"""Tables of names, and of tensors, that take a few bytes for each beside its name: files may hold a million."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import accumulate, chain
from typing import Generic, TypeVar

from quantcli.each import Numbered
from quantcli.tensors.info import Kind, TensorInfo

T = TypeVar("T")
V = TypeVar("V")

_LAST = (1 << 63) - 1
"""The last place in a file that there can be. What a damaged file has beyond it begins there."""

_NARROW = (1 << 32) - 1
"""The last place in a text that a number of 4 bytes can hold."""


class Names(Numbered[str]):
    """Names in order, each once: their UTF-8 one after another, and numbers of 4 bytes. As texts in a dict they
    take 150 bytes more for each."""

    __slots__ = ("_ends", "_slots", "_text")

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("I", [0])
        self._slots = array("I", bytes(4 * 64))  # numbers, from 1 on, at the hash of their names or behind it

    def add(self, name: str) -> bool:
        """Add a name at the end; whether it is a new one."""
        at = self._slot(name)
        if self._slots[at]:
            return False
        self._text += name.encode("utf-8", "surrogatepass")
        end, count = len(self._text), len(self._ends)
        if end > _NARROW and self._ends.typecode == "I":
            self._ends = array("Q", self._ends)
        self._ends.append(end)
        self._slots[at] = count
        if 4 * count > 3 * len(self._slots):
            self._grow()
        return True

    def find(self, name: str, guess: int = -1) -> int:
        """The number of a name; -1 where it is none of these. guess: the number that it is likely to have."""
        if 0 <= guess < len(self._ends) - 1:
            raw, begin = name.encode("utf-8", "surrogatepass"), self._ends[guess]
            if self._ends[guess + 1] - begin == len(raw) and self._text.startswith(raw, begin):
                return guess
        return self._slots[self._slot(name)] - 1

    def _slot(self, name: str) -> int:
        """The slot of a name: the one with its number, or an empty one."""
        raw, slots, ends = name.encode("utf-8", "surrogatepass"), self._slots, self._ends
        last, size = len(slots) - 1, len(raw)
        at = hash(name) & last
        while number := slots[at]:
            begin = ends[number - 1]
            if ends[number] - begin == size and self._text.startswith(raw, begin):
                break
            at = (at + 1) & last
        return at

    def _grow(self) -> None:
        slots = array("I", bytes(8 * len(self._slots)))
        last = len(slots) - 1
        for number, name in enumerate(self, 1):
            at = hash(name) & last
            while slots[at]:
                at = (at + 1) & last
            slots[at] = number
        self._slots = slots

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, number: int) -> str:
        """The name of a number."""
        return self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def between(self, first: int, last: int) -> Iterator[str]:
        """The names from one number to another."""
        text, begin = self._text, self._ends[first]
        for end in self._ends[first + 1 : last + 1]:
            yield text[begin:end].decode("utf-8", "surrogatepass")
            begin = end

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) >= 0


class Tensors(Numbered[TensorInfo]):
    """Tensors in order, each of another name, and where each begins. What describes one is made when it is asked for;
    dtype and shape are shared by all that have the same."""

    __slots__ = ("_begins", "_kinds", "_known", "_numbers", "names")

    def __init__(self) -> None:
        self.names, self._begins, self._kinds = Names(), array("q"), array("I")
        self._known, self._numbers = list[Kind](), dict[Kind, int]()

    def add(self, name: str, kind: Kind, begin: int) -> bool:
        """Add a tensor at the end; whether its name is a new one."""
        if not self.names.add(name):
            return False
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = len(self._known)
            self._known.append(kind)
        self._kinds.append(number)
        self._begins.append(min(begin, _LAST))
        return True

    @property
    def end(self) -> int:
        """Where the last one ends; 0 where there is none."""
        return self._begins[-1] + self[-1].nbytes if self else 0

    def find(self, name: str) -> TensorInfo | None:
        """A tensor by its name; None where there is none."""
        number = self.names.find(name)
        return None if number < 0 else TensorInfo(name, *self._known[self._kinds[number]])

    def kind(self, number: int) -> Kind:
        """Dtype and shape of the tensor of a number."""
        return self._known[self._kinds[number]]

    def begin(self, name: str) -> int:
        """Where a tensor begins. Raises KeyError where there is none of this name."""
        number = self.names.find(name)
        if number < 0:
            raise KeyError(name)
        return self._begins[number]

    def kinds(self) -> Iterator[tuple[Kind, int]]:
        """Dtype and shape of each tensor, and where it begins."""
        return ((self._known[kind], begin) for kind, begin in zip(self._kinds, self._begins))

    def by_place(self) -> Tensors:
        """The same tensors in the order in which they begin and end."""
        sizes = [TensorInfo("", *kind).nbytes for kind in self._known]
        keys = [(begin, begin + sizes[kind]) for kind, begin in zip(self._kinds, self._begins)]
        found = Tensors()
        for number in sorted(range(len(self)), key=keys.__getitem__):
            found.add(self.names[number], self._known[self._kinds[number]], self._begins[number])
        return found

    def __len__(self) -> int:
        return len(self._begins)

    def at(self, number: int) -> TensorInfo:
        """The tensor of a number."""
        return TensorInfo(self.names.at(number), *self._known[self._kinds[number]])

    def between(self, first: int, last: int) -> Iterator[TensorInfo]:
        """The tensors from one number to another."""
        each = zip(self.names.between(first, last), self._kinds[first:last])
        return (TensorInfo(name, *self._known[kind]) for name, kind in each)


class Joined(Numbered[T]):
    """What there is of the tensors of several files, one file after another."""

    __slots__ = ("_parts", "_starts")

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self._parts, self._starts = parts, [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, number: int) -> T:
        """What there is of the tensor of a number."""
        part = bisect_right(self._starts, number) - 1
        return self._parts[part][number - self._starts[part]]

    def between(self, first: int, last: int) -> Iterable[T]:
        """What there is of the tensors from one number to another."""
        touched = slice(bisect_right(self._starts, first) - 1, bisect_left(self._starts, last))
        parts = zip(self._starts[touched], self._parts[touched])
        return (one for begin, part in parts for one in part[max(first - begin, 0) : max(last - begin, 0)])

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)


class InOrder(ValuesView[T]):
    """The values of a map in its order, none of which is looked up by its name. items: makes them."""

    __slots__ = ("_items",)

    def __init__(self, named: Mapping[str, T], items: Callable[[], Iterator[T]]) -> None:
        super().__init__(named)
        self._items = items

    def __iter__(self) -> Iterator[T]:
        return self._items()


class Made(Mapping[str, V], Generic[T, V]):
    """What is made of the values of another map, each when it is asked for: views of a million small tensors would take
    a gigabyte. held: that map."""

    __slots__ = ("_held", "_make")

    def __init__(self, held: Mapping[str, T], make: Callable[[T], V]) -> None:
        self._held, self._make = held, make

    def __getitem__(self, name: str) -> V:
        return self._make(self._held[name])

    def values(self) -> InOrder[V]:
        """What is made of all, in order."""
        return InOrder(self, lambda: map(self._make, self._held.values()))

    def items(self) -> ItemsView[str, V]:
        """Names, and what is made of each, in order."""
        return Items(self)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Items(ItemsView[str, V]):
    """Names and values of a map in its order, none of which is looked up by its name."""

    _mapping: Mapping[str, V]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return zip(self._mapping, self._mapping.values())


class ByName(Mapping[str, TensorInfo]):
    """Tensors by their names."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def values(self) -> InOrder[TensorInfo]:
        """The tensors in order."""
        return InOrder(self, self._tensors.__iter__)

    def __getitem__(self, name: str) -> TensorInfo:
        found = self._tensors.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._tensors.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.names)

    def __len__(self) -> int:
        return len(self._tensors)
