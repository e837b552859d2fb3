"""A folder of several models, quantized into another one: each component by itself, all files around them copied.

Everything is planned before the first weight is read, and the folder appears when all components are complete. See
`components` for which of them are quantized.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import UsageError
from quantcli.floats import Reading
from quantcli.folders import card, components, job, output, resume, sidefiles, write
from quantcli.folders.components import Part
from quantcli.folders.job import Planned, Say
from quantcli.folders.sidefiles import CARD, SideFiles
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import named
from quantcli.passes import export
from quantcli.passes.quantize import Written
from quantcli.passes.tiles import Progress
from quantcli.planning.order import Order
from quantcli.planning.plan import Plan
from quantcli.planning.recipe import NATIVE
from quantcli.reports import build
from quantcli.reports.run import RunReport
from quantcli.stores import Source, pipelines
from quantcli.stores.files import check_space, read_small
from quantcli.stores.folder import OutputFolder
from quantcli.tensors.decided import Decided, Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineJob:
    """A run on a pipeline that may begin. parts: components that are quantized; kept: those that are not, and why, as
    far as their tensors are read. The rest is as in `job.Job`."""

    folder: str
    order: Order
    parts: Mapping[str, Part]
    kept: Mapping[str, tuple[Source, str]]
    side: SideFiles
    src: str
    shown: str
    path: str
    notes: tuple[str, ...]
    force: bool
    resume: bool

    def planned(self) -> RunReport:
        """The report on the plan."""
        written = {
            name: Written(plan=p.planned.plan, model=p.planned.model, results={}, size=_size(p))
            for name, p in self.parts.items()
        }
        return self._report(written, None)

    def run(self, *, threads: int, progress: Progress | None) -> tuple[RunReport, Written]:
        """Do it. Raises QuantcliError."""
        began = time.perf_counter()
        options = job.options_of(self.order, force=self.force, threads=threads, progress=progress)
        around = {name: write.around(part.source, SideFiles()) for name, part in self.parts.items()}
        original = self._original_card()
        asked = {n: resume.asked(p.source, p.planned.plan, options) for n, p in self.parts.items()}
        with OutputFolder(self.path, force=self.force) as out:
            ledger = resume.Ledger(out, {"components": asked}, resumed=self.resume)
            weights = sum(write.weights(p.planned.model) for p in self.parts.values())
            check_space(out.path, self.side.size + max(weights - ledger.size, 0), self.folder)
            self.side.copy_to(out)
            written = {
                name: write.fill(
                    part.source, part.planned.plan, part.planned.model, out.part(name), options, ledger, around[name]
                )
                for name, part in self.parts.items()
            }
            report = self._report(written, time.perf_counter() - began)
            out.write(CARD, self._card(report, written, original))
            for source in self._sources():
                source.check_unchanged()
            out.publish()
        notes = [*ledger.notes, *(f"{name}: {line}" for name, w in written.items() for line in w.notes)]
        return report, self._as_one(written, notes)

    def _sources(self) -> list[Source]:
        return [*(p.source for p in self.parts.values()), *(source for source, _ in self.kept.values())]

    def _as_one(self, written: Mapping[str, Written], notes: Sequence[str]) -> Written:
        """What was written, all components together."""
        first = next(iter(written.values()))
        return replace(
            first,
            size=sum(w.size for w in written.values()),
            copied=tuple(f.name for f in self.side.copied),
            obstacle="",
            notes=tuple(notes),
        )

    def _original_card(self) -> bytes | None:
        path = os.path.join(self.folder, CARD)
        if self.side.leaves_out(CARD) or not os.path.lexists(path):
            return None
        return read_small(path, 1 << 26)

    def _report(self, written: Mapping[str, Written], seconds: float | None) -> RunReport:
        tensors, results, sizes = list[Decided](), dict[str, Result](), dict[str, int]()
        for name, w in written.items():
            for tensor in w.plan.tensors:
                own = f"{name}/{tensor.info.name}"
                tensors.append(replace(tensor, info=replace(tensor.info, name=own)))
                sizes[own] = w.model.nbytes(tensor.info.name)
            results |= {f"{name}/{n}": result for n, result in w.results.items()}
        for name, (source, why) in self.kept.items():
            for info in source.infos():
                tensors.append(Kept(info=replace(info, name=f"{name}/{info.name}"), reason="component", note=why))
                sizes[tensors[-1].info.name] = info.nbytes
        kept = sum(source.share for source, _ in self.kept.values())
        found = build.of_plan(
            tensors,
            results,
            sizes.__getitem__,
            command="plan" if seconds is None else "quantize",
            source=self.src,
            output=self.shown,
            bytes_in=sum(source.share for source in self._sources()),
            bytes_out=sum(w.size for w in written.values()) + kept,
            seconds=seconds,
        )
        for name, part in self.parts.items():
            found = build.with_source(found, part.source, name)
        told = [f"{name}: {line}" for name, part in self.parts.items() for line in part.source.warnings]
        presets = [f"{name}: {part.request.preset}" for name, part in self.parts.items() if part.request.preset]
        return replace(
            found,
            preset="; ".join(presets),
            warnings=[*told, *self.side.warnings(), *found.warnings],
            files=self.side.report(),
        )

    def _card(self, report: RunReport, written: Mapping[str, Written], original: bytes | None) -> bytes:
        tensors = tuple(t for w in written.values() for t in w.plan.tensors)
        return card.card(
            report,
            Plan(tensors),
            settings=self.order.settings,
            obstacle="",
            origin=card.hub_name(self.folder),
            side=self.side,
            original=original,
            loading=[f"- `{name}`: {_loaded(part.planned)}" for name, part in self.parts.items()],
        )


def _loaded(planned: Planned) -> str:
    """How a component of the output is loaded."""
    if planned.model.to is None:
        return card.OWN_LAYOUT
    return f"{planned.model.to}, {named(planned.model.to).summary}"


def _size(part: Part) -> int:
    return output.size_of_model(part.source, part.planned.model, folder=True)


# ---- what is asked of each component ----------------------------------------------------------------------------


@contextlib.contextmanager
def prepared(
    src: str,
    order: Order,
    name: str | None,
    *,
    recipe_name: str | None,
    reading: Reading,
    force: bool,
    resume: bool,
    dry_run: bool,
    say: Say,
) -> Iterator[PipelineJob]:
    """A run on the pipeline that `src` names, ready to begin. name: of the output, None to make one up. reading: as for
    `float_source`. Raises UsageError, DataError and QuantcliError for all that can be known before the first weight is
    read."""
    folder = pipelines.folder_of(src)
    _check_order(order, name)
    job.check_folder_options(True, order, resume=resume)
    if reading.loras or reading.adapter:
        option, hint = "--lora" if reading.loras else "--adapter", "name the folder of a component"
        raise UsageError("this is for one model, and a pipeline has several", place=[option], hint=hint)
    with contextlib.ExitStack() as stack:
        chosen = components.choose(stack, folder, order, reading, say)
        request = next(iter(chosen.parts.values())).request
        told = None if order.to == NATIVE else order.to
        target = name or job.default_name(folder, job.label(request, recipe_name), told)
        real = target if dry_run else export.check_output_folder(folder, target, [folder], force=force)
        real = os.path.realpath(real)
        parts = chosen.parts
        notes = [f"{n}: {line}" for n, p in parts.items() for line in p.planned.notes]
        yield PipelineJob(
            folder=folder,
            order=order,
            parts=parts,
            kept=chosen.kept,
            side=sidefiles.of_folder(folder, real, components.weights(chosen)),
            src=src,
            shown=target,
            path=real,
            notes=tuple(notes),
            force=force,
            resume=resume,
        )


def _check_order(order: Order, name: str | None) -> None:
    """Raise UsageError for what several models do not have."""
    if order.container or (order.to is not None and order.to != NATIVE and named(order.to).extension):
        hint = "name the folder of a component"
        raise UsageError(
            "this writes one file, and a pipeline is a folder of models", place=[f"--to {order.to}"], hint=hint
        )
    if name is not None and name.lower().endswith(".safetensors"):
        raise UsageError("a pipeline is written as a folder", place=[name], hint="end the name without an extension")
    if order.importance is not None or order.recipe.importance is not None:
        hint = "name the folder of a component"
        raise UsageError("importances are those of one model", place=["--importance"], hint=hint)
