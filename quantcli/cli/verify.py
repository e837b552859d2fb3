"""`quantcli verify`: Check a quantized file, by itself or against its original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantcli.cli import _help, _sources, _workers, options
from quantcli.errors import UsageError

if TYPE_CHECKING:
    from quantcli.reports.verified import VerifyReport


@_help.command(
    "verify",
    examples=(
        ("quantcli verify model-w4g128.safetensors", "structure, digests, possible values"),
        ("quantcli verify model-w4g128.safetensors --source model.safetensors", "every code made again"),
    ),
)
@options.source
@_help.option(
    "--source",
    "original",
    metavar="ORIGINAL",
    type=_help.MODEL,
    help="The model it was made from: every code is found again from it, and the errors measured.",
    group="Common",
)
@_sources.original_as_float
@_sources.variant
@_help.option(
    "--importance",
    type=_help.FILE,
    help="The importances it was quantized with; needed to find its scales again.",
    group="Common",
)
@_help.option(
    "--statistics",
    type=_help.FILE,
    help="The statistics it was quantized with; needed to find its scales and codes again.",
    group="Common",
)
@_help.option(
    "--statement",
    metavar="FILE",
    type=_help.MODEL,
    help="The statement of quantcli attest: compare the files with it, and with --source make them again.",
    group="Common",
)
@_help.option("--all", "show_all", is_flag=True, help="Show every tensor, also where nothing is wrong.", group="Output")
@options.document
@_workers.workers
@options.console
def command(
    src: str,
    original: str | None,
    as_float: bool,
    variant: str | None,
    importance: str | None,
    statistics: str | None,
    statement: str | None,
    show_all: bool,
    output: str | None,
    workers: _workers.Workers,
    console: options.Console,
) -> None:
    """Check that the quantized file, checkpoint folder or pipeline SRC is what it says.

    By itself: header, shapes, digests of what was kept, padding, and that scales, zero points, levels and codes are
    possible ones. With --source: also that they are the right ones. The exit code is 0 when nothing is wrong, 1 when
    something is, and 2 when it could not be looked at. What another tool quantized is decoded whole.

    With --statement the files are compared with those that it names, instead; with --source too, the model is made
    again by its recipe in a temporary folder, and compared byte by byte. Signatures are for other tools to check.
    """
    if statement is not None:
        if as_float or variant or importance or statistics:
            problem = "the statement says how the model was made"
            raise UsageError(problem, place=["--statement"], hint="leave out the options of how to read the original")
        if workers.dask is not None:
            raise UsageError("one process checks a statement", place=["--dask"], hint="leave it out")
        _by_statement(src, statement, original, output, workers.threads, console, show_all=show_all)
        return
    from quantcli.passes.verify_path import verify_path
    from quantcli.reports import verified

    workers.check(src, original)
    if importance is not None and statistics is not None:
        problem = "a file is quantized with importances or statistics, not both"
        raise UsageError(problem, place=["--importance"], hint="leave out one of --importance and --statistics")
    file = options.document_file(output, verified.VerifyReport, [src, original, importance, statistics])
    if as_float and original is None:
        raise UsageError("the original is needed", place=["--as-float"], hint="name it with --source")
    with workers.crew(console.inform) as crew, console.bar("verifying") as bar:
        found, names = verify_path(
            src,
            original,
            variant=variant,
            as_float=as_float,
            statistics=importance or statistics,
            threads=workers.count,
            progress=bar,
            crew=crew,
            say=console.inform,
        )
    report = verified.report_of(src, found, names if show_all else ())
    options.show(report, console, show_all=show_all, file=file)
    _finish(src, report)


def _by_statement(
    src: str,
    statement: str,
    original: str | None,
    output: str | None,
    threads: int | None,
    console: options.Console,
    *,
    show_all: bool,
) -> None:
    """Check a model by a statement."""
    from quantcli.folders import attested
    from quantcli.reports import verified

    file = options.document_file(output, verified.VerifyReport, [src, original, statement])
    count = options.thread_count(threads)
    known = attested.load(statement)

    def remake(source: str, out: str, recipe: str) -> None:
        from quantcli import api

        with console.bar("making it again") as bar:
            api.quantize_file(source, out, recipe=recipe, threads=count, progress=bar)

    with console.bar("reading") as bar:
        found = attested.check(src, known, original, remake, place=statement, threads=count, progress=bar)
    report = verified.report_of(src, found, (), files=len(known.files))
    options.show(report, console, show_all=show_all, file=file)
    _finish(src, report)


def _finish(src: str, report: VerifyReport) -> None:
    """Name the first fault on standard error and exit with 1, where there is one."""
    if not report.passed:
        more = f"; and {len(report.findings) - 1} more" if len(report.findings) > 1 else ""
        options.inform(f"{src}: verification failed: {report.findings[0].line()}{more}")
        raise click.exceptions.Exit(1)


PROVIDES = command
