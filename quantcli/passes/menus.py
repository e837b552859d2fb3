"""What there is to choose from when schemes are chosen for a budget: for every tensor the ways to store it, with their
bytes in the output, and once they are measured with what they cost.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import product

from quantcli.errors import DataError, UsageError
from quantcli.layouts.writer import named
from quantcli.metrics import Metrics
from quantcli.passes.batches import Crew
from quantcli.passes.sweep import Measured, measure
from quantcli.passes.tiles import Progress
from quantcli.passes.weighting import weight
from quantcli.patterns import tied
from quantcli.planning.entry import quantized
from quantcli.planning.plan import Plan, make
from quantcli.planning.reasons import REASONS
from quantcli.planning.request import Request
from quantcli.planning.targets import in_place
from quantcli.scheme import AUTO, Scheme
from quantcli.stores import Source
from quantcli.tensors.decided import Decided
from quantcli.tensors.fused import FUSED
from quantcli.tensors.second_order import Output

TIES = (
    *(rf"(.*)\b(?:{'|'.join(modules)})\.weight" for modules in FUSED),
    r"(.*\.experts)\.\d+\..*",
)
"""Tensors that runtimes fuse: those of one pattern whose first group is the same get one scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that schemes are chosen for. name: of the component it is, empty for the only model. request: what is
    asked of it; schemes: what there is to choose from, with scales as its target stores them; mixed: whether its
    tensors may have several; named: whether a recipe must name its tensors, for else they are kept. size_of: bytes of
    the files a plan leads to; nbytes_of: what each tensor takes in them. again: how a worker opens its source."""

    name: str
    source: Source
    request: Request
    schemes: tuple[Scheme, ...]
    mixed: bool
    named: bool
    size_of: Callable[[Plan], int]
    nbytes_of: Callable[[Plan], Callable[[str], int]]
    again: Callable[[], AbstractContextManager[Source]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A way to store tied tensors: a scheme, None for as they are; bytes of their data; weighted squared error; power,
    by the importance of columns where it is known; metrics of each, and what errors cost in the outputs of layers of
    whose inputs there are statistics."""

    scheme: Scheme | None
    size: int
    cost: float
    power: float
    metrics: Mapping[str, Metrics]
    outputs: Mapping[str, Output] = field(default_factory=dict)

    @property
    def least_output_db(self) -> float:
        """The lowest SQNR of the output of any of them; where there are no statistics that of the weights, which is
        what inputs that are all alike would give. Infinite where nothing is lost."""
        found = [self.outputs.get(name, metrics).sqnr_db for name, metrics in self.metrics.items()]
        return min(math.inf if db is None else db for db in found)

    @property
    def sqnr_db(self) -> float:
        """Of all of them together; infinite where nothing is lost."""
        sse, power = (sum(getattr(m, what) for m in self.metrics.values()) for what in ("sse", "power"))
        return 10 * (math.log10(power) - math.log10(sse)) if sse > 0 and power > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Tensors with one scheme, and the ways to store them. model: the name of the model they are in."""

    tensors: tuple[Decided, ...]
    model: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """What there is to choose from in a model: units, and for every scheme the plan that gives it to all of them. The
    choices of a unit are in the order of these plans; behind them comes the one to keep it, where that is allowed.
    wanted: the scheme of every tensor by the request, budget or not."""

    subject: Subject
    units: tuple[Unit, ...]
    plans: tuple[Plan, ...]
    wanted: Mapping[str, Scheme | None]
    measured: bool = False

    @property
    def keeps(self) -> bool:
        """Whether units may stay as they are."""
        return any(len(unit.choices) > len(self.plans) for unit in self.units)

    @property
    def single(self) -> list[Menu]:
        """The choices that are left when all that is quantized has one scheme: for each scheme in turn."""
        count, found = len(self.plans), list[Menu]()
        for number, plan in enumerate(self.plans):
            units = tuple(replace(u, choices=(u.choices[number], *u.choices[count:])) for u in self.units)
            if not units or any(unit.choices[0].scheme is not None for unit in units):
                found.append(replace(self, units=units, plans=(plan,)))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is to choose from in all models that a budget is for. beside: bytes of components that are kept
    whole."""

    menus: tuple[Menu, ...]
    beside: int = 0

    @property
    def units(self) -> list[Unit]:
        """The units of all models, one after another."""
        return [unit for menu in self.menus for unit in menu.units]

    @property
    def measured(self) -> bool:
        """Whether costs are known."""
        return all(menu.measured for menu in self.menus)

    def variants(self, *, uniform: bool) -> list[Offer]:
        """The offers that are to be looked at one by one, because a target has one scheme in a model. uniform: whether
        all models together have one. Raises UsageError where they have none in common."""
        if not uniform:
            menus = [[m] if m.subject.mixed else m.single for m in self.menus]
            return [replace(self, menus=found) for found in product(*menus)]
        by_kind = [{kind_of(m.plans[0]): m for m in menu.single} for menu in self.menus]
        kinds = [kind for kind in by_kind[0] if all(kind in own for own in by_kind)]
        if not kinds:
            raise UsageError("no scheme suits all components", place=["--uniform-groups"], hint="leave it out")
        return [replace(self, menus=tuple(own[kind] for own in by_kind)) for kind in kinds]


def kind_of(plan: Plan) -> Scheme:
    """The scheme of a plan, the same for targets that store its scales in several ways."""
    assert plan.request is not None
    scheme = plan.request.scheme
    return scheme.with_scale_dtype(AUTO) if scheme.family == "int" else scheme


def menu_of(subject: Subject, *, keep: bool, ties: bool) -> Menu:
    """What there is to choose from, before it is known what it costs: tensors that neither a rule nor their kind
    decides on. keep: whether one may stay as it is; ties: whether tensors that runtimes fuse have one scheme. Raises
    UsageError and DataError for what cannot be done."""
    infos, request = subject.source.infos(), subject.request
    if not ties and request.to is not None and named(request.to).joins:
        problem = f"runtimes of {request.to} join q, k and v, and gate and up, and need one scheme for all of them"
        raise UsageError(problem, place=["--no-ties"], hint="leave it out, or plan --to native")
    wanted = {t.info.name: t.scheme for t in make(infos, request).tensors}
    ways = _ways(subject)
    plans = [way.plan for way in ways]
    free = [t for same in zip(*(p.tensors for p in plans)) if (t := _free(same)) is not None]
    units = [_unit(members, subject.name, ways, "absolute", keep) for members in _tied(free, request.ties, ties)]
    return Menu(subject=subject, units=tuple(units), plans=tuple(plans), wanted=wanted)


def offer_of(subjects: Sequence[Subject], *, keep: bool, ties: bool, beside: int = 0) -> Offer:
    """What there is to choose from in several models. Raises UsageError when nothing is left to choose."""
    found = Offer(menus=tuple(menu_of(s, keep=keep, ties=ties) for s in subjects), beside=beside)
    if not found.units:
        problem = "rules decide on every tensor, so nothing is left to choose"
        raise UsageError(problem, place=["--recipe"], hint="make their patterns narrower")
    return found


def measured(
    offer: Offer,
    *,
    weighting: str | Mapping[str, Mapping[str, float]],
    threads: int,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> Offer:
    """The same choices with what they cost. weighting: one of WEIGHTINGS, or by model how much each tensor's relative
    error counts. crew: the workers that measure, None for threads here. Scales that do not fit the narrower dtype make
    some choices larger than they were."""
    menus = []
    for menu in offer.menus:
        subject = menu.subject
        own = weighting if isinstance(weighting, str) else weighting[subject.name]
        found = measure(subject.source, menu.plans, threads=threads, progress=progress, crew=crew, again=subject.again)
        ways = [_Way(one.plan, subject.nbytes_of(one.plan), was, one) for one, was in zip(found, menu.plans)]
        units = [_unit(unit.tensors, unit.model, ways, own, menu.keeps) for unit in menu.units]
        menus.append(replace(menu, units=tuple(units), plans=tuple(one.plan for one in found), measured=True))
    return replace(offer, menus=tuple(menus))


class _Way:
    """A plan that gives one scheme to all, what tensors take in its output, how it was before anything was measured,
    and what it costs where that is known."""

    def __init__(self, plan: Plan, nbytes: Callable[[str], int], was: Plan, found: Measured | None = None) -> None:
        self.plan, self.nbytes, self.found = plan, nbytes, found
        self.tensors = {t.info.name: t for t in plan.tensors}
        self._was = {t.info.name: t.scale_dtype for t in was.tensors}

    def choice(self, members: Sequence[Decided], weighting: str | Mapping[str, float]) -> Choice | None:
        """The choice to store tensors so; None where one of them is then kept."""
        names = [t.info.name for t in members]
        scheme = self.tensors[names[0]].scheme
        if scheme is None or any(self.tensors[name].scheme is None for name in names):
            return None
        if any(self.tensors[name].scale_dtype != self._was[name] for name in names):
            scheme = scheme.with_scale_dtype("float32")
        size = sum(self.nbytes(name) for name in names)
        if self.found is None:
            return Choice(scheme=scheme, size=size, cost=0.0, power=0.0, metrics={})
        metrics = {name: self.found.metrics[name] for name in names}
        sums = {name: self.found.weighted.get(name, (m.sse, m.power)) for name, m in metrics.items()}
        cost = sum(weight(t, metrics[t.info.name], weighting) * sums[t.info.name][0] for t in members)
        return Choice(
            scheme=scheme,
            size=size,
            cost=cost,
            power=sum(p for _, p in sums.values()),
            metrics=metrics,
            outputs={name: self.found.outputs[name] for name in names if name in self.found.outputs},
        )


def _unit(
    members: Sequence[Decided], model: str, ways: Sequence[_Way], weighting: str | Mapping[str, float], keep: bool
) -> Unit:
    """Tensors with the ways to store them. With groups the target cannot store, a tensor stays as it is."""
    found = [way.choice(members, weighting) for way in ways]
    exact = _kept(members, next(choice for choice in found if choice is not None))
    choices = (*(choice or exact for choice in found), *([exact] if keep else []))
    return Unit(tensors=tuple(members), model=model, choices=choices)


def _ways(subject: Subject) -> list[_Way]:
    """A plan for each scheme under which anything is quantized, and which the target stores in a model of such shapes.
    Raises DataError or UsageError where there is none."""
    ways, error = list[_Way](), None
    for scheme in subject.schemes:
        try:
            plan = _with(subject.source, subject.request, scheme)
            subject.size_of(plan)
            ways.append(_Way(plan, subject.nbytes_of(plan), plan))
        except (DataError, UsageError) as problem:
            error = error or problem
    if error is not None and not ways:
        raise error
    return ways


def _with(source: Source, request: Request, scheme: Scheme) -> Plan:
    """The plan that gives a scheme to all there is to choose for, embeddings and output heads too that the tools of the
    target would give another one."""
    plan = make(source.infos(), replace(request, scheme=scheme))
    own = [t for t in plan.tensors if t.reason == "runtime" and t.scheme != scheme]
    like = {t.info.name: quantized(t.info, scheme, t.reason, columns=t.columns) for t in own}
    if request.to is not None:
        export = named(request.to)
        like = {name: in_place(tensor, export, request.again) for name, tensor in like.items()}
    return plan.amended(like)


def _free(plans: Sequence[Decided]) -> Decided | None:
    """The plan of a tensor under the first candidate that may quantize it; None where there is nothing to choose."""
    return next((t for t in plans if t.scheme is not None and REASONS[t.reason].free), None)


def _kept(members: Sequence[Decided], other: Choice) -> Choice:
    """The choice to leave tensors as they are, beside another one for them."""
    exact = {name: replace(m, sse=0.0, max_abs_error=0.0, clipped=0) for name, m in other.metrics.items()}
    size = sum(t.info.nbytes for t in members)
    return Choice(scheme=None, size=size, cost=0.0, power=other.power, metrics=exact)


def _tied(tensors: Sequence[Decided], asked: Sequence[str], usual: bool) -> list[list[Decided]]:
    """Tensors in file order, those that belong together side by side: those the request ties, and the usual ones."""
    names = [t.info.name for t in tensors]
    keys = tied(asked, names, "ties")
    for pattern in TIES if usual else ():
        for name in names:
            match = re.fullmatch(pattern, name)
            if match and name not in keys:
                keys[name] = f"{pattern}\0{match[1]}"
    groups: dict[str, list[Decided]] = defaultdict(list)
    for tensor in tensors:
        groups[keys.get(tensor.info.name, f"\0{tensor.info.name}")].append(tensor)
    return list(groups.values())
