"""A folder of several models, quantized into another one: each component by itself, all files around them copied.

Everything is planned before the first weight is read, and the folder appears when all components are complete. Which
components are quantized goes by what loads them: models that denoise, and text encoders. The others (autoencoders,
safety checkers, encoders of images) are small and their errors show, so they are kept whole unless a pattern names
them, as in `--include 'vae/*'`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.floats import Reading, float_source
from quantcli.folders import card, job, resume, sidefiles, write
from quantcli.folders.job import Planned, Say
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles, Weights
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import named
from quantcli.passes.quantize import Options, Written
from quantcli.passes.tiles import Progress
from quantcli.planning.order import Order, target_of
from quantcli.planning.plan import NothingToQuantizeError, Plan, Request
from quantcli.planning.recipe import NATIVE
from quantcli.planning.scopes import names_one, of_components
from quantcli.reports import build
from quantcli.reports.run import RunReport
from quantcli.stores import Source, open_source, pipelines
from quantcli.stores.checkpoint import INDEX, variants, without_variant
from quantcli.stores.files import check_space, read_small
from quantcli.stores.folder import OutputFolder, check_folder
from quantcli.stores.pipelines import Component
from quantcli.tensors.decided import Decided, Kept

_AUTOENCODER = re.compile(r"\w*(?:Autoencoder|VAE|Vae|VQ)\w*")
_DENOISES = re.compile(r"\w*(?:UNet|Transformer|ControlNet|Prior)\w*")
_READS_TEXT = re.compile(r"\w*(?:text|language|llm)\w*")

LOADERS: Mapping[str, tuple[str, ...]] = {"diffusers": ("bnb-nf4",), "transformers": ("bnb-nf4", "compressed-tensors")}
"""Targets that a library loads as a component of a pipeline."""


def why_kept(component: Component) -> str:
    """Why a component is kept whole; empty where it is quantized.

    >>> why_kept(Component("unet", "diffusers", "UNet2DConditionModel"))
    ''
    >>> why_kept(Component("vae", "diffusers", "AutoencoderKL"))
    'an autoencoder: small, and its errors are in every image'
    """
    if component.library == "sentence-transformers":
        is_model = component.kind in ("Transformer", "MLMTransformer", "StaticEmbedding", "SparseStaticEmbedding")
        return "" if is_model else f"sentence-transformers loads {component.kind} in floating point"
    if _AUTOENCODER.fullmatch(component.kind):
        return "an autoencoder: small, and its errors are in every image"
    if component.library == "transformers":
        return "" if _READS_TEXT.fullmatch(component.name) else f"{component.kind}: no text encoder"
    if component.library == "diffusers" and _DENOISES.fullmatch(component.kind):
        return ""
    return f"{printable(component.kind, 80)}: neither denoises nor reads text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component that is quantized, with all that is planned of it."""

    source: Source
    request: Request
    planned: Planned


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
        options = Options(
            threads=threads,
            digest=self.order.digest,
            keep_nonfinite=self.order.on_nonfinite == "keep",
            force=self.force,
            progress=progress,
        )
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
            earlier = {f"{name}/{n}": e for n, e in part.source.earlier.items()}
            found = build.with_earlier(found, earlier, part.source.decoded_from or found.decoded_from)
        told = [f"{name}: {line}" for name, part in self.parts.items() for line in part.source.warnings]
        return replace(found, warnings=[*told, *self.side.warnings(), *found.warnings], files=self.side.report())

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
    from quantcli.folders import output

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
    if reading.loras or reading.adapter:
        option, hint = "--lora" if reading.loras else "--adapter", "name the folder of a component"
        raise UsageError("this is for one model, and a pipeline has several", place=[option], hint=hint)
    with contextlib.ExitStack() as stack:
        found = {c.name: c for c in pipelines.components(folder)}
        chosen = _variants(folder, found, reading.variant)
        asked = set(order.include) | {r.pattern for r in order.recipe.rules if r.scheme is not None}
        kept_for = {
            n: why for n, c in found.items() if (why := why_kept(c)) and not any(names_one(p, n) for p in asked)
        }
        sources = {
            n: _opened(stack, folder, n, replace(reading, variant=chosen[n]), say) for n in found if n not in kept_for
        }
        whole = {n: _opened_whole(stack, folder, n, chosen[n]) for n in kept_for}
        orders = of_components(order, {n: [i.name for i in s.infos()] for n, s in sources.items()})
        kept_for |= {n: "matched no --include" for n in sources if n not in orders}
        whole |= {n: _opened_whole(stack, folder, n, chosen[n]) for n in sources if n not in orders}
        kept = {n: (s, kept_for[n]) for n, s in whole.items() if s is not None}
        parts = {}
        for n, own in orders.items():
            try:
                parts[n] = _part(sources[n], own, found[n], say)
            except NothingToQuantizeError as error:
                if len(found) == 1:
                    raise
                kept[n] = sources[n], "; ".join(w for w in (error.problem, error.hint) if w)
        if not parts:
            problem = f"every component of this pipeline is kept: {', '.join(found)}"
            raise DataError(problem, place=[src], hint=f"--include '{next(iter(found))}/*' quantizes one")
        request = next(iter(parts.values())).request
        told = None if order.to == NATIVE else order.to
        target = name or job.default_name(folder, job.label(request, recipe_name), told)
        real = os.path.realpath(target) if dry_run else _checked_output(folder, target, force)
        notes = [f"{n}: source: {p.source.decoded_from}" for n, p in parts.items() if p.source.decoded_from]
        notes += [f"{n}: {line}" for n, p in parts.items() for line in p.planned.notes]
        yield PipelineJob(
            folder=folder,
            order=order,
            parts=parts,
            kept=kept,
            side=sidefiles.of_folder(folder, real, _weights(parts, kept)),
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


def _variants(folder: str, found: Mapping[str, Component], variant: str | None) -> dict[str, str | None]:
    """The variant to take of each component: the one that is asked for, where there is one."""
    known = {name: variants(os.path.join(folder, name)) for name in found}
    if variant is not None and not any(variant in names for names in known.values()):
        there = ", ".join(sorted({v for names in known.values() for v in names}))
        hint = f"there is {there}" if there else "leave it out: there are no variants"
        raise UsageError("no component has this variant", place=[folder, f"--variant {printable(variant)}"], hint=hint)
    return {name: variant if variant in names else None for name, names in known.items()}


def _opened(stack: contextlib.ExitStack, folder: str, name: str, reading: Reading, say: Say) -> Source:
    """The source of a component to quantize."""
    return stack.enter_context(float_source(os.path.join(folder, name), reading, say=say))


def _opened_whole(stack: contextlib.ExitStack, folder: str, name: str, variant: str | None) -> Source | None:
    """The source of a component that is kept; None where it cannot be read, and its files are copied unread."""
    try:
        source = open_source(os.path.join(folder, name), variant)
    except DataError:
        return None
    return stack.enter_context(contextlib.closing(source))


def _part(source: Source, order: Order, component: Component, say: Say) -> Part:
    """What is planned for a component."""
    to, why = target_of(source, order, folder=True)
    try:
        if to is not None:
            _check_target(component, to)
        request = job.request(source, order, to, warn=say)
        planned = job.planned(source, order, request, folder=True)
    except QuantcliError as error:
        raise error if error.place[:1] == [source.path] else error.within(source.path) from None
    if why:
        planned = replace(planned, notes=(why, *planned.notes))
    return Part(source=source, request=request, planned=planned)


def _check_target(component: Component, to: str) -> None:
    """Raise UsageError for a target that the loader of a component does not take."""
    taken = LOADERS.get(component.library, ("bnb-nf4", "compressed-tensors"))
    if to not in taken:
        hint = f"use --to {' or '.join(taken)}, or leave out --to: each component is then written for its own loader"
        raise UsageError(f"{component.library} does not load {to}", place=[f"--to {to}"], hint=hint)


def _checked_output(folder: str, target: str, force: bool) -> str:
    """The real path of the output. Raises UsageError or QuantcliError."""
    real = check_folder(target, force=force, source=folder)
    if os.path.realpath(folder).startswith(os.path.join(real, "")):
        raise UsageError("the input is in this folder, which would be replaced", place=[target])
    return real


def _weights(parts: Mapping[str, Part], kept: Mapping[str, tuple[Source, str]]) -> Weights:
    """The weight files of all components by their names in the pipeline."""
    converted, written, aside = list[str](), [CARD], dict[str, str]()
    copied: dict[str, tuple[str, str]] = {}
    for name, part in parts.items():
        converted += [os.path.join(name, file) for file in part.source.shards]
        written += [os.path.join(name, file) for file in (CONFIG, INDEX, os.path.basename(part.source.index or INDEX))]
        aside |= {os.path.join(name, file): why for file, why in part.source.aside.items()}
    for name, (source, why) in kept.items():
        index = os.path.basename(source.index)
        for file in [*source.shards, *([index] if index else [])]:
            # Shards keep their names, which the index has.
            new = without_variant(file) if file == index or not index else file
            copied[os.path.join(name, file)] = os.path.join(name, new), f"kept whole, {why}"
        aside |= {os.path.join(name, file): reason for file, reason in source.aside.items()}
    return Weights(converted=converted, written=written, aside=aside, copied=copied)
