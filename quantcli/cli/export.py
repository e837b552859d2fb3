"""`quantcli export`: Write a quantized file as another tool loads it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from quantcli import registry
from quantcli.cli import _help, _naming, _sources, options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from quantcli.moving_records import Movable
    from quantcli.passes.export import Export
    from quantcli.passes.tiles import Progress


def _targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what every target accepts, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from quantcli import terminal
    from quantcli.layouts.writer import named
    from quantcli.planning.named import listed, stored_by

    for name in registry.names("layouts", "WRITES"):
        sys.stdout.write(f"{name}\n")
        export = named(name)
        lines = [f"{export.summary}.", f"Accepts {export.accepts.describe()}."]
        lines.append(f"By --scheme: {', '.join(listed(stored_by(name))) or 'none'}.")
        if export.kinds:
            lines.append(f"With quantize also {name}:KIND, of {', '.join(export.kinds)}.")
        lines += [f"{runtime.name}: quantcli {runtime.command}" for runtime in export.runtimes]
        for text in lines:
            terminal.paragraph(text, sys.stdout, lead="  ")
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
@_sources.variant
@options.container
@options.show_all
@options.threads
@options.console
def command(
    src: str,
    target: str,
    output: str | None,
    force: bool,
    private: bool,
    requantizing: bool,
    scheme: str | None,
    variant: str | None,
    container: bool,
    show_all: bool,
    threads: int | None,
    console: options.Console,
) -> None:
    """Move the codes of SRC, a quantized file or folder, to where another tool looks for them.

    SRC may be of quantcli, AWQ, GPTQ, compressed-tensors, MLX, GGUF and others that `quantcli help targets` lists.
    Nothing is quantized again: what the target cannot store is refused, unless --requantize is given. A folder
    gives a folder, with config.json as the loader wants it; a file gives a file, or a folder where -o is a name without
    .safetensors. A pipeline gives a pipeline, where its loaders take the target. The report says what was lossless,
    and what rounding the parameters cost elsewhere.
    """
    from quantcli.folders import components, prepare
    from quantcli.folders import output as outputs
    from quantcli.folders.job import default_name
    from quantcli.moving import movable
    from quantcli.passes import export
    from quantcli.reports import exported
    from quantcli.stores.pipelines import prefixed

    if ":" in target:
        hint = f"use quantize --to {target}"
        raise UsageError("types are chosen where weights are quantized", place=[f"--to {target}"], hint=hint)
    _naming.check_model(output, target)
    export.check_standard_output(target, output)
    opened = components.quantized(src, variant, "exporting", hint="use quantize --to")
    with options.standard_output(output, console) as named, opened as found:
        if found.home:
            components.check_one_file(target, output, container=container)
        for name in found.models if found.home else ():
            components.check_target(found.components[name], target, place=found.models[name].path)
        asked = _Asked(target=target, container=container, requantizing=requantizing)
        moving = {n: movable(model, target, container=container, scheme=scheme) for n, model in found.models.items()}
        sources = {name: model.source for name, model in moving.items()}
        folder = bool(found.home) or export.as_folder(sources[""], target, named)
        place = named or default_name(found.home or src, "", target)
        real, side = prepare.destination(
            found.home, sources, found.kept, place, folder=folder, force=force, private=private
        )
        began = time.perf_counter()
        with console.bar(os.path.basename(output or place)) as bar:
            count = options.thread_count(threads)
            exports = {name: _export(model, asked, count, bar) for name, model in moving.items()}
            told = [prefixed(n, line) for n, one in exports.items() for line in _notes(one, folder=folder)]
            warnings = [*found.warnings, *side.warnings()]
            console.inform(*told, *warnings)
            home = found.home or sources[""].folder
            moved = outputs.move(exports, real, home=home, folder=folder, force=force, side=side)
            _naming.tell_remains(real, console.inform)
        report = exported.report_of(
            exports,
            {name: one.rounded for name, one in moved.items()},
            source=src,
            output=output or place,
            target=target,
            warnings=warnings,
            copied=[f.name for f in side.copied] if folder else [],
            bytes_in=sum(f.size for source in sources.values() for f in source.files()) + found.kept_bytes,
            bytes_out=sum(one.size for one in moved.values()) + found.kept_bytes,
            seconds=time.perf_counter() - began,
        )
    if output != "-":
        options.show(report, console, show_all=show_all)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of every model that is exported."""

    target: str
    container: bool
    requantizing: bool


def _export(model: Movable, asked: _Asked, threads: int, bar: Progress) -> Export:
    """A model on its way into the target. Raises UsageError and DataError for what that does not store."""
    from quantcli.passes import export, requantize

    wanted = requantize.changes(model, asked.target) if asked.requantizing else {}
    try:
        outgoing = export.outgoing(model, wanted, asked.target, container=asked.container)
        outgoing.conversion  # noqa: B018 - refused here
    except UsageError as error:
        raise (error.within(model.source.path) if wanted else requantize.refused(model, asked.target, error)) from None
    except DataError as error:
        raise error.within(model.source.path) from None
    return export.Export(model=model, outgoing=outgoing, wanted=wanted, threads=threads, progress=bar)


def _notes(export: Export, *, folder: bool) -> list[str]:
    """What there is to say of a model before it is written."""
    from quantcli.passes.outputs import notes

    return [*export.model.notes, *notes(export.outgoing, folder=folder)]


PROVIDES = command
