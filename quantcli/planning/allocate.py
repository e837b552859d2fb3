"""One option for each item so that sizes stay within a budget and costs add up to the least: the multiple-choice
knapsack problem, with a lower bound.

The lower convex hulls of the items' options give the greedy solution and, by letting one last step be taken in part,
the linear relaxation, which bounds every solution from below. Dynamic programming over the reachable (size, cost)
pairs then looks for the optimum; pairs are dropped when another one is as small and as cheap, and when even the
relaxation of the rest cannot make them better than what is known. Where more pairs are left than are kept, the answer
may not be the optimum, and the bound says how far from it at most.

References: Sinha and Zoltners, The Multiple-Choice Knapsack Problem, 1979; Shoham and Gersho, Efficient Bit Allocation
for an Arbitrary Set of Quantizers, 1988; Pisinger, A Minimal Algorithm for the Multiple-Choice Knapsack Problem, 1995.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PAIRS = 1 << 23
"""Pairs of all items together that are looked at: a few seconds."""

Option = tuple[int, float]
"""Size in bytes and cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The option of every item. bound: what no choice within the budget undercuts; optimal: whether none is better."""

    choice: tuple[int, ...]
    size: int
    cost: float
    bound: float
    optimal: bool

    @property
    def gap(self) -> float:
        """How far the cost may lie above the optimum, as a share of the bound."""
        if self.optimal or self.cost <= self.bound:
            return 0.0
        return (self.cost - self.bound) / self.bound if self.bound > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class _Item:
    """Options that are not dominated, by size; `hull`: which of them are corners of the lower convex hull."""

    index: tuple[int, ...]
    size: NDArray[np.int64]
    cost: Array
    hull: tuple[int, ...]


def _item(options: Sequence[Option]) -> _Item:
    order = sorted(range(len(options)), key=lambda i: (options[i][0], options[i][1], i))
    kept: list[int] = []
    for i in order:
        if not kept or options[i][1] < options[kept[-1]][1]:
            kept.append(i)
    hull: list[int] = []
    for place, i in enumerate(kept):
        while len(hull) > 1:
            (b0, d0), (b1, d1) = options[kept[hull[-2]]], options[kept[hull[-1]]]
            if (d0 - d1) * (options[i][0] - b1) > (d1 - options[i][1]) * (b1 - b0):
                break
            hull.pop()
        hull.append(place)
    size = np.array([options[i][0] for i in kept], np.int64)
    return _Item(tuple(kept), size, np.array([options[i][1] for i in kept], np.float64), tuple(hull))


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """The linear relaxation of some items: cost by size left for them, convex and piecewise linear."""

    least: int
    base: float
    sizes: Array
    gains: Array

    def bound(self, room: NDArray[np.int64]) -> Array:
        """Least cost of these items in so much room; infinite where the smallest options do not fit."""
        free = (room - self.least).astype(np.float64)
        found = self.base - np.interp(free, self.sizes, self.gains)
        return np.where(free < 0, np.inf, found)


def _steps(items: Sequence[_Item]) -> list[tuple[float, int, int, int, float]]:
    """Steps along all hulls, best first: (slope, item, place after it, size, gain)."""
    found = []
    for number, item in enumerate(items):
        for a, b in zip(item.hull, item.hull[1:]):
            size, gain = int(item.size[b] - item.size[a]), float(item.cost[a] - item.cost[b])
            found.append((gain / size, number, b, size, gain))
    return sorted(found, key=lambda s: (-s[0], s[1], s[2]))


def _relaxed(items: Sequence[_Item]) -> _Relaxed:
    return next(_rests(items))


def _rests(items: Sequence[_Item]) -> Iterator[_Relaxed]:
    """The relaxations of all items, of all but the first, and so on to that of none."""
    steps = _steps(items)
    owner, sizes = np.array([s[1] for s in steps], np.int64), np.array([s[3] for s in steps], np.float64)
    gains = np.array([s[4] for s in steps], np.float64)
    least = _sums_to_the_end([int(i.size[0]) for i in items])
    base = _sums_to_the_end([float(i.cost[0]) for i in items])
    for first in range(len(items) + 1):
        of_these = owner >= first
        yield _Relaxed(
            int(least[first]),
            float(base[first]),
            np.append(0.0, np.cumsum(sizes[of_these])),
            np.append(0.0, np.cumsum(gains[of_these])),
        )


def _sums_to_the_end(values: Sequence[float]) -> NDArray[np.generic]:
    """The sum of all values, of all but the first, and so on to that of none."""
    return np.append(np.cumsum(values[::-1])[::-1], 0)


def _greedy(items: Sequence[_Item], budget: int) -> list[int]:
    """Steps of the hulls while they fit, then whatever option fits and gains most, until none does."""
    places = [0] * len(items)
    room = budget - sum(int(i.size[0]) for i in items)
    blocked: set[int] = set()
    for _, number, place, size, _ in _steps(items):
        if number in blocked:
            continue
        if size > room:
            blocked.add(number)
            continue
        places[number] = place
        room -= size
    while True:
        best = (0.0, -1, -1)
        for number, item in enumerate(items):
            now = places[number]
            for place in range(now + 1, len(item.size)):
                if item.size[place] - item.size[now] <= room:
                    best = max(best, (float(item.cost[now] - item.cost[place]), -number, place))
        gain, number, place = best[0], -best[1], best[2]
        if gain <= 0:
            return places
        room -= int(items[number].size[place] - items[number].size[places[number]])
        places[number] = place


def smallest(options: Sequence[Sequence[Option]]) -> int:
    """The least budget there is a choice for."""
    return sum(min(size for size, _ in item) for item in options)


def allocate(options: Sequence[Sequence[Option]], budget: int) -> Allocation | None:
    """The cheapest choice of one option for each item within the budget; None when not even the smallest fit.

    >>> allocate([[(1, 9.0), (2, 4.0), (4, 0.0)], [(1, 6.0), (3, 1.0)]], 5).choice
    (1, 1)
    """
    items = [_item(o) for o in options]
    whole = _relaxed(items)
    if budget < whole.least:
        return None
    places = _greedy(items, budget)
    bound = float(whole.bound(np.array([budget]))[0])
    known = sum(float(i.cost[p]) for i, p in zip(items, places))
    better, optimal = _search(items, budget, known)
    if better is not None:
        places = better
    choice = tuple(i.index[p] for i, p in zip(items, places))
    cost = sum(options[n][c][1] for n, c in enumerate(choice))
    size = sum(options[n][c][0] for n, c in enumerate(choice))
    return Allocation(choice=choice, size=size, cost=cost, bound=min(cost if optimal else bound, cost), optimal=optimal)


def _search(items: Sequence[_Item], budget: int, known: float) -> tuple[list[int] | None, bool]:
    """A choice that is cheaper than what is known, if one is found, and whether nothing was left out."""
    order = sorted(range(len(items)), key=lambda n: (-(items[n].cost[0] - items[n].cost[-1]), n))
    most = max(256, PAIRS // max(sum(len(i.size) for i in items), 1))
    rests = _rests([items[n] for n in order])
    next(rests)
    size, cost = np.zeros(1, np.int64), np.zeros(1)
    back: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    complete = True
    for n, rest in zip(order, rests):
        item = items[n]
        sizes = (size[:, None] + item.size).ravel()
        costs = (cost[:, None] + item.cost).ravel()
        ahead = costs + rest.bound(budget - sizes)
        alive = np.flatnonzero(ahead < known * (1 - 1e-12))
        if len(alive) > most:
            complete = False
            alive = alive[np.argsort(ahead[alive], kind="stable")[:most]]
        alive = alive[np.lexsort((costs[alive], sizes[alive]))]
        lowest = np.minimum.accumulate(np.append(np.inf, costs[alive]))[:-1]
        alive = alive[costs[alive] < lowest]
        if not len(alive):
            return None, complete
        back.append((alive // len(item.size), alive % len(item.size)))
        size, cost = sizes[alive], costs[alive]
    at = int(cost.argmin())
    places = [0] * len(items)
    for (parent, place), n in zip(reversed(back), reversed(order)):
        places[n] = int(place[at])
        at = int(parent[at])
    return places, complete
