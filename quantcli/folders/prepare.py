"""From the models that a path names to a run that may begin: the name of the output, and every refusal there is.

A pipeline is written as a folder of the same components, with all files around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import DataError, UsageError
from quantcli.folders import card, components, job, sidefiles
from quantcli.folders.components import Chosen
from quantcli.folders.job import Job, Whole
from quantcli.folders.planned import plan_model
from quantcli.folders.shares import Share
from quantcli.folders.sidefiles import SideFiles
from quantcli.passes import export
from quantcli.planning import plan
from quantcli.planning.order import Order
from quantcli.planning.plan import Plan
from quantcli.planning.recipe import NATIVE
from quantcli.planning.request import Request, Rule
from quantcli.planning.scopes import scope
from quantcli.stores import Source, destinations, places, remote
from quantcli.stores.pipelines import prefixed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Writing:
    """How an output is to be written. force: in place of one there is; resume: after the finished files of an
    interrupted run; dry_run: not at all, so that its place need not be free. read: files that are read beside the
    source, and stay. private: in a private repository, of the hub. share: the part of it that this process does, None
    for all; line: the command line that asks for it."""

    force: bool = False
    resume: bool = False
    dry_run: bool = False
    read: Sequence[str] = ()
    private: bool = False
    share: Share | None = None
    line: tuple[str, ...] = ()


def place(chosen: Chosen, order: Order, name: str | None, schemes: str) -> tuple[str, bool]:
    """The output of a run and whether it is a folder: as it was named, or beside the source by a name that tells the
    schemes, and the target where one was asked for."""
    told = None if order.to == NATIVE else order.to
    if chosen.folder:
        return name or job.default_name(chosen.folder, schemes, told), True
    one = chosen.models[""]
    target = name or job.default_name(chosen.src, schemes, told)
    return target, job.as_folder(one.source, target if name or told is None else None, one.to)


def checked(chosen: Chosen, order: Order, target: str, how: Writing, *, folder: bool) -> tuple[str, SideFiles]:
    """The real path of an output that may be written, and what becomes of the files beside the source. Raises
    UsageError, DataError and QuantcliError."""
    job.check_folder_options(folder, order, resume=how.resume)
    if how.resume:
        destinations.resuming(target)
    read = [*how.read, *([order.statistics_path] if order.statistics_path else [])]
    sources = {n: one.source for n, one in chosen.models.items()}
    return destination(
        chosen.folder,
        sources,
        chosen.kept,
        target,
        folder=folder,
        force=how.force,
        private=how.private,
        dry_run=how.dry_run,
        read=read,
    )


def destination(
    home: str,
    sources: Mapping[str, Source],
    kept: Mapping[str, Whole],
    target: str,
    *,
    folder: bool,
    force: bool,
    private: bool = False,
    dry_run: bool = False,
    read: Sequence[str] = (),
) -> tuple[str, SideFiles]:
    """The real path of an output that may be written, and what becomes of the files beside the weights. home: the
    folder of a pipeline, empty where there is one model. sources, kept: the models that are written anew, and those
    that are copied. folder: whether the output is one; private: whether it is in a private
    repository, of the hub, which is made here; read: files that are read beside the sources. Raises UsageError,
    DataError and QuantcliError."""
    if home:
        real = target if dry_run else export.check_output_folder(home, target, [home, *read], force=force)
        real = places.real(real)
        side = sidefiles.of_folder(home, real, components.weights(sources, kept))
    else:
        real = target if dry_run else export.check_output(sources[""], target, folder=folder, force=force, read=read)
        side = sidefiles.of(sources[""], places.real(real), folder=folder)
    told = card.beside(home or sources[""].folder, side) if folder and not dry_run else None
    if told is not None:
        destinations.check_card(real, told)
    if private and not dry_run:
        check_private(real)
        destinations.make_private(real)
    return real, side


def check_private(output: str) -> None:
    """Raise UsageError for an output that is to be private and is in no repository of the hub."""
    if remote.scheme_of(output) != "hf":
        raise UsageError("only repositories of the hub are private", place=["--private"], hint="leave it out")


def ready(
    chosen: Chosen,
    requests: Mapping[str, Request],
    order: Order,
    target: str,
    how: Writing,
    *,
    shown: str,
    folder: bool,
) -> Job:
    """A run that writes to `target`. requests: what is asked of each model. Raises UsageError, DataError and
    QuantcliError for all that can be known before the first weight is read."""
    real, side = checked(chosen, order, target, how, folder=folder)
    parts = {}
    for name, one in chosen.models.items():
        try:
            found = plan_model(one.source, one.order, requests[name], folder=folder)
        except (UsageError, DataError) as error:
            raise error.within(one.source.path if chosen.folder else chosen.src) from None
        parts[name] = replace(found, notes=(*one.notes, *found.notes))
    return Job(
        order=order,
        parts=parts,
        kept=chosen.kept,
        kinds={name: m.component.kind for name, m in chosen.members.items() if m.component is not None},
        side=side,
        src=chosen.src,
        home=chosen.folder or chosen.models[""].source.folder,
        shown=shown,
        path=real,
        folder=folder,
        notes=(
            *((again,) if how.resume and (again := destinations.resuming(target)) else ()),
            *(prefixed(n, line) for n, part in parts.items() for line in part.notes),
        ),
        force=how.force,
        resume=how.resume,
        share=how.share,
        line=how.line,
    )


def planned(chosen: Chosen, requests: Mapping[str, Request]) -> dict[str, Plan]:
    """The plan of each model. Raises UsageError and DataError for what cannot be done."""
    found = {}
    for name, one in chosen.models.items():
        try:
            found[name] = plan.make(one.source.infos(), requests[name])
        except (UsageError, DataError) as error:
            raise error.within(one.source.path) from None
    return found


def spelt_out(chosen: Chosen, requests: Mapping[str, Request], order: Order) -> Request:
    """The request that names every tensor's scheme, in all components of a pipeline, as a recipe that is saved says
    it."""
    from quantcli.planning import recipe_writing

    plans = planned(chosen, requests)
    wanted = {n: {t.info.name: t.scheme for t in found.tensors} for n, found in plans.items()}
    if not chosen.folder:
        return recipe_writing.resolved(chosen.models[""].source.infos(), wanted[""], requests[""])
    usual = {name: not member.why_kept for name, member in chosen.members.items()}
    default = recipe_writing.commonest(scheme for own in wanted.values() for scheme in own.values())
    rules = list[Rule]()
    for name, one in chosen.models.items():
        found = recipe_writing.resolved(
            one.source.infos(), wanted[name], requests[name], default=default, named=not usual[name]
        )
        rules += [replace(rule, pattern=scope(rule.pattern, name)) for rule in found.rules]
    rules += [Rule(f"{name}/*", None, optional=True) for name in chosen.kept if usual[name]]
    to = None if order.to == NATIVE else order.to
    first = next(iter(requests.values()))
    asked = replace(first, scheme=default, rules=tuple(rules), preset="", to=to, ties=(), include=(), exclude=())
    return replace(asked, keep_defaults=True, from_recipe=frozenset())
