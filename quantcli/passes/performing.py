"""What a worker does with its part of a pass: it opens the models, keeps them open, and visits tensors.

See batches.py, which hands out the work.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from quantcli import __version__, memory
from quantcli.errors import DataError, QuantcliError
from quantcli.passes.tiles import Task, Visit, walk
from quantcli.stores.places import is_url

if TYPE_CHECKING:
    from quantcli.stores import Source
    from quantcli.stores.files import InputFile

SAMPLES, SAMPLE = 16, 1 << 12
"""How many runs of a file are looked at, and their bytes, to tell whether a worker has the same file."""

SAME_FILES = "every worker must find the same files under the same paths"

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


class Readable(Protocol):
    """What is open for some work."""

    @property
    def sources(self) -> Sequence[Source]:
        """Whose files are read."""


class Pass(Readable, Protocol):
    """What is done with the tensors of open models."""

    def visit(self, item: Item, advance: Advance) -> Visit:
        """The visit of a tensor. advance: called with the bytes that are done."""


Take = Callable[[Any], None]
"""Takes what was found in an item."""

Opening = Callable[[], AbstractContextManager[Readable]]
"""Opens what some work is done on, anywhere: it can be pickled, and its paths do not depend on the current folder."""


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


def visited(made: Pass, items: Iterable[Item], threads: int, advance: Advance, take: Take) -> None:
    """Take what visits in this process return, in the order of the items."""
    early, turn, awaited = dict[int, Any](), threading.Lock(), 0

    def keep(number: int, item: Item) -> Visit:
        nonlocal awaited
        found = yield from made.visit(item, advance)
        with turn:
            early[number] = found
            while awaited in early:
                take(early.pop(awaited))
                awaited += 1

    def stopped() -> None:
        for source in made.sources:
            source.interrupt()

    walk((keep(number, item) for number, item in enumerate(items)), threads=threads, stopped=stopped)


def identity(sources: Sequence[Source]) -> tuple[tuple[str, int, str], ...]:
    """What tells the files of sources from others, wherever they are: their names, bytes, and a digest of some runs of
    each. A file that differs elsewhere alone is told by nothing short of reading it whole."""
    return tuple((os.path.basename(file.path), file.size, _sampled(file)) for s in sources for file in s.inputs())


def _sampled(file: InputFile) -> str:
    """A digest of some runs of a file; of one behind a URL its commit or ETag, which is the same everywhere."""
    if is_url(file.path):
        return file.stamp
    from xxhash import xxh3_64

    whole, last = xxh3_64(), max(file.size - SAMPLE, 0)
    for at in sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)}):
        whole.update(file.read(at, min(SAMPLE, file.size)))
    return str(whole.hexdigest())


# ---- on a worker ------------------------------------------------------------------------------------------------


def perform(batch: Batch) -> list[Any] | Failed:
    """The results of a batch: of each tensor, or of some tasks of one."""
    try:
        with held(batch.opened) as made:
            if batch.tasks is None:
                found = list[Any]()
                visited(made, batch.items, batch.threads, lambda nbytes: None, found.append)
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
        with held(opened):
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
    made: Readable | None = None
    users: int = 0


_HELD: dict[bytes, _Held] = {}
_LOCK = threading.Lock()


@contextmanager
def held(opened: Opened) -> Iterator[Any]:
    """What the work is done on as this worker has it: models, which stay open until another run needs others. Raises
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
    import socket  # here, for only workers have a name

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
            if error.hint is None:  # it was opened where the work is handed out
                error.hint = SAME_FILES
            error.within(worker)
        raise
    return held


def _check_same(sources: Sequence[Source], wanted: Sequence[tuple[str, int, str]]) -> None:
    """Raise DataError where a file is not the one that was opened where the work is handed out."""
    paths = [file.path for source in sources for file in source.inputs()]
    found = identity(sources)
    for path, here, there in zip(paths, found, wanted):
        if here != there:
            sizes = f" ({here[1]} bytes, not {there[1]})" if here[1] != there[1] else ""
            raise DataError(f"this is another file than the one asked for{sizes}", place=[path], hint=SAME_FILES)
    if len(found) != len(wanted):
        raise DataError(f"{len(found)} files, not {len(wanted)}", place=[sources[0].path], hint=SAME_FILES)
