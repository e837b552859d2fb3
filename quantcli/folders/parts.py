"""One part of a run that several processes do together, each with its own share of the output.

The parts of DST lie beside it in the hidden folder `.DST.quantcli-parts`, each in a folder `3-of-16` that takes this
name when the part is complete. In it are

    request.json     what was asked of the run, the source as it was, and the command line
    finished.json    the results of the tensors, and where each was written
    the files        whole ones as they will be; of files that several parts share, each part has one of the full size
                     that holds its own tensors, where they will be, and nothing else

Until then a part is an output folder like any other: a run that is killed leaves its finished files, and the same part
run again goes on after them. `merge` makes the output of the parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantcli.errors import DataError, QuantcliError, UsageError, os_error, printable
from quantcli.folders import resume, shares
from quantcli.folders.planned import Planned
from quantcli.folders.resume import Finished, Journal, Ledger
from quantcli.folders.shares import Share, Task, Unit
from quantcli.passes import outputs
from quantcli.passes.outputs import OneFile, Outgoing
from quantcli.passes.quantize import Options, write_part
from quantcli.stores import Source, destinations, places
from quantcli.stores.destinations import OutputFolder, Part
from quantcli.stores.places import read_small
from quantcli.stores.workspace import is_own, parts_of
from quantcli.tensors.info import TensorInfo

REQUEST, FINISHED = "request.json", "finished.json"

_LIMIT = 1 << 28
"""Most bytes of a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked of a run that is done in parts. asked: all that changes the bytes it writes; source: the files it
    is made from, as they were; line: the command line, without what part it is; folder: in which it was given."""

    asked: Mapping[str, Any]
    source: Mapping[str, str]
    line: tuple[str, ...]
    folder: str

    @classmethod
    def of(
        cls, parts: Mapping[str, Planned], others: Mapping[str, Source], options: Options, line: Sequence[str]
    ) -> Request:
        """The request of a run. parts: the models by name; others: further sources that must not change."""
        asked = {name: resume.asked(part.source, part.plan, options) for name, part in parts.items()}
        sources = {**{name: part.source for name, part in parts.items()}, **others}
        stamps = dict[str, str]()
        for name, source in sources.items():
            for file in source.inputs():
                # Machines may have the files in different folders; adapters are several of one name.
                own = os.path.join(name, os.path.basename(file.path))
                stamps[own if own not in stamps else f"{own} ({len(stamps)})"] = file.stamp
        return cls(asked=asked.get("", {"components": asked}), source=stamps, line=tuple(line), folder=os.getcwd())

    def check(self, other: Request, part: str, folder: str) -> None:
        """Raise an error where another part (such as 3/16) was made for something else. folder: of all parts."""
        tool, own = other.asked.get("tool"), self.asked.get("tool")
        if tool != own:
            problem = f"part {part} was made by {printable(str(tool), 60)}, this is {own}"
            raise UsageError(problem, place=[folder], hint="run that part again, or remove this folder to start over")
        why = resume.difference(other.asked, self.asked)
        if why is not None:
            hint = "repeat that request, or remove this folder to start over"
            raise UsageError(f"part {part} had another request: {why}", place=[folder], hint=hint)
        changed = [name for name in {**other.source, **self.source} if other.source.get(name) != self.source.get(name)]
        if changed:
            problem = f"the file is not the one that part {part} was made from: its size or time of change differs"
            hint = f"give all parts the same files, copied with their times, or remove {folder} to start over"
            raise DataError(problem, place=[printable(changed[0])], hint=hint)


# ---- what there is of the parts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """A part that is complete: where it is, and the tensors it has written, by the name of each file in the output."""

    share: Share
    folder: str
    files: Mapping[str, Finished]

    def damaged(self, *, threads: int = 0) -> str | None:
        """The first file that is missing or has another size, or with threads other bytes, than was written."""
        there = destinations.sizes(self.folder)
        for name, known in self.files.items():
            path = os.path.join(self.folder, name)
            if there.get(name) != known.size:
                return name
            if threads and not resume.is_intact(path, known, threads, runs_of(known, name)):
                return name
        return None


def found(path: str) -> list[Share]:
    """The parts of an output that are complete. path: its real path."""
    hidden = parts_of(path)
    if places.is_url(path):
        ends = [name.split("/") for name in destinations.sizes(hidden)]
        return _shares(end[0] for end in ends if end[1:] == [FINISHED])
    if os.path.lexists(hidden) and not is_own(hidden, stat.S_ISDIR):
        raise QuantcliError("not a folder of this user", place=[path, hidden], hint="remove it")
    try:
        names = os.listdir(hidden)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise os_error(error, path) from None
    return _shares(names)


def _shares(names: Iterable[str]) -> list[Share]:
    """The parts that folders of these names hold."""
    read = [name.split("-of-") for name in names if not name.startswith(".")]
    known = [Share(int(p[0]), int(p[1])) for p in read if len(p) == 2 and p[0].isdigit() and p[1].isdigit()]
    return sorted(known, key=lambda share: (share.count, share.number))


def folder_of(path: str, share: Share) -> str:
    """Where a part of an output is when it is complete."""
    return os.path.join(parts_of(path), share.folder)


def request_of(path: str, share: Share) -> Request:
    """What was asked of a part. Raises DataError where its record is damaged."""
    try:
        read = json.loads(_record(path, share, REQUEST))
        line = tuple(map(str, read["line"]))
        return Request(asked=dict(read["asked"]), source=dict(read["source"]), line=line, folder=str(read["folder"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path, share, REQUEST) from None


def made_of(path: str, share: Share) -> Made:
    """What a part has made. Raises DataError where its record is damaged."""
    journal = resume.read(_record(path, share, FINISHED))
    if journal is None or not all(_usable(name, f) for name, f in journal.finished.items()):
        raise damaged(path, share, FINISHED)
    return Made(share, folder_of(path, share), journal.finished)


def _record(path: str, share: Share, name: str) -> bytes:
    """A record of a part. Raises DataError where there is none, QuantcliError where the disk does not give it: a part
    need not be made again for that."""
    file = os.path.join(folder_of(path, share), name)
    if places.is_link(file) or not places.is_file(file):
        raise damaged(path, share, name)
    return read_small(file, _LIMIT, follow=False)


def _usable(name: str, finished: Finished) -> bool:
    """Whether what is recorded of a file has all that it takes to join it with others. name: in the output."""
    try:
        known = all(
            isinstance(values[key], str) and os.path.basename(output[3]) == output[3] and int(output[4]) >= 0
            for values in finished.made.values()
            for key in ("reason", "note", "kind")
            for output in values["outputs"]
        )
        runs_of(finished, name)
        for values in finished.made.values():
            resume.result_of(values)
            values["scale_dtype"]
    except (QuantcliError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return False
    return known and ".." not in name.split(os.sep) and not os.path.isabs(name)


def damaged(path: str, share: Share, name: str) -> DataError:
    """The error for a part of which a file is missing or damaged."""
    return DataError(f"part {share.name} is damaged: {printable(name)}", place=[path], hint="run that part again")


# ---- making a part ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a part has done: its tasks, the files it has by name, and what there is to say."""

    tasks: Sequence[Task]
    files: Mapping[str, Finished]
    notes: tuple[str, ...]


def run(
    parts: Mapping[str, Planned],
    path: str,
    options: Options,
    *,
    share: Share,
    request: Request,
    units: Mapping[str, list[Unit]],
) -> Done:
    """Do a share of a run whose output is to be at `path`; what another run of the same part has finished is kept.

    parts: the models by name; units: the files of each. Raises UsageError where other parts had another request,
    DataError where they had another source, and QuantcliError for what the weights or the disk forbid.
    """
    tasks = shares.tasks(parts, units, share)
    source = next(iter(parts.values())).source.path
    known, wrong = _known(path, share, request)
    if known is not None and known.damaged(threads=options.threads) is None:
        return Done(tasks=tasks, files=known.files, notes=(f"part {share.name} is finished already",))
    if known is not None and not wrong:
        wrong = "was damaged"
    notes = [f"part {share.name} {wrong} and is made again"] if wrong else []
    hidden = parts_of(path)
    with _begun(path, share) as out:
        size = sum(parts[task.model].model.nbytes(name) for task in tasks for name in task.tensors)
        plain = {"asked": dict(request.asked), "source": dict(request.source)}
        ledger = Ledger(out, plain, resumed=True, hint=f"remove {hidden}")
        ledger.earlier = {name: f for name, f in ledger.earlier.items() if _usable(name, f)}
        held = sum(n for name, f in ledger.earlier.items() for _, n in runs_of(f, name))
        destinations.check_space(out.path, max(size - held, 0), source)
        for task in tasks:
            _do(task, parts[task.model], units[task.model][task.unit], ledger, options)
        text = json.dumps({**plain, "line": list(request.line), "folder": request.folder}, indent=1).encode()
        out.write(REQUEST, text)
        out.write(FINISHED, Journal({}, ledger.done).as_bytes())
        for part in parts.values():
            part.source.check_unchanged()
        out.publish()
    return Done(tasks=tasks, files=ledger.done, notes=(*notes, *ledger.notes))


@contextlib.contextmanager
def _begun(path: str, share: Share) -> Iterator[OutputFolder]:
    """The folder of a part, in the hidden one for all parts, which goes again where nothing is left in it."""
    if places.is_url(path):
        with destinations.output_folder(folder_of(path, share), force=True, in_place=True) as out:
            yield out
        return
    hidden = parts_of(path)
    try:
        with _made(hidden, path, share) as out:
            yield out
    finally:
        with contextlib.suppress(OSError):  # other parts are in it
            os.rmdir(hidden)


def _made(hidden: str, path: str, share: Share) -> OutputFolder:
    while True:
        try:
            os.makedirs(hidden, exist_ok=True)
            return destinations.output_folder(folder_of(path, share), force=True, in_place=True)
        except OSError as error:
            raise os_error(error, path) from None
        except QuantcliError:
            if os.path.lexists(hidden):
                raise  # else another part, which failed, has just removed it


def _known(path: str, share: Share, request: Request) -> tuple[Made | None, str]:
    """What this part has made already, and else why that is of no use; empty where there is none. Raises an error where
    another part is of another run."""
    known, wrong = None, ""
    for other in found(path):
        if other.count != share.count:
            problem = f"part {other.name} is there already, and this is {share.name}"
            hint = f"repeat the number of parts, or remove {parts_of(path)} to start over"
            raise UsageError(problem, place=[path], hint=hint)
        why = "was damaged"
        try:
            before = request_of(path, other)
            why = "was made from a source that has changed since,"
            request.check(before, other.name, parts_of(path))
            why = "was damaged"
            if other == share:
                known = made_of(path, other)
        except DataError:
            if other != share:
                raise
            wrong = why
    return known, wrong


def _do(task: Task, planned: Planned, unit: Unit, ledger: Ledger, options: Options) -> None:
    """Do a task, unless an interrupted run has, and record it."""
    part, own = Part.of(ledger.out, task.model), set(task.tensors)
    earlier = {
        name: f
        for name, f in ledger.earlier.items()
        if os.path.dirname(name) == task.model and f.made and own.issuperset(f.made)
    }
    for name in earlier:
        del ledger.earlier[name]
    held = {name for f in earlier.values() for name in f.made}
    if held == own and all(
        resume.is_intact(os.path.join(ledger.out.temp, name), f, options.threads, runs_of(f, name))
        for name, f in earlier.items()
    ):
        ledger.take_over(earlier)
        return
    made = make(planned, unit, task, part.temp, options)
    ledger.record({part.named(name): f for name, f in made.items()})


def make(planned: Planned, unit: Unit, task: Task, folder: str, options: Options) -> dict[str, Finished]:
    """Write the files of a task into a folder, each under its final name; what is known of them, by name.

    Running it twice, even at the same time, gives the same files. Tensors that turn out otherwise than planned are
    planned again; the record of each says what it became.
    """
    plan, model = planned.plan, planned.model
    own = replace(options, force=True)
    while True:
        whole = outputs.files(model, unit.cut, planned.source.path)
        files = _files(whole, task, None if destinations.has_holes(folder) else model)
        outcome = write_part(unit.source, model, files, folder, own, within=folder, whole=planned.source)
        if not outcome.amendments:
            break
        plan = plan.amended(outcome.amendments)
        model = outputs.planned(plan, planned.source, digest=options.digest)
    made = dict[str, Finished]()
    for file in files:
        values = {}
        for name in file.tensors:
            job = model.jobs[name]
            placed = [
                [o.name, o.dtype, list(o.shape), at.name, place]
                for number, o in enumerate(job.outputs)
                for at in files
                if (place := at.place(name, number)) is not None
            ]
            told = resume.as_values(model.by_name[name], outcome.results[name])
            values[name] = {**told, "kind": job.kind, "outputs": placed}
        found = Finished(len(values), "", values, file.size)
        runs = runs_of(found, file.name)
        made[file.name] = replace(found, digest=resume.file_digest(os.path.join(folder, file.name), own.threads, runs))
    return made


def _files(files: Sequence[OneFile], task: Task, packed: Outgoing | None) -> list[OneFile]:
    """The files of a task, with its own tensors alone, where they will be. packed: the model of which they follow each
    other instead, where files cannot have holes."""
    if task.whole:
        return list(files)
    own = set(task.tensors)
    held = [(file, tuple(name for name in file.tensors if name in own)) for file in files]

    def cut(file: OneFile, names: tuple[str, ...]) -> OneFile:
        if packed is None:
            return file.fragment(names)
        jobs = packed.jobs
        return file.packed({name: [o.nbytes for o in jobs[name].outputs] for name in names})

    return [file if names == file.tensors else cut(file, names) for file, names in held if names]


def runs_of(finished: Finished, name: str) -> list[tuple[int, int]]:
    """The bytes that tensors take in a file, in order, each run by its place and size. name: of the file, with or
    without the folder that it is in."""
    own_file = os.path.basename(name)
    placed = sorted(
        (int(at), TensorInfo(own, dtype, tuple(shape)).nbytes)
        for values in finished.made.values()
        for own, dtype, shape, file, at in values["outputs"]
        if file == own_file
    )
    runs = list[tuple[int, int]]()
    for at, size in placed:
        if runs and sum(runs[-1]) == at:
            runs[-1] = runs[-1][0], runs[-1][1] + size
        elif size:
            runs.append((at, size))
    return runs
