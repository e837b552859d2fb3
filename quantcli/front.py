"""The first page of help, `quantcli --help`, and how pages of help are laid out.

It stands apart from the command line because click takes three times as long to import as Python to start, and this
page is what people ask for first.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TextIO

from quantcli import registry

NAMES = ("-h", "--help")
"""The options for help."""

COMPLETE = "_QUANTCLI_COMPLETE"
"""The environment variable by which a shell asks for completions."""

ABOUT = "Quantize model weight files, and say what it cost."
VERSION, HELP = "Show the version and the kernels in use.", "Show this message and exit."

MOST, LEAST = 100, 50
"""Columns of the terminal that help takes at most, and as many as it lays lines out for at least."""

WIDEST = 26
"""Columns for the names of options; a longer one has its text on the next line."""

Example = tuple[str, str]
"""A command line, and what it does in a few words."""

EXAMPLES: Sequence[Example] = (
    ("quantcli quantize model.safetensors --bits 4", "quantize a file"),
    ("quantcli report model-w4g128.safetensors", "show what it cost"),
    ("quantcli quantize --help", "options of a command"),
    ("quantcli help formats", "help on a topic"),
)
"""What to try first."""

BOLD, DIM, CYAN = 1, 2, 36


class Sink(Protocol):
    """Takes the text of a page, whose lines are as wide as it says: a formatter of click, or a Page."""

    width: int

    def write(self, text: str, /) -> None:
        """Add text."""

    def write_paragraph(self) -> None:
        """Add an empty line, but at the top."""


class Page:
    """A page in memory."""

    def __init__(self, width: int) -> None:
        self.width, self.text = width, ""

    def write(self, text: str, /) -> None:
        """Add text."""
        self.text += text

    def write_paragraph(self) -> None:
        """Add an empty line, but at the top."""
        if self.text:
            self.text += "\n"


def program(out: Sink) -> None:
    """Write the first page: what there is to try, the commands, and the options of the program itself."""
    out.write("Usage: quantcli [OPTIONS] [COMMAND] [ARGS]...\n")
    out.write_paragraph()
    write_text(out, ABOUT)
    write_examples(out, EXAMPLES)
    write_sections(
        out, {"Commands": list(registry.commands().items()), "Run": [("--version", VERSION), (", ".join(NAMES), HELP)]}
    )


def show() -> bool:
    """Print the first page; False where standard output does not take it, for a reason that the command line tells."""
    import shutil

    page = Page(max(min(shutil.get_terminal_size().columns, MOST) - 2, LEAST))
    program(page)
    try:
        sys.stdout.write(page.text if wants_colour(sys.stdout, "auto") else unstyled(page.text))
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        return False
    return True


# ---- layout -----------------------------------------------------------------------------------------------------


def wants_colour(stream: TextIO, choice: str) -> bool:
    """Whether to colour: on a terminal that can, unless NO_COLOR is set; --color and FORCE_COLOR decide before."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def styled(text: str, style: int) -> str:
    """A text in bold, dim or coloured."""
    return f"\x1b[{style}m{text}\x1b[0m"


def unstyled(text: str) -> str:
    """A text without any style."""
    for style in (0, BOLD, DIM, CYAN):
        text = text.replace(f"\x1b[{style}m", "")
    return text


def write_text(out: Sink, text: str) -> None:
    """Write paragraphs, wrapped."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            out.write_paragraph()
        for line in _wrapped(paragraph, out.width - 2):
            out.write(f"  {line}\n")


def write_heading(out: Sink, text: str) -> None:
    """Write a heading below an empty line."""
    out.write_paragraph()
    out.write(styled(f"{text}:", BOLD) + "\n")


def write_examples(out: Sink, examples: Sequence[Example]) -> None:
    """Write examples under a heading."""
    write_heading(out, "Examples")
    for line in _example_lines(examples, out.width):
        out.write(f"{line}\n")


def write_sections(out: Sink, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write names with their texts under headings, the texts of all sections in one column."""
    sections = {heading: [(f"  {left}", text) for left, text in rows] for heading, rows in sections.items()}
    column = min(max(len(left) for rows in sections.values() for left, _ in rows), WIDEST) + 2
    for heading, rows in sections.items():
        write_heading(out, heading)
        for left, text in rows:
            _write_row(out, left, text, column)


def _wrapped(text: str, width: int) -> list[str]:
    """Its lines; names of options and files stay whole."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def _example_lines(examples: Sequence[Example], width: int) -> Iterator[str]:
    """The examples with what they do behind them, or above each where a line would be too long."""
    longest = max(len(line) for line, _ in examples)
    fits = all(longest + len(why) + 6 <= width for _, why in examples)
    for line, why in examples:
        comment = styled(f"# {why}", DIM)
        yield f"  {line.ljust(longest)}  {comment}" if fits else f"  {comment}\n  {line}"


def _write_row(out: Sink, left: str, text: str, column: int) -> None:
    """A name and its text, which is wrapped in a column of its own."""
    name = left.lstrip()
    shown = left[: len(left) - len(name)] + styled(name, CYAN)
    lines = _wrapped(text, out.width - column) or [""]
    if len(left) + 2 <= column:
        out.write(f"{shown}{' ' * (column - len(left))}{lines.pop(0)}\n")
    else:
        out.write(f"{shown}\n")
    for line in lines:
        out.write(f"{' ' * column}{line}\n")
