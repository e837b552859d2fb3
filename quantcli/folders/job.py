"""One run of quantize from what is asked to the report: everything refusable is refused in `prepare`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import DataError, UsageError
from quantcli.folders import output, sidefiles
from quantcli.folders.sidefiles import SideFiles
from quantcli.layouts.config import stated
from quantcli.layouts.writer import named
from quantcli.passes import export, outputs
from quantcli.passes.outputs import Outgoing
from quantcli.passes.quantize import Options, Written
from quantcli.passes.tiles import Progress
from quantcli.planning import plan, recipe_writing
from quantcli.planning.order import Order, importance_of, request_of
from quantcli.planning.plan import Plan, Request
from quantcli.reports import build
from quantcli.reports.run import RunReport
from quantcli.stores import Source, need_file

Say = Callable[[str], None]


# ---- names ------------------------------------------------------------------------------------------------------


def label(request: Request, recipe_name: str | None) -> str:
    """What the name of an output tells of its schemes: the recipe by its name, or the one scheme there is."""
    if recipe_name is None:
        return "recipe" if any(not rule.preset for rule in request.rules) else request.scheme.name
    stem, extension = os.path.splitext(os.path.basename(recipe_name))
    return stem if extension.lower() in (".yaml", ".yml") else stem + extension


def default_name(src: str, scheme: str, to: str | None) -> str:
    """The name beside SRC that tells the scheme and, for another tool's layout, the target, by the extension of those
    that have one of their own.

    >>> default_name("models/model.safetensors", "w4g128", None), default_name("audio.npy", "w8t", None)
    ('models/model-w4g128.safetensors', 'audio-w8t.safetensors')
    """
    extension = named(to).extension if to is not None else ""
    words = "-".join(w for w in (scheme, to if to is not None and not extension else "") if w)
    path = os.path.normpath(src)
    if path.endswith(".index.json"):
        path = os.path.dirname(os.path.abspath(path))
    folder, base = os.path.split(path if os.path.basename(path) not in ("", ".", "..") else os.path.abspath(path))
    stem, own = os.path.splitext(base)
    if os.path.isdir(path):
        stem, ending = base, ""
    else:
        stem = stem if own.lower() in (".safetensors", ".npy", ".npz", ".onnx") else base
        ending = ".safetensors"
    name = os.path.join(folder, f"{stem}-{words}" if words or not extension else stem)
    return name + (extension or ending)


def as_folder(source: Source, target: str | None, to: str | None) -> bool:
    """Whether the output is a folder. target: its name, None where it is made up."""
    if to is not None:
        return export.as_folder(source, to, target)
    return source.folder is not None and not (target or "").lower().endswith(".safetensors")


def place(
    source: Source, src: str, asked: Order, request: Request, name: str | None, recipe_name: str | None
) -> tuple[str, bool]:
    """The output of a run and whether it is a folder: as it was named, or beside `src` by a name that tells the
    schemes, and the target where one was asked for."""
    told = request.to if asked.to is not None else None
    target = name or default_name(src, label(request, recipe_name), told)
    return target, as_folder(source, target if name or told is None else None, request.to)


# ---- what is asked, of this source ------------------------------------------------------------------------------


def request(source: Source, asked: Order, to: str | None, *, warn: Say) -> Request:
    """What is asked of the tensors of a source, with scales as the target stores them. warn: called with entries of a
    file of importances that match no tensor."""
    importance, unused = importance_of(source, asked)
    if unused:
        warn(unused)
    return plan.suited(request_of(source, asked, to, importance))


def spelt_out(source: Source, asked: Request) -> Request:
    """A request that names every tensor's scheme, as a recipe that is saved says it."""
    try:
        tensors = plan.make(source.infos(), asked).tensors
    except (UsageError, DataError) as error:
        raise error.within(source.path) from None
    return recipe_writing.resolved(source.infos(), {t.info.name: t.scheme for t in tensors}, asked)


def check_target(source: Source, to: str, output_name: str | None) -> None:
    """Raise UsageError for a pipe, whose weights could not be compared with what was written, and for two files on
    standard output."""
    need_file(source, "--to")
    export.check_standard_output(to, output_name)
    check_loader(source, to)


NOT_OF_DIFFUSERS = ("awq", "compressed-tensors", "gptq")
"""Targets that write into config.json what diffusers refuses to load."""


def check_loader(source: Source, to: str) -> None:
    """Raise UsageError for a model of diffusers in a layout of which diffusers, told by config.json, has no loader."""
    model = stated(source.beside) if source.folder is not None else None
    if model is not None and model.library == "diffusers" and to in NOT_OF_DIFFUSERS:
        hint = "use --to bnb-nf4, or leave out --to for quantcli's own layout"
        raise UsageError(f"diffusers does not load {to}", place=[source.path, f"--to {to}"], hint=hint)


def check_folder_options(folder: bool, asked: Order, *, resume: bool) -> None:
    """Raise UsageError for an option of folders where none is written, or whose digests resuming needs."""
    for name, given in (("--max-shard-size", asked.max_shard_size is not None), ("--resume", resume)):
        if given and not folder:
            raise UsageError("this is for checkpoint folders", place=[name], hint="leave it out")
    if resume and asked.digest == "none":
        raise UsageError("resuming needs digests to recognize the source", place=["--resume"], hint="use --digest xxh3")


def options_of(order: Order, *, force: bool, threads: int, progress: Progress | None) -> Options:
    """How the passes of a run go."""
    keep = order.on_nonfinite == "keep"
    return Options(threads=threads, digest=order.digest, keep_nonfinite=keep, force=force, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What becomes of a source: its plan, the model that is written, and what loaders of that will and will not do."""

    plan: Plan
    model: Outgoing
    notes: tuple[str, ...]


def planned(source: Source, order: Order, request: Request, *, folder: bool) -> Planned:
    """What becomes of a source. Raises UsageError and DataError for what cannot be done."""
    found = plan.make(source.infos(), request)
    model = outputs.planned(found, source, digest=order.digest)
    notes = outputs.notes(model.conversion, config=folder and source.beside("config.json") is not None)
    return Planned(plan=found, model=model, notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that may begin: all sizes are known, and all that can be refused is allowed.

    src, shown: source and output as they are shown; path: the output's real path. notes: what loaders of the output
    will and will not do.
    """

    source: Source
    order: Order
    request: Request
    plan: Plan
    model: Outgoing
    side: SideFiles
    src: str
    shown: str
    path: str
    folder: bool
    notes: tuple[str, ...]
    force: bool
    resume: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files of weights, exactly."""
        return output.size_of_model(self.source, self.model, folder=self.folder, base=os.path.basename(self.path))

    def planned(self) -> RunReport:
        """The report on the plan."""
        return self._report(Written(plan=self.plan, model=self.model, results={}, size=self.size), None)

    def run(self, *, threads: int, progress: Progress | None) -> tuple[RunReport, Written]:
        """Do it. Raises QuantcliError."""
        began = time.perf_counter()
        options = options_of(self.order, force=self.force, threads=threads, progress=progress)
        written = output.write(
            self.source,
            self.plan,
            self.model,
            self.path,
            options,
            side=self.side,
            folder=self.folder,
            resumed=self.resume,
        )
        return self._report(written, time.perf_counter() - began), written

    def _report(self, written: Written, seconds: float | None) -> RunReport:
        found = build.of_plan(
            written.plan.tensors,
            written.results,
            written.model.nbytes,
            command="plan" if seconds is None else "quantize",
            source=self.src,
            output=self.shown,
            bytes_in=sum(f.size for f in self.source.files()),
            bytes_out=written.size,
            seconds=seconds,
            request=self.request,
        )
        found = build.with_source(found, self.source)
        return replace(
            found,
            preset=self.request.preset,
            warnings=[*self.source.warnings, *self.side.warnings(), *found.warnings],
            files=self.side.report(),
        )


def prepare(
    source: Source,
    src: str,
    order: Order,
    request: Request,
    target: str,
    *,
    shown: str,
    folder: bool,
    force: bool,
    resume: bool = False,
    dry_run: bool = False,
    read: Sequence[str] = (),
) -> Job:
    """A run on a source that writes to `target`. read: files that it reads beside the source. Raises UsageError,
    DataError and QuantcliError for all that can be known before the first weight is read."""
    check_folder_options(folder, order, resume=resume)
    importance = order.importance or (order.recipe.importance or (None,))[0]
    inputs = [*read, *([importance] if importance else [])]
    real = target if dry_run else export.check_output(source, target, folder=folder, force=force, read=inputs)
    try:
        found = planned(source, order, request, folder=folder)
    except (UsageError, DataError) as error:
        raise error.within(src) from None
    side = sidefiles.of(source, os.path.realpath(real), folder=folder)
    return Job(
        source=source,
        order=order,
        request=request,
        plan=found.plan,
        model=found.model,
        side=side,
        src=src,
        shown=shown,
        path=real,
        folder=folder,
        notes=found.notes,
        force=force,
        resume=resume,
    )
