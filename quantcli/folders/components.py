"""The models that a path names, opened to be quantized: one, or the components of a pipeline, of which those that
neither denoise nor read text are kept whole unless a pattern names them, as in `--include 'vae/*'`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.floats import Reading, float_source
from quantcli.folders import job
from quantcli.folders.job import Say, Whole
from quantcli.folders.sidefiles import CARD, CONFIG, Weights
from quantcli.layouts.writer import named
from quantcli.models import Model, open_model
from quantcli.planning import plan
from quantcli.planning.order import USUAL, Order, aimed
from quantcli.planning.plan import NothingToQuantizeError
from quantcli.planning.recipe import NATIVE
from quantcli.planning.request import Request
from quantcli.planning.scopes import names_one, of_components
from quantcli.stores import Source, need_file, open_source, pipelines
from quantcli.stores.checkpoint import INDEX, without_variant
from quantcli.stores.pipelines import Component, Member, prefixed, prefixing
from quantcli.stores.places import reachable

LOADERS: Mapping[str, tuple[str, ...]] = {"diffusers": ("bnb-nf4",), "transformers": ("bnb-nf4", "compressed-tensors")}
"""Targets that a library loads as a component of a pipeline."""


Reopening = Callable[[], contextlib.AbstractContextManager[Source]]
"""Opens a source, also in another process."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Opened:
    """A model that is to be quantized. source: as its target needs it; order: what is asked of its tensors; to: the
    target, None for the native layout; notes: what there is to say of that."""

    source: Source
    order: Order
    to: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Chosen:
    """The models that a path names. src: the path; folder: of a pipeline, empty where it is one model. members: all by
    their names, a single one under an empty name; models: those to quantize; kept: the others. whole(name): opens a
    component as it is, None where it cannot be read. again(name): how another process opens the source of a model."""

    src: str
    folder: str
    members: Mapping[str, Member]
    models: Mapping[str, Opened]
    kept: Mapping[str, Whole] = field(default_factory=dict)
    whole: Callable[[str], Source | None] = lambda name: None
    again: Callable[[str], Reopening | None] = lambda name: None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights of what is kept whole, as far as they are read."""
        return sum(source.share for source in job.kept_sources(self.kept).values())

    @property
    def warnings(self) -> list[str]:
        """What the stores of the models left out."""
        return [prefixed(name, line) for name, one in self.models.items() for line in one.source.warnings]

    @property
    def notes(self) -> list[str]:
        """What there is to say of the targets, and of what is kept whole and why."""
        told = [prefixed(name, line) for name, one in self.models.items() for line in one.notes]
        return [*told, *(f"{name}: kept whole, {why}" for name, (_, why) in self.kept.items())]


@contextlib.contextmanager
def opened(src: str, order: Order, reading: Reading, *, output: str | None, say: Say) -> Iterator[Chosen]:
    """The models that a path names. output: its name as it was given. Raises QuantcliError for what cannot be read,
    UsageError and DataError for what cannot be done."""
    folder = pipelines.folder_of(src)
    with contextlib.ExitStack() as stack:
        if folder:
            yield _pipeline(stack, folder, src, order, reading, output, say)
            return
        found = stack.enter_context(float_source(src, replace(reading, to=order.to), say=say))
        source, to, why = aimed(found, order, folder=job.as_folder(found, output or "", None))
        if to is not None:
            job.check_target(source, to, output)
        one = Opened(source=source, order=order, to=to, notes=(why,) if why else ())
        again = partial(_again, src, order, reading, output)
        yield Chosen(src=src, folder="", members={"": Member("", src, reading.variant)}, models={"": one}, again=again)


def _again(src: str, order: Order, reading: Reading, output: str | None, name: str) -> Reopening:
    """How another process, in another current folder, opens the source of a model of a path."""
    loras = tuple(reachable(path) for path in reading.loras)
    place = reachable(output) if output is not None else None
    return partial(source_of, reachable(src), order, replace(reading, loras=loras), place, name)


@contextlib.contextmanager
def source_of(src: str, order: Order, reading: Reading, output: str | None, name: str) -> Iterator[Source]:
    """The source of a model to quantize, of a pipeline that of one component."""
    with opened(src, order, reading, output=output, say=lambda line: None) as found:
        yield found.models[name].source


def _pipeline(
    stack: contextlib.ExitStack, folder: str, src: str, order: Order, reading: Reading, output: str | None, say: Say
) -> Chosen:
    """All components of a pipeline, which are closed with `stack`."""
    _check_order(order, reading, output)
    found = {m.name: m for m in pipelines.members(folder, reading.variant)}
    asked = set(order.include) | {r.pattern for r in order.recipe.rules if r.scheme is not None}
    why = {n: m.why_kept for n, m in found.items() if m.why_kept and not any(names_one(p, n) for p in asked)}
    sources = {
        n: stack.enter_context(float_source(m.path, replace(reading, variant=m.variant), say=say))
        for n, m in found.items()
        if n not in why
    }
    orders = of_components(order, {n: [info.name for info in s.infos()] for n, s in sources.items()})
    why |= {n: "matched no --include" for n in sources if n not in orders}
    models = {n: _opened(sources[n], own, found[n]) for n, own in orders.items()}

    def whole(name: str) -> Source | None:
        return _opened_whole(stack, found[name])

    again = partial(_again, src, order, reading, output)
    return without(Chosen(src=src, folder=folder, members=found, models=models, whole=whole, again=again), why)


def without(chosen: Chosen, why: Mapping[str, str]) -> Chosen:
    """The models, some components of which are kept whole. why: these, and the reason. Raises DataError where all are
    kept."""
    models = {n: one for n, one in chosen.models.items() if n not in why}
    kept = {**chosen.kept, **{n: (chosen.whole(n), reason) for n, reason in why.items()}}
    if not models:
        problem = f"every component of this pipeline is kept: {', '.join(kept)}"
        raise DataError(problem, place=[chosen.folder], hint=f"--include '{next(iter(kept))}/*' quantizes one")
    return replace(chosen, models=models, kept={n: kept[n] for n in chosen.members if n in kept})


def requested(
    chosen: Chosen, say: Say, begin: Callable[[str, Request], Request] = lambda name, request: request
) -> tuple[Chosen, dict[str, Request]]:
    """The models without components of which nothing can be quantized as it is asked, and what is asked of each. begin:
    makes the request to start with of the name of a model and the request there would be; say: called with what is
    noticed."""
    if not chosen.folder:
        [(name, one)] = chosen.models.items()
        return chosen, {name: begin(name, job.request(one.source, one.order, one.to, warn=say))}
    requests, why = dict[str, Request](), dict[str, str]()
    for name, one in chosen.models.items():
        try:
            requests[name] = begin(name, job.request(one.source, one.order, one.to, warn=prefixing(name, say)))
            plan.make(one.source.infos(), requests[name])
        except NothingToQuantizeError as error:
            if len(chosen.models) + len(chosen.kept) == 1:
                raise error.within(one.source.path) from None
            why[name] = "; ".join(words for words in (error.problem, error.hint) if words)
        except QuantcliError as error:
            raise error if error.place[:1] == [one.source.path] else error.within(one.source.path) from None
    if not why:
        return chosen, requests
    return without(chosen, why), {name: r for name, r in requests.items() if name not in why}


def _opened_whole(stack: contextlib.ExitStack, member: Member) -> Source | None:
    """The source of a component that is kept; None where it cannot be read, and its files are copied unread. Raises
    DataError for a safetensors file that is damaged: the copy would not load either."""
    try:
        source = open_source(member.path, member.variant)
    except DataError as error:
        if error.place and error.place[0].endswith(".safetensors"):
            raise
        return None
    return stack.enter_context(contextlib.closing(source))


def _opened(source: Source, order: Order, member: Member) -> Opened:
    """A component to quantize."""
    component = member.component
    assert component is not None
    source, to, why = aimed(source, order, folder=True)
    if to is not None:
        check_target(component, to, place=source.path)
    said = []
    if to == USUAL and component.library == "sentence-transformers":
        from quantcli.layouts.compressed_tensors.write import SENTENCES

        said = [SENTENCES]
    return Opened(source=source, order=order, to=to, notes=(*([why] if why else []), *said))


def check_target(component: Component, to: str, *, place: str) -> None:
    """Raise UsageError for a target that the loader of a component does not take. place: where that is."""
    taken = LOADERS.get(component.library, ("bnb-nf4", "compressed-tensors"))
    if to not in taken:
        hint = f"use --to {' or '.join(taken)}; quantize without --to writes each component for its own loader"
        raise UsageError(f"{component.library} does not load {to}", place=[place, f"--to {to}"], hint=hint)


def check_one_file(to: str | None, output: str | None, *, container: bool = False) -> None:
    """Raise UsageError for a target or an output that is one file, which a pipeline cannot be written to."""
    if container or (to is not None and to != NATIVE and named(to).extension):
        hint = "name the folder of a component"
        raise UsageError("this writes one file, and a pipeline is a folder of models", place=[f"--to {to}"], hint=hint)
    if output == "-":
        raise UsageError("a pipeline is written as a folder", place=["stdout"], hint="name one with -o")
    if output is not None and output.lower().endswith(".safetensors"):
        raise UsageError("a pipeline is written as a folder", place=[output], hint="end the name without an extension")


def _check_order(order: Order, reading: Reading, output: str | None) -> None:
    """Raise UsageError for what several models do not have."""
    check_one_file(order.to, output, container=order.container)
    hint = "name the folder of a component"
    if order.statistics_path is not None or order.recipe.importance is not None or order.recipe.statistics is not None:
        raise UsageError("importances are those of one model", place=["--importance"], hint=hint)
    if reading.loras or reading.adapter:
        option = "--lora" if reading.loras else "--adapter"
        raise UsageError("this is for one model, and a pipeline has several", place=[option], hint=hint)


# ---- models that are quantized already -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Quantized:
    """The models that a path names, quantized already. home: the folder of a pipeline, empty where it is one model.
    models: those that hold codes by their names, a single one under an empty name; kept: components that hold none.
    components: all of them."""

    home: str
    models: Mapping[str, Model]
    kept: Mapping[str, Whole] = field(default_factory=dict)
    components: Mapping[str, Component] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, Source]:
        """Where the models are that hold codes."""
        return {name: model.source for name, model in self.models.items()}

    @property
    def kept_bytes(self) -> int:
        """Bytes of the weights of components that hold no codes."""
        return sum(source.share for source in job.kept_sources(self.kept).values())

    @property
    def warnings(self) -> list[str]:
        """What the stores of the models left out, and which components hold no codes."""
        told = [prefixed(name, line) for name, model in self.models.items() for line in model.source.warnings]
        return [*told, *(f"{name}: kept whole, {why}" for name, (_, why) in self.kept.items())]


@contextlib.contextmanager
def quantized(src: str, variant: str | None, what: str, *, hint: str | None = None) -> Iterator[Quantized]:
    """The models that a path names, of which one at least is quantized. what: that must seek in them; hint: what else
    to do with floats. Raises UsageError for a pipe, DataError where nothing is quantized."""
    with contextlib.ExitStack() as stack:
        found, kept = dict[str, Model](), dict[str, Whole]()
        places = pipelines.members(src, variant)
        for member in places:
            try:
                model = stack.enter_context(open_model(member.path, variant=member.variant))
                holds = not member.name or model.is_native or model.codes > 0
            except DataError as error:
                if not member.why_kept:
                    raise
                source = _opened_whole(stack, member)
                kept[member.name] = source, "it cannot be read" if source is None else error.problem
                continue
            need_file(model.source, what)
            if holds:
                found[member.name] = model
            else:
                kept[member.name] = model.source, "it holds no quantized tensor"
        if not any(model.codes for model in found.values()):
            raise DataError("it holds no quantized tensor", place=[src], hint=hint)
        yield Quantized(
            home=pipelines.folder_of(src),
            models=found,
            kept=kept,
            components={m.name: m.component for m in places if m.component is not None},
        )


# ---- their files ---------------------------------------------------------------------------------------------------


def weights(converted: Mapping[str, Source], kept: Mapping[str, Whole]) -> Weights:
    """The weight files of the components of a pipeline, those that are written anew and those that are kept whole, by
    their names in the pipeline."""
    files, written, aside = list[str](), [CARD], dict[str, str]()
    copied: dict[str, tuple[str, str]] = {}
    for name, source in converted.items():
        files += [os.path.join(name, file) for file in source.shards]
        written += [os.path.join(name, file) for file in (CONFIG, INDEX, os.path.basename(source.index or INDEX))]
        aside |= {os.path.join(name, file): why for file, why in source.aside.items()}
    for name, (held, why) in kept.items():
        if held is None:
            continue
        index = os.path.basename(held.index)
        for file in [*held.shards, *([index] if index else [])]:
            # Shards keep their names, which the index has.
            new = without_variant(file) if file == index or not index else file
            copied[os.path.join(name, file)] = os.path.join(name, new), f"kept whole, {why}"
        aside |= {os.path.join(name, file): reason for file, reason in held.aside.items()}
    return Weights(converted=files, written=written, aside=aside, copied=copied)
