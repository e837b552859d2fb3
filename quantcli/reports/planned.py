"""Plans: the scheme chosen for every tensor within a budget, what that costs, and what other choices would change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.planning import unquantized
from quantcli.reports.documents import PEOPLE_ONLY, Display, Line, Part, document
from quantcli.stores.pipelines import within

if TYPE_CHECKING:
    from quantcli.passes.budget import Planned
    from quantcli.passes.menus import Choice, Unit
    from quantcli.scheme import Scheme
    from quantcli.tensors.decided import Kept

OFFERS = 10
"""Buys, and sales, that are named at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor. scheme, bits: None where it is kept. tied: the others that have the same scheme as it by rule.
    output_sqnr_db: of the output of its layer, as statistics predict it; None without, and where nothing is lost."""

    name: str
    scheme: str | None
    bits: int | None
    sqnr_db: float | None
    tied: list[str]
    shape: list[int] = field(metadata=PEOPLE_ONLY)
    exact: bool = field(metadata=PEOPLE_ONLY)
    output_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUnit:
    """Tensors that share a scheme, what they cost together, and where that was asked what other choices would change,
    in lines."""

    tensors: list[PlannedTensor]
    cost: float
    prices: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The best single scheme that stays within the same size."""

    cost: float
    scheme: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A plan. target: bytes to stay within, None where the error was limited; cost, bound, gap, optimal: as in
    Allocation. units: the same tensors, those that share a scheme together; advice: the best buys and sales in lines,
    None where that was not asked."""

    source: str
    target: int | None
    bytes_out: int
    cost: float
    bound: float
    gap: float
    optimal: bool
    uniform: Uniform | None
    tensors: list[PlannedTensor]
    warnings: list[str]
    units: list[PlannedUnit] = field(metadata=PEOPLE_ONLY)
    advice: list[str] | None = field(metadata=PEOPLE_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("plan", self)

    def parts(self, display: Display) -> Iterator[Part]:
        """Size and cost, then every tensor: what costs most first."""
        target, size = self.target, self.bytes_out
        below = f", {100 * (target - size) / target:.3g} % below {target}" if target else ""
        proof = "optimal" if self.optimal else f"at most {100 * self.gap:.2g} % above the optimum"
        yield Line(printable(self.source, 200))
        yield Line(f"{size} bytes{below}")
        yield Line(f"cost {self.cost:.6g}, bound {self.bound:.6g}: {proof}")
        if self.uniform is not None and self.uniform.cost > 0:
            better = 100 * (1 - self.cost / self.uniform.cost)
            yield Line(
                f"best single scheme in the same bytes: {self.uniform.scheme}, cost {self.uniform.cost:.6g}; "
                f"this is {better:.1f} % less"
            )
        yield Line()
        units = sorted(self.units, key=lambda unit: -unit.cost)
        seen = units[: display.limit]
        yield self._table(seen)
        if len(seen) < len(units):
            yield Line(f"and {len(units) - len(seen)} more; --all shows them")
        if self.advice is not None:
            for text in ["", *(line for unit in seen for line in unit.prices), "", *self.advice]:
                yield Line(text)

    def _table(self, units: list[PlannedUnit]) -> t.Table:
        of_outputs = any(tensor.output_sqnr_db is not None for unit in units for tensor in unit.tensors)
        table = t.Table(
            [
                t.Column("tensor"),
                t.Column("shape", from_width=70),
                t.Column("scheme"),
                *([t.Column("output dB", right=True)] if of_outputs else []),
                t.Column("SQNR dB", right=True),
                t.Column("share of cost", right=True, from_width=90),
                t.Column("tied", right=True, from_width=100),
            ]
        )
        for unit in units:
            for tensor in unit.tensors:
                table.add(
                    tensor.name,
                    t.shape(tensor.shape),
                    tensor.scheme or "kept",
                    *([t.decibels(tensor.output_sqnr_db, tensor.exact)] if of_outputs else []),
                    t.decibels(tensor.sqnr_db, tensor.exact),
                    f"{100 * unit.cost / self.cost:.1f} %" if self.cost > 0 else "-",
                    str(len(unit.tensors)) if len(unit.tensors) > 1 else "",
                )
        return table


def report_of(
    planned: Planned,
    nbytes: Mapping[str, Callable[[str], int]],
    *,
    kept: Sequence[Kept] = (),
    source: str,
    target: int | None,
    explain: bool,
) -> PlanReport:
    """The report on a plan. nbytes: by model, of a tensor in the output by name; kept: tensors of components that are
    kept whole; explain: with what other choices would change.

    It warns of what takes the room though it is not quantized, and of what is quantized though a preset would keep it.
    """
    allocation = planned.allocation
    sized = [
        unquantized.Entry(replace(t, info=replace(t.info, name=within(name, t.info.name))), nbytes[name](t.info.name))
        for name, plan in planned.plans.items()
        for t in plan.tensors
    ] + [unquantized.Entry(t, t.info.nbytes) for t in kept]
    units = [_unit(unit, unit.choices[number], explain) for unit, number in zip(planned.units, planned.chosen)]
    return PlanReport(
        source=source,
        target=target,
        bytes_out=planned.size,
        cost=float(allocation.cost),
        bound=float(allocation.bound),
        gap=float(allocation.gap),
        optimal=allocation.optimal,
        uniform=Uniform(cost=float(planned.uniform[0]), scheme=planned.uniform[1]) if planned.uniform else None,
        tensors=[tensor for unit in units for tensor in unit.tensors],
        warnings=unquantized.unquantized(sized, planned.requests.get(""), by_rules=True),
        units=units,
        advice=_advice(planned) if explain else None,
    )


def _unit(unit: Unit, choice: Choice, explain: bool) -> PlannedUnit:
    scheme = choice.scheme
    tensors = [
        PlannedTensor(
            name=within(unit.model, tensor.info.name),
            scheme=scheme.name if scheme else None,
            bits=scheme.bits if scheme else None,
            sqnr_db=choice.metrics[tensor.info.name].sqnr_db,
            tied=[within(unit.model, other.info.name) for other in unit.tensors if other is not tensor],
            shape=list(tensor.info.shape),
            exact=choice.metrics[tensor.info.name].exact,
            output_sqnr_db=choice.outputs[tensor.info.name].sqnr_db if tensor.info.name in choice.outputs else None,
        )
        for tensor in unit.tensors
    ]
    return PlannedUnit(tensors=tensors, cost=float(choice.cost), prices=_prices(unit, choice) if explain else [])


def _others(unit: Unit) -> list[Choice]:
    """The choices there are for a unit; to keep it may be among them several times, and once is enough."""
    found: list[Choice] = []
    for choice in unit.choices:
        if not any(choice is known for known in found):
            found.append(choice)
    return found


def _prices(unit: Unit, now: Choice) -> list[str]:
    """What other bits, and other groups, would change for a unit: two lines, or fewer where there is nothing else."""
    numel = sum(tensor.info.numel for tensor in unit.tensors)
    more = f" and {len(unit.tensors) - 1} tied" if len(unit.tensors) > 1 else ""
    lines = [f"{printable(_first(unit), 200)}{more}, {now.scheme.name if now.scheme else 'kept'}:"]
    kinds: dict[str, list[str]] = {"bits": [], "groups": []}
    for other in _others(unit):
        if other is now or now.scheme is None or (other.scheme and other.scheme.calibration != now.scheme.calibration):
            continue
        difference = other.size - now.size
        decibels = other.sqnr_db - now.sqnr_db
        gain = f"{decibels:+.1f} dB" if math.isfinite(decibels) else "exact"
        if other.scheme is None:
            kinds["bits"].append(f"kept: {gain} for {_signed(difference)}")
        elif other.scheme.group_size == now.scheme.group_size:
            kinds["bits"].append(f"{other.scheme.bits} bits: {gain} for {_signed(difference)}")
        elif other.scheme.bits == now.scheme.bits:
            kinds["groups"].append(f"{_grouping(other.scheme)}: {gain} for {8 * difference / numel:+.3f} bits")
    return [*lines, *(f"  {'; '.join(offers)}" for offers in kinds.values() if offers)]


def _first(unit: Unit) -> str:
    """The name of the first tensor of a unit."""
    return within(unit.model, unit.tensors[0].info.name)


def _signed(difference: int) -> str:
    """Bytes more or less."""
    return f"{'-+'[difference > 0]}{t.size(abs(difference))}"


def _grouping(scheme: Scheme) -> str:
    if scheme.granularity == "block":
        return f"blocks of {scheme.group_size} x {scheme.group_size}"
    return f"groups of {scheme.group_size}" if scheme.group_size else f"per {scheme.granularity}"


def _advice(planned: Planned) -> list[str]:
    """The best buys and sales: what another choice would change, most cost per byte first."""
    offers = []
    for unit, number in zip(planned.units, planned.chosen):
        now = unit.choices[number]
        for other in _others(unit):
            bytes_more, saved = other.size - now.size, now.cost - other.cost
            if bytes_more * saved > 0:
                offers.append((saved / bytes_more, bytes_more, other.sqnr_db - now.sqnr_db, unit, other))
    lines = []
    for title, wanted, order in (("best buys", True, -1), ("best sales", False, 1)):
        chosen = sorted((o for o in offers if (o[1] > 0) == wanted), key=lambda o: order * o[0])[:OFFERS]
        lines += [f"{title}:"] + [
            f"  {_first(unit)}: {other.scheme.name if other.scheme else 'kept'}, {decibels:+.1f} dB for {_signed(more)}"
            for _, more, decibels, unit, other in chosen
        ]
    return lines
