"""The pass that writes: every tensor of some files once, from whatever produces its codes, in its layout's own bytes.

A tensor may turn out not to be what its plan took for granted (scales that do not fit the dtype chosen for them, NaN
under `--on-nonfinite keep`). Then the pass goes on only to find all such tensors, and whoever called it plans them
anew: sizes are always known before the first byte is written.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli import interrupts
from quantcli.errors import QuantcliError
from quantcli.layouts.native.results import NamedResults
from quantcli.layouts.writer import Job, Piece
from quantcli.passes.completion import AT_ONCE, Completion
from quantcli.passes.outputs import OneFile
from quantcli.passes.producing import Produce, Producer
from quantcli.passes.stacking import Stacked
from quantcli.passes.tiles import Progress, Visit, begun, once, walk
from quantcli.stores import destinations
from quantcli.stores.destinations import OutputFile
from quantcli.tensors.decided import Decided
from quantcli.tensors.fit import Misfit, NotFinite
from quantcli.tensors.rounds import finish
from quantcli.tensors.second_order import Degenerate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALL = 1 << 14
"""Bytes of outputs up to which a tensor takes longer to think about than to compute: of such tensors one thread at a
time takes some, for two would wait for each other at every call of a kernel."""

TOGETHER = 512
"""Small tensors that a thread takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Work:
    """What to write: jobs by the name of a tensor, nbytes(name): of its outputs, and who produces them. source: what it
    comes from, by the name that errors have. amend: what a tensor becomes whose weights are not finite or whose scales
    do not fit; it raises QuantcliError where nothing else will do. stopped: called when the rest is given up, so that
    reads which wait for data can end. finished: called when every byte is written; it raises DataError where the source
    was changed. inputs: what tells the inputs of a layer from those of others; empty where they do not matter. Tensors
    with the same ones follow each other, for what is found of them serves all."""

    source: str
    jobs: Mapping[str, Job]
    nbytes: Callable[[str], int]
    produce: Produce
    amend: Callable[[Decided, Exception], Decided]
    stopped: Callable[[], None] = lambda: None
    finished: Callable[[], None] = lambda: None
    inputs: Callable[[str], str] | None = None


@dataclass(slots=True)
class Outcome:
    """What became of the tensors: results by name, those that were rounded on their way into the layout and so do not
    stand for just the numbers that were produced, and those to decide again, in which case nothing was written."""

    results: NamedResults = field(default_factory=NamedResults)
    rounded: set[str] = field(default_factory=set)
    amendments: dict[str, Decided] = field(default_factory=dict)


def write(
    files: Sequence[OneFile],
    work: Work,
    folder: str,
    *,
    force: bool,
    threads: int,
    progress: Progress | None,
    within: str | None = None,
    check: Callable[[Outcome, Mapping[str, str]], None] = lambda outcome, homes: None,
    after: Completion = AT_ONCE,
    then: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Write files into a folder, where they appear when all are complete. within: the hidden folder in which they are
    made, None for hidden names beside the final ones.

    check: looks at what was written before it has its name, given where each tensor is. after: completes the files,
    which may go on when this returns; then: called when they are complete. Raises QuantcliError, also for files that
    `after` has begun to complete before.
    """
    with ExitStack() as stack:
        outs = [
            stack.enter_context(
                destinations.file(os.path.join(folder, f.name), f.size, force=force, within=within, sparse=f.sparse)
            )
            for f in files
        ]
        outcome = _Pass(list(zip(files, outs)), work, progress, after.check).run(threads)
        if outcome.amendments:
            return outcome
        after.wait()
        open_files = stack.pop_all()

        def complete() -> None:
            with open_files:
                _complete(list(zip(files, outs)), work, outcome, check, after.raise_if_given_up)
                publish(outs, force=force)
            after.raise_if_given_up()
            then(outcome)

        def give_up() -> None:
            for out in outs:
                out.discard()

        after.begin(complete, give_up)
    return outcome


def _complete(
    written: Sequence[tuple[OneFile, OutputFile]],
    work: Work,
    outcome: Outcome,
    check: Callable[[Outcome, Mapping[str, str]], None],
    raise_if_given_up: Callable[[], None],
) -> None:
    """Write what is left of files, and check them."""
    for file, out in written:
        _write_between(file, out, outcome)
    work.finished()
    for file, out in written:
        out.sync()
        raise_if_given_up()
        file.check(out.temp, out.path)
    check(outcome, {name: out.temp for file, out in written for name in file.tensors})
    raise_if_given_up()


def _write_between(file: OneFile, out: OutputFile, outcome: Outcome) -> None:
    """What stands between the tensors of a file: a header may be large, and is gone before the file is checked."""
    for offset, piece in file.between(outcome.results):
        out.write(offset, piece)


def publish(outs: Sequence[OutputFile], *, force: bool) -> None:
    """Move all files into place, the first last because it names the others; or none, where none was before."""
    long = any(destinations.is_sent(out.path) for out in outs)  # and drops what was sent, where it is interrupted
    together: AbstractContextManager[None] = nullcontext() if long else interrupts.deferred()
    with together, ExitStack() as undo:
        for out in reversed(outs):
            out.publish()
            if not force:
                undo.callback(out.withdraw)
        undo.pop_all()


class _Pass:
    """One pass over the tensors of some files. going_on: raises an error where the run is to end before it."""

    def __init__(
        self,
        files: Sequence[tuple[OneFile, OutputFile]],
        work: Work,
        progress: Progress | None,
        going_on: Callable[[], None],
    ) -> None:
        self.work, self.outcome, self._turn = work, Outcome(), threading.Lock()
        self._files, self._going_on = files, going_on
        self._names = [name for file, _ in files for name in file.tensors]
        if work.inputs is not None and not any(destinations.is_sent(out.path) for _, out in files):
            self._names = _with_same_inputs(self._names, work.inputs)
        self._sizes = list(map(work.nbytes, self._names))  # what tensors count for in the progress
        self._advance = begun(progress, sum(self._sizes))

    def run(self, threads: int) -> Outcome:
        """Write every tensor. Small ones are taken in turn, so that more threads would only wait for each other."""
        large = any(size > SMALL for size in self._sizes)
        walk(self._visits(), threads=threads if large else 1, stopped=self.work.stopped)
        return self.outcome

    def _visits(self) -> Iterator[Visit]:
        """The visits of all tensors; small ones that follow each other are one."""
        each = zip(self._names, self._sizes)
        for small, some in itertools.groupby(each, lambda one: one[1] <= SMALL):
            while together := list(itertools.islice(some, TOGETHER if small else 1)):
                self._going_on()
                if not small:
                    yield self._visit(*together[0])
                    continue
                names, sizes = zip(*together)
                yield once([partial(self._small, names, sum(sizes))])

    def _small(self, names: Sequence[str], size: int) -> None:
        with self._turn, self._naming_the_source():
            gathered, written = _Gathered(), 0
            for place, (name, producer) in enumerate(zip(names, self.work.produce(names))):
                if isinstance(producer, Stacked) and producer.place == 0:
                    written = place + self._together(names[place : place + producer.alike.count], producer, gathered)
                if place < written:
                    self._end(name, producer, True)
                else:
                    self._at_once(name, producer, gathered)
            gathered.write()
        self._advance(size)

    def _together(self, names: Sequence[str], first: Stacked, gathered: _Gathered) -> int:
        """Write tensors that are alike at once, where their layout can; how many were."""
        together = self.work.jobs[names[0]].together
        if together is None:
            return 0
        for number, values in enumerate(together(first.alike)):
            if not self.outcome.amendments:
                gathered.add_each([self._place(name, number) for name in names], values)
        return len(names)

    def _at_once(self, name: str, producer: Producer, gathered: _Gathered) -> None:
        """A small tensor; what is written of it is gathered."""
        job, put = self.work.jobs[name], partial(self._put, name, gathered.add)
        try:
            finish(producer.prepare())
            with producer.piece() as codes:
                same = [piece(codes, put) for piece in job.pieces()]
            self._end(name, producer, all(same))
        except (NotFinite, Misfit, Degenerate) as found:
            self.outcome.amendments[name] = self.work.amend(producer.tensor, found)

    def _end(self, name: str, producer: Producer, same: bool) -> None:
        if not self.outcome.amendments:  # else all is written again
            result = producer.end()
            if not same:
                self.outcome.rounded.add(name)
            if result is not None:
                self.outcome.results[name] = result

    @contextmanager
    def _naming_the_source(self) -> Iterator[None]:
        try:
            yield
        except QuantcliError as error:
            if any(place.startswith(self.work.source) for place in error.place[:1]):
                raise
            raise error.within(self.work.source) from None

    def _visit(self, name: str, size: int) -> Visit:
        (producer,), job = self.work.produce([name]), self.work.jobs[name]
        with self._naming_the_source():
            try:
                yield from producer.prepare()
                pieces = list(job.pieces())
                ends = [size * done // len(pieces) for done in range(1, len(pieces) + 1)]
                shares = [end - start for start, end in zip([0, *ends], ends)]
                same = yield [partial(self._piece, producer, name, *each) for each in zip(pieces, shares)]
                self._end(name, producer, all(same))
            except (NotFinite, Misfit, Degenerate) as found:
                self.outcome.amendments[name] = self.work.amend(producer.tensor, found)

    def _piece(self, producer: Producer, name: str, piece: Piece, share: int) -> bool:
        with producer.piece() as codes:
            same = piece(codes, partial(self._put, name, _at_once))
        self._advance(share)
        return same

    def _put(
        self, name: str, write: Callable[[OutputFile, int, memoryview], None], output: int, offset: int, values: Any
    ) -> None:
        data = memoryview(values)
        if not data.nbytes or self.outcome.amendments:  # then this pass only looks for further tensors to decide again
            return
        out, at = self._place(name, output)
        write(out, at + offset, data)

    def _place(self, name: str, output: int) -> tuple[OutputFile, int]:
        """The file of an output of a tensor, and where it is in it."""
        for file, out in self._files:
            if (at := file.place(name, output)) is not None:
                return out, at
        raise AssertionError(f"output {output} of {name}: in no file")


def _with_same_inputs(names: Sequence[str], inputs: Callable[[str], str]) -> list[str]:
    """Names in their order, but for those with the same inputs as an earlier one, which follow that.

    >>> _with_same_inputs(["k", "norm", "o", "q", "v"], {"k": "x", "q": "x", "v": "x", "o": "y", "norm": ""}.get)
    ['k', 'q', 'v', 'norm', 'o']
    """
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(inputs(name) or f"/{name}", []).append(name)
    return [name for alike in together.values() for name in alike]


def _at_once(out: OutputFile, offset: int, data: memoryview) -> None:
    out.write(offset, data)


class _Gathered:
    """What is written of small tensors, which most often lie beside each other: one write for those that do."""

    def __init__(self) -> None:
        self._parts: dict[OutputFile, list[tuple[int, bytes]]] = {}

    def add(self, out: OutputFile, offset: int, data: memoryview) -> None:
        """Remember to write a copy of some bytes."""
        self._parts.setdefault(out, []).append((offset, data.tobytes()))

    def add_each(self, places: Sequence[tuple[OutputFile, int]], values: NDArray[np.uint8]) -> None:
        """Remember to write a row at each of these places; rows that follow each other as one."""
        size, first = values.shape[1], 0
        for at in range(1, len(places) + 1):
            out, offset = places[first]
            if at == len(places) or places[at] != (out, offset + (at - first) * size):
                self.add(out, offset, values[first:at].data)
                first = at

    def write(self) -> None:
        """Write them."""
        for out, parts in self._parts.items():
            parts.sort()
            run, begin, end = list[bytes](), 0, 0
            for offset, data in parts:
                if offset != end and run:
                    out.write(begin, b"".join(run))
                    run.clear()
                if not run:
                    begin = end = offset
                run.append(data)
                end += len(data)
            out.write(begin, b"".join(run))
