"""`quantcli quantize`: Quantize a model file or folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _budget, _gating, _help, _naming, _sources, options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from quantcli.passes.quantize import Written
    from quantcli.planning.plan import Plan, Request
    from quantcli.planning.recipe import Recipe
    from quantcli.reports.records import RunReport
    from quantcli.stores import Source

MUCH = 64 << 20
"""Bytes of a tensor in memory that are worth a word."""

WITH_A_TARGET = (
    *("target_size", "target_bpw", "recipe", "override", "importance", "save_recipe"),
    *("include", "exclude", "no_default_keep", "max_shard_size", "on_nonfinite", "digest", "to", "container"),
)
"""What may be said of the tensors beside a target; the rest a plan chooses itself."""


@_help.command(
    "quantize",
    examples=(
        ("quantcli quantize model.safetensors --bits 4", "one file"),
        ("quantcli quantize Llama-3.2-1B -o w4", "for vLLM"),
        ("quantcli quantize Llama-3.2-1B --to gguf", "for llama.cpp"),
        ("quantcli quantize model.safetensors --target-size 3.9GB", "within a budget"),
    ),
)
@options.source
@_asking.schemes
@_help.option(
    "--to",
    type=options.targets(native="for quantcli itself: stores every scheme"),
    default=None,
    help="Write what another tool loads; see export.",
    show_default="native; for folders of transformers compressed-tensors, if it can store the schemes",
    group="Common",
)
@options.output
@_asking.recipe
@_asking.selection
@_help.option(
    "--save-recipe",
    metavar="FILE",
    type=click.Path(path_type=str),
    default=None,
    help="Write what was done.",
    group="Output",
)
@_help.option(
    "--target-size",
    metavar="SIZE",
    type=_gating.Target(),
    default=None,
    help="Choose the schemes that lose least in at most so many bytes, such as 3.9GB; see plan.",
    group="Size",
)
@_help.option(
    "--target-bpw",
    metavar="BITS",
    type=_gating.Target(),
    default=None,
    help="The same in bits per weight.",
    group="Size",
)
@options.container
@_help.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "keep"]),
    default=None,
    help="What to do with a tensor that holds NaN or infinity.",
    show_default="refuse",
    group="Selection",
)
@_sources.source_layout
@_help.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256", "none"]),
    default=None,
    help="Digest of each tensor's source bytes.",
    show_default="xxh3",
    group="Output",
)
@_help.option(
    "--max-shard-size",
    metavar="SIZE",
    type=_gating.Limit(),
    default=None,
    help="Cut a checkpoint folder into files of at most so many bytes, such as 2GB.",
    show_default="as it is cut",
    group="Size",
)
@_help.option(
    "--resume",
    is_flag=True,
    help="Go on with what an interrupted run on a checkpoint folder has finished.",
    group="Run",
)
@_help.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan with exact sizes, read no weights, write nothing.",
    group="Common",
)
@_help.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Show every tensor.",
    group="Output",
)
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
    from quantcli.folders import output as outputs
    from quantcli.folders import sidefiles
    from quantcli.passes import quantize
    from quantcli.passes.export import check_output
    from quantcli.passes.outputs import notes as conversion_notes
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
        saved = None if dry_run else asked["save_recipe"]
        read = [src, asked["recipe"], asked["codebook"], asked["importance"], *(given.importance or ())[:1]]
        _check_saved(saved, named, read)
        to, why = _asking.target_of(source, given, asked["to"], folder=_as_folder(source, named or "", None))
        if why:
            talk.say(why)
        request = _request(source, src, given, {**asked, "to": to}, threads, talk)
        if to is not None:
            _check_target(source, to, output, request)
            request = plan.suited(request)
        recipe_text = recipe.dump(request, settings, os.path.dirname(saved)) if saved is not None else None
        shown_target = to if asked["to"] is not None else None
        target = named or default_name(src, _label(request, asked["recipe"]), shown_target)
        folder = _as_folder(source, target if named or shown_target is None else None, to)
        _check_folder_options(folder, request, resume, digest)
        _check_saved(saved, target, read)
        _naming.check_recipe(saved)
        real = target if dry_run else check_output(source, target, folder=folder, force=force)
        try:
            planned = plan.make(source.infos(), request)
            model = quantize.outgoing(source, planned, digest, outputs.target_of(planned))
            notes = conversion_notes(model.conversion, config=folder and model.beside("config.json") is not None)
        except (UsageError, DataError) as error:
            raise error.within(src) from None
        side = sidefiles.of(source, os.path.realpath(real), folder=folder)
        shown = output or target
        talk.say(*notes)
        began = time.perf_counter()
        if dry_run:
            size = outputs.size_of_model(source, model, folder=folder, base=os.path.basename(real))
            written = quantize.Written(plan=planned, model=model, results={}, size=size)
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
                with _leftovers_told(real):
                    written = outputs.write(source, planned, real, run, side=side, folder=folder, resumed=resume)
        seconds = None if dry_run else time.perf_counter() - began
        found = _report(source, written, src, shown, request, seconds)
    talk.say(*written.notes)
    if talk.verbose and written.copied:
        options.say(f"copied {', '.join(written.copied)}")
    if talk.verbose and written.obstacle:
        why = f"compressed-tensors cannot store {written.obstacle}"
        options.say(f"config.json has no quantization_config: {why}")
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
        if talk.json and to is not None:
            found = replace(found, warnings=[*notes, *found.warnings])
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
    """A plan chooses what these options would say."""
    if asked["target_size"] is None and asked["target_bpw"] is None:
        return
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
        chosen = {**_budget.DEFAULTS, **asked, "to": asked["to"] or recipe.NATIVE, **_budget.usual(asked["to"])}
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


def _report(
    source: Source, written: Written, src: str, output: str, request: Request, seconds: float | None
) -> RunReport:
    """The report on what was written; seconds is None for a plan."""
    from quantcli.reports import build

    return build.of_plan(
        written.plan.tensors,
        written.results,
        written.model.nbytes,
        command="plan" if seconds is None else "quantize",
        source=src,
        output=output,
        bytes_in=sum(f.size for f in source.files()),
        bytes_out=written.size,
        seconds=seconds,
        request=request,
    )


@contextlib.contextmanager
def _leftovers_told(real: str) -> Iterator[None]:
    """Say where finished files are, if an error leaves some."""
    from quantcli.folders.write import left_over

    try:
        yield
    except BaseException as error:
        left = left_over(real)
        if left is not None and not isinstance(error, UsageError):
            options.say(f"what is finished is in {left}: the same command with --resume goes on there")
        raise


def _as_folder(source: Source, target: str | None, to: str | None) -> bool:
    """Whether the output is a folder. target: its name, None where it is made up."""
    if to is not None:
        from quantcli.passes.export import as_folder

        return as_folder(source, to, target)
    return source.folder is not None and not (target or "").lower().endswith(".safetensors")


def _check_target(source: Source, to: str, output: str | None, request: Request) -> None:
    """Raise UsageError for a pipe, whose weights could not be compared with what was written; for two files on standard
    output, and for an ONNX model that was to stay one."""
    from quantcli.passes import export
    from quantcli.stores import need_file
    from quantcli.stores.onnx import OnnxFile

    need_file(source, "--to")
    export.check_standard_output(to, output)
    if to == "onnx" and isinstance(source, OnnxFile) and not request.container:
        hint = "leave out --to for its weights in a .safetensors file; --container writes MatMulNBits nodes alone"
        raise UsageError("quantizing the graph of an ONNX model is not supported yet", place=["--to onnx"], hint=hint)


def _check_folder_options(folder: bool, request: Request, resume: bool, digest: str) -> None:
    """Raise UsageError for an option of folders where none is written, or whose digests resuming needs."""
    for name, given in (("--max-shard-size", request.max_shard_size is not None), ("--resume", resume)):
        if given and not folder:
            raise UsageError("this is for checkpoint folders", place=[name], hint="leave it out")
    if resume and digest == "none":
        raise UsageError("a source without digests is not known again", place=["--resume"], hint="use --digest xxh3")


def _label(request: Request, recipe: str | None) -> str:
    """What the name of an output tells of its schemes: the recipe by its name, or the one scheme there is."""
    if recipe is None:
        return request.scheme.name if not request.rules else "recipe"
    stem, extension = os.path.splitext(os.path.basename(recipe))
    return stem if extension.lower() in (".yaml", ".yml") else stem + extension


def default_name(src: str, scheme: str, to: str | None) -> str:
    """The name beside SRC that tells the scheme and, for another tool's layout, the target, by the extension of those
    that have one of their own."""
    if to is None:
        return default_output(src, scheme)
    from quantcli.layouts.writer import named

    extension = named(to).extension
    default = default_output(src, "-".join(w for w in (scheme, "" if extension else to) if w))
    return f"{default.removesuffix('.safetensors').removesuffix('-')}{extension}" if extension else default


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
