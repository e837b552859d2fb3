"""Rounds of tasks that the work on a tensor gives to several threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

Rounds = Generator[Sequence[Callable[[], Any]], "list[Any]", Any]
"""Rounds of tasks that several threads may share, as passes have them."""


class Alone(tuple[Callable[[], Any], ...]):
    """A round of a tensor that needs much memory for now: no other tensor is begun until it yields another round."""

    __slots__ = ()


def finish(rounds: Rounds) -> Any:
    """What is returned at the end of all rounds, which are run in the thread that calls.

    >>> def twice():
    ...     found = yield [lambda: 3]
    ...     return 2 * found[0]
    >>> finish(twice())
    6
    """
    step: Callable[[], Sequence[Callable[[], Any]]] = partial(next, rounds)
    while True:
        try:
            tasks = step()
        except StopIteration as end:
            return end.value
        try:
            step = partial(rounds.send, [task() for task in tasks])
        except Exception as error:
            step = partial(rounds.throw, error)
