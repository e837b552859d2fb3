"""`quantcli inspect`: Show what a file or folder holds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from quantcli.cli import _help, _sources, options
from quantcli.errors import DataError, UsageError, printable_line

if TYPE_CHECKING:
    from quantcli.models import Model
    from quantcli.stores.pipelines import Member


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
@_sources.variant
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
    variant: str | None,
    output: str | None,
    console: options.Console,
) -> None:
    """Show the tensors of SRC, float or quantized: names, types, shapes, bytes, and with --stats their values. Of a
    pipeline all components are shown, first each as a whole.

    Outliers are the share of values farther than 4 standard deviations from the mean.
    """
    from quantcli.planning import stored_recipe
    from quantcli.reports import inspected
    from quantcli.stores.pipelines import members, others, prefixed, prefixing, within

    more = console.json or stats or output is not None
    if (names and more) or (null and not names):
        raise UsageError("names are printed alone", place=["--names" if names else "--null"])
    if recipe and (names or more):
        raise UsageError("a recipe is printed alone", place=["--recipe"])
    file = options.document_file(output, inspected.InspectReport, [src])
    models, found, unread = members(src, variant), dict[str, inspected.InspectReport](), dict[str, str]()
    if recipe and models[0].name:
        hint = f"name the folder of a component: {', '.join(m.name for m in models)}"
        raise UsageError("each component of a pipeline has its own", place=[src, "--recipe"], hint=hint)
    for line in () if names or recipe else others(src):
        options.inform(line)
    for member in models:
        try:
            with _opened(member, recipe, stats) as model:
                if recipe:
                    sys.stdout.write(stored_recipe.text_of(model, src))
                    sys.stdout.flush()
                    return
                for name in model.stored if names else ():
                    shown = within(member.name, name)
                    sys.stdout.write(shown + "\0" if null else printable_line(shown) + "\n")
                if not names:
                    say = prefixing(member.name, options.inform)
                    with console.bar(prefixed(member.name, "reading")) as bar:
                        found[member.name] = inspected.report_of(
                            model, member.path, values=stats, say=say, progress=bar
                        )
        except DataError as error:
            if not member.why_kept:
                raise
            unread[member.name] = str(error)
    if names:
        sys.stdout.flush()
        return
    report = inspected.joined(src, found, models, unread)
    console = replace(console, quiet=console.quiet and file is not None)  # else there would be nothing
    options.show(report, console, show_all=True, file=file)


@contextlib.contextmanager
def _opened(member: Member, recipe: bool, stats: bool) -> Iterator[Model]:
    """One of the models of a path, read to its end where it is a pipe. recipe: whether its header must be right."""
    from quantcli.layouts.native.model import CHANGED
    from quantcli.models import open_model

    with open_model(member.path, variant=member.variant) as model:
        if recipe:
            model.stored.check_headers()
        elif model.stored.is_changed:
            options.warn(f"{member.path}: {CHANGED}")
        if not stats:
            model.source.check_unchanged()  # a pipe to its end
        yield model


PROVIDES = command
