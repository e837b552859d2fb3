"""`quantcli report`: Tell what quantization cost, and judge it by limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _gating, _help, _sources, _workers, options
from quantcli.errors import QuantcliError, UsageError

if TYPE_CHECKING:
    from quantcli.folders.evaluate import Evaluation
    from quantcli.reports.config import Config
    from quantcli.reports.gates import Gates
    from quantcli.reports.measured import Measuring
    from quantcli.reports.run import RunReport


@_help.command(
    "report",
    examples=(
        ("quantcli report model-w4g128.safetensors", "the figures stored in the file"),
        ("quantcli report model-w4g128.safetensors --against model.safetensors", "measured again"),
        ("quantcli report model-w4g128.safetensors --min-sqnr 20", "exit code 1 if it is worse"),
        ("quantcli report model-w4g128.safetensors -o report.html", "a page to share"),
    ),
)
@click.argument("files", metavar="[FILE]...", nargs=-1, type=_help.MODEL)
@_help.option(
    "--files0-from",
    metavar="LIST",
    type=_help.FILE,
    help="Read file names from LIST, each ended by a NUL; - is standard input.",
    group="Selection",
)
@_help.option(
    "--against",
    metavar="ORIGINAL",
    type=_help.MODEL,
    help="Measure again, from the stored codes, against the original weights.",
    group="Common",
)
@_gating.gates
@_help.option(
    "--statistics",
    type=_help.FILE,
    help="Means and second moments of the inputs of layers (quantcli help statistics): predict from them what errors "
    "cost in the outputs, for --min-output-sqnr too. Needs --against.",
    group="Common",
)
@_asking.memory
@_help.option(
    "--like",
    metavar="OTHER",
    type=_help.MODEL,
    help="Another quantized model in place of a baseline, such as that of the main branch: measured as FILE is.",
    group="Common",
)
@_help.option(
    "--eval-command",
    metavar="COMMAND",
    help="Run this on the weights decoded to a temporary file or folder, whose path is {} or comes last; the figure "
    "that it prints is judged by --min-eval and --max-eval.",
    group="Run",
)
@_help.option(
    "--eval-pattern",
    metavar="REGEX",
    help="Where the figure is in what --eval-command prints: an expression with one group.",
    show_default="the last number",
    group="Run",
)
@_gating.limits(_gating.EVALUATIONS, "Gates")
@_help.option(
    "--theory",
    is_flag=True,
    help="Next to each measured SQNR, what theory predicts: model, best quantizers, bounds, entropy. Needs --against.",
    group="Common",
)
@_help.option(
    "--ignore-digest", is_flag=True, help="Measure even against weights the file was not made from.", group="Run"
)
@_sources.original_as_float
@_sources.variant
@options.show_all
@_gating.renderings
@_workers.workers
@options.console
def command(
    files: tuple[str, ...],
    files0_from: str | None,
    against: str | None,
    baseline: str | None,
    config: str | None,
    statistics: str | None,
    memory: float | None,
    like: str | None,
    eval_command: str | None,
    eval_pattern: str | None,
    theory: bool,
    ignore_digest: bool,
    as_float: bool,
    variant: str | None,
    show_all: bool,
    format_: str | None,
    outputs: tuple[tuple[str, str], ...],
    workers: _workers.Workers,
    console: options.Console,
    **limits: Any,
) -> None:
    """Tell what quantization cost, tensor by tensor, from the metrics in each FILE's header or against ORIGINAL.

    Files in the layouts of other tools hold no errors: alone they tell sizes, against ORIGINAL they are measured. FILE
    may be a pipeline of several models, which ORIGINAL then is too: all of it is one report, with one total.

    With gates (--min-sqnr and so on, or in quantcli.yaml) the exit code is 0 when all are passed, 1 when one is not,
    and 2 when something could not be measured. A rule must match a tensor in one of the models at least. Without FILE,
    the models listed in quantcli.yaml are reported on.
    """
    from quantcli.reports import measured

    rendering = _gating.rendering(format_, console)
    found = _config(config)
    gates = _gating.gates_of(limits)
    if like is not None and baseline is not None:
        raise UsageError("two things to compare with", place=["--like"], hint="leave out --baseline")
    jobs = _jobs([*_globbed(files), *_listed(files0_from)], found, against, (baseline, like), gates)
    evaluation = _evaluation(eval_command, eval_pattern, jobs)
    jobs = [replace(job, variant=variant, evaluation=evaluation) for job in jobs]
    if as_float and any(job.against is None for job in jobs):
        raise UsageError("the original is needed", place=["--as-float"], hint="name it with --against")
    if theory and any(job.against is None for job in jobs):
        raise UsageError("the original weights are needed", place=["--theory"], hint="name them with --against")
    jobs = [replace(job, statistics=statistics or job.statistics) for job in jobs]
    _check_statistics(jobs, memory, workers)
    read = [files0_from, found.path if found is not None else None]
    read += [path for job in jobs for path in (job.file, job.against, job.baseline, job.like, job.statistics)]
    options.check_outputs([path for _, path in outputs], read)
    in_detail = theory or "html" in (rendering, *(kind for kind, _ in outputs))
    reports = []
    workers.check(*(path for job in jobs for path in (job.file, job.against)))
    if workers.dask is not None and all(job.against is None for job in jobs):
        raise UsageError("nothing is measured without the original", place=["--dask"], hint="name it with --against")
    with workers.crew(console.inform) as crew:
        how = measured.Measuring(
            in_detail=in_detail,
            theory=theory,
            check_digests=not ignore_digest,
            as_float=as_float,
            threads=workers.count,
            crew=crew,
            bar=console.bar,
            say=console.inform,
            memory=None if memory is None else int(memory),
        )
        for job in jobs:
            try:
                reports.append(_report(job, how))
            except QuantcliError as error:
                raise error if len(jobs) == 1 or error.place[:1] == [job.file] else error.within(job.file) from None
    _check_rules(list(zip(reports, (job.gates for job in jobs))), found, console)
    _gating.finish(reports, rendering, outputs, console, show_all=show_all)


def _check_statistics(jobs: Sequence[_Job], memory: float | None, workers: _workers.Workers) -> None:
    """Raise UsageError for statistics of inputs from which nothing can be predicted, and for what asks for some."""
    known = [job for job in jobs if job.statistics is not None]
    if memory is not None and not known:
        problem = "only the second moments of --statistics take memory that can be limited"
        raise UsageError(problem, place=["--memory"], hint="leave it out, or give --statistics FILE")
    if any(job.against is None for job in known):
        raise UsageError("the original weights are needed", place=["--statistics"], hint="name them with --against")
    if known and workers.dask is not None:
        problem = "what errors cost in outputs is found by one process"
        raise UsageError(problem, place=["--dask"], hint="leave out --dask or --statistics")


def _evaluation(command: str | None, pattern: str | None, jobs: Sequence[_Job]) -> Evaluation | None:
    """How models are evaluated. Raises UsageError for a limit without a command."""
    limited = any(job.gates.min_eval is not None or job.gates.max_eval is not None for job in jobs)
    if command is None:
        if limited or pattern is not None:
            hint = "name it with --eval-command"
            raise UsageError("there is no evaluation to judge", place=["--min-eval"], hint=hint)
        return None
    from quantcli.folders import evaluate

    return evaluate.asked(command, pattern)


def _check_rules(judged: Sequence[tuple[RunReport, Gates]], found: Config | None, console: options.Console) -> None:
    """Refuse rules that match nothing; those that are for all models listed, only where all of them were read."""
    from quantcli.reports.gates import check_rules

    if found is None:
        return
    read = {os.path.realpath(report.name) for report, _ in judged}
    unread = [entry.file for entry in found.models if os.path.realpath(entry.file) not in read]
    shared = found.gates if unread else None
    own = [
        (report, replace(gates, rules=tuple(r for r in gates.rules if shared is None or r not in shared.rules)))
        for report, gates in judged
    ]
    try:
        check_rules(own)
        if shared is not None:
            try:
                check_rules([(report, shared) for report, _ in judged])
            except UsageError as error:
                more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
                if not console.quiet:
                    options.warn(f"{found.path}: {error}; not looked at: {unread[0]}{more}")
    except QuantcliError as error:
        raise error.within(found.path) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A file to report on. baseline, like: the report, or the model, to compare it with. statistics: those of inputs
    that predict errors of outputs. evaluation: by which command, None where it is not evaluated."""

    file: str
    against: str | None
    baseline: str | None
    gates: Gates
    like: str | None = None
    statistics: str | None = None
    evaluation: Evaluation | None = None
    variant: str | None = None


def _config(path: str | None) -> Config | None:
    from quantcli.reports import config

    if path is None and not os.path.exists(config.NAME):
        return None
    return config.load(path or config.NAME)


def _globbed(files: Sequence[str]) -> list[str]:
    """The files named, and those that a pattern a shell has left alone stands for."""
    import glob

    found: list[str] = []
    for file in files:
        if "://" not in file and glob.has_magic(file) and not os.path.exists(file):
            matches = sorted(glob.glob(file, recursive=True))
            if not matches:
                raise UsageError("no file matches", place=[file])
            found += matches
        else:
            found.append(file)
    return found


def _listed(path: str | None) -> list[str]:
    """Names from a file or standard input, each ended by a NUL."""
    if path is None:
        return []
    from quantcli.stores.places import read_small

    raw = sys.stdin.buffer.read(1 << 24) if path == "-" else read_small(path, 1 << 24)
    return [os.fsdecode(name) for name in raw.split(b"\0") if name]


def _jobs(
    files: Sequence[str],
    found: Config | None,
    against: str | None,
    compared: tuple[str | None, str | None],
    gates: Gates,
) -> list[_Job]:
    """What to report on: the files named, with what the configuration says of them, or all it lists. compared: the
    baseline and the other model that were asked for."""
    known = {os.path.realpath(entry.file): entry for entry in found.models} if found is not None else {}
    if not files:
        files = [entry.file for entry in known.values()]
    if not files:
        raise UsageError("no file to report on", hint="name one, or list models in quantcli.yaml")
    jobs = []
    for file in files:
        entry = known.get(os.path.realpath(file))
        own = (entry.baseline, entry.like) if entry else (None, None)
        baseline, like = compared if any(compared) else own
        if baseline and like:
            raise UsageError("two things to compare with", place=[file], hint="name baseline or like, not both")
        below = entry.gates if entry is not None else found.gates if found is not None else None
        jobs.append(
            _Job(
                file=file,
                against=against or (entry.against if entry else None),
                baseline=baseline,
                like=like,
                statistics=entry.statistics if entry else None,
                gates=gates.over(below) if below is not None else gates,
            )
        )
    return jobs


def _report(job: _Job, how: Measuring) -> RunReport:
    """The report on one file, judged."""
    from quantcli.reports import baseline, gates, measured

    before = None
    if job.baseline is not None:
        before = job.baseline, baseline.load(job.baseline, job.file)
    elif job.like is not None:
        other = measured.report(job.like, job.against, job.variant, replace(how, in_detail=False, theory=False))
        before = job.like, other.as_dict()
    found = measured.report(job.file, job.against, job.variant, replace(how, statistics=job.statistics))
    if job.evaluation is not None:
        from quantcli.folders import evaluate

        figure = evaluate.evaluate(job.file, job.evaluation, variant=job.variant, threads=how.threads, bar=how.bar)
        found = replace(found, evaluation=figure)
    return gates.judged(found, job.gates, before)


PROVIDES = command
