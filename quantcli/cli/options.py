"""What the commands share: arguments, output choices, and the way from options to calls."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli import front, registry
from quantcli.cli import _help, _log, _naming, _utf8
from quantcli.cli._bar import Bar
from quantcli.cli._help import F
from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from quantcli.reports.run import RunReport


def _file(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value:
        raise click.BadParameter("'': an empty file name", param=parameter)
    return value


source = click.argument("src", metavar="SRC", type=_help.MODEL, callback=_file)
"""The SRC argument."""

destination = click.argument("dst", metavar="DST", type=_help.OUTPUT, callback=_file)
"""The DST argument, of an output that is made in several steps."""


@contextlib.contextmanager
def standard_output(output: str | None, console: Console) -> Iterator[str | None]:
    """Where to write: `output`, or for - a temporary file that goes to standard output at the end.

    Raises UsageError when standard output is a terminal or wanted for JSON too.
    """
    if output != "-":
        yield output
        return
    from quantcli.stores import standard
    from quantcli.stores.temporary import TemporaryFolder

    if console.json:
        raise UsageError("standard output is for the file", place=["--json"], hint="name a file with -o")
    standard.check_output()
    with TemporaryFolder() as folder:
        path = os.path.join(folder, "output.safetensors")
        yield path
        standard.send(path)


def _output(text: str, kind: click.ParamType) -> Callable[[F], F]:  # type: ignore[type-arg,unused-ignore]
    """-o."""
    return _help.option("-o", "--output", type=kind, callback=_file, help=text, group="Common")


def _written(kind: click.ParamType) -> Callable[[F], F]:  # type: ignore[type-arg,unused-ignore]
    """-o and --force."""
    force = _help.option("--force", is_flag=True, help="Replace an existing output.", group="Output")
    return _help.options(_output("The file to write; - is standard output.", kind), force)


_private = _help.option(
    "--private",
    is_flag=True,
    help="Make the repository of an hf:// output private, where it is new.",
    group="Output",
)

output = _help.options(_written(_help.OUTPUT), _private)
"""-o, --force and --private, of a model that may be written to a URL."""

local_output = _written(_help.WRITTEN)
"""-o and --force, of a file of this machine."""

document = _output(
    "Write it to a file too, as its extension says: .html a page, .csv figures, .json, .md or .txt.", _help.WRITTEN
)
"""-o, for a file of what the command prints."""

show_all = _help.option("--all", "show_all", is_flag=True, help="Show every tensor.", group="Output")
"""--all, as `show_all`."""

container = _help.option(
    "--container",
    is_flag=True,
    help="With --to gguf or onnx: write the quantized tensors alone, in a file that no runtime runs as a model.",
    group="Output",
)
"""--container."""

threads = _help.option(
    "--threads",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Threads to use; the output does not depend on it.",
    show_default="all processors",
    group="Run",
)
"""--threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """How a command prints: as one JSON document or for people, when in colour, and whether with more or nothing on
    standard error."""

    json: bool
    color: str
    verbose: bool
    quiet: bool

    @property
    def coloured(self) -> bool:
        """Whether what is printed is coloured."""
        return front.wants_colour(sys.stdout, self.color)

    def inform(self, *messages: str) -> None:
        """A line each on standard error, unless quiet, and in the log."""
        for message in messages:
            if self.quiet:
                _log.current().line("message", text=message)
            else:
                inform(message)

    def bar(self, title: str) -> Bar:
        """A progress bar."""
        return Bar(title, quiet=self.quiet)


QUIET = Console(json=False, color="never", verbose=False, quiet=True)
"""Prints nothing."""


def console(command: F) -> F:
    """--json, --color, -v, -q and --debug, the first four as `console`, and --log-file, which it sees to."""

    @functools.wraps(command)
    def printing(
        *arguments: Any,
        as_json: bool,
        color: str,
        verbose: bool,
        quiet: bool,
        log_file: str | None,
        **others: Any,
    ) -> Any:
        console = Console(json=as_json, color=color, verbose=verbose, quiet=quiet)
        with _log.logging(log_file, click.get_current_context()):
            return command(*arguments, console=console, **others)

    return cast(F, _CONSOLE(printing))


_CONSOLE = _help.options(
    _help.option("--json", "as_json", is_flag=True, help="Print one JSON document.", group="Output"),
    _help.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        help="Colour the output.",
        group="Output",
    ),
    _help.option("-v", "--verbose", is_flag=True, help="Print more on standard error.", group="Run"),
    _help.option(
        "--log-file",
        type=_help.WRITTEN,
        help="Write what was asked, decided and found to a file, in lines of JSON.",
        group="Run",
    ),
    _help.option("-q", "--quiet", is_flag=True, help="Print nothing but errors, and show no progress.", group="Run"),
    _help.option(
        "--debug", is_flag=True, hidden=True, expose_value=False, help="Show the traceback of an error.", group="Run"
    ),
)


def print_warnings(report: RunReport) -> None:
    """Its warnings on standard error, the first ten."""
    for line in report.warnings[:10]:
        warn(line)
    if len(report.warnings) > 10:
        warn(f"and {len(report.warnings) - 10} more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFile:
    """A file to write a document to, and what the command reads, which it may not replace."""

    path: str
    rendering: str
    inputs: Sequence[str | None]


def document_file(path: str | None, kind: type, inputs: Sequence[str | None]) -> DocumentFile | None:
    """The file that -o names, for a document of a type; None without one. Raises UsageError for the name of an input,
    and for an extension that stands for no rendering of such documents."""
    if path is None:
        return None
    check_outputs([path], inputs)
    return DocumentFile(path=path, rendering=_naming.rendering(path, kind), inputs=inputs)


def show(document: Any, console: Console, *, show_all: bool = False, file: DocumentFile | None = None) -> None:
    """Write a document to a file, where there is one, and print it: as JSON where that is asked for, else for people,
    unless quiet. It is in the log too."""
    _log.current().document(document)
    if file is not None:
        write_document(document, file.rendering, file.path, file.inputs)
    if console.json or not console.quiet:
        print_document(document, "json" if console.json else "table", console, show_all=show_all)


def print_document(document: Any, rendering: str, console: Console, *, show_all: bool) -> None:
    """Print a document as asked for."""
    from quantcli import terminal
    from quantcli.reports.documents import Display

    limit = None if show_all else max(3, terminal.screenful())
    ascii_only = "utf" not in (sys.stdout.encoding or "ascii").lower()
    display = Display(colour=console.coloured, limit=limit, verbose=console.verbose, ascii_only=ascii_only)
    render = registry.get("reports.renderings", rendering).render
    raw = getattr(sys.stdout, "buffer", None)
    if rendering == "table" or raw is None:
        render(document, sys.stdout, display)
    else:  # a document is UTF-8 in every locale
        sys.stdout.flush()
        stream = _utf8.Utf8(raw)
        render(document, stream, display)
        stream.flush()
    sys.stdout.flush()


def write_document(document: Any, rendering: str, path: str, inputs: Sequence[str | None]) -> None:
    """Replace a file by a document. Raises UsageError when it is one of the inputs."""
    from quantcli.reports.documents import Display

    text = io.StringIO()
    registry.get("reports.renderings", rendering).render(document, text, Display())
    replace_file(path, text.getvalue(), inputs)


def check_outputs(paths: Sequence[str], inputs: Sequence[str | None]) -> None:
    """Refuse texts that cannot be written, before anything is measured. Raises UsageError where two would be one file
    or one is an input."""
    known = set[str]()
    for path in paths:
        target = replaceable(path, inputs)
        if target in known:
            raise UsageError("two outputs are the same file", place=[path], hint="name another file for one of them")
        known.add(target)


def replaceable(path: str, inputs: Sequence[str | None]) -> str:
    """The real path of a file that may be replaced by a text. Raises UsageError when it is an input, or a file that an
    input folder is read from."""
    from quantcli.stores.files import check_destination

    target = check_destination(path, force=True, sources=[])
    if os.path.exists(target):
        status = os.stat(target)
        for name in _files_of(inputs):
            with contextlib.suppress(OSError, ValueError):
                if os.path.samestat(status, os.fstat(0) if name == "-" else os.stat(name)):
                    hint = "choose another name"
                    raise UsageError("output and input are the same file", place=[path], hint=hint)
    return target


def _files_of(inputs: Sequence[str | None]) -> Iterator[str]:
    """Input files, of folders those that make a model."""
    for name in filter(None, inputs):
        yield name
        if os.path.isdir(name):
            own = (".safetensors", "config.json", ".index.json")
            yield from (os.path.join(name, inner) for inner in os.listdir(name) if inner.endswith(own))


def replace_file(path: str, text: str, inputs: Sequence[str | None]) -> None:
    """Replace a file by a text, at once and whole. Raises UsageError when it is one of the inputs."""
    from quantcli.stores.files import OutputFile

    data = text.encode("utf-8", "backslashreplace")
    target = replaceable(path, inputs)
    with OutputFile(target, len(data), force=True) as out:
        out.write(0, data)
        out.sync()
        out.publish()


def targets(**more: str) -> _help.Names:
    """The targets of an export, each with the programs that load it."""
    names = registry.names("layouts", "WRITES")
    return _Targets(names, lambda name: f"for {registry.purpose('layouts', name, 'WRITES')}", **more)


class _Targets(_help.Names):
    """Names of targets, some with the name of a kind of file after a colon."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, with that of the kind as it is called."""
        if value == "native" and "native" not in self.choices:
            problem = "quantcli's own layout is not one of another tool"
            hint = "quantize --to native --requantize SRC decodes its weights and quantizes them again"
            raise UsageError(problem, place=["--to native"], hint=hint)
        if not isinstance(value, str) or ":" not in value:
            return super().convert(value, param, ctx)
        from quantcli.layouts.writer import checked

        return checked(value, "--to")


class Several(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Values apart by commas."""

    name = "list"

    def __init__(self, kind: type[int] | type[str] | _help.Names) -> None:
        self.kind = kind

    @property
    def words(self) -> Mapping[str, str]:
        """What each name means."""
        return self.kind.words if isinstance(self.kind, _help.Names) else {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        found: list[Any] = []
        for word in str(value).split(","):
            if isinstance(self.kind, _help.Names):
                name = word.strip().replace("_", "-")
                if name not in self.kind.choices:
                    self.fail(f"{word.strip()!r} is not one of {', '.join(self.kind.choices)}", param, ctx)
                found.append(name)
                continue
            if self.kind is str:
                found.append(word.strip())
                continue
            try:
                found.append(int(word))
            except ValueError:
                self.fail(f"{word.strip()!r} is not a whole number", param, ctx)
        return list(dict.fromkeys(found))


def numbers(name: str, default: Sequence[int] | None, text: str, *, group: str, shown: str = "") -> Callable[[F], F]:
    """An option that takes whole numbers; shown: in help, of one without a default of its own."""
    value = ",".join(map(str, default)) if default is not None else None
    return _help.option(
        name,
        type=Several(int),
        metavar="LIST",
        default=value,
        show_default=shown or True,
        help=text,
        group=group,
    )


def warn(message: str) -> None:
    """One line on standard error, and in the log."""
    _log.current().line("warning", text=message)
    click.echo(f"quantcli: warning: {printable(message, 1000)}", err=True)


def inform(message: str) -> None:
    """One line on standard error, and in the log."""
    _log.current().line("message", text=message)
    click.echo(f"quantcli: {printable(message, 1000)}", err=True)


def thread_count(threads: int | None) -> int:
    """The number of threads asked for, or all processors."""
    from quantcli.passes.tiles import default_threads

    return threads or default_threads()
