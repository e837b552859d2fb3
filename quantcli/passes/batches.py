"""A pass over the tensors of open models, done here by threads or in batches by the workers of an executor.

What a pass does with a tensor is a visit (see tiles.py) that returns what it found: a small result that can be pickled.
A batch names some tensors, or some tasks of a large one, and how a worker opens the models they are in; the worker
runs the same visits. Results are put together in the order of the tensors, and those of a tensor's tasks in their own,
so that neither figures nor errors depend on who did what, nor on how the work was cut.

Any executor of `concurrent.futures` will do: processes on this machine, or those of a cluster.

>>> from contextlib import contextmanager
>>> class Doubled:
...     sources = ()
...     def visit(self, item, advance):
...         [found] = yield [lambda: 2 * item.given]
...         return found
>>> items = [Item("a", 1, 21), Item("b", 1, 4)]
>>> found = []
>>> run(Doubled(), items, threads=1, take=found.append)
>>> found
[42, 8]
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from quantcli.errors import QuantcliError
from quantcli.passes.performing import (
    Advance,
    Batch,
    Failed,
    Item,
    Opened,
    Opening,
    Pass,
    Take,
    identity,
    perform,
    ready,
    visited,
)
from quantcli.passes.tiles import Progress, Visit, begun

if TYPE_CHECKING:
    from quantcli.stores import Source

Key = TypeVar("Key")

LEAST, MOST = 32 << 20, 256 << 20
"""Bytes of weights in a batch: so many that handing it out, some milliseconds, is lost in what it takes to do, and so
few that the end of a pass does not wait for one worker, and that little is lost with a worker."""

MANY = 2048
"""Tensors in a batch at most, however small they are."""

PATIENCE = 1.0
"""Seconds without a result after which it is asked whether workers are still there."""

AHEAD = 3
"""Batches that are handed out for every one that can be done at once: the next is there when one is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Workers that do batches. size: how many batches at once; threads: for each of them. everywhere(function): calls a
    function on every worker before the first batch, and gives what was returned. explained: what an error of the
    executor itself means to a user, None where it does not know. missed: whether an error only says that a result did
    not arrive, so that its call is handed out again. lost: the error where workers are out of reach for good, None
    while they are not: what they were at may then never end."""

    executor: Executor
    size: int
    threads: int = 1
    everywhere: Callable[[Callable[[], Any]], Sequence[Any]] = lambda function: ()
    explained: Callable[[BaseException], QuantcliError | None] = lambda error: None
    missed: Callable[[BaseException], bool] = lambda error: False
    lost: Callable[[], QuantcliError | None] = lambda: None


# ---- here -------------------------------------------------------------------------------------------------------


def run(
    made: Pass,
    items: Sequence[Item],
    *,
    threads: int,
    progress: Progress | None = None,
    crew: Crew | None = None,
    opening: Opening | None = None,
    take: Take,
) -> None:
    """Take what a pass finds in each tensor, in their order. made: the pass on models that are open here. crew: who
    does it, None for threads of this process; opening: how they open the models. Raises the error of the earliest
    tensor."""
    advance = begun(progress, sum(item.nbytes for item in items))
    if crew is None or opening is None:
        visited(made, items, threads, advance, take)
        return
    with at_hand(crew, made.sources, opening) as opened:
        for found in _handed_out(made, items, crew, opened, advance):
            take(found)


@contextmanager
def at_hand(crew: Crew, sources: Sequence[Source], opening: Opening) -> Iterator[Opened]:
    """How workers open what they work on, once all have. sources: as they are open here. Raises QuantcliError where a
    worker finds other files, or none; errors of workers inside get the names that files have here."""
    opened = Opened(opening=opening, run=uuid.uuid4().hex, files=identity(sources))
    try:
        for failed in crew.everywhere(functools.partial(ready, opened)):
            if failed is not None:
                raise failed.error
        yield opened
    except QuantcliError as error:
        raise _named_as_here(error, sources) from None


def _named_as_here(error: QuantcliError, sources: Sequence[Source]) -> QuantcliError:
    """An error of a worker with the names that files were given here."""
    names = {os.path.abspath(source.path): source.path for source in sources}
    error.place[:] = [names.get(place, place) for place in error.place]
    return error


@dataclass(slots=True)
class _Parts:
    """A tensor whose tasks are done in several batches. visit: waits for the results of its only round."""

    item: Item
    visit: Visit
    found: list[Any]
    left: int

    def put(self, first: int, results: Sequence[Any]) -> None:
        """Take in the results of some tasks."""
        self.found[first : first + len(results)] = results
        self.left -= len(results)

    def result(self) -> Any:
        """What the visit returns, given all results."""
        try:
            self.visit.send(self.found)
        except StopIteration as ended:
            return ended.value
        raise AssertionError("a tensor whose tasks are done apart has a single round")


def _handed_out(made: Pass, items: Sequence[Item], crew: Crew, opened: Opened, advance: Advance) -> list[Any]:
    """What workers find in each tensor."""
    found: list[Any] = [None] * len(items)
    parts: dict[int, _Parts] = {}
    most = max(LEAST, min(MOST, sum(item.nbytes for item in items) // (4 * crew.size)))

    def batches() -> Iterator[tuple[int, Batch]]:
        for first, last in _cuts(items, most):
            whole = Batch(opened=opened, items=tuple(items[first:last]), tasks=None, threads=crew.threads)
            count = -(-items[first].nbytes // most)
            if not items[first].splits or count < 2:
                yield first, whole
                continue
            visit = made.visit(items[first], lambda nbytes: None)
            total = len(next(visit))
            parts[first] = _Parts(items[first], visit, [None] * total, total)
            for part in range(min(count, total)):
                ends = total * part // min(count, total), total * (part + 1) // min(count, total)
                yield first, replace(whole, tasks=ends)

    calls = (((at, batch), functools.partial(perform, batch)) for at, batch in batches())
    for (at, batch), results in hand_out(calls, crew):
        if batch.tasks is None:
            found[at : at + len(results)] = results
        else:
            parts[at].put(batch.tasks[0], results)
            if not parts[at].left:
                found[at] = parts[at].result()
                advance(parts.pop(at).item.nbytes)
        advance(batch.nbytes)
    return found


def _cuts(items: Sequence[Item], most: int) -> Iterator[tuple[int, int]]:
    """First and last of the tensors that are done together: neighbours of at most so many bytes, or one larger."""
    first = size = 0
    for at, item in enumerate(items):
        if at > first and (size + item.nbytes > most or at - first == MANY):
            yield first, at
            first, size = at, 0
        size += item.nbytes
    if items:
        yield first, len(items)


def hand_out(calls: Iterable[tuple[Key, Callable[[], Any]]], crew: Crew) -> Iterator[tuple[Key, Any]]:
    """What calls return, by the key of each, in the order in which workers are done with them. calls: picklable; only
    some more than are done at once are asked for, so that what they hold is bounded. Raises the error of the earliest
    call that has one, when those before it are done: a call that returns `Failed` has that one."""
    running: dict[Future[Any], tuple[int, Key, Callable[[], Any]]] = {}
    failed: tuple[int, BaseException] | None = None
    more = enumerate(calls)
    try:
        while True:
            while failed is None and len(running) < AHEAD * crew.size and (new := next(more, None)) is not None:
                number, (key, call) = new
                running[_submitted(call, crew)] = number, key, call
            before = [f for f, (number, _, _) in running.items() if failed is None or number < failed[0]]
            if not before:
                break
            done = wait(before, timeout=PATIENCE, return_when=FIRST_COMPLETED).done
            if not done and (gone := crew.lost()) is not None:
                raise gone
            for future in done:
                number, key, call = running.pop(future)
                if _is_missed(future, crew):
                    running[_submitted(call, crew)] = number, key, call
                    continue
                error, result = _outcome(future, crew)
                if error is None:
                    yield key, result
                elif failed is None or number < failed[0]:
                    failed = number, error
    finally:
        for future in running:
            future.cancel()
    if failed is not None:
        raise failed[1]


def _submitted(call: Callable[[], Any], crew: Crew) -> Future[Any]:
    """A call on its way to a worker."""
    try:
        return crew.executor.submit(call)
    except Exception as error:
        raise crew.explained(error) or error from None


def _is_missed(future: Future[Any], crew: Crew) -> bool:
    """Whether the result of a call did not arrive."""
    error = None if future.cancelled() else future.exception()
    return error is not None and crew.missed(error)


def _outcome(future: Future[Any], crew: Crew) -> tuple[BaseException | None, Any]:
    """The error of a call, or its result."""
    try:
        found = future.result()
    except (Exception, CancelledError) as error:
        return crew.explained(error) or error, None
    return (found.error, None) if isinstance(found, Failed) else (None, found)
