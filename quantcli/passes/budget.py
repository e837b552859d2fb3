"""Which scheme for which tensor, so that a file stays within a budget and loses as little as can be.

Every candidate is measured on every tensor, as `quantize` would make it, in one look at the weights. The choice is a
multiple-choice knapsack over exact bytes; the header, which grows with what it must say, is found by trying. The sum of
weighted squared errors is what is minimised; see `weighting`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import DataError, UsageError
from quantcli.layouts.writer import named
from quantcli.metrics import Metrics
from quantcli.passes.sweep import Measured, measure
from quantcli.passes.tiles import Progress
from quantcli.passes.weighting import weight
from quantcli.patterns import tied
from quantcli.planning import recipe_writing
from quantcli.planning.allocate import Allocation, allocate, smallest
from quantcli.planning.entry import quantized
from quantcli.planning.plan import Plan, make
from quantcli.planning.reasons import REASONS
from quantcli.planning.request import Request
from quantcli.planning.targets import in_place
from quantcli.scheme import Scheme
from quantcli.stores import Source
from quantcli.tensors.decided import Decided

TIES = (
    r"(.*)\b(?:q_proj|k_proj|v_proj)\.weight",
    r"(.*)\b(?:query|key|value)\.weight",
    r"(.*)\b(?:gate_proj|up_proj|w1|w3)\.weight",
    r"(.*\.experts)\.\d+\..*",
)
"""Tensors that runtimes fuse: those of one pattern whose first group is the same get one scheme."""

ROUNDS = 12
"""Budgets tried until the header is accounted for: it rarely takes more than three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A way to store tied tensors: a scheme, None for as they are; bytes of their data; weighted squared error; power,
    by the importance of columns where it is known; and metrics of each."""

    scheme: Scheme | None
    size: int
    cost: float
    power: float
    metrics: Mapping[str, Metrics]

    @property
    def sqnr_db(self) -> float:
        """Of all of them together; infinite where nothing is lost."""
        sse, power = (sum(getattr(m, what) for m in self.metrics.values()) for what in ("sse", "power"))
        return 10 * (math.log10(power) - math.log10(sse)) if sse > 0 and power > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Tensors with one scheme, and the ways to store them."""

    tensors: tuple[Decided, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """What there is to choose from: units, and for every scheme the plan that gives it to all of them. The choices of a
    unit are in the order of these plans; behind them comes the one to keep it, where that is allowed. wanted: the
    scheme of every tensor by the request, budget or not."""

    units: tuple[Unit, ...]
    plans: tuple[Plan, ...]
    wanted: Mapping[str, Scheme | None]
    measured: bool = False

    @property
    def keeps(self) -> bool:
        """Whether units may stay as they are."""
        return len(self.units[0].choices) > len(self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The outcome: the choice for each unit, the plan and the request (rules) that leads to it, the exact size of the
    file, and the certificate: cost, a bound no choice within the same bytes of data undercuts, whether it is optimal.
    uniform: cost and name of the best single scheme that stays within the same size, None where none does. measured:
    whether costs are known, and scales that do not fit the narrower dtype."""

    units: tuple[Unit, ...]
    chosen: tuple[int, ...]
    plan: Plan
    request: Request
    size: int
    allocation: Allocation
    uniform: tuple[float, str] | None
    measured: bool = True


class OutOfReachError(UsageError):
    """No plan stays within the target; `least` is the smallest there is."""

    def __init__(self, least: Planned) -> None:
        super().__init__(f"the smallest file these options allow has {least.size} bytes")
        self.least = least


def menu_of(
    source: Source,
    request: Request,
    schemes: Sequence[Scheme],
    *,
    keep: bool,
    ties: bool,
    nbytes_of: Callable[[Plan], Callable[[str], int]],
) -> Menu:
    """What there is to choose from, before it is known what it costs: tensors that neither a rule nor their kind
    decides on. keep: whether one may stay as it is. nbytes_of: what each tensor of a plan takes in the output.

    Raises UsageError when nothing is left to choose.
    """
    wanted = {t.info.name: t.scheme for t in make(source.infos(), request).tensors}
    plans = _plans(source, request, schemes)
    free = [t for same in zip(*(p.tensors for p in plans)) if (t := _free(same)) is not None]
    if not free:
        problem = "rules decide on every tensor, so nothing is left to choose"
        raise UsageError(problem, place=["--recipe"], hint="make their patterns narrower")
    ways = [_Way(plan, nbytes_of(plan), plan) for plan in plans]
    units = [_unit(members, ways, "absolute", keep) for members in _tied(free, request.ties, ties)]
    return Menu(units=tuple(units), plans=tuple(plans), wanted=wanted)


def measured(
    menu: Menu,
    source: Source,
    *,
    weighting: str | Mapping[str, float],
    nbytes_of: Callable[[Plan], Callable[[str], int]],
    threads: int,
    progress: Progress | None = None,
) -> Menu:
    """The same choices with what they cost. weighting: one of WEIGHTINGS, or how much each tensor's relative error
    counts. Scales that do not fit the narrower dtype make some choices larger than they were."""
    found = measure(source, menu.plans, threads=threads, progress=progress)
    ways = [_Way(one.plan, nbytes_of(one.plan), was, one) for one, was in zip(found, menu.plans)]
    units = [_unit(unit.tensors, ways, weighting, menu.keeps) for unit in menu.units]
    return replace(menu, units=tuple(units), plans=tuple(one.plan for one in found), measured=True)


class _Way:
    """A plan that gives one scheme to all, what tensors take in its output, how it was before anything was measured,
    and what it costs where that is known."""

    def __init__(self, plan: Plan, nbytes: Callable[[str], int], was: Plan, found: Measured | None = None) -> None:
        self.tensors, self.nbytes, self.found = {t.info.name: t for t in plan.tensors}, nbytes, found
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
        return Choice(scheme=scheme, size=size, cost=cost, power=sum(p for _, p in sums.values()), metrics=metrics)


def _unit(members: Sequence[Decided], ways: Sequence[_Way], weighting: str | Mapping[str, float], keep: bool) -> Unit:
    """Tensors with the ways to store them. With groups the target cannot store, a tensor stays as it is."""
    found = [way.choice(members, weighting) for way in ways]
    exact = _kept(members, next(choice for choice in found if choice is not None))
    choices = (*(choice or exact for choice in found), *([exact] if keep else []))
    return Unit(tensors=tuple(members), choices=choices)


def _plans(source: Source, request: Request, schemes: Sequence[Scheme]) -> list[Plan]:
    """A plan for each scheme under which anything is quantized. Raises DataError where there is none."""
    plans, error = list[Plan](), None
    for scheme in schemes:
        try:
            plans.append(_with(source, request, scheme))
        except DataError as problem:
            error = error or problem
    if error is not None and not plans:
        raise error
    return plans


def _with(source: Source, request: Request, scheme: Scheme) -> Plan:
    """The plan that gives a scheme to all there is to choose for, embeddings and output heads too that the tools of the
    target would give another one."""
    plan = make(source.infos(), replace(request, scheme=scheme))
    own = [t for t in plan.tensors if t.reason == "runtime" and t.scheme != scheme]
    like = {t.info.name: quantized(t.info, scheme, t.reason, importance=t.importance) for t in own}
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


def with_one_scheme(menu: Menu) -> list[Menu]:
    """The choices that are left when all that is quantized has one scheme: for each scheme in turn."""
    count, found = len(menu.plans), list[Menu]()
    for number, plan in enumerate(menu.plans):
        units = tuple(replace(u, choices=(u.choices[number], *u.choices[count:])) for u in menu.units)
        if any(unit.choices[0].scheme is not None for unit in units):
            found.append(replace(menu, units=units, plans=(plan,)))
    return found


def check_reach(
    variants: Sequence[Menu], source: Source, request: Request, size_of: Callable[[Plan], int], target: int
) -> None:
    """Raise OutOfReachError when no plan stays within the target, as far as that is known before anything is
    measured."""
    least = min((_least(menu, source, request, size_of) for menu in variants), key=lambda planned: planned.size)
    if least.size > target:
        raise OutOfReachError(least)


def best_within(
    variants: Sequence[Menu], source: Source, request: Request, size_of: Callable[[Plan], int], target: int
) -> Planned:
    """The best plan of several menus. Raises OutOfReachError when none stays within the target."""
    found: list[Planned] = []
    problems: list[OutOfReachError] = []
    for menu in variants:
        try:
            found.append(within(menu, source, request, size_of, target))
        except OutOfReachError as error:
            problems.append(error)
    if not found:
        raise min(problems, key=lambda p: p.least.size)
    return min(found, key=lambda p: (p.allocation.cost, p.size))


def _least(menu: Menu, source: Source, request: Request, size_of: Callable[[Plan], int]) -> Planned:
    """The smallest plan there is."""
    options = _options(menu)
    allocation = allocate(options, smallest(options))
    assert allocation is not None
    return _planned(menu, source, request, size_of, allocation)


def within(menu: Menu, source: Source, request: Request, size_of: Callable[[Plan], int], target: int) -> Planned:
    """The best plan whose file has at most `target` bytes.

    Raises OutOfReachError when even the smallest one has more.
    """
    options = _options(menu)
    best = found = _least(menu, source, request, size_of)
    if best.size > target:
        raise OutOfReachError(best)
    data = smallest(options)
    tried = {data}
    while len(tried) <= ROUNDS:
        budget = target - (found.size - found.allocation.size)  # what the last header leaves for data
        if budget in tried or budget < data:
            break
        tried.add(budget)
        allocation = allocate(options, budget)
        assert allocation is not None
        found = _planned(menu, source, request, size_of, allocation)
        if found.size <= target and found.allocation.cost <= best.allocation.cost:
            best = found
    return replace(best, uniform=_uniform(menu, size_of, target))


def best_reaching(
    variants: Sequence[Menu], source: Source, request: Request, size_of: Callable[[Plan], int], cost: float
) -> Planned:
    """The smallest plan of several menus that costs at most so much. Raises UsageError when none does."""
    found: list[Planned] = []
    problem: UsageError | None = None
    for menu in variants:
        try:
            found.append(reaching(menu, source, request, size_of, cost))
        except UsageError as error:
            problem = error
    if not found and problem is not None:
        raise problem
    return min(found, key=lambda p: (p.size, p.allocation.cost))


def reaching(menu: Menu, source: Source, request: Request, size_of: Callable[[Plan], int], cost: float) -> Planned:
    """The smallest plan that costs at most so much. Raises UsageError when none does."""
    options = _options(menu)
    low, high = smallest(options), sum(max(c.size for c in unit.choices) for unit in menu.units)
    best = allocate(options, high)
    if best is None or best.cost > cost:
        raise UsageError("these options cannot reach the target", hint="allow more bits")
    while low < high:
        middle = (low + high) // 2
        found = allocate(options, middle)
        if found is not None and found.cost <= cost:
            best, high = found, min(middle, found.size)
        else:
            low = middle + 1
    planned = _planned(menu, source, request, size_of, best)
    return replace(planned, uniform=_uniform(menu, size_of, planned.size))


def _uniform(menu: Menu, size_of: Callable[[Plan], int], limit: int) -> tuple[float, str] | None:
    """The cheapest scheme that all could have in a file of at most so many bytes."""
    found: list[tuple[float, str]] = []
    for number, plan in enumerate(menu.plans):
        choices = [unit.choices[number] for unit in menu.units]
        name = next((choice.scheme.name for choice in choices if choice.scheme is not None), None)
        if name is not None and size_of(plan) <= limit:
            found.append((sum(choice.cost for choice in choices), name))
    return min(found, default=None)


def _options(menu: Menu) -> list[list[tuple[int, float]]]:
    """What there is to allocate."""
    return [[(c.size, c.cost) for c in unit.choices] for unit in menu.units]


def _planned(
    menu: Menu, source: Source, request: Request, size_of: Callable[[Plan], int], allocation: Allocation
) -> Planned:
    """The plan of an allocation."""
    chosen = {t.info.name: u.choices[c].scheme for u, c in zip(menu.units, allocation.choice) for t in u.tensors}
    resolved = recipe_writing.resolved(source.infos(), {**menu.wanted, **chosen}, request)
    plan = make(source.infos(), resolved)
    return Planned(
        units=menu.units,
        chosen=allocation.choice,
        plan=plan,
        request=resolved,
        size=size_of(plan),
        allocation=allocation,
        uniform=None,
        measured=menu.measured,
    )
