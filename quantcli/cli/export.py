"""`quantcli export`: Write a quantized file as another tool loads it."""

from __future__ import annotations

import os
import sys
import time

import click

from quantcli import registry
from quantcli.cli import _help, _naming, options
from quantcli.errors import DataError, UsageError


def _targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what every target accepts, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from quantcli import terminal
    from quantcli.layouts.writer import named

    for name in registry.names("layouts", "WRITES"):
        sys.stdout.write(f"{name}\n")
        for text in (f"{named(name).summary}.", f"Accepts {named(name).accepts.describe()}."):
            terminal.paragraph(text, sys.stdout, indent="  ")
        if named(name).kinds:
            kinds = f"With quantize also {name}:KIND, of {', '.join(named(name).kinds)}."
            terminal.paragraph(kinds, sys.stdout, indent="  ")
    ctx.exit()


@_help.command(
    "export",
    examples=(
        ("quantcli export model-w4g32 --to gguf -o model.gguf", "a file for llama.cpp"),
        ("quantcli export model-w4g128 --to mlx", "a folder for mlx-lm"),
        ("quantcli export --list", "what every target accepts"),
    ),
)
@options.source
@_help.option(
    "--to",
    "target",
    type=options.targets(),
    required=True,
    help="The layout to write; --list says which schemes each accepts.",
    group="Common",
)
@_help.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_targets,
    help="List the targets and end.",
    group="Common",
)
@options.output
@_help.option(
    "--requantize",
    "requantizing",
    is_flag=True,
    help="Decode what the target cannot store and quantize it again, with the nearest scheme that it can.",
    group="Scheme",
)
@_help.option(
    "--scheme",
    type=click.Choice(["MXFP4A16", "NVFP4A16"], case_sensitive=False),
    show_default="what the target has, MXFP4 first",
    help="What codes of MXFP4 become: NVFP4 holds them too, and other codes stay what they are.",
    group="Scheme",
)
@options.container
@options.show_all
@options.threads
@options.console
def command(
    src: str,
    target: str,
    output: str | None,
    force: bool,
    requantizing: bool,
    scheme: str | None,
    container: bool,
    show_all: bool,
    threads: int | None,
    console: options.Console,
) -> None:
    """Move the codes of SRC, a quantized file or folder, to where another tool looks for them.

    SRC may be of quantcli, AWQ, GPTQ, compressed-tensors, MLX, GGUF and others that `quantcli help targets` lists.
    Nothing is quantized again: what the target cannot store is refused, unless --requantize is given. A folder
    gives a folder, with config.json as the loader wants it; a file gives a file, or a folder where -o is a name without
    .safetensors. The report says what was lossless, and what rounding the parameters cost elsewhere.
    """
    from quantcli.folders import output as outputs
    from quantcli.folders import sidefiles
    from quantcli.folders.job import default_name
    from quantcli.models import open_model
    from quantcli.moving import movable
    from quantcli.passes import export, requantize
    from quantcli.passes.outputs import notes as conversion_notes
    from quantcli.reports import exported
    from quantcli.stores import need_file

    if ":" in target:
        hint = f"use quantize --to {target}"
        raise UsageError("types are chosen where weights are quantized", place=[f"--to {target}"], hint=hint)
    _naming.check_model(output, target)
    export.check_standard_output(target, output)
    with options.standard_output(output, console) as named, open_model(src) as opened:
        need_file(opened.source, "exporting")
        model = movable(opened, target, container=container, scheme=scheme)
        source = model.source
        folder = export.as_folder(source, target, named)
        place = named or default_name(src, "", target)
        real = export.check_output(source, place, folder=folder, force=force)
        wanted = requantize.changes(model, target) if requantizing else {}
        began = time.perf_counter()
        try:
            outgoing = export.outgoing(model, wanted, target, container=container)
            notes = conversion_notes(outgoing.conversion, config=folder and outgoing.beside("config.json") is not None)
        except UsageError as error:
            raise (error.within(source.path) if wanted else requantize.refused(model, target, error)) from None
        except DataError as error:
            raise error.within(source.path) from None
        side = sidefiles.of(source, real, folder=folder)
        warnings = [*source.warnings, *side.warnings()]
        console.inform(*model.notes, *notes, *warnings)
        with console.bar(os.path.basename(output or place)) as bar:
            count = options.thread_count(threads)
            moved = export.Export(model=model, outgoing=outgoing, wanted=wanted, threads=count, progress=bar)
            size, exact = outputs.move(moved, real, folder=folder, force=force, side=side)
        report = exported.report_of(
            moved,
            size,
            exact,
            source=src,
            output=output or place,
            target=target,
            warnings=warnings,
            copied=[f.name for f in side.copied] if folder else [],
            bytes_in=sum(f.size for f in source.files()),
            seconds=time.perf_counter() - began,
        )
    if output != "-":
        options.show(report, console, show_all=show_all)


PROVIDES = command
