"""`quantcli plan`: Choose a scheme for every tensor within a budget."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _budget, _help, _naming, _sources, _workers, options

if TYPE_CHECKING:
    from quantcli.floats import Reading


@_help.command(
    "plan",
    examples=(
        ("quantcli plan model.safetensors --target-size 3.9GB -o recipe.yaml", "a recipe for quantize"),
        ("quantcli plan model.safetensors --target-bpw 4.5 --bits 3,4,6", "of three widths"),
        ("quantcli plan model.safetensors --min-sqnr 25", "the smallest file that is good enough"),
        ("quantcli plan Llama-3.2-1B --target-bpw 4.5 --to mlx -o recipe.yaml", "in the bytes of a target"),
    ),
)
@options.source
@_sources.reading
@_budget.budget
@_help.option(
    "--to",
    type=options.targets(native="for quantcli itself: stores every scheme"),
    help="Plan for what another tool loads, as quantize --to writes it.",
    show_default="native, and for folders of transformers compressed-tensors",
    group="Common",
)
@options.container
@_help.option("-o", "--output", metavar="RECIPE", type=_help.WRITTEN, help="Write the recipe.", group="Common")
@_help.option(
    "--explain", is_flag=True, help="Price what would be bought or sold next around the budget.", group="Output"
)
@options.show_all
@_workers.workers
@options.console
def command(
    src: str,
    reading: Reading,
    output: str | None,
    explain: bool,
    show_all: bool,
    workers: _workers.Workers,
    console: options.Console,
    **asked: Any,
) -> None:
    """Measure every candidate on every tensor of SRC and choose the schemes that lose least within a budget.

    Bytes are exact: codes, scales, padding, kept tensors and the header are counted, so the file quantize writes with
    the recipe never has a byte more than the target, in the layout of --to, which the recipe names. Beside the cost
    stands a bound that no choice undercuts. The components of a pipeline have one budget together, and one recipe.
    """
    from quantcli.folders import components, prepare
    from quantcli.folders.job import kept_tensors
    from quantcli.folders.output import nbytes_of
    from quantcli.planning import kinds, recipe_writing
    from quantcli.reports import planned
    from quantcli.stores.pipelines import prefixed

    read = [src, *(asked.get(name) for name in ("recipe", "importance", "statistics", "weighting")), *reading.loras]
    workers.check(src)
    if output is not None:
        options.check_outputs([output], read)
        _naming.check_recipe(output)
    order = _asking.order(asked, _asking.asked_recipe(asked, {}))
    budget = _budget.of_plan(asked, order)
    with (
        components.opened(src, order, reading, output=None, say=console.inform) as found,
        workers.crew(console.inform) as crew,
    ):
        _sources.inform_of(found, console)
        chosen, plan, target = _budget.planned(found, order, budget, workers.count, console, crew)
        console.inform(*chosen.notes)
        nbytes = {name: nbytes_of(chosen.models[name].source, own) for name, own in plan.plans.items()}
        for name, request in plan.requests.items():
            console.inform(*(prefixed(name, line) for line in kinds.about(request.preset)))
        kept = kept_tensors(chosen.kept)
        report = planned.report_of(plan, nbytes, kept=kept, source=src, target=target, explain=explain)
        report = replace(report, warnings=[*found.warnings, *report.warnings])
        recipe = prepare.spelt_out(chosen, plan.requests, order) if chosen.folder else plan.requests[""]
    for line in () if console.quiet else report.warnings:
        options.warn(line)
    if output is not None:
        options.replace_file(output, recipe_writing.dump(recipe, order.settings, os.path.dirname(output)), read)
    options.show(report, console, show_all=show_all)


PROVIDES = command
