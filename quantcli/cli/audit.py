"""`quantcli audit`: Check whether a model that others quantized is one of a base."""

from __future__ import annotations

import click

from quantcli.cli import _help, _sources, options


@_help.command(
    "audit",
    examples=(
        ("quantcli audit model.Q4_K_M.gguf --source model", "a download against the model it names as its base"),
        ("quantcli audit model-awq --source model --json", "the evidence, for programs"),
    ),
)
@click.argument("src", metavar="FILE", type=_help.MODEL)
@_help.option(
    "--source",
    "base",
    metavar="BASE",
    type=_help.MODEL,
    required=True,
    help="The model it is said to be made of.",
    group="Common",
)
@_sources.variant
@options.show_all
@options.document
@options.threads
@options.console
def command(
    src: str,
    base: str,
    variant: str | None,
    show_all: bool,
    output: str | None,
    threads: int | None,
    console: options.Console,
) -> None:
    """Tell whether FILE, quantized by any tool, is a quantization of BASE, and how it was made.

    Every kept tensor must be that of the base, or that rounded to another dtype. Every quantized one is compared with
    what min-max scales and the best search leave at its format, and with the others of its kind; codes and scales show
    whether weights were rounded, made good in other columns (GPTQ) or scaled first (AWQ). Weights of a part of a tensor
    that lie much farther from the base than the others are named by their place. The exit code is 0 when all of it is
    consistent with the base, 1 when something is not, and 2 when it could not be measured.
    """
    from quantcli.passes.audit_path import audit_path
    from quantcli.reports import audited

    file = options.document_file(output, audited.AuditReport, [src, base])
    count = options.thread_count(threads)
    with console.bar("auditing") as bar:
        found = audit_path(src, base, variant=variant, threads=count, progress=bar)
    report = audited.report_of(src, base, found)
    options.show(report, console, show_all=show_all, file=file)
    if not report.consistent:
        options.inform(f"{src}: {report.verdict}")
        raise click.exceptions.Exit(1)


PROVIDES = command
