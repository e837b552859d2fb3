"""`quantcli export`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from quantcli import registry
from quantcli.cli import _naming, options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantcli.layouts.native.model import Model
    from quantcli.reports.exported import ExportReport
    from quantcli.scheme import Scheme


def _targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what every target accepts, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from quantcli import terminal
    from quantcli.layouts.writing import named

    for name in registry.names("layouts.writing"):
        sys.stdout.write(f"{name}\n")
        for text in (f"{named(name).summary}.", f"Accepts {named(name).accepts.describe()}."):
            terminal.paragraph(text, sys.stdout, indent="  ")
    ctx.exit()


@click.command("export", short_help="Write a quantized file as another tool loads it.")
@options.source
@click.option(
    "--to",
    "target",
    type=options.Names(registry.names("layouts.writing")),
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
    help="Decode what the target cannot store and quantize it again, with the nearest scheme that it can.",
)
@options.container
@click.option("--all", "show_all", is_flag=True, help="Show every tensor.")
@options.threads
@options.talk
def command(
    src: str,
    target: str,
    output: str | None,
    force: bool,
    requantize: bool,
    container: bool,
    show_all: bool,
    threads: int | None,
    talk: options.Talk,
) -> None:
    """Move the codes of SRC, a file or folder that quantcli quantized, to where another tool looks for them.

    Nothing is quantized again: a scheme the target cannot store is refused, unless --requantize is given. A folder
    gives a folder, with config.json as the loader wants it; a file gives a file, or a folder where -o is a name without
    .safetensors. The report says what was lossless, and what rounding the parameters cost elsewhere.
    """
    from quantcli import terminal
    from quantcli.layouts.native import model as reading
    from quantcli.passes import export
    from quantcli.passes import requantize as requantizing
    from quantcli.stores import need_file

    _naming.check_model(output, target)
    export.check_standard_output(target, output)
    with options.standard_output(output, talk) as named, reading.open(src) as model:
        need_file(model.source, "exporting")
        if not model.is_quantized:
            raise DataError("this file was not quantized by quantcli", place=[src], hint="use quantize --to")
        folder = export.as_folder(model.source, target, named)
        place = named or beside(src, "", target)
        real = export.check_output(model.source, target, place, folder=folder, force=force)
        wanted = requantizing.changes(model, target) if requantize else {}
        if not wanted:
            _check(model, target, container)
        order = _Asked(
            src=src, shown=output or place, real=real, target=target, folder=folder, force=force, container=container
        )
        report = _export(model, wanted, order, options.thread_count(threads), talk)
    if talk.json:
        options.print_json(report.as_dict())
    elif not talk.quiet and output != "-":
        from quantcli.reports import exported

        limit = None if show_all else terminal.screenful()
        exported.show(report, sys.stdout, colour=talk.coloured, limit=limit)


def beside(src: str, scheme: str, target: str) -> str:
    """The name of the output beside SRC: it tells the scheme, if one is given, and the target, by the extension of
    those that have one of their own."""
    from quantcli.cli.quantize import default_output
    from quantcli.layouts.writing import named

    extension = named(target).extension
    default = default_output(src, "-".join(w for w in (scheme, "" if extension else target) if w))
    return f"{default.removesuffix('.safetensors').removesuffix('-')}{extension}" if extension else default


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked for: source and output as they are shown, the output's real path, the target, whether the output
    is a folder, whether it may exist, and whether it is a container of tensors."""

    src: str
    shown: str
    real: str
    target: str
    folder: bool
    force: bool
    container: bool


def _check(model: Model, target: str, container: bool) -> None:
    """Refuse what the target does not support, with the way out."""
    from quantcli.passes import export
    from quantcli.passes import requantize as requantizing

    tensors = [t.stored for t in model.values()]
    try:
        export.convert(tensors, target, export.beside(model.source), container=container)
    except UsageError as error:
        raise requantizing.refused(model, target, error) from None
    except DataError as error:
        raise error.within(model.source.path) from None


def _export(
    model: Model, wanted: Mapping[str, Scheme | None], asked: _Asked, threads: int, talk: options.Talk
) -> ExportReport:
    """Write the output and report on it."""
    import contextlib

    from quantcli.folders import sidefiles
    from quantcli.models import view_of
    from quantcli.passes import export
    from quantcli.passes import requantize as requantizing
    from quantcli.reports import exported
    from quantcli.stores.workspace import Workspace

    began = time.perf_counter()
    source, beside = model.source, export.beside(model.source)
    side = sidefiles.of(source, asked.real, folder=asked.folder)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(talk.bar(os.path.basename(asked.shown)))
        workspace, tensors = None, dict(model)
        if wanted:
            workspace = stack.enter_context(Workspace(asked.real, force=asked.force))
            workspace.clear()
            again = requantizing.requantized(model, wanted, workspace.folder, threads=threads, progress=bar)
            tensors = stack.enter_context(again)
        final = {name: tensor.stored for name, tensor in tensors.items()}
        try:
            found = export.convert(list(final.values()), asked.target, beside, container=asked.container)
        except (UsageError, DataError) as error:
            raise error.within(source.path) from None
        lines = export.notes(found, config=export.has_config(source, folder=asked.folder))
        talk.say(*lines, *side.warnings())
        written = export.write(
            export.Order(
                shown=source.path,
                source=source,
                tensors=tensors,
                found=found,
                target=asked.target,
                path=asked.real,
                folder=asked.folder,
                force=asked.force,
                side=side,
                beside=beside,
                threads=threads,
                progress=bar,
                against={n: view_of(t) for n, t in model.items() if t.scheme is not None},
                always=frozenset(wanted),
                workspace=workspace,
            )
        )
        return exported.made(
            [t.stored for t in model.values()],
            final,
            found,
            written,
            source=asked.src,
            output=asked.shown,
            target=asked.target,
            warnings=side.warnings(),
            bytes_in=sum(f.size for f in source.files()),
            seconds=time.perf_counter() - began,
        )


PROVIDES = command
