"""`quantcli quantize`: Quantize a model file or folder."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _budget, _gating, _help, _line, _log, _naming, _sources, _workers, options
from quantcli.errors import UsageError

if TYPE_CHECKING:
    from quantcli.floats import Reading
    from quantcli.folders.job import Job, Outcome
    from quantcli.folders.shares import Share
    from quantcli.reports.run import RunReport

MUCH = 64 << 20
"""Bytes of a tensor in memory that are worth mentioning."""


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
    help="Write what another tool loads; see export.",
    show_default="by the extension of -o, such as .gguf; else native, and for folders of transformers "
    "compressed-tensors",
    group="Common",
)
@options.output
@_asking.recipe
@_asking.statistics
@_asking.selection
@_help.option("--save-recipe", type=_help.WRITTEN, help="Write the recipe of this run.", group="Output")
@_help.option(
    "--target-size",
    metavar="SIZE",
    type=_gating.Target(),
    help="Choose the schemes that lose least in at most this many bytes, such as 3.9GB; see plan.",
    group="Size",
)
@_help.option("--target-bpw", metavar="BITS", type=_gating.Target(), help="The same in bits per weight.", group="Size")
@options.container
@_help.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "keep"]),
    help="What to do with a tensor that holds NaN or infinity.",
    show_default="refuse",
    group="Selection",
)
@_sources.reading
@_help.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256", "none"]),
    help="Digest of each tensor's source bytes.",
    show_default="xxh3",
    group="Output",
)
@_help.option(
    "--max-shard-size",
    metavar="SIZE",
    type=_gating.Limit(),
    help="Split a checkpoint folder, or a GGUF, into files of at most this many bytes, such as 2GB.",
    show_default="as the source is",
    group="Size",
)
@_help.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted run on a checkpoint folder from its finished files.",
    group="Run",
)
@_help.option(
    "--part",
    metavar="I/N",
    help="Do the I-th of N parts, which quantcli merge joins; auto in job arrays of Slurm and Kubernetes. See help "
    "scale.",
    group="Run",
)
@_help.option(
    "--dry-run", is_flag=True, help="Print the plan with exact sizes, read no weights, write nothing.", group="Common"
)
@options.show_all
@_workers.workers
@options.console
def command(
    src: str,
    reading: Reading,
    output: str | None,
    force: bool,
    private: bool,
    workers: _workers.Workers,
    console: options.Console,
    show_all: bool,
    dry_run: bool,
    resume: bool,
    part: str | None,
    **asked: Any,
) -> None:
    """Quantize SRC: a file (.safetensors, .gguf, .onnx, .npy, .npz, .pt and .bin of PyTorch), a checkpoint folder or
    its index.json, or a pipeline of diffusers or sentence-transformers, whose components are quantized one by one. Any
    of these may be a URL: hf://, s3://, gs://, az:// or https:// (see quantcli help urls).

    Writes a safetensors file, or for a checkpoint folder a folder (by default SRC's name with that of the scheme or the
    recipe, beside SRC; name a .safetensors file to get all shards in one), and prints what it cost. Norms, biases,
    embeddings and small tensors are kept as they are; every tensor's fate and its reason are in the report.
    """
    workers.check_writing(src, part, output, asked)
    called = Called(
        src=src,
        reading=reading,
        output=output,
        force=force,
        private=private,
        threads=workers.threads,
        console=console,
        dry_run=dry_run,
        resume=resume,
        share=_share(part, src, output, asked, resume=resume),
        line=() if part is None and workers.dask is None else _typed(absolute=workers.dask is not None),
        asked=asked,
    )
    run = Run(output=output, dry_run=dry_run, workers=workers, show_all=show_all)
    with prepared(called) as (ready, keep):
        report = _carried_out(ready, run, console)
    keep()
    if report is not None:
        _show(report, ready.notes, run, console)


def _typed(*, absolute: bool) -> tuple[str, ...]:
    """The command line as other processes repeat it. The parts of a run record it as it was typed, for model cards name
    files so; workers have another current folder."""
    return tuple(_line.repeated(click.get_current_context(), without=OF_A_PROCESS, absolute=absolute))


OF_A_PROCESS = (
    "part", "threads", "force", "private", "show_all", "as_json", "color", "verbose", "quiet", "log_file", "dry_run",
    "dask", "resume", "save_recipe",
)  # fmt: skip
"""Parameters that may differ between processes that do parts of a run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Called:
    """A call of the command. shown: the output as it is shown, where not as it is named. share: the part that this
    process does, None for all; line: the call as another process can repeat it."""

    src: str
    reading: Reading
    output: str | None
    force: bool
    private: bool = False
    threads: int | None
    console: options.Console
    dry_run: bool = False
    resume: bool = False
    share: Share | None = None
    line: tuple[str, ...]
    asked: Mapping[str, Any]
    shown: str | None = None


@contextlib.contextmanager
def again(
    line: Sequence[str], output: str, console: options.Console, *, force: bool, shown: str | None = None
) -> Iterator[Job]:
    """The run that a command line of this command asks for, ready to begin. output: where it goes, shown: as it is
    shown; console: of the command that repeats it. Raises QuantcliError and click.UsageError."""
    asked = _line.parsed(command, line)
    other = ("src", "output", "console", "reading", *OF_A_PROCESS)
    called = Called(
        src=asked["src"],
        reading=_sources.reading_of(asked),
        output=output,
        force=force,
        threads=None,
        console=console,
        line=tuple(line),
        shown=shown,
        asked={"save_recipe": None} | {n: value for n, value in asked.items() if n not in other},
    )
    with prepared(called) as (ready, _):
        yield ready


def _share(text: str | None, src: str, output: str | None, asked: Mapping[str, Any], *, resume: bool) -> Share | None:
    """The part of the run that is asked for. Raises UsageError for what parts cannot do."""
    if text is None:
        return None
    from quantcli.folders import shares

    found = shares.asked(text, os.environ, src, output, resume=resume)
    once = "choose once with quantcli plan -o recipe.yaml, and give all parts --recipe recipe.yaml"
    for name, why, way in (
        ("target_size", "choosing schemes for a size reads all weights, in every part", once),
        ("target_bpw", "choosing schemes for a size reads all weights, in every part", once),
        ("save_recipe", "every part would write it", "the output holds it too: quantcli inspect --recipe"),
    ):
        if asked[name] is not None:
            raise UsageError(why, place=[f"--{name.replace('_', '-')}"], hint=way)
    return found


@contextlib.contextmanager
def prepared(called: Called) -> Iterator[tuple[Job, Callable[[], None]]]:
    """A run that may begin, and what writes its recipe once it is done. Raises QuantcliError for all that can be known
    before the first weight is read."""
    from quantcli.folders import components, job, prepare

    src, output, asked, console = called.src, called.output, called.asked, called.console
    reading, dry_run = called.reading, called.dry_run
    order = _asking.order(asked, output=output)
    budget = _budget.of_quantize(asked, order)
    _naming.check_model(output, order.to, private=called.private)
    if src == "-" and output is None and not dry_run:
        raise UsageError("the output needs a name", place=[src], hint="give it with -o; - is standard output")
    if output == "-" and order.max_shard_size is not None:
        raise UsageError("standard output is one file", place=["--max-shard-size"], hint="name a file with -o")
    say = console.inform
    with (
        options.standard_output(None if dry_run else output, console) as named,
        components.opened(src, order, reading, output=output, say=say) as found,
    ):
        saved = None if dry_run else asked["save_recipe"]
        read = [src, asked["recipe"], asked["codebook"], order.statistics_path, order.activation_scales, *reading.loras]
        _check_saved(saved, named, read)
        how = prepare.Writing(
            force=called.force,
            private=called.private,
            resume=called.resume,
            dry_run=dry_run,
            read=[path for path in read[1:] if path is not None],
            share=called.share,
            line=called.line,
        )
        if budget is None:
            chosen, requests = components.requested(found, options.warn)
            if saved is not None and not chosen.folder:
                requests = {"": prepare.spelt_out(chosen, requests, order)}
            target, folder = prepare.place(
                chosen, order, named, job.label(next(iter(requests.values())), asked["recipe"])
            )
        else:
            target, folder = prepare.place(found, order, named, job.label(None, asked["recipe"]))
            prepare.checked(found, order, target, how, folder=folder)
        _check_saved(saved, target, read)
        _naming.check_recipe(saved)
        if budget is not None:
            chosen, plan, _ = _budget.planned(found, order, budget, options.thread_count(called.threads), console)
            requests = dict(plan.requests)
        text = ""
        if saved is not None:
            from quantcli.planning import recipe_writing

            spelt = prepare.spelt_out(chosen, requests, order) if chosen.folder else requests[""]
            text = recipe_writing.dump(spelt, order.settings, os.path.dirname(saved))
        ready = prepare.ready(
            chosen, requests, order, target, how, shown=called.shown or output or target, folder=folder
        )

        def keep() -> None:
            if saved is not None:
                options.replace_file(saved, text, [*read, target])

        yield ready, keep


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Run:
    """How a run is carried out, as it was asked for."""

    output: str | None
    dry_run: bool
    workers: _workers.Workers
    show_all: bool


def _carried_out(ready: Job, run: Run, console: options.Console) -> RunReport | None:
    """The report on a run that is carried out, or on its plan; None where nobody reads it."""
    from quantcli import kernels

    if not (run.dry_run or console.quiet):
        _print_held(ready)
    console.inform(*ready.notes)
    if run.dry_run:
        return ready.planned()
    if console.verbose:
        options.inform(f"{kernels.load().name} kernels, {run.workers.count} threads")
    bar = console.bar(os.path.basename(ready.shown))
    with run.workers.crew(console.inform) as crew, bar, _naming_leftovers(ready.path, parts=crew is not None):
        if crew is None:
            done = ready.run(threads=run.workers.count, progress=bar)
        else:
            from quantcli.folders import spread

            beginning = functools.partial(again, ready.line, ready.path, options.QUIET, force=ready.force)
            done = spread.run(ready, crew, beginning, threads=run.workers.count, progress=bar)
    console.inform(*done.notes)
    _naming.tell_remains(ready.path, console.inform, part=ready.share is not None)
    if console.verbose:
        _print_details(done)
    read = console.json or not console.quiet or _log.current().is_kept
    return done.report if read else None


def _show(report: RunReport, notes: Sequence[str], run: Run, console: options.Console) -> None:
    """Print a report, for programs with what loaders will and will not do; where the output is on standard output, a
    line of it on standard error."""
    if not console.quiet:
        options.print_warnings(report)
    if console.json:
        report = replace(report, warnings=[*notes, *report.warnings])
    if run.output == "-" and not run.dry_run:
        _log.current().document(report)
        if not console.quiet:
            _print_summary(report)
    else:
        options.show(report, console, show_all=run.show_all)


def _print_details(done: Outcome) -> None:
    """Say what was copied, and why no loader of checkpoints takes a folder."""
    if done.copied:
        options.inform(f"copied {', '.join(done.copied)}")
    if done.obstacle:
        why = f"compressed-tensors does not support {done.obstacle}"
        options.inform(f"only quantcli reads this folder ({why}); `quantcli dequantize` makes floats of it")


def _print_summary(report: RunReport) -> None:
    """The line on standard error that stands for the table where the output is on standard output."""
    s = report.summary
    options.inform(
        f"{100 * s.coverage:.1f} % of {s.parameters:,} parameters quantized, {s.bits_per_weight:.3f} bits per "
        f"weight, SQNR {'exact' if s.sqnr_db is None else f'{s.sqnr_db:.2f} dB'}"
    )


def _check_saved(saved: str | None, target: str | None, read: Sequence[str | None]) -> None:
    """Raise UsageError where the recipe would replace the output, once that has a name, or an input."""
    if saved is None or target is None:
        return
    path, real = os.path.realpath(saved), os.path.realpath(target)
    if path == real:
        raise UsageError("this is the output too", place=["--save-recipe", saved], hint="name another file")
    if not path.startswith(os.path.join(real, "")):  # else in a folder that is yet to be made
        options.replaceable(saved, read)


def _print_held(ready: Job) -> None:
    """Say which tensors of a pipe are in memory whole, where that is much."""
    from quantcli.passes import quantize
    from quantcli.terminal import size

    held = [t for p in ready.parts.values() for t in quantize.held_whole(p.source, p.plan, ready.order.digest)]
    largest = max(held, key=lambda t: t.info.nbytes, default=None)
    if largest is not None and largest.info.nbytes >= MUCH:
        why = "SHA-256" if ready.order.digest == "sha256" else "this method"
        options.inform(
            f"{why} looks at tensors twice, so from a pipe {len(held)} of them are held in memory one by one, "
            f"up to {size(largest.info.nbytes)}"
        )


@contextlib.contextmanager
def _naming_leftovers(real: str, *, parts: bool) -> Iterator[None]:
    """Say where finished files, or parts that this run's workers make, are, if an error leaves some."""
    try:
        yield
    except UsageError:
        raise
    except BaseException:
        from quantcli.folders import spread
        from quantcli.stores import destinations

        if left := destinations.left_over(real):
            options.inform(f"finished files are in {left}: run the same command with --resume to continue")
        elif parts and (made := spread.finished(real)):
            options.inform(f"finished parts are in {made}: the same command continues after them")
        raise


PROVIDES = command
