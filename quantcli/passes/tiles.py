"""Threads that take tasks in order until none is left, an error occurs or the user has had enough."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

COPY = 1 << 22
"""Bytes of a tensor that is not quantized which are taken at a time; whole chunks of its digest."""


class Progress(Protocol):
    """Told how far the work is; called from several threads."""

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""

    def advance(self, nbytes: int) -> None:
        """So many bytes are done."""


Task = Callable[[], "list[Task] | None"]
"""Something to do; it may return further tasks, which are done before those that wait."""


def default_threads() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class Crew:
    """Runs tasks on some threads; the earliest task's error is the one that is raised."""

    def __init__(self, tasks: Iterable[Task], threads: int, stopped: Callable[[], None] = lambda: None) -> None:
        """stopped: called when the rest is given up, so that tasks which wait for something can end."""
        self._source: Iterator[Task] = iter(tasks)
        self._urgent: deque[tuple[int, Task]] = deque()
        self._ready = threading.Condition()
        self._taken = 0
        self._busy = 0
        self._stop = False
        self._errors: list[tuple[int, BaseException]] = []
        self._threads = threads
        self._stopped = stopped

    def run(self) -> None:
        """Do everything. On KeyboardInterrupt the running tasks are let finish, the others dropped."""
        if self._threads == 1:
            self._work()
        else:
            crew = [threading.Thread(target=self._work, daemon=True) for _ in range(self._threads)]
            try:
                for thread in crew:
                    thread.start()
                for thread in crew:
                    while thread.is_alive():
                        thread.join(0.2)
            except BaseException:
                self._finish()
                for thread in crew:
                    if thread.ident is not None:
                        thread.join()
                raise
        if self._errors:
            raise min(self._errors, key=lambda e: e[0])[1]

    def _finish(self) -> None:
        with self._ready:
            self._stop = True
            self._ready.notify_all()
        self._stopped()

    def _next(self) -> tuple[int, Task] | None:
        with self._ready:
            while not self._stop:
                if self._urgent:
                    self._busy += 1
                    return self._urgent.popleft()
                task = next(self._source, None)
                if task is not None:
                    self._busy += 1
                    self._taken += 1
                    return self._taken, task
                if not self._busy:
                    self._ready.notify_all()
                    return None
                self._ready.wait()
            return None

    def _work(self) -> None:
        number = 0
        try:
            while (item := self._next()) is not None:
                number, task = item
                more = task()
                with self._ready:
                    self._busy -= 1
                    self._urgent.extend((number, m) for m in more or ())
                    self._ready.notify_all()
        except BaseException as error:  # raised again by run
            self._errors.append((number, error))
            self._finish()
