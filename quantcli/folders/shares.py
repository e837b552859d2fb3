"""Which share of a run a process does, where several do it together: cut at tensors, balanced by the bytes they read.

Every process plans the whole model and computes the same shares; none needs to know what the others are doing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from quantcli.errors import UsageError, printable
from quantcli.folders.cut import Cutter
from quantcli.folders.planned import Planned
from quantcli.passes import outputs
from quantcli.passes.outputs import Cut
from quantcli.stores import Source, destinations

MOST = 100_000
"""Most parts of a run."""

NEAR = 0.05
"""How far, in shares, a cut may move to the end of a file: a file that one part writes whole is not copied at the
end."""

COUNT = "QUANTCLI_PARTS"
"""The variable that tells the number of parts where a scheduler does not."""


@dataclass(frozen=True, slots=True)
class Share:
    """One of the equal parts of a run, counted from 1."""

    number: int
    count: int

    @property
    def name(self) -> str:
        """As it is asked for: 3/16."""
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of the folder of what it has made."""
        return f"{self.number}-of-{self.count}"


@dataclass(frozen=True, slots=True)
class Task:
    """What is written at once: tensors of one output file, or of the files of a model that is written as one.

    model: the component, empty for a single model; unit: the number of the file in it. whole: whether these are all
    tensors of it. nbytes: of the source that are read.
    """

    model: str
    unit: int
    tensors: tuple[str, ...]
    whole: bool
    nbytes: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A file of weights to write, or all files of a model that is written as one: what it is made from, and the tensors
    in it."""

    source: Source
    cut: Cut
    tensors: tuple[str, ...]


# ---- what is asked ----------------------------------------------------------------------------------------------


def share(text: str, variables: Mapping[str, str]) -> Share:
    """The share that a text asks for: `3/16`; `auto` as a scheduler tells in environment variables; `auto/16` where it
    tells the number alone. Raises UsageError.

    >>> share("3/16", {}), share("auto/4", {"JOB_COMPLETION_INDEX": "0"})
    (Share(number=3, count=16), Share(number=1, count=4))
    """
    found = re.fullmatch(r"(auto|[0-9]{1,9})(?:/([0-9]{1,9}))?", text)
    if found is None or (found[1] != "auto" and found[2] is None):
        raise _wrong(f"{printable(repr(text), 60)} is not a part", "write 3/16, or auto in a job array")
    count = None if found[2] is None else int(found[2])
    made = Share(int(found[1]), count or 0) if found[1] != "auto" else _of_scheduler(count, variables)
    if not 1 <= made.count <= MOST:
        raise _wrong(f"{made.count} parts", f"use 1 to {MOST:,}")
    if not 1 <= made.number <= made.count:
        raise _wrong(f"there is no part {made.number} of {made.count}", f"parts are 1 to {made.count}")
    return made


def asked(text: str, variables: Mapping[str, str], src: str, output: str | None, *, resume: bool) -> Share:
    """The share of a run that a text asks for. src, output: as they were named; resume: whether it is to go on after
    an interrupted run. Raises UsageError, also for what parts cannot do."""
    if output is not None:
        destinations.check_parts(output, "--part")
    found = share(text, variables)
    if resume:
        raise UsageError("a part always goes on where it was interrupted", place=["--resume"], hint="leave it out")
    if "-" in (src, output):
        raise UsageError("parts read and write files, not pipes", place=["-"], hint="name a file or folder")
    return found


def _wrong(problem: str, hint: str) -> UsageError:
    return UsageError(problem, place=["--part"], hint=hint)


def _of_scheduler(count: int | None, variables: Mapping[str, str]) -> Share:
    """The share that Slurm or Kubernetes tells. Raises UsageError where none does, both do, or counts differ."""
    slurm, indexed = "SLURM_ARRAY_TASK_ID" in variables, "JOB_COMPLETION_INDEX" in variables
    if slurm and indexed:
        raise _wrong("both SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are set", "write the part, such as 3/16")
    if not slurm and not indexed:
        problem = "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"
        raise _wrong(problem, "auto is for job arrays of Slurm and indexed jobs of Kubernetes; else write 3/16")
    told = _whole(COUNT, variables) if COUNT in variables else count
    if count is not None and told != count:
        raise _wrong(f"{told} parts by {COUNT}, {count} by the option", "leave one of them out")
    number, own = _of_slurm(variables) if slurm else (_whole("JOB_COMPLETION_INDEX", variables) + 1, None)
    if told is not None and own is not None and told != own:
        raise _wrong(f"{told} parts are asked for, and Slurm's array has {own}", "make it as long, or write auto")
    total = own or told
    if total is None:
        who = "Slurm" if slurm else "Kubernetes"
        raise _wrong(f"{who} does not tell how many parts there are", f"write auto/16, or set {COUNT}")
    return Share(number, total)


def _of_slurm(variables: Mapping[str, str]) -> tuple[int, int | None]:
    """The place of a task in its array, from 1, and how many tasks that has; None where Slurm does not tell."""
    task = _whole("SLURM_ARRAY_TASK_ID", variables)
    if "SLURM_ARRAY_TASK_MIN" not in variables:  # Slurm always sets it: the environment was passed on in part
        problem = "SLURM_ARRAY_TASK_ID is set, and SLURM_ARRAY_TASK_MIN, the first of the array, is not"
        raise _wrong(problem, "write the part, such as --part 3/16")
    least = _whole("SLURM_ARRAY_TASK_MIN", variables)
    step = _whole("SLURM_ARRAY_TASK_STEP", variables) if "SLURM_ARRAY_TASK_STEP" in variables else 1
    place, rest = divmod(task - least, step or 1)
    if rest or place < 0:
        problem = f"SLURM_ARRAY_TASK_ID is {task}, not in steps of {step} from {least}"
        raise _wrong(problem, "write the part, such as 3/16")
    return place + 1, _slurm_count(variables, least, step or 1)


def _slurm_count(variables: Mapping[str, str], least: int, step: int) -> int | None:
    """The tasks of an array. Raises UsageError for an array with gaps, such as one of failed tasks that are run
    again."""
    most = _whole("SLURM_ARRAY_TASK_MAX", variables) if "SLURM_ARRAY_TASK_MAX" in variables else None
    spanned = None if most is None else (most - least) // step + 1
    if "SLURM_ARRAY_TASK_COUNT" not in variables:
        return spanned
    count = _whole("SLURM_ARRAY_TASK_COUNT", variables)
    if spanned is not None and spanned != count:
        problem = f"SLURM_ARRAY_TASK_COUNT is {count}, but {least} to {most} in steps of {step} are {spanned} tasks"
        raise _wrong(problem, "in an array of some of the parts write the part, such as --part $SLURM_ARRAY_TASK_ID/16")
    return count


def _whole(name: str, variables: Mapping[str, str]) -> int:
    value = variables[name]
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _wrong(f"{name} is {printable(repr(value), 60)}, not a whole number", "write the part, such as 3/16")
    return int(value)


# ---- the shares -------------------------------------------------------------------------------------------------


def units(planned: Planned, *, folder: bool, base: str) -> list[Unit]:
    """The files of weights of a model, as they are planned. folder: whether the output is one; base: the name of a
    single file."""
    source, model = planned.source, planned.model
    if not folder:
        cut = outputs.whole(source, model, base)
        found = outputs.files(model, cut, source.path)
        return [Unit(source, cut, tuple(name for file in found for name in file.tensors))]
    cutter = Cutter(source, model, planned.request.max_shard_size)
    pieces = [piece for piece in cutter.pieces() if cutter.holds(piece)]
    return [Unit(p.source, p.cut, tuple(filter(model.conversion.holds, p.cut.tensors))) for p in pieces]


def tasks(parts: Mapping[str, Planned], found: Mapping[str, list[Unit]], share: Share) -> list[Task]:
    """What a share of a run writes: tensors that follow each other, as many bytes of the source as other shares have.
    parts: the models by name; found: the units of each.

    A tensor is never cut. Where a cut is near the end of a file, it is there.
    """
    sizes = {
        name: {i.name: size for i, size in zip(part.source.infos(), part.source.stored_bytes())}
        for name, part in parts.items()
    }
    line = [(name, at, tensor) for name, own in found.items() for at, unit in enumerate(own) for tensor in unit.tensors]
    first, last = _bounds([(name, at, max(sizes[name][tensor], 1)) for name, at, tensor in line], share)
    made = list[Task]()
    for (name, at), group in groupby(line[first:last], lambda entry: entry[:2]):
        names = tuple(tensor for _, _, tensor in group)
        nbytes = sum(sizes[name][tensor] for tensor in names)
        made.append(Task(name, at, names, len(names) == len(found[name][at].tensors), nbytes))
    return made


def _bounds(line: list[tuple[str, int, int]], share: Share) -> tuple[int, int]:
    """The first tensor of a share, and that after its last. line: model, unit and bytes of every tensor."""
    total = sum(size for _, _, size in line)
    places = list(_places(line, total, share.count))
    return places[share.number - 1], places[share.number]


def _places(line: list[tuple[str, int, int]], total: int, count: int) -> Iterator[int]:
    """Where all shares begin, and the end of the last."""
    ends, done = [0], 0
    for *_, size in line:
        done += size
        ends.append(done)
    files = [at for at in range(1, len(line)) if line[at - 1][:2] != line[at][:2]]
    at = file = 0
    yield 0
    for number in range(1, count):
        wanted = total * number / count
        while at + 1 < len(ends) and ends[at + 1] - wanted <= wanted - ends[at]:
            at += 1
        while file + 1 < len(files) and abs(ends[files[file + 1]] - wanted) <= abs(ends[files[file]] - wanted):
            file += 1
        near = bool(files) and abs(ends[files[file]] - wanted) <= NEAR * total / count
        yield files[file] if near else at
    yield len(line)
