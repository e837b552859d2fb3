"""One run of quantize from what is asked to the report: everything refusable is refused in `prepare`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from quantcli.errors import UsageError
from quantcli.folders.planned import Planned
from quantcli.folders.sidefiles import CARD, SideFiles
from quantcli.layouts.config import stated
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import named
from quantcli.passes import export, quantize
from quantcli.passes.outputs import Outgoing
from quantcli.passes.quantize import Options, Written
from quantcli.passes.tiles import Progress
from quantcli.planning import recipe
from quantcli.planning.order import Order, request_of, statistics_of
from quantcli.planning.plan import Plan
from quantcli.planning.request import Request
from quantcli.planning.targets import suited
from quantcli.reports import build
from quantcli.reports.joined import Reported, component
from quantcli.reports.records import ComponentReport
from quantcli.reports.run import RunReport
from quantcli.stores import Source, need_file, places
from quantcli.stores.pipelines import prefixed, within
from quantcli.tensors.decided import Decided, Kept
from quantcli.tensors.decisions import Decisions

if TYPE_CHECKING:
    from quantcli.folders.parts import Request as SharedRequest
    from quantcli.folders.shares import Share, Unit
    from quantcli.folders.write import Fill

Say = Callable[[str], None]


# ---- names ------------------------------------------------------------------------------------------------------


def label(request: Request | None, recipe_name: str | None) -> str:
    """What the name of an output tells of its schemes: the recipe by its name, or the one scheme there is. request:
    None where it is not known before the weights are measured."""
    if recipe_name is None:
        if request is None:
            return "recipe"
        kind = (request.to or "").partition(":")[2]
        return "recipe" if any(not rule.preset for rule in request.rules) else kind or request.scheme.name
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
    is_folder = places.is_folder(src) or src.endswith(".index.json")
    if src.endswith(".index.json"):
        src = os.path.dirname(src if places.is_url(src) else os.path.abspath(src))
    path = os.path.normpath(places.to_write(src))
    folder, base = os.path.split(path if os.path.basename(path) not in ("", ".", "..") else os.path.abspath(path))
    stem, own = os.path.splitext(base)
    if is_folder:
        stem, ending = base, ""
    else:
        stem = stem if own.lower() in (".safetensors", ".npy", ".npz", ".onnx") else base
        ending = ".safetensors"
    name = os.path.join(folder, f"{stem}-{words}" if words or not extension else stem)
    return name + (extension or ending)


def as_folder(source: Source, target: str | None, to: str | None) -> bool:
    """Whether the output is a folder. target: its name, None where it is made up, - for standard output."""
    if to is not None:
        return export.as_folder(source, to, target)
    return source.folder is not None and target != "-" and not (target or "").lower().endswith(".safetensors")


# ---- what is asked, of this source ------------------------------------------------------------------------------


def request(source: Source, asked: Order, to: str | None, *, warn: Say) -> Request:
    """What is asked of the tensors of a source, with scales as the target stores them. warn: called with entries of a
    file of importances that match no tensor, with why no preset is chosen, and with what the target leaves out."""
    statistics, unused = statistics_of(source, asked)
    if unused:
        warn(unused)
    return suited(request_of(source, asked, to, statistics, warn), warn)


def check_target(source: Source, to: str, output_name: str | None) -> None:
    """Raise UsageError for a pipe, whose weights could not be compared with what was written, and for two files on
    standard output."""
    need_file(source, "--to")
    export.check_standard_output(to, output_name)
    check_loader(source, to)


NOT_OF_DIFFUSERS = ("awq", "compressed-tensors", "fp8-blocks", "gptq", "modelopt")
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
        shards = name == "--max-shard-size" and asked.to not in (None, recipe.NATIVE) and named(str(asked.to)).shards
        if given and not folder and not shards:
            raise UsageError("this is for checkpoint folders", place=[name], hint="leave it out")
    if resume and asked.digest == "none":
        raise UsageError("resuming needs digests to recognize the source", place=["--resume"], hint="use --digest xxh3")


def options_of(order: Order, *, force: bool, threads: int, progress: Progress | None) -> Options:
    """How the passes of a run go."""
    keep = order.on_nonfinite == "keep"
    return Options(threads=threads, digest=order.digest, keep_nonfinite=keep, force=force, progress=progress)


# ---- a run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """What a run has done: what makes the report, notes for whoever asked for it, the side files of a folder that were
    copied, and why no loader of checkpoints takes it, if none does."""

    make_report: Callable[[], RunReport]
    notes: tuple[str, ...]
    copied: tuple[str, ...] = ()
    obstacle: str = ""

    @cached_property
    def report(self) -> RunReport:
        """The report, made when it is first asked for, while the source is open: of many small tensors it takes a
        quarter of the time of a run, and 40 MiB for 100,000 of them."""
        return self.make_report()


Whole = tuple["Source | None", str]
"""A component that is kept whole, and why; no source where it cannot be read: its files are copied unread."""


def kept_sources(kept: Mapping[str, Whole]) -> dict[str, Source]:
    """The sources of components that are kept whole, by name, without those that cannot be read."""
    return {name: source for name, (source, _) in kept.items() if source is not None}


def kept_tensors(kept: Mapping[str, Whole]) -> list[Kept]:
    """The tensors of components that are kept whole, under their names in the pipeline."""
    return [
        Kept(info=replace(info, name=within(name, info.name)), reason="component", note=kept[name][1])
        for name, source in kept_sources(kept).items()
        for info in source.infos()
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Job:
    """A run that may begin: all sizes are known, and all that can be refused is allowed.

    parts: the models that are quantized, by their subfolders: a single one under an empty name, else components of a
    pipeline. kept: components that are not quantized, and why; no source of those whose tensors are not read. kinds:
    the class that loads each component. home: the folder they are all in, None for a file. folder: whether the output
    is one. src, shown: source and output as they are shown; path: the output's real path. notes: what loaders of the
    output will and will not do. share: the part of it that this process does, None for all; line: the command line that
    asks for the run, without its part.
    """

    order: Order
    parts: Mapping[str, Planned]
    kept: Mapping[str, Whole] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    side: SideFiles
    src: str
    home: str | None
    shown: str
    path: str
    folder: bool
    notes: tuple[str, ...]
    force: bool
    resume: bool = False
    share: Share | None = None
    line: tuple[str, ...] = ()

    def planned(self) -> RunReport:
        """The report on the plan."""
        from quantcli.folders import output

        base = os.path.basename(self.path)
        written = {}
        for name, part in self.parts.items():
            size = output.size_of_model(part.source, part.model, folder=self.folder, base=base)
            written[name] = Written(plan=part.plan, model=part.model, results=(), size=size)
        return self._report(written, None)

    def run(self, *, threads: int, progress: Progress | None) -> Outcome:
        """Do it, or the share of it that was asked for. Raises QuantcliError."""
        began = time.perf_counter()
        options = options_of(self.order, force=self.force, threads=threads, progress=progress)
        if self.share is not None:
            return self._run_share(self.share, options, began)
        if not self.folder:
            part = self.parts[""]
            one = quantize.write(part.source, part.plan, part.model, self.path, options)
            return Outcome(partial(self._report, {"": one}, time.perf_counter() - began), one.notes)
        return self._into_folder(options, began)

    def merge(self, *, threads: int) -> Outcome:
        """Make the output of the parts that several processes have made. Raises QuantcliError."""
        from quantcli.folders import merge

        began = time.perf_counter()
        options = options_of(self.order, force=self.force, threads=threads, progress=None)
        made = merge.agreed(self.path, merge.complete(self.path), self.asked(options))
        files = [(one.folder, one.files) for one in made]
        pieces = {name: merge.pieces_of(files, name) for name in self.parts}
        if self.folder:
            done = self._into_folder(options, began, lambda n, s: merge.fill(self.parts[n], pieces[n], options, s))
        else:
            one = merge.to_file(self.parts[""], pieces[""], self.path, options)
            done = Outcome(partial(self._report, {"": one}, time.perf_counter() - began), one.notes)
        merge.cleared(self.path)
        return done

    def asked(self, options: Options) -> SharedRequest:
        """What the parts of it record of what they were asked for."""
        from quantcli.folders import parts

        return parts.Request.of(self.parts, kept_sources(self.kept), options, self.line)

    def units(self) -> dict[str, list[Unit]]:
        """The files of weights of each model, as they are planned."""
        from quantcli.folders import shares

        base = os.path.basename(self.path)
        return {name: shares.units(part, folder=self.folder, base=base) for name, part in self.parts.items()}

    def _run_share(self, share: Share, options: Options, began: float) -> Outcome:
        """Do a share of it, and report on that alone."""
        from quantcli.folders import merge, parts

        units, asked = self.units(), self.asked(options)
        done = parts.run(self.parts, self.path, options, share=share, request=asked, units=units)
        written, read = dict[str, Written](), dict[str, int]()
        for name, part in self.parts.items():
            own = merge.pieces_of([("", done.files)], name)
            written[name] = merge.share_of(part, own, options)
            read[name] = sum(task.nbytes for task in done.tasks if task.model == name)
        count = sum(len(unit) for unit in units.values())
        files = len({(task.model, task.unit) for task in done.tasks})
        did = f"part {share.name}: {files} of {count} files, {sum(t.whole for t in done.tasks)} of them whole"
        report = partial(replace(self, kept={}, kinds={})._report, written, time.perf_counter() - began, read)
        return Outcome(report, (did, *done.notes))

    def _into_folder(self, options: Options, began: float, fill: Fill | None = None) -> Outcome:
        """Write a folder. fill: as of write.quantized."""
        from quantcli.folders import card, write

        original, loading = card.beside(self.home, self.side), self._loading()
        kept = list(kept_sources(self.kept).values())
        folder = write.quantized(
            self.parts, self.path, options, src=self.src, side=self.side, others=kept, resumed=self.resume, fill=fill
        )
        with folder as filled:
            report = self._report(filled.written, time.perf_counter() - began)
            if self.home is not None:
                filled.out.write(CARD, self._card(report, filled.written, original, loading))
        copied = tuple(f.name for f in self.side.copied)
        alone = filled.written.get("")
        return Outcome(lambda: report, filled.notes, copied, alone.obstacle if alone is not None else "")

    def _report(
        self, written: Mapping[str, Written], seconds: float | None, share: Mapping[str, int] | None = None
    ) -> RunReport:
        """The report on what was written of each model. share: bytes of each that were read, where not all were."""
        tensors, results, nbytes = self._all(written)
        beside = {name: source.share for name, source in kept_sources(self.kept).items()}
        read = {name: part.source.share for name, part in self.parts.items()} | beside if share is None else share
        made = {name: one.size for name, one in written.items()} | beside
        found = build.of_plan(
            tensors,
            results,
            nbytes,
            command="plan" if seconds is None else "quantize",
            source=self.src,
            output=self.shown,
            bytes_in=sum(read.values()),
            bytes_out=sum(made.values()),
            seconds=seconds,
            request=self.parts[""].request if "" in self.parts else None,
        )
        for name, part in self.parts.items():
            found = build.with_source(found, part.source, name)
        told = [prefixed(n, line) for n, part in self.parts.items() for line in part.source.warnings]
        presets = [prefixed(n, p.request.preset) for n, p in self.parts.items() if p.request.preset]
        return replace(
            found,
            preset="; ".join(presets),
            warnings=[*told, *self.side.warnings(), *found.warnings],
            files=self.side.report(),
            components=[self._component(name, found, written.get(name), read, made) for name in self.kinds],
        )

    def _all(
        self, written: Mapping[str, Written]
    ) -> tuple[Decisions, Sequence[Result | None], Callable[[Decided], int]]:
        """The tensors of all models, what is known of each, and what each takes in the output."""
        alone = written.get("")
        if alone is not None and not self.kept:
            return alone.plan.tensors, alone.results, alone.model.bytes_of
        tensors, results, sizes = list[Decided](), list[Result | None](), dict[str, int]()
        for name, one in written.items():
            for tensor in one.plan.tensors:
                own = within(name, tensor.info.name)
                tensors.append(replace(tensor, info=replace(tensor.info, name=own)))
                sizes[own] = one.model.bytes_of(tensor)
            results += one.results or [None] * len(one.plan.tensors)
        held = kept_tensors(self.kept)
        sizes |= {t.info.name: t.info.nbytes for t in held}
        return Decisions.of([*tensors, *held]), [*results, *[None] * len(held)], lambda t: sizes[t.info.name]

    def _component(
        self,
        name: str,
        found: RunReport,
        written: Written | None,
        read: Mapping[str, int],
        made: Mapping[str, int],
    ) -> ComponentReport:
        """What is reported of a component as a whole. written: what was, where it is not kept whole; read, made: bytes
        of each before and after."""
        own = [t for t in found.tensors if t.name.startswith(within(name, ""))]
        results = written.results if written is not None else ()
        one = Reported(
            tensors=own,
            metrics=[result.metrics if result is not None else None for result in results],
            bytes_in=read.get(name, 0),
            bytes_out=made.get(name, 0),
            kind=self.kinds[name],
            kept=self.kept[name][1] if name in self.kept else "",
        )
        return component(name, one)

    def _loading(self) -> list[str] | None:
        """How the output is loaded, for the model card; None for what holds for transformers."""
        from quantcli.folders.card import OWN_LAYOUT

        if "" not in self.parts:
            return [f"- `{name}`: {_loader(part.model)}" for name, part in self.parts.items()]
        model = stated(self.parts[""].source.beside)
        return [OWN_LAYOUT] if model is not None and model.library == "diffusers" else None

    def _card(
        self, report: RunReport, written: Mapping[str, Written], original: bytes | None, loading: list[str] | None
    ) -> bytes:
        """The model card, with the original one in it."""
        from quantcli.folders import card, write

        alone = written.get("")
        every = (tensor for one in written.values() for tensor in one.plan.tensors)
        text = card.card(
            report,
            alone.plan if alone is not None else Plan(Decisions.of(every)),
            settings=self.order.settings,
            obstacle=alone.obstacle if alone is not None else "",
            origin=card.hub_name(self.home or ""),
            side=self.side,
            original=original,
            loading=loading,
        )
        return write.with_loading(text, alone.model) if alone is not None else text


def _loader(model: Outgoing) -> str:
    """How a component of the output is loaded."""
    from quantcli.folders.card import OWN_LAYOUT

    return OWN_LAYOUT if model.to is None else f"{model.to}, {named(model.to).summary}"
