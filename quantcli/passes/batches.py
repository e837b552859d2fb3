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
>>> run(Doubled(), items, threads=1)
[42, 8]
"""

from __future__ import annotations

import functools
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from quantcli import __version__, memory
from quantcli.errors import DataError, QuantcliError
from quantcli.passes.tiles import Progress, Task, Visit, begun, walk

if TYPE_CHECKING:
    from quantcli.stores import Source
    from quantcli.stores.files import InputFile

Key = TypeVar("Key")

LEAST, MOST = 32 << 20, 256 << 20
"""Bytes of weights in a batch: so many that handing it out, some milliseconds, is lost in what it takes to do, and so
few that the end of a pass does not wait for one worker, and that little is lost with a worker."""

MANY = 2048
"""Tensors in a batch at most, however small they are."""

AHEAD = 3
"""Batches that are handed out for every one that can be done at once: the next is there when one is done."""

SAMPLES, SAMPLE = 16, 1 << 12
"""How many runs of a file are looked at, and their bytes, to tell whether a worker has the same file."""

Advance = Callable[[int], None]
"""Counts bytes that are done."""


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor of a pass. nbytes: what it counts for in the progress, and in the size of batches. given: what else the
    pass needs to know. splits: whether its visit has one round, from the results of which alone it finds its own, so
    that several workers may do parts of it."""

    name: str
    nbytes: int
    given: Any = None
    splits: bool = False


class Pass(Protocol):
    """What is done with the tensors of open models."""

    @property
    def sources(self) -> Sequence[Source]:
        """Whose files are read."""

    def visit(self, item: Item, advance: Advance) -> Visit:
        """The visit of a tensor. advance: called with the bytes that are done."""


Opening = Callable[[], AbstractContextManager[Pass]]
"""Opens the models of a pass, anywhere: it can be pickled, and names paths that do not depend on the current folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Workers that do batches. size: how many batches at once; threads: for each of them. everywhere(function): calls a
    function on every worker before the first batch, and gives what was returned. explained: what an error of the
    executor itself means to a user, None where it does not know."""

    executor: Executor
    size: int
    threads: int = 1
    everywhere: Callable[[Callable[[], Any]], Sequence[Any]] = lambda function: ()
    explained: Callable[[BaseException], QuantcliError | None] = lambda error: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """How a worker comes by what it works on. run: which run of quantcli it is for, in which the models stay open;
    files: what the worker is to find in them; version: that of quantcli."""

    opening: Opening
    run: str
    files: tuple[tuple[str, int, str], ...]
    version: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some of the work of a pass: tensors, or of a single one the tasks from first to last."""

    opened: Opened
    items: tuple[Item, ...]
    tasks: tuple[int, int] | None
    threads: int

    @property
    def nbytes(self) -> int:
        """What it counts for in the progress; of a part of a tensor, nothing: its end does that."""
        return 0 if self.tasks is not None else sum(item.nbytes for item in self.items)


@dataclass(frozen=True, slots=True)
class Failed:
    """The error of a batch that another attempt would meet too."""

    error: QuantcliError


def reachable(path: str) -> str:
    """A path that means the same in every current folder; a URL, and standard input, as they are.

    >>> reachable("/models/a"), reachable("hf://org/model")
    ('/models/a', 'hf://org/model')
    """
    return path if path == "-" or "://" in path else os.path.abspath(path)


# ---- here -------------------------------------------------------------------------------------------------------


def run(
    made: Pass,
    items: Sequence[Item],
    *,
    threads: int,
    progress: Progress | None = None,
    crew: Crew | None = None,
    opening: Opening | None = None,
) -> list[Any]:
    """What a pass finds in each tensor. made: the pass on models that are open here. crew: who does it, None for
    threads of this process; opening: how they open the models. Raises the error of the earliest tensor."""
    advance = begun(progress, sum(item.nbytes for item in items))
    if crew is None or opening is None:
        return _visited(made, items, threads, advance)
    opened = Opened(opening=opening, run=uuid.uuid4().hex, files=identity(made.sources))
    try:
        for failed in crew.everywhere(functools.partial(ready, opened)):
            if failed is not None:
                raise failed.error
        return _handed_out(made, items, crew, opened, advance)
    except QuantcliError as error:
        raise _named_as_here(error, made.sources) from None


def _visited(made: Pass, items: Iterable[Item], threads: int, advance: Advance) -> list[Any]:
    """What visits in this process return."""
    found: dict[int, Any] = {}

    def keep(number: int, item: Item) -> Visit:
        found[number] = yield from made.visit(item, advance)

    def stopped() -> None:
        for source in made.sources:
            source.interrupt()

    walk((keep(number, item) for number, item in enumerate(items)), threads=threads, stopped=stopped)
    return [found[number] for number in range(len(found))]


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
    running: dict[Future[Any], tuple[int, Key]] = {}
    failed: tuple[int, BaseException] | None = None
    more = enumerate(calls)
    try:
        while True:
            while failed is None and len(running) < AHEAD * crew.size and (new := next(more, None)) is not None:
                number, (key, call) = new
                running[_submitted(call, crew)] = number, key
            before = [f for f, (number, _) in running.items() if failed is None or number < failed[0]]
            if not before:
                break
            for future in wait(before, return_when=FIRST_COMPLETED).done:
                number, key = running.pop(future)
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


def _outcome(future: Future[Any], crew: Crew) -> tuple[BaseException | None, Any]:
    """The error of a call, or its result."""
    try:
        found = future.result()
    except (Exception, CancelledError) as error:
        return crew.explained(error) or error, None
    return (found.error, None) if isinstance(found, Failed) else (None, found)


def identity(sources: Sequence[Source]) -> tuple[tuple[str, int, str], ...]:
    """What tells the files of sources from others, wherever they are: their names, bytes, and a digest of some runs of
    each. A file that differs elsewhere alone is told by nothing short of reading it whole."""
    return tuple((os.path.basename(file.path), file.size, _sampled(file)) for s in sources for file in s.inputs())


def _sampled(file: InputFile) -> str:
    from xxhash import xxh3_64

    whole, last = xxh3_64(), max(file.size - SAMPLE, 0)
    for at in sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)}):
        whole.update(file.read(at, min(SAMPLE, file.size)))
    return str(whole.hexdigest())


# ---- on a worker ------------------------------------------------------------------------------------------------


def perform(batch: Batch) -> list[Any] | Failed:
    """The results of a batch: of each tensor, or of some tasks of one."""
    try:
        with _models(batch.opened) as made:
            if batch.tasks is None:
                found = _visited(made, batch.items, batch.threads, lambda nbytes: None)
            else:
                found = _tasks(made, batch.items[0], batch.tasks, batch.threads)
            for source in made.sources:
                source.check_unchanged()
    except QuantcliError as error:
        return Failed(error)
    return found


def ready(opened: Opened) -> Failed | None:
    """Why this worker cannot do batches of a pass; None where it can."""
    try:
        with _models(opened):
            return None
    except QuantcliError as error:
        return Failed(error)


def _tasks(made: Pass, item: Item, which: tuple[int, int], threads: int) -> list[Any]:
    """What some tasks of the only round of a visit return."""
    visit: Visit = made.visit(item, lambda nbytes: None)
    tasks: Sequence[Task] = next(visit)
    found: list[Any] = []

    def some() -> Generator[Sequence[Task], list[Any], None]:
        found.extend((yield tasks[which[0] : which[1]]))

    walk([some()], threads=threads)
    visit.close()
    return found


@dataclass(slots=True)
class _Held:
    """Models that are open in this process, and how many batches are at work on them."""

    stack: ExitStack = field(default_factory=ExitStack)
    made: Pass | None = None
    users: int = 0


_HELD: dict[bytes, _Held] = {}
_LOCK = threading.Lock()


@contextmanager
def _models(opened: Opened) -> Iterator[Pass]:
    """The pass on models as this worker has them, which stay open until another run needs others. Raises
    QuantcliError, with the worker, where they cannot be opened or are other ones."""
    key = pickle.dumps(opened)
    with _LOCK:  # others that wait here need the same models
        if key not in _HELD:
            forget(opened.run)
            _HELD[key] = _open(opened)
        held = _HELD[key]
        held.users += 1
    try:
        assert held.made is not None
        yield held.made
    finally:
        with _LOCK:
            held.users -= 1


def forget(run: str = "") -> None:
    """Close the models that stayed open for other runs than this, and that no batch is at work on."""
    mark = run.encode()
    for key in [key for key, held in _HELD.items() if not held.users and not (mark and mark in key)]:
        _HELD.pop(key).stack.close()


def _open(opened: Opened) -> _Held:
    """Models as they are opened on this worker."""
    worker = f"worker {socket.gethostname()}, process {os.getpid()}"
    if opened.version != __version__:
        problem = f"it has quantcli {__version__}, and {opened.version} hands out the work"
        raise DataError(problem, place=[worker], hint="install the same version everywhere")
    memory.keep_freed()
    held = _Held()
    try:
        held.made = held.stack.enter_context(opened.opening())
        _check_same(held.made.sources, opened.files)
    except BaseException as error:
        held.stack.close()
        if isinstance(error, QuantcliError):
            error.within(worker)
        raise
    return held


def _check_same(sources: Sequence[Source], wanted: Sequence[tuple[str, int, str]]) -> None:
    """Raise DataError where a file is not the one that was opened where the work is handed out."""
    paths = [file.path for source in sources for file in source.inputs()]
    found = identity(sources)
    hint = "every worker must find the same files under the same paths"
    for path, here, there in zip(paths, found, wanted):
        if here != there:
            sizes = f" ({here[1]} bytes, not {there[1]})" if here[1] != there[1] else ""
            raise DataError(f"this is another file than the one asked for{sizes}", place=[path], hint=hint)
    if len(found) != len(wanted):
        raise DataError(f"{len(found)} files, not {len(wanted)}", place=[sources[0].path], hint=hint)
