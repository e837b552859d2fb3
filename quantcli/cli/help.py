"""`quantcli help`: Show a topic, or list them all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import click

from quantcli import front, registry
from quantcli.cli import _help
from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown

DOCS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "docs")
"""The folder of the topics, one Markdown file each: a title, then a summary in one sentence."""

MARKS = re.compile(r"^<!-- (?:generated: .*|end) -->\n", re.MULTILINE)
"""The lines around a table that is generated from the code: for the tool that writes it, not for readers."""

WIDEST = 100
"""Columns of a rendered topic: longer lines are hard to read."""


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    known = {**topics(), **{name: registry.summary("cli", name) for name in _commands()}}
    return [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(incomplete)]


@_help.command(
    "help",
    examples=(
        ("quantcli help", "the list of topics"),
        ("quantcli help formats", "a topic"),
        ("quantcli help quantize", "the same as quantcli quantize --help"),
    ),
)
@click.argument("topic", required=False, shell_complete=_complete)
@_help.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour the output.",
    show_default=True,
    group="Output",
)
@click.pass_context
def command(ctx: click.Context, topic: str | None, color: str) -> None:
    """Show TOPIC, or the help of a command of that name; without TOPIC, list what there is.

    On a terminal the text is laid out for it, elsewhere it is the Markdown itself.
    """
    from quantcli.cli import cli

    ctx.color = front.wants_colour(sys.stdout, color)
    if topic is None:
        formatter = ctx.make_formatter()
        commands = {name: registry.summary("cli", name) for name in _commands()}
        front.write_sections(formatter, {"Topics": list(topics().items()), "Commands": list(commands.items())})
        formatter.write("\nquantcli help TOPIC shows a topic, quantcli COMMAND --help a command.\n")
        click.echo(formatter.getvalue().lstrip("\n"), nl=False)
    elif topic in topics():
        _show(_text(topic), color)
    elif (found := cli.get_command(ctx, topic)) is not None:
        inner = click.Context(found, parent=ctx.parent, info_name=topic)
        click.echo(found.get_help(inner))
    else:
        raise _unknown(topic)


def topics() -> Mapping[str, str]:
    """The names of the topics in alphabetical order, each with its summary."""
    names = sorted(name.removesuffix(".md") for name in os.listdir(DOCS) if name.endswith(".md"))
    return {name: _sentence(name) for name in names}


def _commands() -> tuple[str, ...]:
    return tuple(name for name in registry.names("cli") if name != "options")


def _text(topic: str) -> str:
    with open(os.path.join(DOCS, f"{topic}.md"), encoding="utf-8") as file:
        return MARKS.sub("", file.read())


def _sentence(topic: str) -> str:
    """The summary of a topic: its first paragraph."""
    _, _, rest = _text(topic).partition("\n\n")
    return " ".join(rest.partition("\n\n")[0].split()).rstrip(".")


def _unknown(topic: str) -> UsageError:
    import difflib

    known = [*topics(), *_commands()]
    near = difflib.get_close_matches(topic.lower(), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"topics: {', '.join(topics())}"
    return UsageError(f"no topic or command {printable(topic, 60)!r}", hint=hint)


def _show(text: str, color: str) -> None:
    """Print a topic: laid out on a terminal and where colour is asked for, else as it is."""
    coloured = front.wants_colour(sys.stdout, color)
    if not coloured and not sys.stdout.isatty():
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.theme import Theme

    from quantcli.terminal import terminal_size

    screen = terminal_size(sys.stdout)
    console = Console(
        file=sys.stdout,
        width=min(screen[0] if screen else WIDEST, WIDEST),
        force_terminal=True,
        color_system="standard" if coloured else None,
        theme=Theme({"markdown.code": "cyan"}),
    )
    with console.capture() as laid_out:
        console.print(_markdown(text), crop=False)
    sys.stdout.write(re.sub(r" +$", "", laid_out.get(), flags=re.MULTILINE))
    sys.stdout.flush()


def _markdown(text: str) -> Markdown:
    """A topic as rich lays it out: headings at the left, commands on one line each, so that they can be copied."""
    from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
    from rich.table import Table
    from rich.text import Text

    class Title(Heading):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            title = self.text.plain
            yield Text(title, style="bold")
            if self.tag in ("h1", "h2"):
                yield Text(("=" if self.tag == "h1" else "-") * len(title))

    class Commands(CodeBlock):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for line in str(self.text).rstrip().split("\n"):
                yield Text(f"    {line}", style="markdown.code", no_wrap=True, overflow="ignore")

    class Columns(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                assert isinstance(table, Table)
                for column in table.columns:  # names and figures stay whole, the rest gives way
                    cells = [str(cell) for cell in column.cells]
                    column.no_wrap = all(" " not in cell or cell.startswith("-") for cell in cells)
                    column.overflow = "fold"
                yield table

    class Topic(Markdown):
        elements: ClassVar[dict[str, type[MarkdownElement]]] = {
            **Markdown.elements,
            "heading_open": Title,
            "fence": Commands,
            "code_block": Commands,
            "table_open": Columns,
        }

    return Topic(text, hyperlinks=False)


PROVIDES = command
