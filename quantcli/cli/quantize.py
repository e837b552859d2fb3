"""`quantcli quantize`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli import registry
from quantcli.cli import _asking, _budget, _exporting, _gating, _naming, _sources, options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from quantcli.folders.checkpoints import WrittenFolder
    from quantcli.folders.sidefiles import SideFiles
    from quantcli.passes.quantize import Options, Written
    from quantcli.planning.plan import Plan, Request
    from quantcli.planning.recipe import Recipe
    from quantcli.reports.records import RunReport
    from quantcli.stores import Source
    from quantcli.stores.checkpoint import Checkpoint

MUCH = 64 << 20
"""Bytes of a tensor in memory that are worth a word."""

WITH_A_TARGET = (
    *("target_size", "target_bpw", "recipe", "override", "importance", "save_recipe"),
    *("include", "exclude", "no_default_keep", "max_shard_size", "on_nonfinite", "digest", "to", "container"),
)
"""What may be said of the tensors beside a target; the rest a plan chooses itself."""


@click.command("quantize", short_help="Quantize a model file.")
@options.source
@_sources.source_layout
@options.output
@_asking.schemes
@_asking.selection
@_asking.recipe
@click.option(
    "--save-recipe", metavar="FILE", type=click.Path(path_type=str), default=None, help="Write what was done."
)
@click.option(
    "--target-size",
    metavar="SIZE",
    type=_gating.Target(),
    default=None,
    help="Choose the schemes that lose least in at most so many bytes, such as 3.9GB; see plan.",
)
@click.option("--target-bpw", metavar="BITS", type=_gating.Target(), default=None, help="The same in bits per weight.")
@click.option(
    "--to",
    type=options.Names(("native", *registry.names("layouts.writing"))),
    default=None,
    help="Write what another tool loads; see export.  [default: for folders of transformers compressed-tensors, if it "
    "can store the schemes; else native]",
)
@options.container
@click.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "keep"]),
    default=None,
    help="What to do with a tensor that holds NaN or infinity.  [default: refuse]",
)
@click.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256", "none"]),
    default=None,
    help="Digest of each tensor's source bytes.  [default: xxh3]",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    type=_gating.Limit(),
    default=None,
    help="Cut a checkpoint folder into files of at most so many bytes, such as 2GB.  [default: as it is cut]",
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run on a checkpoint folder has finished.")
@click.option("--dry-run", is_flag=True, help="Print the plan with exact sizes, read no weights, write nothing.")
@click.option("--all", "show_all", is_flag=True, help="Show every tensor.")
@options.threads
@options.talk
def command(
    src: str,
    source_layout: str,
    output: str | None,
    force: bool,
    threads: int | None,
    talk: options.Talk,
    show_all: bool,
    dry_run: bool,
    resume: bool,
    **asked: Any,
) -> None:
    """Quantize SRC: .safetensors, .npy, .npz, a checkpoint folder or its index.json.

    Writes a safetensors file, or for a checkpoint folder a folder (by default SRC's name with that of the scheme or the
    recipe, beside SRC; name a .safetensors file to get all shards in one), and prints what it cost. Norms, biases,
    embeddings and small tensors are kept as they are; every tensor's fate and its reason are in the report.
    """
    from quantcli import kernels
    from quantcli.folders import sidefiles
    from quantcli.passes import quantize
    from quantcli.planning import plan, recipe

    given = _asking.recipe_of(asked)
    asked = _asking.settled(asked, given)
    _refuse_both(asked)
    settings = {name: asked[name] or choices[0] for name, choices in recipe.SETTINGS.items()}
    digest = settings["digest"]
    _naming.check_model(output, asked["to"])
    if asked["container"] and asked["to"] in (None, recipe.NATIVE):
        raise UsageError("only other tools' files can be containers", place=["--container"], hint="use it with --to")
    if src == "-" and output is None and not dry_run:
        raise UsageError("the output needs a name", place=[src], hint="give it with -o; - is standard output")
    with (
        options.standard_output(None if dry_run else output, talk) as named,
        _sources.float_source(src, source_layout, talk) as source,
    ):
        folder = _as_folder(source, named or "")
        saved = None if dry_run else asked["save_recipe"]
        read = [src, asked["recipe"], asked["codebook"], asked["importance"], *(given.importance or ())[:1]]
        _check_saved(saved, named, read)
        to, why = _asking.target_of(source, given, asked["to"], folder=folder)
        if why:
            talk.say(why)
        request = _request(source, src, given, {**asked, "to": to}, threads, talk)
        export = None
        if to is not None:
            export = _exporting.target(source, to, named, output, container=request.container)
        request = export.suited(request) if export is not None else request
        recipe_text = recipe.dump(request, settings, os.path.dirname(saved)) if saved is not None else None
        scheme = _label(request, asked["recipe"])
        beside = default_output if export is None or asked["to"] is None else export.beside
        target = named or beside(src, scheme)
        native = export is None or export.is_native(_as_folder(source, target))
        _check_folder_options(source, target, request, resume, digest, native)
        _check_saved(saved, target, read)
        _naming.check_recipe(saved)
        real = target
        if not dry_run:
            real = (export.destination if export is not None else _destination)(source, target, force)
        try:
            planned = plan.make(source.infos(), request)
            if export is not None:
                export.take(source, planned)
        except (UsageError, DataError) as error:
            raise error.within(src) from None
        into_folder = export.folder if export is not None else _as_folder(source, target)
        side = sidefiles.of(source, os.path.realpath(real), folder=into_folder)
        shown = output or target
        if export is not None and not talk.quiet:
            export.say_notes()
        if dry_run and export is not None and not native:
            found = export.dry_run(source, planned, (src, shown, real))
        elif dry_run:
            found = _planned(source, planned, src, shown, _planned_size(source, planned, target, digest))
        else:
            count = options.thread_count(threads)
            if talk.verbose:
                options.say(f"{kernels.load().name} kernels, {count} threads")
            if not talk.quiet:
                _say_held(source, planned, digest)
            with talk.bar(os.path.basename(shown)) as bar:
                run = quantize.Options(
                    threads=count,
                    digest=digest,
                    keep_nonfinite=settings["on_nonfinite"] == "keep",
                    force=force,
                    progress=bar,
                )
                if export is not None and not native:
                    found, said, notes = export.write(source, planned, (src, shown, real), run, side)
                else:
                    found, said, notes = _write(source, planned, (src, shown, target, real), run, resume, side)
            for line in [*([] if talk.quiet else notes), *(said if talk.verbose else [])]:
                options.say(line)
    found = replace(found, warnings=[*side.warnings(), *found.warnings])
    if saved is not None and recipe_text is not None:
        options.replace_file(saved, recipe_text, [*read, target])
    if not talk.quiet:
        options.say_warnings(found)
    if output == "-" and not dry_run and not talk.quiet:
        s = found.summary
        options.say(
            f"{100 * s.coverage:.1f} % of {s.parameters:,} parameters quantized, {s.bits_per_weight:.3f} bits per "
            f"weight, SQNR {'exact' if s.sqnr_db is None else f'{s.sqnr_db:.2f} dB'}"
        )
    elif talk.json or not talk.quiet:
        if talk.json and export is not None:
            found = export.with_notes(found)
        options.print_reports([found], "json" if talk.json else "table", talk, show_all=show_all)


def _check_saved(saved: str | None, target: str | None, read: Sequence[str | None]) -> None:
    """Raise UsageError where the recipe would replace the output, once that has a name, or an input."""
    if saved is None or target is None:
        return
    path, real = os.path.realpath(saved), os.path.realpath(target)
    if path == real:
        raise UsageError("this is the output too", place=["--save-recipe", saved], hint="name another file")
    if not path.startswith(os.path.join(real, "")):  # else in a folder that is yet to be made
        options.replaceable(saved, read)


def _refuse_both(asked: dict[str, Any]) -> None:
    """A plan chooses what these options would say, and counts the bytes of a native file."""
    if asked["target_size"] is None and asked["target_bpw"] is None:
        return
    to = asked["to"]
    if to not in (None, "native"):
        from quantcli.layouts.writing import named

        if not named(to).keeps_document:
            option = "--target-size" if asked["target_size"] is not None else "--target-bpw"
            hint = "let plan write a recipe with widths it has, and give that to --recipe"
            raise UsageError(f"it counts the bytes of a native file, not those of {to}", place=[option], hint=hint)
    said = [name for name, value in asked.items() if name not in WITH_A_TARGET and value not in (None, ())]
    if said:
        option = _asking.option_name(said[0], asked[said[0]])
        raise UsageError("a target chooses that itself", place=[option], hint="leave it out, or use plan")


def _request(
    source: Source, src: str, given: Recipe, asked: dict[str, Any], threads: int | None, talk: options.Talk
) -> Request:
    """What is asked for, or what a target or --save-recipe makes of it: a scheme for all and rules by name."""
    from quantcli.planning import plan, recipe

    if asked["target_size"] is not None or asked["target_bpw"] is not None:
        chosen = {**_budget.DEFAULTS, **asked, "bits": _budget.BITS, "group_size": _budget.GROUP_SIZES}
        chosen["to"] = asked["to"] or recipe.NATIVE
        planned, _ = _budget.planned(source, src, chosen, options.thread_count(threads), talk)
        return planned.request
    importance = _asking.importance(asked, given, source)
    request = replace(_asking.request(given.default, asked, given, source), importance=importance)
    if asked["save_recipe"] is None:
        return request
    try:
        tensors = plan.make(source.infos(), request).tensors
    except (UsageError, DataError) as error:
        raise error.within(src) from None
    return recipe.resolved(source.infos(), {t.info.name: t.scheme for t in tensors}, request)


def _say_held(source: Source, planned: Plan, digest: str) -> None:
    """Say which tensors of a pipe are in memory whole, where that is much."""
    from quantcli.passes import quantize
    from quantcli.terminal import size

    held = quantize.held_whole(source, planned, digest)
    largest = max(held, key=lambda t: t.info.nbytes, default=None)
    if largest is not None and largest.info.nbytes >= MUCH:
        why = "SHA-256" if digest == "sha256" else "this method"
        options.say(
            f"{why} looks at tensors twice, so from a pipe {len(held)} of them are held in memory one by one, "
            f"up to {size(largest.info.nbytes)}"
        )


def _planned(source: Source, planned: Plan, src: str, output: str, bytes_out: int) -> RunReport:
    """The report on a plan."""
    from quantcli.reports import build

    bytes_in = sum(f.size for f in source.files())
    return build.of_plan(
        planned.tensors,
        None,
        command="plan",
        source=src,
        output=output,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        seconds=None,
        request=planned.request,
    )


def _as_folder(source: Source, target: str) -> bool:
    """Whether the output is a folder: for a checkpoint folder, unless a .safetensors file is named."""
    return hasattr(source, "shards") and not target.lower().endswith(".safetensors")


def _check_folder_options(
    source: Source, target: str, request: Request, resume: bool, digest: str, native: bool
) -> None:
    """Raise UsageError for an option of folders where none is written, or whose digests resuming needs."""
    if resume and not native:
        hint = "quantize without --to, then export"
        raise UsageError("what --to writes is not resumed", place=["--resume"], hint=hint)
    for name, given in (("--max-shard-size", request.max_shard_size is not None), ("--resume", resume)):
        if given and not _as_folder(source, target):
            raise UsageError("this is for checkpoint folders", place=[name], hint="leave it out")
    if resume and digest == "none":
        raise UsageError("a source without digests is not known again", place=["--resume"], hint="use --digest xxh3")


def _destination(source: Source, target: str, force: bool) -> str:
    from quantcli.stores.files import check_destination
    from quantcli.stores.folder import check_folder

    if _as_folder(source, target):
        return check_folder(target, force=force, source=cast("Checkpoint", source).folder)
    return check_destination(target, force=force, sources=list(source.files()))


def _planned_size(source: Source, planned: Plan, target: str, digest: str) -> int:
    from quantcli.folders import checkpoints
    from quantcli.passes import quantize

    if _as_folder(source, target):
        return checkpoints.dry_size(cast("Checkpoint", source), planned, digest)
    return quantize.file_layout(source, planned, source.metadata, digest).size


def _write(
    source: Source, planned: Plan, names: tuple[str, str, str, str], run: Options, resume: bool, side: SideFiles
) -> tuple[RunReport, list[str], list[str]]:
    """Write the output; the report on it, what else there is to tell, and what must be told. names: source and output
    as they are shown, output as it was named, and its real path."""
    from quantcli.folders import checkpoints
    from quantcli.passes import quantize
    from quantcli.reports import build

    began = time.perf_counter()
    src, shown, target, real = names
    written: Written | WrittenFolder
    said, notes = [], []
    if _as_folder(source, target):
        try:
            written = checkpoints.write(cast("Checkpoint", source), planned, real, run, side=side, resume=resume)
        except BaseException as error:
            left = checkpoints.left_over(real)
            if left is not None and not isinstance(error, UsageError):
                options.say(f"what is finished is in {left}: the same command with --resume goes on there")
            raise
        notes = written.notes
        said += [f"copied {', '.join(written.copied)}"] if written.copied else []
        if written.obstacle:
            obstacle = written.obstacle
            said.append(f"config.json has no quantization_config, compressed-tensors cannot express {obstacle}")
    else:
        written = quantize.write(source, planned, source.metadata, real, run)
    found = build.of_plan(
        written.plan.tensors,
        dict(written.results),
        command="quantize",
        source=src,
        output=shown,
        bytes_in=sum(f.size for f in source.files()),
        bytes_out=written.size,
        seconds=time.perf_counter() - began,
        request=planned.request,
    )
    return found, said, notes


def _label(request: Request, recipe: str | None) -> str:
    """What the name of an output tells of its schemes: the recipe by its name, or the one scheme there is."""
    if recipe is None:
        return request.scheme.name if not request.rules else "recipe"
    stem, extension = os.path.splitext(os.path.basename(recipe))
    return stem if extension.lower() in (".yaml", ".yml") else stem + extension


def default_output(src: str, scheme: str) -> str:
    """The name beside SRC that tells the scheme or the recipe.

    >>> default_output("models/model.safetensors", "w4g128"), default_output("audio.npy", "w8t")
    ('models/model-w4g128.safetensors', 'audio-w8t.safetensors')
    """
    path = os.path.normpath(src)
    if path.endswith(".index.json"):
        path = os.path.dirname(os.path.abspath(path))
    folder, base = os.path.split(path if os.path.basename(path) not in ("", ".", "..") else os.path.abspath(path))
    stem, extension = os.path.splitext(base)
    if os.path.isdir(path):
        return os.path.join(folder, f"{base}-{scheme}")
    if extension.lower() not in (".safetensors", ".npy", ".npz", ".onnx"):
        stem = base
    return os.path.join(folder, f"{stem}-{scheme}.safetensors")


PROVIDES = command
