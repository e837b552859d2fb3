"""Lists whose items are made each time that they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

T = TypeVar("T")


class Remade(Iterable[T]):
    """Items that are made each time that they are gone through, however many they are."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())


class Numbered(Sequence[T]):
    """A list that makes the item of a number. What is one has its length, `at`, and where that is faster for items that
    follow each other, `between`.

    >>> class Squares(Numbered[int]):
    ...     __len__ = lambda self: 4
    ...     at = lambda self, number: number * number
    >>> list(Squares()), Squares()[-1], Squares()[1:3], Squares()[::-1]
    ([0, 1, 4, 9], 9, [1, 4], [9, 4, 1, 0])
    """

    __slots__ = ()

    @abstractmethod
    def at(self, number: int) -> T:
        """The item of a number from 0 on."""

    def between(self, first: int, last: int) -> Iterable[T]:
        """The items from number `first` to the one before `last`."""
        return map(self.at, range(first, last))

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if not isinstance(number, slice):
            return self.at(range(len(self))[number])
        wanted = range(len(self))[number]
        return [*(self.between(wanted.start, wanted.stop) if wanted.step == 1 else map(self.at, wanted))]

    def __iter__(self) -> Iterator[T]:
        return iter(self.between(0, len(self)))


class Each(Numbered[T]):
    """A list whose items are made each time that they are asked for: those of a million tensors take 400 MiB.

    make: makes all, in order; one: makes that of a number, where that takes less than to make those before it.

    >>> squares = Each(4, lambda: (n * n for n in range(4)))
    >>> len(squares), list(squares), squares[-1], squares[:2]
    (4, [0, 1, 4, 9], 9, [0, 1])
    """

    __slots__ = ("_count", "_make", "_one")

    def __init__(self, count: int, make: Callable[[], Iterable[T]], one: Callable[[int], T] | None = None) -> None:
        self._count, self._make, self._one = count, make, one

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> T:
        """The item of a number."""
        return self._one(number) if self._one is not None else next(islice(self._make(), number, None))

    def between(self, first: int, last: int) -> Iterable[T]:
        """Items that follow each other."""
        return islice(self._make(), first, last) if self._one is None else map(self._one, range(first, last))

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())


class Reordered(Numbered[T]):
    """The items of another list in another order. order: the number of each in that list.

    >>> list(Reordered("abcdef", array("I", [0, 2, 4, 1, 3, 5])))
    ['a', 'c', 'e', 'b', 'd', 'f']
    """

    __slots__ = ("_items", "_order")

    def __init__(self, items: Sequence[T], order: array[int]) -> None:
        self._items, self._order = items, order

    def __len__(self) -> int:
        return len(self._order)

    def at(self, number: int) -> T:
        """The item of a number."""
        return self._items[self._order[number]]

    def between(self, first: int, last: int) -> Iterator[T]:
        """Items that follow each other; those that do so in the other list too are asked for together."""
        for begin in range(first, last, _TOGETHER):
            wanted = self._order[begin : min(begin + _TOGETHER, last)]
            least, most = min(wanted), max(wanted)
            if most - least < _APART * len(wanted):
                held = self._items[least : most + 1]
                yield from (held[number - least] for number in wanted)
            else:
                yield from (self._items[number] for number in wanted)


_TOGETHER, _APART = 1000, 8
"""Items that are asked for together, and how many times as many lie between the first and the last of them at most."""
