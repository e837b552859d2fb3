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
from quantcli.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from quantcli.importance import Importance
    from quantcli.pipeline import Progress
    from quantcli.plan import Plan, Request
    from quantcli.recipe import Recipe
    from quantcli.report import RunReport
    from quantcli.scheme import Scheme
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


def selection(command: F) -> F:
    """Which tensors: --include, --exclude and --no-default-keep."""
    for option in (
        click.option("--no-default-keep", is_flag=True, help="Quantize every float tensor of two or more dimensions."),
        click.option("--exclude", multiple=True, type=Pattern(), metavar="PATTERN", help="Keep these as they are."),
        click.option(
            "--include",
            multiple=True,
            type=Pattern(),
            metavar="PATTERN",
            help="Quantize only these: a glob, or a regular expression after re:.",
        ),
    ):
        command = option(command)
    return command


def recipe(command: F) -> F:
    """--recipe, --override and --importance."""
    for option in (
        click.option(
            "--importance",
            metavar="FILE",
            type=click.Path(path_type=str),
            default=None,
            help="How much the error of each column counts: mean squared activations by tensor name in .safetensors, "
            ".npy or .npz, or an importance matrix of llama.cpp (GGUF).",
        ),
        click.option(
            "--override",
            multiple=True,
            metavar="PATTERN:KEY=VALUE,...",
            help="A rule more, such as '*.down_proj:bits=8,group-size=32' or 'head*:keep'; the last that matches wins.",
        ),
        click.option(
            "--recipe",
            metavar="FILE",
            type=click.Path(path_type=str),
            default=None,
            help="Schemes by pattern, in YAML, or a preset: llm, embedding, cnn, diffusion.",
        ),
    ):
        command = option(command)
    return command


def asked_recipe(asked: dict[str, Any], fields: dict[str, Any]) -> Recipe:
    """The recipe of --recipe and --override, with fields of the default scheme on top."""
    from quantcli import recipe

    return recipe.load(asked["recipe"], fields, [recipe.override(text) for text in asked["override"]])


def settled(asked: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The options that are given, else what the recipe says. Raises UsageError for a size that holds nothing."""
    said = dict(recipe.options)
    said["no_default_keep"] = not said.pop("keep_defaults", True)
    found = {**said, **{k: v for k, v in asked.items() if v not in (None, (), False) or k not in said}}
    limit = found.get("max_shard_size")
    if limit is not None:
        if limit < 1:
            raise UsageError("0 bytes hold nothing", place=["--max-shard-size"])
        found["max_shard_size"] = int(limit)
    return found


def target_of(source: Source, recipe: Recipe, asked: str | None, *, folder: bool) -> tuple[str | None, str]:
    """The target of what is written, None for the native layout, and what is to be said of it.

    Where none is asked for, a folder that transformers loads is written so that it still does.
    """
    from quantcli import recipe as recipes
    from quantcli.exports import named

    if asked is not None or not folder or not _is_transformers(source):
        return None if asked == recipes.NATIVE else asked, ""
    usual = "compressed-tensors"
    schemes = [s for s in (recipe.default, *(r.scheme for r in recipe.rules)) if s is not None]
    for scheme in (c for s in schemes for c in s.candidates):
        if (why := named(usual).accepts.obstacle(scheme)) is not None:
            return None, f"config.json gets no quantization_config: {usual} cannot say {why}"
    return usual, ""


def _is_transformers(source: Source) -> bool:
    """Whether a folder's config.json is one of transformers."""
    from quantcli.stores.checkpoint import Checkpoint
    from quantcli.stores.files import read_small
    from quantcli.stores.safetensors import strict_json

    path = os.path.join(source.folder, "config.json") if isinstance(source, Checkpoint) else ""
    if not os.path.isfile(path):
        return False
    found = strict_json(read_small(path, 1 << 24), path)
    return isinstance(found, dict) and bool({"architectures", "model_type"} & found.keys())


def importance(asked: dict[str, Any], recipe: Recipe, source: Source) -> Importance | None:
    """What --importance or the recipe names; entries that belong to no tensor of the source are said."""
    from quantcli.importance import load

    path, digest = recipe.importance or (None, None)
    if path is None or asked["importance"] is not None:
        # A recipe out of a header knows the importances it was made with by their digest alone.
        digest, path = digest if path is None else None, asked["importance"]
    if path is None:
        if digest is not None:
            raise UsageError("the recipe was made with importances", place=["--importance"], hint="name their file")
        return None
    found = load(path, digest)
    unused = found.unused(source.infos())
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        warn(f"{path}: {printable(unused[0], 200)}{more} belongs to no tensor of {source.path}")
    return found


def request(scheme: Scheme, asked: dict[str, Any], recipe: Recipe | None = None) -> Request:
    """A scheme for the tensors selected, with the rules of a recipe."""
    from quantcli.plan import Request

    return Request(
        scheme=scheme,
        rules=recipe.rules if recipe else (),
        ties=recipe.ties if recipe else (),
        include=asked["include"],
        exclude=asked["exclude"],
        keep_defaults=not asked["no_default_keep"],
        max_shard_size=asked.get("max_shard_size"),
        to=asked.get("to"),
    )


@contextlib.contextmanager
def float_source(src: str) -> Iterator[Source]:
    """The source SRC names. Raises DataError when it is quantized."""
    from quantcli.stores import open_source
    from quantcli.stores.gguf import GgufFile
    from quantcli.stores.onnx import OnnxFile

    with contextlib.closing(open_source(src)) as source:
        if (
            source.documents
            or (isinstance(source, GgufFile) and source.blocks)
            or (isinstance(source, OnnxFile) and source.is_quantized)
        ):
            raise DataError(
                "this file is quantized already",
                place=[source.path],
                hint="dequantize it first, or start from the original",
            )
        yield source


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
