"""What report and compare share: limits, renderings, and the end of a run that is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from quantcli import registry
from quantcli.cli import _help, _log, _naming, options
from quantcli.cli._help import F
from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from quantcli.reports.gates import Gates
    from quantcli.reports.run import RunReport

GATES = (
    ("min_sqnr", "DB", "Least SQNR of all quantized weights together."),
    ("min_tensor_sqnr", "DB", "Least SQNR of any quantized tensor."),
    ("min_output_sqnr", "DB", "Least predicted SQNR of the output of any layer that --statistics were given for."),
    ("max_mse", "MSE", "Largest mean squared error of any quantized tensor."),
    ("max_bpw", "BITS", "Most bits per weight, everything in the file counted."),
    ("max_size", "SIZE", "Largest file: bytes, or with a unit such as 3.9GB or 500MiB."),
    ("min_coverage", "SHARE", "Least share of the parameters that are quantized, such as 95%."),
    ("max_outlier_gap", "DB", "How far a tensor may lie below the median of those with as many bits."),
    ("max_regression", "DB", "How much a tensor may lose against the baseline."),
)

EVALUATIONS = (
    ("min_eval", "FIGURE", "Least figure of --eval-command."),
    ("max_eval", "FIGURE", "Largest figure of --eval-command."),
)
"""Limits of report alone, on what the user's own evaluation gives."""


class Limit(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The limit of a gate."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from quantcli.reports.gates import parsed

        assert param is not None and param.name is not None
        try:
            return parsed(param.name, value)
        except UsageError as error:
            self.fail(f"{error.problem}{'; ' + error.hint if error.hint else ''}", param, ctx)


class Typed(float):
    """A number with the text that was typed for it."""

    text: str


class Target(Limit):
    """The limit a plan must keep, with its text: messages use the unit that was typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = Typed(super().convert(value, param, ctx))
        found.text = str(value)
        return found


def limits(table: Sequence[tuple[str, str, str]], group: str, kind: type[Limit] = Limit) -> Callable[[F], F]:
    """An option for each limit of a table: name, what it takes, help."""
    return _help.options(
        *(
            _help.option(f"--{name.replace('_', '-')}", name, metavar=metavar, type=kind(), help=text, group=group)
            for name, metavar, text in table
        )
    )


gates = _help.options(
    _help.option(
        "--baseline",
        metavar="REPORT",
        type=_help.FILE,
        help="An earlier report, as --json prints it, to compare with.",
        group="Common",
    ),
    _help.option(
        "--config",
        type=_help.FILE,
        help="Gates and models in YAML.",
        show_default="quantcli.yaml, where there is one",
        group="Gates",
    ),
    limits(GATES, "Gates"),
)
"""--baseline, --config and the options that set limits."""


def gates_of(limits: dict[str, Any]) -> Gates:
    """The gates asked for on the command line."""
    from quantcli.reports.gates import Gates

    return Gates(**{name: limits[name] for name, _, _ in (*GATES, *EVALUATIONS) if name in limits})


RENDERINGS = registry.names("reports.renderings")


class NamedFile(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """RENDERING=FILE, or FILE whose extension selects the rendering."""

    name = "rendering"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        kind, equals, path = str(value).partition("=")
        if equals and path and kind in RENDERINGS:
            return kind, path
        known = _naming.renderings()
        try:
            return known[_naming.document(str(value), known)], str(value)
        except UsageError as error:
            named = f"or name one of {', '.join(RENDERINGS)} as in html=FILE"
            self.fail(f"{printable(value, 100)!r}: {error.problem}; {error.hint}, {named}", param, ctx)


renderings = _help.options(
    _help.option(
        "--format",
        "format_",
        type=_help.Names(RENDERINGS, partial(registry.summary, "reports.renderings")),
        help="How to print it.",
        show_default="table",
        group="Output",
    ),
    _help.option(
        "-o",
        "--output",
        "outputs",
        metavar="[RENDERING=]FILE",
        type=NamedFile(),
        multiple=True,
        help="Write a rendering to a file too, replacing it: the one named as in junit=FILE, or that of the extension, "
        "such as .csv, .html, .json or .md; may be given several times.",
        group="Common",
    ),
)
"""--format and --output."""


def rendering(format_: str | None, console: options.Console) -> str:
    """What to print. Raises UsageError where --json and --format contradict each other."""
    if console.json and format_ not in (None, "json"):
        raise UsageError(f"{format_} is not JSON", place=["--format"], hint="leave out --json")
    return "json" if console.json else format_ or "table"


def finish(
    reports: Sequence[RunReport],
    rendering: str,
    outputs: Sequence[tuple[str, str]],
    console: options.Console,
    *,
    show_all: bool,
) -> None:
    """Write and print reports, name the gates that failed on standard error, and exit with 1 when there are any."""
    from quantcli.reports.run import RunReports

    document = RunReports(reports)
    _log.current().document(document)
    for kind, path in outputs:
        options.write_document(document, kind, path, [p for r in reports for p in (r.source, r.output) if p])
    quiet = console.quiet and not console.json
    if not quiet:
        for report in reports:
            if rendering != "table" or report.command != "compare":  # whose table shows them after the figures
                options.print_warnings(report)
    if not quiet or rendering != "table":
        options.print_document(document, rendering, console, show_all=show_all)
    failed = [(report, gate) for report in reports for gate in report.gates if not gate.passed]
    for report, gate in failed:
        options.inform(f"{report.name}: gate {gate.title} failed: {gate.outcome}")
    if failed:
        raise click.exceptions.Exit(1)
