"""A run whose parts are made by workers: each does shares of it, and the parts are joined here.

The parts are those of `--part`, in the same hidden folder beside the output: finished ones stay when a run is cut off,
and the same command goes on after them. How many there are depends on the model alone, so that it may go on with more
workers, or fewer.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from quantcli.errors import QuantcliError
from quantcli.folders import parts, shares
from quantcli.folders.job import Job, Outcome, kept_sources, options_of
from quantcli.folders.shares import Share, Unit
from quantcli.passes import batches, performing
from quantcli.passes.batches import Crew
from quantcli.passes.performing import Failed, Opened
from quantcli.passes.tiles import Progress, begun
from quantcli.stores import Source, destinations, need_file, places
from quantcli.stores.workspace import parts_of

LEAST, MOST, USUAL = 32 << 20, 1 << 30, 64
"""Bytes of the source that a part has at least and at most, and how many parts there are between these. Fewer would
leave workers idle at the end; more are more files to join."""

Beginning = Callable[[], AbstractContextManager[Job]]
"""Prepares the same run in another process: it can be pickled."""


def run(job: Job, crew: Crew, beginning: Beginning, *, threads: int, progress: Progress | None) -> Outcome:
    """Do a run with workers. threads: of this process, to join the parts. Raises QuantcliError; what is finished then
    is kept for the same run."""
    began = time.perf_counter()
    for part in job.parts.values():
        need_file(part.source, "work that is shared out")
    here = _Writing.of(job)
    count = _count(sum(unit.source.share for own in here.units.values() for unit in own))
    tasks = [shares.tasks(job.parts, here.units, Share(number + 1, count)) for number in range(count)]
    sizes = [sum(task.nbytes for task in own) for own in tasks]
    advance = begun(progress, sum(sizes))
    with (
        destinations.hidden(job.path, force=True),  # of two such runs, each would stop the other at the parts it has
        batches.at_hand(crew, here.sources, partial(_prepared, beginning)) as opened,
    ):
        calls = ((n, partial(_do, opened, Share(n + 1, count), crew.threads)) for n in range(count))
        for number, _ in batches.hand_out(calls, crew):
            advance(sizes[number])
    there = {share.number for share in parts.found(job.path) if share.count == count}
    if len(there) < count:
        hint = "name one in a folder that all workers and this machine have under the same path"
        raise QuantcliError(f"workers wrote {count - len(there)} parts that are not here", place=[job.path], hint=hint)
    done = job.merge(threads=threads)
    summary = replace(done.report.summary, seconds=time.perf_counter() - began)
    report = replace(done.report, summary=summary)
    return replace(done, make_report=lambda: report)


def _count(size: int) -> int:
    """How many parts there are of a source of so many bytes."""
    return max(1, -(-size // min(max(size // USUAL, LEAST), MOST)))


def finished(path: str) -> str | None:
    """The folder of the parts of an output that are finished; None where there are none. path: its real path."""
    return parts_of(path) if (places.is_url(path) or os.path.isdir(parts_of(path))) and parts.found(path) else None


@dataclass(frozen=True, slots=True)
class _Writing:
    """A run that is prepared: its files of weights, and what is asked of it."""

    job: Job
    units: Mapping[str, list[Unit]]

    @classmethod
    def of(cls, job: Job) -> _Writing:
        return cls(job, job.units())

    @property
    def sources(self) -> Sequence[Source]:
        """What is read."""
        return [*(part.source for part in self.job.parts.values()), *kept_sources(self.job.kept).values()]


@contextlib.contextmanager
def _prepared(beginning: Beginning) -> Iterator[_Writing]:
    """The run on a worker. What there is to say of it was said where it was asked for."""
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stderr(io.StringIO()):
            job = stack.enter_context(beginning())
        yield _Writing.of(job)


def _do(opened: Opened, share: Share, threads: int) -> Failed | None:
    """Make a part; the error that another attempt would meet too, if there is one."""
    try:
        with performing.held(opened) as found:
            job = found.job
            options = options_of(job.order, force=True, threads=threads, progress=None)
            parts.run(job.parts, job.path, options, share=share, request=job.asked(options), units=found.units)
    except QuantcliError as error:
        return Failed(error)
    return None
