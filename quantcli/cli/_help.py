"""Help for people: examples first, options in groups, defaults shown, and a description of every choice.

An option is declared with `option(..., group=NAME)`, NAME one of GROUPS; a command with `command(NAME, examples=...)`.
Nothing here is imported but click: help is read more often than anything else, and must come at once.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import click

from quantcli import registry

FILE = click.Path(path_type=str)
"""The type of an option that takes the name of a file."""

F = TypeVar("F", bound=Callable[..., Any])

GROUPS = ("Common", "Gates", "Scheme", "Search", "Selection", "Size", "Output", "Run")
"""The groups of options, in the order in which help shows them."""

WIDEST = 26
"""Columns for the names of options; a longer one has its text on the next line."""

Example = tuple[str, str]
"""A command line, and what it does in a few words."""


class Option(click.Option):
    """An option in a group of its command's help.

    `show_default` is the text of a default that is found later, or True for the one that is declared. A type with
    `words` (see Names) has its choices listed, each with its description.
    """

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group
        if self.metavar is None and (self.words or self.type is FILE):
            self.metavar = "NAME" if self.words else "FILE"

    @property
    def words(self) -> Mapping[str, str]:
        """What each choice means, where the type has descriptions."""
        return getattr(self.type, "words", {})

    @property
    def default_text(self) -> str:
        """The default as help shows it; empty where there is none."""
        return (
            self.show_default if isinstance(self.show_default, str) else str(self.default) if self.show_default else ""
        )


class Command(click.Command):
    """A command whose help begins with examples and shows its options in groups."""

    def __init__(self, *arguments: Any, examples: Sequence[Example] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = examples

    def get_short_help_str(self, limit: int = 45) -> str:
        """What the command does, for lists of commands."""
        return registry.summary("cli", self.name or "")

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        write(self, ctx, formatter, self.examples)


class Names(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """A choice of names that may be written with dashes or underscores, with a description of each: those of `more`,
    and variants, whose words are found when they are asked for."""

    def __init__(self, variants: Sequence[str] = (), word: Callable[[str], str] = str, **more: str) -> None:
        super().__init__([*more, *variants])
        self.more, self.variants, self.word = more, variants, word

    @property
    def words(self) -> Mapping[str, str]:
        """What each name means."""
        return {**self.more, **{name: self.word(name) for name in self.variants}}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, with dashes."""
        name = value.replace("_", "-") if isinstance(value, str) else value
        return super().convert(name if name in self.choices else value, param, ctx)


def option(*names: str, group: str, **settings: Any) -> Callable[[F], F]:
    """An option of a command, in a group of its help."""
    return click.option(*names, cls=Option, group=group, **settings)


def options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    """Several options of a command as one decorator, in the order in which help shows them."""

    def declare(command: F) -> F:
        for one in reversed(declared):
            command = one(command)
        return command

    return declare


def command(name: str, *, examples: Sequence[Example]) -> Callable[[Callable[..., Any]], Command]:
    """A command of the package `cli`, with examples of its use."""
    return click.command(name, cls=Command, examples=examples)


def grouped(command: click.Command, ctx: click.Context) -> Mapping[str, list[click.Option]]:
    """The visible options of a command by group, in order; what click adds itself is of how it runs."""
    found: dict[str, list[click.Option]] = {name: [] for name in GROUPS}
    for parameter in command.get_params(ctx):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            found[getattr(parameter, "group", "Run")].append(parameter)
    return {name: options for name, options in found.items() if options}


def write(
    command: click.Command,
    ctx: click.Context,
    formatter: click.HelpFormatter,
    examples: Sequence[Example],
    more: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> None:
    """Write the help of a command: what it does, examples, details, sections of `more`, and its options in groups."""
    ctx.color = wants_colour(sys.stdout, "auto")  # click asks for a terminal alone
    command.format_usage(ctx, formatter)
    formatter.write_paragraph()
    first, _, details = inspect.cleandoc(command.help or "").partition("\n\n")
    _write_text(formatter, first)
    if examples:
        _write_heading(formatter, "Examples")
        for line in _example_lines(examples, formatter.width):
            formatter.write(f"{line}\n")
    if details:
        _write_heading(formatter, "Details")
        _write_text(formatter, details)
    options = grouped(command, ctx).items()
    write_sections(
        formatter, {**(more or {}), **{group: [r for o in found for r in _rows(o, ctx)] for group, found in options}}
    )


def write_sections(formatter: click.HelpFormatter, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write names with their texts under headings, the texts of all sections in one column."""
    sections = {heading: [(f"  {left}", text) for left, text in rows] for heading, rows in sections.items()}
    column = min(max(len(left) for rows in sections.values() for left, _ in rows), WIDEST) + 2
    for heading, rows in sections.items():
        _write_heading(formatter, heading)
        for left, text in rows:
            _write_row(formatter, left, text, column)


def wants_colour(stream: TextIO, choice: str) -> bool:
    """Whether to colour: on a terminal that can, unless NO_COLOR is set; --color and FORCE_COLOR decide before."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _wrapped(text: str, width: int) -> list[str]:
    """Its lines; names of options and files stay whole."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def _write_text(formatter: click.HelpFormatter, text: str) -> None:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            formatter.write_paragraph()
        for line in _wrapped(paragraph, formatter.width - 2):
            formatter.write(f"  {line}\n")


def _write_heading(formatter: click.HelpFormatter, text: str) -> None:
    formatter.write_paragraph()
    formatter.write(click.style(f"{text}:", bold=True) + "\n")


def _example_lines(examples: Sequence[Example], width: int) -> Iterator[str]:
    """The examples with what they do behind them, or above each where a line would be too long."""
    longest = max(len(line) for line, _ in examples)
    fits = all(longest + len(why) + 6 <= width for _, why in examples)
    for line, why in examples:
        comment = click.style(f"# {why}", dim=True)
        yield f"  {line.ljust(longest)}  {comment}" if fits else f"  {comment}\n  {line}"


def _rows(option: click.Option, ctx: click.Context) -> Iterable[tuple[str, str]]:
    """The lines of an option: itself, then each of its choices that has a description."""
    record = option.get_help_record(ctx)
    if record is None:
        return
    extra = [f"default: {option.default_text}"] if isinstance(option, Option) and option.default_text else []
    extra += ["required"] if option.required else []
    yield record[0], "  ".join([option.help or "", *([f"[{'; '.join(extra)}]"] if extra else [])])
    words = option.words if isinstance(option, Option) else {}
    for name, word in words.items():
        yield f"  {name}", word


def _write_row(formatter: click.HelpFormatter, left: str, text: str, column: int) -> None:
    """A name and its text, which is wrapped in a column of its own."""
    name = left.lstrip()
    styled = left[: len(left) - len(name)] + click.style(name, fg="cyan")
    lines = _wrapped(text, formatter.width - column) or [""]
    if len(left) + 2 <= column:
        formatter.write(f"{styled}{' ' * (column - len(left))}{lines.pop(0)}\n")
    else:
        formatter.write(f"{styled}\n")
    for line in lines:
        formatter.write(f"{' ' * column}{line}\n")
