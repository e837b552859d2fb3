"""`quantcli compare`: Measure one model against another."""

from __future__ import annotations

from typing import Any

import click

from quantcli.cli import _gating, _help, _sources, _workers, options


@_help.command(
    "compare",
    examples=(
        ("quantcli compare model.safetensors model-w4g128.safetensors", "against the original"),
        ("quantcli compare model-awq model-gptq --all", "two quantized folders, every tensor"),
        ("quantcli compare model.safetensors model.gguf --min-tensor-sqnr 18", "with a limit"),
    ),
)
@click.argument("before", metavar="A", type=_help.MODEL)
@click.argument("after", metavar="B", type=_help.MODEL)
@_gating.gates
@_sources.original_as_float
@_sources.variant
@options.show_all
@_gating.renderings
@_workers.workers
@options.console
def command(
    before: str,
    after: str,
    baseline: str | None,
    config: str | None,
    as_float: bool,
    variant: str | None,
    show_all: bool,
    format_: str | None,
    outputs: tuple[tuple[str, str], ...],
    workers: _workers.Workers,
    console: options.Console,
    **limits: Any,
) -> None:
    """Decode both models and measure B against A, tensor by tensor.

    A and B are files, checkpoint folders or pipelines of several models: float, quantcli's own, or in a layout that
    `quantcli help targets` lists.
    Where both say what they cost, the tensors that got worse from A to B are listed too. Gates and exit codes are
    those of report.
    """
    from quantcli import api
    from quantcli.reports import baseline as earlier
    from quantcli.reports import gates

    rendering = _gating.rendering(format_, console)
    workers.check(before, after)
    options.check_outputs([path for _, path in outputs], [before, after, baseline, config])
    wanted = _gating.gates_of(limits)
    if config is not None:
        from quantcli.reports import config as configuration

        wanted = wanted.over(configuration.load(config).gates)
    known = (baseline, earlier.load(baseline, after)) if baseline is not None else None
    with workers.crew(console.inform) as crew, console.bar("comparing") as bar:
        result = api.compare(
            before,
            after,
            as_float=as_float,
            variant=variant,
            threads=workers.count,
            progress=bar,
            crew=crew,
            say=console.inform,
        )
    result = gates.judged(result, wanted, known)
    gates.check_rules([(result, wanted)])
    _gating.finish([result], rendering, outputs, console, show_all=show_all)


PROVIDES = command
