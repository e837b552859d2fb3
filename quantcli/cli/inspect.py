"""`quantcli inspect`: Show what a file or folder holds."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from quantcli.cli import _help, options
from quantcli.errors import printable, printable_line

if TYPE_CHECKING:
    from quantcli.models import Model


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
@options.talk
@_help.option(
    "--names",
    is_flag=True,
    help="Print bare names, a line each.",
    group="Common",
)
@_help.option(
    "--recipe",
    is_flag=True,
    help="Print the recipe that makes a quantized file again, in YAML.",
    group="Common",
)
@_help.option(
    "-0",
    "--null",
    is_flag=True,
    help="With --names: end each by a NUL instead, for xargs -0.",
    group="Output",
)
def command(
    src: str,
    stats: bool,
    names: bool,
    recipe: bool,
    null: bool,
    output: str | None,
    talk: options.Talk,
) -> None:
    """Show the tensors of SRC, float or quantized: names, types, shapes, bytes, and with --stats their values.

    Outliers are the share of values farther than 4 standard deviations from the mean.
    """
    from quantcli.errors import UsageError
    from quantcli.layouts.native.model import CHANGED
    from quantcli.models import open_model
    from quantcli.reports import inspected

    others = talk.json or stats or output is not None
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
            sys.stdout.write(_recipe(src, model))
            sys.stdout.flush()
            return
        if names:
            for name in stored:
                sys.stdout.write(name + "\0" if null else printable_line(name) + "\n")
            sys.stdout.flush()
            return
        report = inspected.made(model, src, values=stats, say=options.say)
    talk = replace(talk, quiet=talk.quiet and file is not None)  # else there would be nothing
    options.show(report, talk, show_all=True, file=file)


def _recipe(src: str, model: Model) -> str:
    """The recipe in the headers of a file or folder. Raises DataError when there is none, or several."""
    from quantcli.errors import DataError, QuantcliError
    from quantcli.planning import recipe

    documents = model.stored.documents
    try:
        said = [(d, recipe.request_of(d.recipe, d.schemes)) for d in documents if d.recipe is not None]
    except QuantcliError as error:
        raise error.within(src) from None
    if not said or len(said) < len(documents):
        raise DataError("its header holds no recipe", place=[src], hint="quantcli quantize writes one")
    document, request = said[0]
    if any(d.tool != document.tool or d.digest != document.digest or r != request for d, r in said):
        raise DataError("its files were made by several recipes", place=[src], hint="name one of them")
    keeps = any(tensor.stored.reason == "nonfinite" for tensor in model.stored.values())
    settings = {"digest": document.digest, "on_nonfinite": "keep" if keeps else "refuse"}
    return f"# {printable(document.tool, 100)}\n{recipe.dump(request, settings)}"


PROVIDES = command
