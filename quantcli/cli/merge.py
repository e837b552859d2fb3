"""`quantcli merge`: Join the parts of a run that several processes did."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from quantcli.cli import _help, _naming, options
from quantcli.errors import UsageError, os_error


@_help.command(
    "merge",
    examples=(
        ("quantcli quantize Llama-3.1-405B -o w4 --part 1/2", "a half, on one machine"),
        ("quantcli quantize Llama-3.1-405B -o w4 --part 2/2", "the other, on another"),
        ("quantcli merge w4", "the output of both"),
    ),
)
@options.destination
@_help.option("--force", is_flag=True, help="Replace an existing output.", group="Output")
@options.document
@options.show_all
@options.threads
@options.console
def command(
    dst: str, force: bool, output: str | None, threads: int | None, show_all: bool, console: options.Console
) -> None:
    """Make DST of its parts, which quantize --part I/N has made with -o DST, and print what quantize prints.

    All parts must be there, and have been made by this version, with the same options, from the same files, which are
    looked up where the parts found them. Weights are not read again: files that one part has written take their names,
    those that several parts share are joined. Then index, configuration, side files and model card are added, DST
    appears as a whole, and the parts are removed.
    """
    from quantcli.cli import quantize
    from quantcli.folders import merge, parts
    from quantcli.reports.run import RunReport
    from quantcli.stores import destinations, places

    destinations.check_parts(dst)
    path = places.real(dst)
    found = merge.complete(path)
    asked = parts.request_of(path, found[0])
    if not asked.line:
        hint = "join them there with quantcli.merge"
        raise UsageError("its parts were made from Python, which leaves no command line", place=[dst], hint=hint)
    file = options.document_file(output, RunReport, [dst])
    with (
        _inside(asked.folder),
        quantize.again(asked.line, path, console, force=force, shown=dst) as ready,
    ):
        done = ready.merge(threads=options.thread_count(threads))
        report = done.report
    console.inform(*ready.notes, f"{len(found)} parts merged", *done.notes)
    _naming.tell_remains(path, console.inform)
    if not console.quiet:
        options.print_warnings(report)
    options.show(report, console, show_all=show_all, file=file)


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Have names of files mean what they meant in a folder. Raises QuantcliError where it is not there."""
    before = os.getcwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise os_error(error, folder) from None
    try:
        yield
    finally:
        os.chdir(before)


PROVIDES = command
