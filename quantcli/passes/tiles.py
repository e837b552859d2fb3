"""The driver of every pass: tensor by tensor and tile by tile, with the same result on any number of threads.

A new pass is a function that returns a `Visit` for one tensor: a generator that yields a round of tasks, a list of
functions without arguments, and receives what they returned, in the order of the list, whichever threads ran them.
It may then yield another round (a second pass over the tensor), or end. `walk` runs the visits.

>>> from functools import partial
>>> weights = {"a": [1.0, 2.0, 3.0, 4.0], "b": [5.0]}
>>> spread = {}
>>> def visit(name: str) -> Visit:
...     values = weights[name]
...     tiles = [values[at : at + 2] for at in range(0, len(values), 2)]
...     sums = yield [partial(sum, tile) for tile in tiles]
...     mean = sum(sums) / len(values)
...     squares = yield [lambda tile=tile: sum((v - mean) ** 2 for v in tile) for tile in tiles]
...     spread[name] = sum(squares) / len(values)
>>> walk((visit(name) for name in weights), threads=2)
>>> [spread[name] for name in weights]
[1.25, 0.0]

What to know for a pass of your own:

- Visits start in order and only when a thread has nothing else to do, so that what they hold is bounded by the
  threads, not by the model. Pass a generator of visits, never a list.
- Add up results after their round, in its order: then sums do not depend on threads. What visits store of
  their tensors (`spread` above) is in no order until the walk has ended.
- Between two rounds a visit runs on any thread: nothing that belongs to a thread (`np.errstate`, say) may be held open
  over a `yield`.
- An error in a round is raised at its `yield`; of several the first in the round's order. A visit may catch it and
  continue with another round. Otherwise the walk ends: running tasks finish, no more are started, and the error of
  the earliest tensor is raised. KeyboardInterrupt ends it in the same way.
- `begun` starts the progress; the tasks of a round report the bytes they have done.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from quantcli.tensors.rounds import Alone

COPY = 1 << 22
"""Bytes of a kept tensor that are read at a time: whole chunks of its digest."""


class Progress(Protocol):
    """Shows how far the work is; called from several threads."""

    def start(self, total: int) -> None:
        """Begin a pass over this many bytes."""

    def advance(self, nbytes: int) -> None:
        """Count this many bytes as done."""


Task = Callable[[], Any]
"""A part of a round, such as one tile of a tensor."""

Visit = Generator[Sequence[Task], "list[Any]", Any]
"""What a pass does with one tensor: it yields rounds of tasks, and receives what these returned."""


def default_threads() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def begun(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Begin the progress of a pass over this many bytes; the function to call with each number of bytes done."""
    if progress is None:
        return lambda nbytes: None
    progress.start(total)
    return progress.advance


def once(tasks: Sequence[Task]) -> Visit:
    """A visit of one round whose results nobody needs."""
    yield tasks


def walk(visits: Iterable[Visit], *, threads: int, stopped: Callable[[], None] = lambda: None) -> None:
    """Run all visits. stopped: called when the remaining work is abandoned, so that tasks that wait can end."""
    _Workers(visits, stopped).run(threads)


class _Round:
    """The tasks of a visit that are being run. place: number of the visit, and of the round in it."""

    __slots__ = ("failed", "found", "left", "over", "place", "running", "taken", "tasks", "visit")

    def __init__(self, place: tuple[int, int], visit: Visit, tasks: Sequence[Task]) -> None:
        self.place, self.visit, self.tasks = place, visit, tasks
        self.found: list[Any] = [None] * len(tasks)
        self.taken, self.left = 0, len(tasks)
        self.running = set[int]()
        self.failed: tuple[int, Exception] | None = None
        self.over = False

    def take(self) -> int | None:
        """The next task; None when there is none, or one before it has failed."""
        if self.failed is not None or self.taken == len(self.tasks):
            return None
        self.running.add(self.taken)
        self.taken += 1
        return self.taken - 1

    def done(self, index: int, found: Any, error: Exception | None) -> bool:
        """Record the result of a task; whether the visit can continue now.

        After an error only tasks before it are waited for: they may have an earlier one.
        """
        self.running.discard(index)
        if error is None:
            self.found[index] = found
            self.left -= 1
        elif self.failed is None or index < self.failed[0]:
            self.failed = index, error
        if self.over:
            return False
        failed = self.failed
        self.over = not self.left if failed is None else all(i > failed[0] for i in self.running)
        return self.over


class _Workers:
    """Threads that run tasks in order until none is left, an error occurs or the user interrupts them."""

    def __init__(self, visits: Iterable[Visit], stopped: Callable[[], None]) -> None:
        self._visits, self._stopped = iter(visits), stopped
        self._rounds = deque[_Round]()
        self._ready = threading.Condition()
        self._begun = self._busy = 0
        self._alone: int | None = None
        self._stop = False
        self._errors: list[tuple[tuple[int, int], BaseException]] = []

    def run(self, threads: int) -> None:
        """Run everything; of several errors the earliest visit's is raised."""
        if threads == 1:
            self._work()
        else:
            workers = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
            try:
                for thread in workers:
                    thread.start()
                for thread in workers:
                    while thread.is_alive():
                        thread.join(0.2)
            except BaseException:
                self._finish()
                for thread in workers:
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

    def _fail(self, place: tuple[int, int], error: BaseException) -> None:
        """Stop the work; run raises the error again."""
        self._errors.append((place, error))
        self._finish()

    def _work(self) -> None:
        place = 0, 0
        try:
            while (item := self._next()) is not None:
                place = item[0].place
                self._do(*item)
        except BaseException as error:
            self._fail(place, error)

    def _next(self) -> tuple[_Round, int] | None:
        with self._ready:
            while not self._stop:
                while self._rounds:
                    index = self._rounds[0].take()
                    if index is not None:
                        self._busy += 1
                        return self._rounds[0], index
                    self._rounds.popleft()
                if self._alone is None and self._begin():
                    continue
                if not self._busy:
                    self._ready.notify_all()
                    return None
                self._ready.wait()
            return None

    def _begin(self) -> bool:
        """Start the next visit; whether there is one."""
        self._begun += 1
        try:
            visit = next(self._visits, None)
        except BaseException as error:
            self._fail((self._begun, 0), error)
            return True
        if visit is not None:
            self._advance((self._begun, 0), visit, partial(next, visit))
        return visit is not None

    def _do(self, round: _Round, index: int) -> None:
        found, wrong = None, None
        try:
            found = round.tasks[index]()
        except Exception as error:
            wrong = error
        with self._ready:
            over = round.done(index, found, wrong)
        if over:
            visit, failed = round.visit, round.failed
            step = partial(visit.send, round.found) if failed is None else partial(visit.throw, failed[1])
            self._advance((round.place[0], round.place[1] + 1), visit, step)
        with self._ready:
            self._busy -= 1
            self._ready.notify_all()

    def _advance(self, place: tuple[int, int], visit: Visit, step: Callable[[], Sequence[Task]]) -> None:
        """Continue a visit up to its next round that has tasks."""
        tasks: Sequence[Task] = ()
        try:
            tasks = step()
            while not tasks:
                tasks = visit.send([])
        except StopIteration:
            return
        except BaseException as error:
            self._fail(place, error)
            return
        finally:
            with self._ready:
                if isinstance(tasks, Alone):
                    self._alone = place[0]
                elif self._alone == place[0]:
                    self._alone = None
        with self._ready:
            self._rounds.append(_Round(place, visit, tasks))
            self._ready.notify_all()
