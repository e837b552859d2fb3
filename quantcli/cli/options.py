"""What the commands share: arguments, output choices, and the way from options to calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from quantcli.pipeline import Progress
    from quantcli.report import RunReport

F = TypeVar("F", bound=Callable[..., Any])


class Names(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """A choice of names that may be written with dashes or underscores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value.replace("_", "-") if isinstance(value, str) else value, param, ctx)


def source(command: F) -> F:
    """The SRC argument."""
    return click.argument("src", metavar="SRC", type=click.Path(path_type=str), callback=_file)(command)


def _file(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value == "-":
        raise click.BadParameter("'-': standard input and output are not supported, name a file", param=parameter)
    if value is not None and not value:
        raise click.BadParameter("'': an empty file name", param=parameter)
    return value


def output(command: F) -> F:
    """-o and --force."""
    command = click.option("--force", is_flag=True, help="Replace an existing output.")(command)
    return click.option(
        "-o", "--output", metavar="FILE", type=click.Path(path_type=str), callback=_file, help="The file to write."
    )(command)


def threads(command: F) -> F:
    """--threads."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 256),
        metavar="N",
        default=None,
        help="Threads to use; the output does not depend on it.  [default: all processors]",
    )(command)


def talk(command: F) -> F:
    """--json, --color, -v, -q and --debug."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option(
            "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colour the output."
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say more on standard error."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors, and show no progress."),
        click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def print_json(document: dict[str, Any]) -> None:
    """Print a document on standard output: strict JSON, names escaped to ASCII."""
    json.dump(document, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_report(report: RunReport, *, as_json: bool, color: str, show_all: bool, quiet: bool) -> None:
    """Print a report as asked for, its warnings on standard error."""
    if not quiet:
        for line in report.warnings[:10]:
            warn(line)
        if len(report.warnings) > 10:
            warn(f"and {len(report.warnings) - 10} more")
    if as_json:
        print_json(report.as_dict())
        return
    if quiet:
        return
    from quantcli.report import table, text

    limit = None if show_all else text.screenful()
    table.render(report, sys.stdout, colour=text.wants_colour(sys.stdout, color), limit=limit)
    sys.stdout.flush()


def warn(message: str) -> None:
    """One line on standard error."""
    click.echo(f"quantcli: warning: {printable(message, 1000)}", err=True)


def say(message: str) -> None:
    """One line on standard error."""
    click.echo(f"quantcli: {printable(message, 1000)}", err=True)


class Bar:
    """A progress bar on standard error with bytes, rate and time left; nothing when that is not a terminal.

    It appears only once there is enough to do to be worth waiting for.
    """

    WORTH = 64 << 20

    def __init__(self, title: str, *, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""
        if self.quiet or total < self.WORTH or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn(printable(self.title, 60), markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        else:
            self._bar.reset(self._task, total=total)

    def advance(self, nbytes: int) -> None:
        """So many bytes are done."""
        if self._bar is not None:
            self._bar.advance(self._task, nbytes)


def bar(title: str, *, quiet: bool) -> Bar:
    """A progress bar."""
    return Bar(title, quiet=quiet)


def thread_count(threads: int | None) -> int:
    """The number of threads asked for, or all processors."""
    from quantcli.workers import default_threads

    return threads or default_threads()


def granularity(granularity: str | None, group_size: int | None, axis: int | None) -> dict[str, Any]:
    """Scheme fields from --granularity, --group-size (-1 per channel, 0 per tensor) and --axis.

    Raises UsageError where they contradict each other.
    """
    if group_size is not None and group_size <= 0:
        if group_size < -1:
            raise UsageError(
                f"{group_size} is none", place=["--group-size"], hint="use 1 or more, -1 per channel or 0 per tensor"
            )
        meant = "tensor" if group_size == 0 else "channel"
        if granularity not in (None, meant):
            raise UsageError(f"{group_size} means {meant}, not {granularity}", place=["--group-size"])
        granularity, group_size = meant, None
    if axis is not None and granularity is None and group_size is None:
        raise UsageError("an axis needs --granularity channel", place=["--axis"])
    fields: dict[str, Any] = {"granularity": granularity or "group"}
    if group_size is not None:
        fields["group_size"] = group_size
    if axis is not None:
        fields["axis"] = axis
    return fields


def progress_of(found: Bar) -> Progress:
    """The bar as the pipeline knows it."""
    return found
