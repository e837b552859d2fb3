"""Which scheme for which tensor, so that files stay within a budget and lose as little as can be: those of a model, or
of all components of a pipeline together.

Every candidate is measured on every tensor, as `quantize` would make it, in one look at the weights. The choice is a
multiple-choice knapsack over exact bytes; the header, which grows with what it must say, is found by trying. The sum of
weighted squared errors is what is minimised; see `weighting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from quantcli.errors import UsageError, printable
from quantcli.passes.menus import Offer, Unit, kind_of
from quantcli.planning import recipe_writing
from quantcli.planning.allocate import Allocation, Option, allocate, smallest
from quantcli.planning.plan import Plan, make
from quantcli.planning.request import Request
from quantcli.scheme import Scheme

ROUNDS = 24
"""Plans that are tried where headers differ, about."""

CLOSE = 1e-4
"""A better plan is not looked for where it could cost only so much less, as a share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The outcome: the choice for each unit, by model the plan and the request (rules) that leads to it, the exact size
    of all files, and the certificate: cost, a bound no choice within the same bytes of data undercuts, whether it is
    optimal. whole: components of which all tensors stay as they are, which have no plan. uniform: cost and name of the
    best single scheme that stays within the same size, None where none does. measured: whether costs are known, and
    scales that do not fit the narrower dtype."""

    units: tuple[Unit, ...]
    chosen: tuple[int, ...]
    plans: Mapping[str, Plan]
    requests: Mapping[str, Request]
    whole: tuple[str, ...]
    size: int
    allocation: Allocation
    uniform: tuple[float, str] | None
    measured: bool = True


class OutOfReachError(UsageError):
    """No plan stays within the target; `least` is the smallest there is."""

    def __init__(self, least: Planned) -> None:
        super().__init__(f"the smallest file these options allow has {least.size} bytes")
        self.least = least


def check_reach(variants: Sequence[Offer], target: int) -> None:
    """Raise OutOfReachError when no plan stays within the target, as far as that is known before anything is
    measured."""
    least = min((_least(offer) for offer in variants), key=lambda planned: planned.size)
    if least.size > target:
        raise OutOfReachError(least)


def best_within(variants: Sequence[Offer], target: int) -> Planned:
    """The best plan of several offers. Raises OutOfReachError when none stays within the target."""
    found: list[Planned] = []
    problems: list[OutOfReachError] = []
    for offer in variants:
        try:
            found.append(within(offer, target))
        except OutOfReachError as error:
            problems.append(error)
    if not found:
        raise min(problems, key=lambda p: p.least.size)
    return min(found, key=lambda p: (p.allocation.cost, p.size))


def _least(offer: Offer) -> Planned:
    """The smallest plan there is."""
    options = _options(offer)
    allocation = allocate(options, smallest(options))
    assert allocation is not None
    return _planned(offer, allocation)


def within(offer: Offer, target: int) -> Planned:
    """The best plan whose files have at most `target` bytes.

    How large a header is depends on the plan. So the first ones have the data that the smallest header leaves room for,
    and less until they fit; then better ones are looked for in between, whose headers are smaller.

    Raises OutOfReachError when even the smallest one has more.
    """
    options, least, uniforms = _options(offer), _least(offer), _uniforms(offer)
    if least.size > target:
        raise OutOfReachError(least)
    smallest_header = min([least.size - least.allocation.size, *(u.size - u.data for u in uniforms)])
    most = max(target - smallest_header, least.allocation.size)
    best = first = _with_data(offer, options, most)
    while best.size > target:
        header = best.size - best.allocation.size
        best = _with_data(offer, options, max(target - header, least.allocation.size))
    tried = first.allocation.size  # with more data than this the plan is the first
    steps = range(most, best.allocation.size, -max((most - best.allocation.size) // ROUNDS, 1))
    for budget in sorted({*steps, *(u.data for u in uniforms)}, reverse=True):
        if best.allocation.cost * (1 - CLOSE) <= first.allocation.cost or budget <= best.allocation.size:
            break
        if budget < tried:
            found = _with_data(offer, options, budget)
            tried = found.allocation.size
            if found.size <= target:
                best = min(best, found, key=lambda plan: (plan.allocation.cost, plan.size))
                break
    return replace(best, uniform=_cheapest(uniforms, target))


def _with_data(offer: Offer, options: Sequence[Sequence[Option]], data: int) -> Planned:
    """The best plan with at most so many bytes of data."""
    allocation = allocate(options, data)
    assert allocation is not None
    return _planned(offer, allocation)


def best_reaching(variants: Sequence[Offer], cost: float) -> Planned:
    """The smallest plan of several offers that costs at most so much. Raises UsageError when none does."""
    found: list[Planned] = []
    problem: UsageError | None = None
    for offer in variants:
        try:
            found.append(reaching(offer, cost))
        except UsageError as error:
            problem = error
    if not found and problem is not None:
        raise problem
    return min(found, key=lambda p: (p.size, p.allocation.cost))


def reaching(offer: Offer, cost: float) -> Planned:
    """The smallest plan that costs at most so much. Raises UsageError when none does."""
    options = _options(offer)
    low, high = smallest(options), sum(max(c.size for c in unit.choices) for unit in offer.units)
    best = allocate(options, high)
    if best is None or best.cost > cost:
        raise UsageError("these options cannot reach the target", hint="allow more bits")
    while low < high:
        middle = (low + high) // 2
        found = allocate(options, middle)
        if found is not None and found.cost <= cost:
            best, high = found, found.size
        else:
            low = middle + 1
    planned = _planned(offer, best)
    return replace(planned, uniform=_cheapest(_uniforms(offer), planned.size))


def best_of_outputs(variants: Sequence[Offer], least: float) -> Planned:
    """The smallest plan of several offers with which no layer's output has an SQNR of less than so many dB. Raises
    UsageError when there is none."""
    found: list[Planned] = []
    problem: UsageError | None = None
    for offer in variants:
        try:
            found.append(_least(_reaching_in_outputs(offer, least)))
        except UsageError as error:
            problem = error
    if not found and problem is not None:
        raise problem
    return min(found, key=lambda p: (p.size, p.allocation.cost))


def _reaching_in_outputs(offer: Offer, least: float) -> Offer:
    """An offer without the choices with which an output has an SQNR of less than so many dB. Raises UsageError where a
    layer is left without any."""
    menus = []
    for menu in offer.menus:
        units = []
        for unit in menu.units:
            choices = tuple(choice for choice in unit.choices if choice.least_output_db >= least)
            if not choices:
                most = max(choice.least_output_db for choice in unit.choices)
                problem = f"these options cannot reach the target: the output has at most {most:.2f} dB"
                raise UsageError(problem, place=[printable(unit.tensors[0].info.name)], hint="allow more bits")
            units.append(replace(unit, choices=choices))
        menus.append(replace(menu, units=tuple(units)))
    if all(choice.scheme is None for menu in menus for unit in menu.units for choice in unit.choices):
        raise _all_short(offer, least)
    return replace(offer, menus=tuple(menus))


def _all_short(offer: Offer, least: float) -> UsageError:
    """The error for a limit that no tensor keeps in any scheme: which come nearest to it, and by how much they fail."""
    most = {
        unit.tensors[0].info.name: max((c.least_output_db for c in unit.choices if c.scheme is not None), default=0.0)
        for menu in offer.menus
        for unit in menu.units
    }
    near = sorted(most, key=lambda name: -most[name])[:3]
    told = ", ".join(f"{printable(name)} {most[name]:.2f} dB ({least - most[name]:.2f} short)" for name in near)
    problem = f"no scheme keeps the limit in any of {len(most)} groups of tensors; nearest are {told}"
    hint = f"ask for {max(most.values(), default=0.0):.2f} dB or less, or allow more bits"
    return UsageError(problem, place=["--min-output-sqnr"], hint=hint)


class Uniform(NamedTuple):
    """One scheme for all: what it costs, its name, bytes of data and of the files."""

    cost: float
    name: str
    data: int
    size: int


def _uniforms(offer: Offer) -> list[Uniform]:
    """The schemes that all tensors could have."""
    menus = [menu for menu in offer.menus if menu.units]
    found: list[Uniform] = []
    for kind in dict.fromkeys(kind_of(plan) for plan in menus[0].plans):
        numbers = [next((i for i, p in enumerate(menu.plans) if kind_of(p) == kind), None) for menu in menus]
        if None in numbers:
            continue
        plans = {menu.subject.name: menu.plans[number or 0] for menu, number in zip(menus, numbers)}
        choices = [unit.choices[number or 0] for menu, number in zip(menus, numbers) for unit in menu.units]
        name = next((choice.scheme.name for choice in choices if choice.scheme is not None), None)
        if name is not None:
            cost, data = sum(choice.cost for choice in choices), sum(choice.size for choice in choices)
            found.append(Uniform(cost, name, data, _size(offer, plans)))
    return found


def _cheapest(uniforms: Sequence[Uniform], limit: int) -> tuple[float, str] | None:
    """Cost and name of the best single scheme in files of at most so many bytes."""
    return min(((u.cost, u.name) for u in uniforms if u.size <= limit), default=None)


def _size(offer: Offer, plans: Mapping[str, Plan]) -> int:
    """Bytes of all files; of models without a plan as they are."""
    sizes = (
        menu.subject.size_of(plans[menu.subject.name]) if menu.subject.name in plans else menu.subject.source.share
        for menu in offer.menus
    )
    return offer.beside + sum(sizes)


def _options(offer: Offer) -> list[list[tuple[int, float]]]:
    """What there is to allocate."""
    return [[(c.size, c.cost) for c in unit.choices] for unit in offer.units]


def _planned(offer: Offer, allocation: Allocation) -> Planned:
    """The plan of an allocation. Several models have the rules that one recipe for all of them has."""
    units, choice = offer.units, iter(allocation.choice)
    wanted = dict[str, dict[str, Scheme | None]]()
    for menu in offer.menus:
        chosen = {t.info.name: u.choices[c].scheme for u, c in zip(menu.units, choice) for t in u.tensors}
        wanted[menu.subject.name] = {**menu.wanted, **chosen}
    default = recipe_writing.commonest(scheme for own in wanted.values() for scheme in own.values())
    plans, requests = dict[str, Plan](), dict[str, Request]()
    for menu in offer.menus:
        subject = menu.subject
        name, infos = subject.name, subject.source.infos()
        if not any(wanted[name].values()):
            continue
        requests[name] = recipe_writing.resolved(
            infos, wanted[name], subject.request, default=default, named=subject.named
        )
        plans[name] = make(infos, requests[name])
    return Planned(
        units=tuple(units),
        chosen=allocation.choice,
        plans=plans,
        requests=requests,
        whole=tuple(menu.subject.name for menu in offer.menus if menu.subject.name not in plans),
        size=_size(offer, plans),
        allocation=allocation,
        uniform=None,
        measured=offer.measured,
    )
