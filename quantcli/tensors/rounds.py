"""Rounds of tasks that the work on a tensor gives to several threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

Rounds = Generator[Sequence[Callable[[], Any]], "list[Any]", Any]
"""Rounds of tasks that several threads may share, as passes have them."""


class Alone(tuple[Callable[[], Any], ...]):
    """A round of a tensor that needs much memory for now: no other tensor is begun until it yields another round."""

    __slots__ = ()
