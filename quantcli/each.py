"""Lists whose items are made each time that they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

T = TypeVar("T")


class Again(Iterable[T]):
    """Items that are made each time that they are gone through, however many they are."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())


class Each(Sequence[T]):
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

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self[one] for one in range(self._count)[number]] if self._one is not None else [*self][number]
        at = range(self._count)[number]
        return self._one(at) if self._one is not None else next(islice(self._make(), at, None))

    def __iter__(self) -> Iterator[T]:
        return iter(self._make())
