"""`quantcli inspect`: Show what a file or folder holds."""

from __future__ import annotations

import sys
from dataclasses import replace

from quantcli.cli import _help, options
from quantcli.errors import UsageError, printable_line


@_help.command(
    "inspect",
    examples=(
        ("quantcli inspect model.safetensors", "names, types, shapes, bytes"),
        ("quantcli inspect model.safetensors --stats", "the values too"),
        ("quantcli inspect model-w4g128.safetensors --recipe", "the recipe that made it"),
    ),
)
@options.source
@_help.option(
    "--stats",
    is_flag=True,
    help="Read the values: range, mean, standard deviation, outliers, histogram.",
    group="Common",
)
@options.document
@options.console
@_help.option("--names", is_flag=True, help="Print bare names, a line each.", group="Common")
@_help.option(
    "--recipe", is_flag=True, help="Print the recipe that makes a quantized file again, in YAML.", group="Common"
)
@_help.option(
    "-0", "--null", is_flag=True, help="With --names: end each by a NUL instead, for xargs -0.", group="Output"
)
def command(
    src: str,
    stats: bool,
    names: bool,
    recipe: bool,
    null: bool,
    output: str | None,
    console: options.Console,
) -> None:
    """Show the tensors of SRC, float or quantized: names, types, shapes, bytes, and with --stats their values.

    Outliers are the share of values farther than 4 standard deviations from the mean.
    """
    from quantcli.layouts.native.model import CHANGED
    from quantcli.models import open_model
    from quantcli.reports import inspected

    others = console.json or stats or output is not None
    if (names and others) or (null and not names):
        raise UsageError("names are printed alone", place=["--names" if names else "--null"])
    if recipe and (names or others):
        raise UsageError("a recipe is printed alone", place=["--recipe"])
    file = options.document_file(output, inspected.InspectReport, [src])
    with open_model(src) as model:
        stored = model.stored
        if recipe:
            stored.check_headers()
        elif stored.is_changed:
            options.warn(f"{src}: {CHANGED}")
        if not stats:
            model.source.check_unchanged()  # a pipe to its end
        if recipe:
            from quantcli.planning import stored_recipe

            sys.stdout.write(stored_recipe.text_of(model, src))
            sys.stdout.flush()
            return
        if names:
            for name in stored:
                sys.stdout.write(name + "\0" if null else printable_line(name) + "\n")
            sys.stdout.flush()
            return
        with console.bar("reading") as bar:
            report = inspected.report_of(model, src, values=stats, say=options.inform, progress=bar)
    console = replace(console, quiet=console.quiet and file is not None)  # else there would be nothing
    options.show(report, console, show_all=True, file=file)


PROVIDES = command
