"""`quantcli plan`: Choose a scheme for every tensor within a budget."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _budget, _help, _naming, _sources, options

if TYPE_CHECKING:
    from quantcli.passes.budget import Planned, Unit
    from quantcli.scheme import Scheme
    from quantcli.stores import Source


@_help.command(
    "plan",
    examples=(
        ("quantcli plan model.safetensors --target-size 3.9GB -o recipe.yaml", "a recipe for quantize"),
        ("quantcli plan model.safetensors --target-bpw 4.5 --bits 3,4,6", "of three widths"),
        ("quantcli plan model.safetensors --min-sqnr 25", "the smallest file that is good enough"),
    ),
)
@options.source
@_sources.source_layout
@_budget.budget
@_help.option(
    "-o",
    "--output",
    metavar="RECIPE",
    type=click.Path(path_type=str),
    default=None,
    help="Write the recipe.",
    group="Common",
)
@_help.option(
    "--explain",
    is_flag=True,
    help="Price what would be bought or sold next around the budget.",
    group="Output",
)
@_help.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Show every tensor.",
    group="Output",
)
@options.threads
@options.talk
def command(
    src: str,
    source_layout: str,
    output: str | None,
    explain: bool,
    show_all: bool,
    threads: int | None,
    talk: options.Talk,
    **asked: Any,
) -> None:
    """Measure every candidate on every tensor of SRC and choose the schemes that lose least within a budget.

    Bytes are exact: codes, scales, padding, kept tensors and the header are counted, so the file quantize writes with
    the recipe never has a byte more than the target. Beside the cost stands a bound that no choice undercuts.
    """
    read = [src, *(asked.get(name) for name in ("recipe", "importance", "weighting"))]
    if output is not None:
        options.check_outputs([output], read)
        _naming.check_recipe(output)
    budget = _budget.of_plan(asked)
    order = _asking.order(asked, _asking.asked_recipe(asked, {}))
    with _sources.float_source(src, source_layout, talk) as source:
        from quantcli.planning.order import target_of

        to, _ = target_of(source, order, folder=source.folder is not None)
        planned, target = _budget.planned(source, src, order, to, budget, options.thread_count(threads), talk)
        warnings = _warnings(source, planned)
    for line in () if talk.quiet else warnings:
        options.warn(line)
    if output is not None:
        from quantcli.planning import recipe

        options.replace_file(output, recipe.dump(planned.request, folder=os.path.dirname(output)), read)
    if talk.json:
        options.print_json({**_document(planned, src, target), "warnings": warnings})
    elif not talk.quiet:
        _print(planned, src, target, talk, show_all=show_all, explain=explain)


def _warnings(source: Source, planned: Planned) -> list[str]:
    """What takes the room though it is not quantized, and what is quantized though a preset would keep it."""
    from quantcli.folders.output import nbytes_of
    from quantcli.planning import unquantized
    from quantcli.planning.plan import make

    plan = make(source.infos(), planned.request)
    tensors = unquantized.sized(plan.tensors, nbytes_of(source, plan))
    return [*unquantized.of_another_kind(tensors, by_rules=True), *unquantized.mostly_kept(tensors, planned.request)]


def _document(planned: Planned, src: str, target: int | None) -> dict[str, Any]:
    a = planned.allocation
    tensors = []
    for unit, number in zip(planned.units, planned.chosen):
        choice = unit.choices[number]
        for tensor in unit.tensors:
            m = choice.metrics[tensor.info.name]
            tensors.append(
                {
                    "name": tensor.info.name,
                    "scheme": choice.scheme.name if choice.scheme else None,
                    "bits": choice.scheme.bits if choice.scheme else None,
                    "sqnr_db": m.sqnr_db,
                    "tied": [t.info.name for t in unit.tensors if t is not tensor],
                }
            )
    return {
        "schema_version": 1,
        "command": "plan",
        "source": src,
        "target": target,
        "bytes_out": planned.size,
        "cost": float(a.cost),
        "bound": float(a.bound),
        "gap": float(a.gap),
        "optimal": a.optimal,
        "uniform": {"cost": float(planned.uniform[0]), "scheme": planned.uniform[1]} if planned.uniform else None,
        "tensors": tensors,
    }


def _print(
    planned: Planned, src: str, target: int | None, talk: options.Talk, *, show_all: bool, explain: bool
) -> None:
    from quantcli import terminal as t
    from quantcli.errors import printable

    a = planned.allocation
    colour = talk.coloured
    below = f", {100 * (target - planned.size) / target:.3g} % below {target}" if target else ""
    proof = "optimal" if a.optimal else f"at most {100 * a.gap:.2g} % above the optimum"
    lines = [printable(src, 200), f"{planned.size} bytes{below}", f"cost {a.cost:.6g}, bound {a.bound:.6g}: {proof}"]
    if planned.uniform is not None and planned.uniform[0] > 0:
        better = 100 * (1 - a.cost / planned.uniform[0])
        lines.append(
            f"best single scheme in the same bytes: {planned.uniform[1]}, cost {planned.uniform[0]:.6g}; "
            f"this is {better:.1f} % less"
        )
    for text in lines:
        t.line(text, sys.stdout)
    sys.stdout.write("\n")
    table = t.Table(
        [
            t.Column("tensor"),
            t.Column("shape", from_width=70),
            t.Column("scheme"),
            t.Column("SQNR dB", right=True),
            t.Column("share of cost", right=True, from_width=90),
            t.Column("tied", right=True, from_width=100),
        ]
    )
    rows = sorted(zip(planned.units, planned.chosen), key=lambda u: -u[0].choices[u[1]].cost)
    limit = len(rows) if show_all else min(len(rows), max(1, t.screenful()))
    for unit, number in rows[:limit]:
        choice = unit.choices[number]
        for tensor in unit.tensors:
            m = choice.metrics[tensor.info.name]
            table.add(
                tensor.info.name,
                t.shape(tensor.info.shape),
                choice.scheme.name if choice.scheme else "kept",
                t.decibels(m.sqnr_db, m.exact),
                f"{100 * choice.cost / a.cost:.1f} %" if a.cost > 0 else "-",
                str(len(unit.tensors)) if len(unit.tensors) > 1 else "",
            )
    t.show(table, sys.stdout, colour=colour)
    if len(rows) > limit:
        sys.stdout.write(f"and {len(rows) - limit} more; --all shows them\n")
    if explain:
        prices = [line for unit, number in rows[:limit] for line in _prices(unit, number)]
        for text in ["", *prices, "", *_advice(planned)]:
            t.line(text, sys.stdout)
    sys.stdout.flush()


def _prices(unit: Unit, number: int) -> list[str]:
    """What other bits, and other groups, would change for a unit: two lines, or fewer where there is nothing else."""
    from quantcli.errors import printable
    from quantcli.terminal import size

    now = unit.choices[number]
    numel = sum(t.info.numel for t in unit.tensors)
    more = f" and {len(unit.tensors) - 1} tied" if len(unit.tensors) > 1 else ""
    lines = [f"{printable(unit.tensors[0].info.name, 200)}{more}, {now.scheme.name if now.scheme else 'kept'}:"]
    kinds: dict[str, list[str]] = {"bits": [], "groups": []}
    for place, other in enumerate(unit.choices):
        if any(other is before for before in unit.choices[:place]):  # kept, once is enough
            continue
        if other is now or now.scheme is None or (other.scheme and other.scheme.calibration != now.scheme.calibration):
            continue
        difference = other.size - now.size
        decibels = other.sqnr_db - now.sqnr_db
        gain = f"{decibels:+.1f} dB" if math.isfinite(decibels) else "exact"
        if other.scheme is None:
            kinds["bits"].append(f"kept: {gain} for {'-+'[difference > 0]}{size(abs(difference))}")
        elif other.scheme.group_size == now.scheme.group_size:
            kinds["bits"].append(f"{other.scheme.bits} bits: {gain} for {'-+'[difference > 0]}{size(abs(difference))}")
        elif other.scheme.bits == now.scheme.bits:
            kinds["groups"].append(f"{_grouping(other.scheme)}: {gain} for {8 * difference / numel:+.3f} bits")
    return [*lines, *(f"  {'; '.join(offers)}" for offers in kinds.values() if offers)]


def _grouping(scheme: Scheme) -> str:
    return f"groups of {scheme.group_size}" if scheme.group_size else f"per {scheme.granularity}"


def _advice(planned: Planned) -> list[str]:
    """The ten best buys and sales: what another choice would change, most cost per byte first."""
    from quantcli.terminal import size

    offers = []
    for unit, number in zip(planned.units, planned.chosen):
        now = unit.choices[number]
        for place, other in enumerate(unit.choices):
            if any(other is before for before in unit.choices[:place]):
                continue
            bytes_more, saved = other.size - now.size, now.cost - other.cost
            if bytes_more * saved > 0:
                offers.append((saved / bytes_more, bytes_more, other.sqnr_db - now.sqnr_db, unit, other))
    lines = []
    for title, wanted, order in (("best buys", True, -1), ("best sales", False, 1)):
        chosen = sorted((o for o in offers if (o[1] > 0) == wanted), key=lambda o: order * o[0])[:10]
        lines += [f"{title}:"] + [
            f"  {unit.tensors[0].info.name}: {other.scheme.name if other.scheme else 'kept'}, {decibels:+.1f} dB for "
            f"{'+' if more > 0 else '-'}{size(abs(more))}"
            for _, more, decibels, unit, other in chosen
        ]
    return lines


PROVIDES = command
