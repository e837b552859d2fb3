"""Values that several threads need at about the same time, and nobody for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class _Box(Generic[T]):
    """A value, once it is made."""

    __slots__ = ("__weakref__", "lock", "value")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: T | None = None


class Latest(Generic[T]):
    """The values in use: each thread holds the one it took last, so that there are never more than threads. Each is
    made once, by the thread that needs it first; others wait for it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Hashable, _Box[T]] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._own = threading.local()

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key."""
        with self._lock:
            found = self._known.get(key)
            if found is None:
                self._own.box = None  # before another one is made, not after
                found = self._known[key] = _Box()
            self._own.box = found
        with found.lock:
            if found.value is None:
                found.value = make()
            return found.value
