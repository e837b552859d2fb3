"""`quantcli export`."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from quantcli import registry
from quantcli.cli import options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantcli.export_report import ExportReport
    from quantcli.reading import Model
    from quantcli.scheme import Scheme


def _targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what every target accepts, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from quantcli import terminal
    from quantcli.exports import named

    for name in registry.names("exports"):
        sys.stdout.write(f"{name}\n")
        for text in (f"{named(name).summary}.", f"Accepts {named(name).accepts.describe()}."):
            terminal.paragraph(text, sys.stdout, indent="  ")
    ctx.exit()


@click.command("export", short_help="Write a quantized file as another tool loads it.")
@options.source
@click.option(
    "--to",
    "target",
    type=options.Names(registry.names("exports")),
    required=True,
    help="The layout to write; --list says which schemes each accepts.",
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_targets, help="List the targets and end."
)
@options.output
@click.option(
    "--requantize",
    is_flag=True,
    help="Decode what the target cannot say and quantize it anew, with the nearest scheme that it can.",
)
@click.option("--all", "show_all", is_flag=True, help="Show every tensor.")
@options.threads
@options.talk
def command(
    src: str,
    target: str,
    output: str | None,
    force: bool,
    requantize: bool,
    show_all: bool,
    threads: int | None,
    talk: options.Talk,
) -> None:
    """Move the codes of SRC, a file or folder that quantcli quantized, to where another tool looks for them.

    Nothing is quantized again: a scheme the target cannot say is refused, unless --requantize is given. A folder gives
    a folder, with config.json as the loader wants it; a file gives a file, or a folder where -o is a name without
    .safetensors. The report says what was lossless, and what rounding the parameters cost elsewhere.
    """
    from quantcli import exporting, reading, requantizing, terminal
    from quantcli.stores import need_file

    exporting.check_standard_output(target, output)
    with options.standard_output(output, talk) as named, reading.open(src) as model:
        need_file(model.source, "exporting")
        if not model.is_quantized:
            raise DataError("this file was not quantized by quantcli", place=[src], hint="use quantize --to")
        folder = exporting.as_folder(model.source, target, named)
        place = named or beside(src, "", target)
        real = exporting.check_output(model.source, target, place, folder=folder, force=force)
        wanted = requantizing.changes(model, target) if requantize else {}
        if not wanted:
            _check(model, target)
        report = _export(model, wanted, (src, output or place, real), target, folder, force, threads, talk)
    if talk.json:
        options.print_json(report.as_dict())
    elif not talk.quiet and output != "-":
        from quantcli import export_report

        limit = None if show_all else terminal.screenful()
        export_report.show(report, sys.stdout, colour=talk.coloured, limit=limit)


def beside(src: str, scheme: str, target: str) -> str:
    """The name of the output beside SRC: it tells the scheme, if one is given, and the target, by the extension of
    those that have one of their own."""
    from quantcli.cli.quantize import default_output
    from quantcli.exports import named

    extension = named(target).extension
    default = default_output(src, "-".join(w for w in (scheme, "" if extension else target) if w))
    return f"{default.removesuffix('.safetensors').removesuffix('-')}{extension}" if extension else default


def _check(model: Model, target: str) -> None:
    """Refuse what the target cannot say, with the way out."""
    from quantcli import exporting, requantizing

    try:
        exporting.convert([t.stored for t in model.values()], target, exporting.beside(model.source))
    except UsageError as error:
        raise requantizing.refused(model, target, error) from None
    except DataError as error:
        raise error.within(model.source.path) from None


def _export(
    model: Model,
    wanted: Mapping[str, Scheme | None],
    names: tuple[str, str, str],
    target: str,
    folder: bool,
    force: bool,
    threads: int | None,
    talk: options.Talk,
) -> ExportReport:
    """Write the output and report on it. names: source and output as they are shown, and the output's real path."""
    from quantcli import export_report, exporting, requantizing
    from quantcli.views import view_of

    began = time.perf_counter()
    src, shown, real = names
    count = options.thread_count(threads)
    with (
        talk.bar(os.path.basename(shown)) as bar,
        requantizing.requantized(model, wanted, real, threads=count, progress=bar) as tensors,
    ):
        final = {name: tensor.stored for name, tensor in tensors.items()}
        try:
            found = exporting.convert(list(final.values()), target, exporting.beside(model.source))
        except (UsageError, DataError) as error:
            raise error.within(model.source.path) from None
        talk.say(*exporting.notes(found, folder=folder))
        written = exporting.write(
            exporting.Order(
                shown=model.source.path,
                source=model.source,
                tensors=tensors,
                target=target,
                path=real,
                folder=folder,
                force=force,
                threads=count,
                progress=bar,
                against={n: view_of(t) for n, t in model.items() if t.scheme is not None},
                always=frozenset(wanted),
            )
        )
        return export_report.made(
            [t.stored for t in model.values()],
            final,
            found,
            written,
            source=src,
            output=shown,
            target=target,
            bytes_in=sum(f.size for f in model.source.files()),
            seconds=time.perf_counter() - began,
        )


PROVIDES = command
