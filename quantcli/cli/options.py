"""What the commands share: arguments, output choices, and the way from options to calls."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quantcli import registry
from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from quantcli.gates import Gates
    from quantcli.pipeline import Progress
    from quantcli.plan import Plan
    from quantcli.planning import Planned
    from quantcli.report import RunReport
    from quantcli.stores import Source

F = TypeVar("F", bound=Callable[..., Any])


class Names(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """A choice of names that may be written with dashes or underscores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value.replace("_", "-") if isinstance(value, str) else value, param, ctx)


def source(command: F) -> F:
    """The SRC argument."""
    return click.argument("src", metavar="SRC", type=click.Path(path_type=str), callback=_file)(command)


def _file(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value:
        raise click.BadParameter("'': an empty file name", param=parameter)
    return value


@contextlib.contextmanager
def standard_output(output: str | None, as_json: bool) -> Iterator[str | None]:
    """Where to write: `output`, or for - a temporary file that goes to standard output at the end.

    Raises UsageError when standard output is a terminal or wanted for JSON too.
    """
    if output != "-":
        yield output
        return
    from quantcli.stores import standard

    if as_json:
        raise UsageError("standard output is for the file", place=["--json"], hint="name a file with -o")
    standard.check_output()
    with tempfile.TemporaryDirectory(prefix="quantcli-") as folder:
        path = os.path.join(folder, "output.safetensors")
        yield path
        standard.send(path)


class Pattern(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A glob, or a regular expression after re:; shells complete it to names of the source's tensors and modules."""

    name = "pattern"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem, split_arg_string

        from quantcli.patterns import module_of
        from quantcli.stores import open_source

        # Behind an option whose value is still missing, click has not told the arguments from the options.
        words = split_arg_string(os.environ.get("COMP_WORDS", ""))[2:]
        src = ctx.params.get("src") or next((w for w in words if os.path.exists(os.path.expanduser(w))), None)
        if not isinstance(src, str):
            return []
        try:
            with contextlib.closing(open_source(os.path.expanduser(src))) as source:
                tensors = [info.name for info in source.infos()]
        except Exception:  # what cannot be read has no names
            return []
        names = dict.fromkeys([*tensors, *map(module_of, tensors)])
        return [CompletionItem(n) for n in names if n and n.startswith(incomplete) and n.isprintable()]


def output(command: F) -> F:
    """-o and --force."""
    command = click.option("--force", is_flag=True, help="Replace an existing output.")(command)
    return click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=str),
        callback=_file,
        help="The file to write; - is standard output.",
    )(command)


def threads(command: F) -> F:
    """--threads."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 256),
        metavar="N",
        default=None,
        help="Threads to use; the output does not depend on it.  [default: all processors]",
    )(command)


def talk(command: F) -> F:
    """--json, --color, -v, -q and --debug."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option(
            "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colour the output."
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say more on standard error."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors, and show no progress."),
        click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def print_json(document: dict[str, Any]) -> None:
    """Print a document on standard output: strict JSON, names escaped to ASCII."""
    json.dump(document, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def say_warnings(report: RunReport) -> None:
    """Its warnings on standard error, the first ten."""
    for line in report.warnings[:10]:
        warn(line)
    if len(report.warnings) > 10:
        warn(f"and {len(report.warnings) - 10} more")


def print_reports(reports: Sequence[RunReport], rendering: str, *, color: str, show_all: bool) -> None:
    """Print reports as asked for."""
    from quantcli import terminal
    from quantcli.renderings import Look

    limit = None if show_all else max(3, terminal.screenful() // len(reports))
    look = Look(colour=terminal.wants_colour(sys.stdout, color), limit=limit)
    render = registry.get("renderings", rendering).render
    raw = getattr(sys.stdout, "buffer", None)
    if rendering == "table" or raw is None:
        render(reports, sys.stdout, look)
    else:  # a document is UTF-8 in every locale
        text = io.StringIO()
        render(reports, text, look)
        sys.stdout.flush()
        left = memoryview(text.getvalue().encode("utf-8", "backslashreplace"))
        while left:  # without buffering a write may take a part only
            left = left[raw.write(left) :]
    sys.stdout.flush()


GATES = (
    ("min_sqnr", "DB", "Least SQNR of all quantized weights together."),
    ("min_tensor_sqnr", "DB", "Least SQNR of any quantized tensor."),
    ("max_mse", "MSE", "Largest mean squared error of any quantized tensor."),
    ("max_bpw", "BITS", "Most bits per weight, everything in the file counted."),
    ("max_size", "SIZE", "Largest file: bytes, or with a unit such as 3.9GB or 500MiB."),
    ("min_coverage", "SHARE", "Least share of the parameters that are quantized, such as 95%."),
    ("max_outlier_gap", "DB", "How far a tensor may lie below the median of those with as many bits."),
    ("max_regression", "DB", "How much a tensor may lose against the baseline."),
)


class Limit(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The limit of a gate."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from quantcli.gates import parsed

        assert param is not None and param.name is not None
        try:
            return parsed(param.name, value)
        except UsageError as error:
            self.fail(f"{error.problem}{'; ' + error.hint if error.hint else ''}", param, ctx)


def gates(command: F) -> F:
    """The options that set limits, --baseline and --config."""
    for name, metavar, text in reversed(GATES):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, metavar=metavar, type=Limit(), default=None, help=text)(command)
    command = click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=str),
        default=None,
        help="Gates and models in YAML.  [default: quantcli.yaml, where there is one]",
    )(command)
    return click.option(
        "--baseline",
        metavar="REPORT",
        type=click.Path(path_type=str),
        default=None,
        help="An earlier report, as --json prints it, to compare with.",
    )(command)


def gates_of(limits: dict[str, Any]) -> Gates:
    """The gates asked for on the command line."""

    from quantcli.gates import Gates

    return Gates(**{name: limits[name] for name, _, _ in GATES})


RENDERINGS = registry.names("renderings")


class NamedFile(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """RENDERING=FILE."""

    name = "rendering"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        kind, equals, path = str(value).partition("=")
        if not equals or not path or kind not in RENDERINGS:
            self.fail(f"{printable(value, 100)!r} is not RENDERING=FILE, with {', '.join(RENDERINGS)}", param, ctx)
        return kind, path


def renderings(command: F) -> F:
    """--format and --output."""
    command = click.option(
        "-o",
        "--output",
        "outputs",
        metavar="RENDERING=FILE",
        type=NamedFile(),
        multiple=True,
        help="Write this rendering to a file too, replacing it; may be given several times.",
    )(command)
    return click.option(
        "--format",
        "format_",
        type=click.Choice(RENDERINGS),
        default=None,
        help="How to print it.  [default: table]",
    )(command)


def rendering(format_: str | None, as_json: bool) -> str:
    """What to print. Raises UsageError where --json and --format contradict each other."""
    if as_json and format_ not in (None, "json"):
        raise UsageError(f"{format_} is not JSON", place=["--format"], hint="leave out --json")
    return "json" if as_json else format_ or "table"


def finish(
    reports: Sequence[RunReport],
    rendering: str,
    outputs: Sequence[tuple[str, str]],
    *,
    color: str,
    show_all: bool,
    quiet: bool,
) -> None:
    """Write and print reports, name the gates that failed on standard error, and exit with 1 when there are any."""
    for kind, path in outputs:
        _write(reports, kind, path)
    if not quiet:
        for report in reports:
            say_warnings(report)
    if not quiet or rendering != "table":
        print_reports(reports, rendering, color=color, show_all=show_all)
    failed = [(report, gate) for report in reports for gate in report.gates if not gate.passed]
    for report, gate in failed:
        say(f"{report.name}: gate {gate.gate.replace('_', '-')} failed: {gate.message}")
    if failed:
        raise click.exceptions.Exit(1)


def _write(reports: Sequence[RunReport], kind: str, path: str) -> None:
    """Replace a file by a rendering."""
    from quantcli.renderings import Look

    text = io.StringIO()
    registry.get("renderings", kind).render(reports, text, Look())
    replace_file(path, text.getvalue(), [p for r in reports for p in (r.source, r.output) if p])


def replace_file(path: str, text: str, inputs: Sequence[str]) -> None:
    """Replace a file by a text, at once and whole. Raises UsageError when it is one of the inputs."""
    from quantcli.stores.files import InputFile, OutputFile, check_destination

    data = text.encode("utf-8", "backslashreplace")
    sources = [InputFile(p) for p in inputs if os.path.isfile(p)]
    try:
        target = check_destination(path, force=True, sources=sources)
    finally:
        for source in sources:
            source.close()
    with OutputFile(target, len(data), force=True) as out:
        out.write(0, data)
        out.sync()
        out.publish()


class Several(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Values apart by commas."""

    name = "list"

    def __init__(self, kind: type[int] | tuple[str, ...]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        found: list[Any] = []
        for word in str(value).split(","):
            if isinstance(self.kind, tuple):
                name = word.strip().replace("_", "-")
                if name not in self.kind:
                    self.fail(f"{word.strip()!r} is not one of {', '.join(self.kind)}", param, ctx)
                found.append(name)
                continue
            try:
                found.append(int(word))
            except ValueError:
                self.fail(f"{word.strip()!r} is not a whole number", param, ctx)
        return list(dict.fromkeys(found))


def size_of(source: Source, planned: Plan) -> int:
    """Bytes of what a plan leads to."""
    from quantcli import checkpoints, pipeline
    from quantcli.stores.checkpoint import Checkpoint

    if isinstance(source, Checkpoint):
        return checkpoints.dry_size(source, planned, "xxh3")
    return pipeline.file_layout(source, planned, source.metadata, "xxh3").size


def budget(command: F) -> F:
    """What a plan must keep, and what it may choose from."""
    given = [
        ("target_size", "SIZE", "Most bytes the file may have, such as 3.9GB."),
        ("target_bpw", "BITS", "Most bits per weight, everything counted."),
        ("min_sqnr", "DB", "The smallest file of at least this SQNR over all quantized weights."),
        ("max_nmse", "E", "The smallest file of at most this squared error over power."),
    ]
    several = [
        ("bits", Several(int), "LIST", "2,3,4,5,6,8,16", "Bit widths to choose from; 16 keeps a tensor as it is."),
        ("group_size", Several(int), "LIST", "64,128", "Group sizes to choose from; -1 per channel, 0 per tensor."),
    ]
    command = click.option(
        "--weighting",
        metavar="balanced|relative|absolute|FILE",
        default="balanced",
        show_default=True,
        help="What adds up: each tensor's squared error over its power (relative), that times the root of its size "
        "(balanced), the error as it is (absolute), or relative times factors by pattern in a YAML FILE.",
    )(command)
    command = click.option(
        "--uniform-groups",
        is_flag=True,
        help="One scheme for all that is quantized, as one config group of compressed-tensors can say.",
    )(command)
    command = click.option("--no-ties", is_flag=True, help="Let tensors that runtimes fuse have schemes of their own.")(
        command
    )
    command = click.option("--include", multiple=True, type=Pattern(), metavar="PATTERN", help="Quantize only these.")(
        command
    )
    command = click.option("--exclude", multiple=True, type=Pattern(), metavar="PATTERN", help="Keep these.")(command)
    command = click.option(
        "--no-default-keep", is_flag=True, help="Quantize every float tensor of two or more dimensions."
    )(command)
    for name, kind, metavar, default, text in reversed(several):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=kind, metavar=metavar, default=default, show_default=True, help=text)(
            command
        )
    for name, metavar, text in reversed(given):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=Limit(), metavar=metavar, default=None, help=text)(command)
    return command


def planned(source: Source, src: str, asked: dict[str, Any], threads: int, quiet: bool) -> tuple[Planned, int | None]:
    """The best plan for a source, and the bytes it was to stay within."""
    from quantcli import planning
    from quantcli.plan import Request, make
    from quantcli.scheme import Scheme

    targets = [n for n in ("target_size", "target_bpw", "min_sqnr", "max_nmse") if asked[n] is not None]
    if len(targets) != 1:
        raise UsageError("one target is needed", hint="give --target-size, --target-bpw, --min-sqnr or --max-nmse")
    schemes = [
        Scheme(bits=bits, **granularity(None, size, None))
        for size in asked["group_size"]
        for bits in asked["bits"]
        if bits != 16
    ]
    if not schemes:
        raise UsageError("there is nothing to choose from", place=["--bits"], hint="name widths below 16")
    request = Request(
        scheme=schemes[0],
        include=asked["include"],
        exclude=asked["exclude"],
        keep_defaults=not asked["no_default_keep"],
    )
    if any(file.once for file in source.files()):
        raise UsageError("planning goes back and forth, which a pipe cannot", place=[src], hint="name a file")
    first = make(source.infos(), request)
    name, value = targets[0], float(asked[targets[0]])
    target: int | None = None
    if name in ("target_size", "target_bpw"):
        parameters = sum(info.numel for info in source.infos())
        target = int(value if name == "target_size" else value * parameters / 8)
        whole = sum(info.nbytes for info in source.infos())
        if 16 in asked["bits"] and target >= whole + size_of(source, first) - sum(t.bytes_out for t in first.tensors):
            raise UsageError(f"{target} bytes hold all of it as it is", place=[src], hint="nothing needs quantizing")
    weighting: Any = "absolute" if target is None else asked["weighting"]
    if weighting not in planning.WEIGHTINGS:
        weighting = planning.factors(weighting, [info.name for info in source.infos()])
    with bar("planning", quiet=quiet) as progress:
        units = planning.units_of(
            source,
            request,
            schemes,
            keep=16 in asked["bits"],
            ties=not asked["no_ties"],
            weighting=weighting,
            threads=threads,
            progress=progress,
        )
    variants = planning.with_one_scheme(units) if asked["uniform_groups"] else [units]
    if target is not None:
        return planning.best_within(variants, source, request, lambda p: size_of(source, p), target), target
    if asked["uniform_groups"]:
        raise UsageError("one scheme is found for a size only", place=["--uniform-groups"], hint="give --target-size")
    power = sum(m.power for unit in units for m in unit.choices[0].metrics.values())
    cost = power * (10 ** (-value / 10) if name == "min_sqnr" else value)
    return planning.reaching(units, source, request, lambda p: size_of(source, p), cost), None


def warn(message: str) -> None:
    """One line on standard error."""
    click.echo(f"quantcli: warning: {printable(message, 1000)}", err=True)


def say(message: str) -> None:
    """One line on standard error."""
    click.echo(f"quantcli: {printable(message, 1000)}", err=True)


class Bar:
    """A progress bar on standard error with bytes, rate and time left; nothing when that is not a terminal.

    It appears only once there is enough to do to be worth waiting for.
    """

    WORTH = 64 << 20

    def __init__(self, title: str, *, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""
        if self.quiet or total < self.WORTH or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn(printable(self.title, 60), markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        else:
            self._bar.reset(self._task, total=total)

    def advance(self, nbytes: int) -> None:
        """So many bytes are done."""
        if self._bar is not None:
            self._bar.advance(self._task, nbytes)


def bar(title: str, *, quiet: bool) -> Bar:
    """A progress bar."""
    return Bar(title, quiet=quiet)


def thread_count(threads: int | None) -> int:
    """The number of threads asked for, or all processors."""
    from quantcli.workers import default_threads

    return threads or default_threads()


def granularity(granularity: str | None, group_size: int | None, axis: int | None) -> dict[str, Any]:
    """Scheme fields from --granularity, --group-size (-1 per channel, 0 per tensor) and --axis.

    Raises UsageError where they contradict each other.
    """
    if group_size is not None and group_size <= 0:
        if group_size < -1:
            raise UsageError(
                f"{group_size} is none", place=["--group-size"], hint="use 1 or more, -1 per channel or 0 per tensor"
            )
        meant = "tensor" if group_size == 0 else "channel"
        if granularity not in (None, meant):
            raise UsageError(f"{group_size} means {meant}, not {granularity}", place=["--group-size"])
        granularity, group_size = meant, None
    if axis is not None and granularity is None and group_size is None:
        raise UsageError("an axis needs --granularity channel", place=["--axis"])
    fields: dict[str, Any] = {"granularity": granularity or "group"}
    if group_size is not None:
        fields["group_size"] = group_size
    if axis is not None:
        fields["axis"] = axis
    return fields


def progress_of(found: Bar) -> Progress:
    """The bar as the pipeline knows it."""
    return found
