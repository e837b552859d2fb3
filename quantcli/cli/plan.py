"""`quantcli plan`: Choose a scheme for every tensor within a budget."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _budget, _help, _naming, _sources, options

if TYPE_CHECKING:
    from quantcli.floats import Reading


@_help.command(
    "plan",
    examples=(
        ("quantcli plan model.safetensors --target-size 3.9GB -o recipe.yaml", "a recipe for quantize"),
        ("quantcli plan model.safetensors --target-bpw 4.5 --bits 3,4,6", "of three widths"),
        ("quantcli plan model.safetensors --min-sqnr 25", "the smallest file that is good enough"),
    ),
)
@options.source
@_sources.reading
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
@options.show_all
@options.threads
@options.talk
def command(
    src: str,
    reading: Reading,
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
    from quantcli.folders.output import nbytes_of
    from quantcli.planning import recipe
    from quantcli.planning.order import target_of
    from quantcli.reports import planned

    read = [src, *(asked.get(name) for name in ("recipe", "importance", "weighting"))]
    if output is not None:
        options.check_outputs([output], read)
        _naming.check_recipe(output)
    budget = _budget.of_plan(asked)
    order = _asking.order(asked, _asking.asked_recipe(asked, {}))
    with _sources.float_source(src, reading, talk) as source:
        to, _ = target_of(source, order, folder=source.folder is not None)
        source = _sources.arranged(source, to, talk, container=order.container)
        found, target = _budget.planned(source, src, order, to, budget, options.thread_count(threads), talk)
        nbytes = nbytes_of(source, found.plan)
        report = planned.made(found, nbytes, source=src, target=target, explain=explain)
    for line in () if talk.quiet else report.warnings:
        options.warn(line)
    if output is not None:
        options.replace_file(output, recipe.dump(found.request, folder=os.path.dirname(output)), read)
    options.show(report, talk, show_all=show_all)


PROVIDES = command
