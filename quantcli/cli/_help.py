"""Help for people: examples first, options in groups, defaults shown, and a description of every choice.

An option is declared with `option(..., group=NAME)`, NAME one of GROUPS; a command with `command(NAME, examples=...)`.
Nothing here is imported but click: help is read more often than anything else, and must come at once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from quantcli import registry
from quantcli.errors import UsageError
from quantcli.front import Example, wants_colour, write_examples, write_heading, write_sections, write_text


class _File(click.Path):
    """A file of this machine, which no URL is. written: whether it is one to write."""

    def __init__(self, *, written: bool = False) -> None:
        super().__init__(path_type=str)
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            from quantcli.stores.places import local

            try:
                local(value, written=self.written)
            except UsageError as error:
                raise error.within(param.opts[0]) if isinstance(param, click.Option) else error from None
        return super().convert(value, param, ctx)


class _Output(click.Path):
    """A model to write, by its path or by a URL that can be written to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value and not (ctx is not None and ctx.resilient_parsing):
            from quantcli.stores.destinations import prepare, writable

            try:
                value = writable(value)
                prepare(value)
            except UsageError as error:
                raise error.within(param.opts[0]) if isinstance(param, click.Option) else error from None
        return super().convert(value, param, ctx)


OUTPUT = _Output(path_type=str)
"""The type of an option that takes the name of a model to write."""

FILE = _File()
"""The type of an option that takes the name of a file to read."""

WRITTEN = _File(written=True)
"""The type of an option that takes the name of a file to write, which is no model."""


class _Model(click.Path):
    """A model by its path or URL. A URL of the hub is read at one commit, which reports then name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value and not (ctx is not None and ctx.resilient_parsing):
            from quantcli.stores.places import pinned

            value = pinned(value)
        return super().convert(value, param, ctx)


MODEL = _Model(path_type=str)
"""The type of an option that takes a model."""

TYPED = "quantcli.typed"
"""Under what name a context holds the arguments of its command as they were typed."""

F = TypeVar("F", bound=Callable[..., Any])

GROUPS = ("Common", "Gates", "Scheme", "Search", "Selection", "Size", "Output", "Run")
"""The groups of options, in the order in which help shows them."""


class Option(click.Option):
    """An option in a group of its command's help.

    `show_default` is the text of a default that is found later, or True for the one that is declared. A type with
    `words` (see Names) has its choices listed, each with its description.
    """

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group
        if self.metavar is None and (self.words or self.type in (FILE, WRITTEN, MODEL, OUTPUT)):
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what was typed, and remember it in the context."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

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
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter, examples: Sequence[Example]
) -> None:
    """Write the help of a command: what it does, examples, details, and its options in groups."""
    ctx.color = wants_colour(sys.stdout, "auto")  # click asks for a terminal alone
    command.format_usage(ctx, formatter)
    formatter.write_paragraph()
    first, _, details = inspect.cleandoc(command.help or "").partition("\n\n")
    write_text(formatter, first)
    if examples:
        write_examples(formatter, examples)
    if details:
        write_heading(formatter, "Details")
        write_text(formatter, details)
    options = grouped(command, ctx).items()
    write_sections(formatter, {group: [row for one in found for row in rows(one, ctx)] for group, found in options})


def rows(option: click.Option, ctx: click.Context) -> Iterable[tuple[str, str]]:
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
