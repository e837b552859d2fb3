"""Numbers and tables for people: aligned plain text in a pipe, rich on a terminal.

Names are data: what is not printable is shown escaped, and nothing in them is taken for markup.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from typing import TextIO

from quantcli.errors import printable, printable_line


def size(nbytes: int) -> str:
    """Bytes in decimal units.

    >>> size(999), size(90_868_376)
    ('999 B', '90.9 MB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    units = ["kB", "MB", "GB", "TB"]
    value, unit = nbytes / 1000, units.pop(0)
    while value >= 999.95 and units:
        value, unit = value / 1000, units.pop(0)
    return f"{value:.{2 if value < 10 else 1}f} {unit}"


def count(number: int) -> str:
    """A number of things, with a unit from a million on.

    >>> count(34_602), count(22_713_216)
    ('34,602', '22.7 M')
    """
    for limit, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= limit:
            return f"{number / limit:.{2 if number < 10 * limit else 1}f} {unit}"
    return f"{number:,}"


def change(before: int, after: int) -> str:
    """How an output compares with what it was made from, in words.

    >>> change(100, 40), change(100, 112), change(100, 100)
    ('2.50 times smaller', '1.12 times larger', 'as large')
    """
    if before == after or not before or not after:
        return "as large"
    return f"{before / after:.2f} times smaller" if after < before else f"{after / before:.2f} times larger"


def decibels(value: float | None, exact: bool) -> str:
    """An SQNR; `exact` when nothing was lost."""
    return "exact" if exact else "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """A small number in few characters."""
    return "-" if value is None else "0" if value == 0 else f"{value:.3g}"


def shape(dims: Sequence[int]) -> str:
    """A shape such as 30522x384; `scalar` without dimensions."""
    return "x".join(map(str, dims)) if dims else "scalar"


def shortened(name: str, width: int) -> str:
    """A name cut in the middle to a width, or where that would take the number of a layer, before or after it: rows of
    several layers are otherwise the same to the eye.

    >>> shortened("model.layers.10.self_attn.q_proj.weight", 20)
    'model.lay...j.weight'
    >>> shortened("bert.encoder.layer.10.attention.self.value.weight", 34)
    'b...10.attention.self.value.weight'
    """
    if len(name) <= width or width < 8:
        return name
    kept = width - 3
    gone, half, least = len(name) - kept, kept - kept // 2, kept // 3
    digits = [0, *accumulate(map(str.isdigit, name))]
    starts = (half, *range(half - 1, -1, -1), *range(half + 1, kept - least + 1))
    start = min(starts, key=lambda at: digits[at + gone] - digits[at])
    return f"{name[:start]}...{name[start + gone :]}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: title, alignment, and the least terminal width from which it is shown."""

    title: str
    right: bool = False
    from_width: int = 0


@dataclass(slots=True)
class Table:
    """Rows of cells; the first column holds names and gives way when there is no room. styles: one per row. more: rows
    behind these, made each time that they are asked for, as `cells_of` makes them."""

    columns: list[Column]
    rows: list[list[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    more: Iterable[list[str]] = ()

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row."""
        self.rows.append(cells_of(*cells))
        self.styles.append(style)

    def all_rows(self) -> Iterator[list[str]]:
        """Every row."""
        return chain(self.rows, self.more)


def cells_of(*cells: str) -> list[str]:
    """The cells of a row as they are shown."""
    return [printable_line(cells[0], 512), *(printable(c) for c in cells[1:])]


def terminal_size(stream: TextIO) -> tuple[int, int] | None:
    """Columns and lines of a terminal; None for a pipe or file."""
    if not stream.isatty():
        return None
    import shutil  # which brings along all that packs files

    wide, high = shutil.get_terminal_size((80, 24))
    return max(wide, 40), max(high, 10)


def screenful(stream: TextIO | None = None) -> int:
    """Rows of a table that fit a screen beside what is around it."""
    found = terminal_size(stream or sys.stdout)
    return (found[1] if found else 24) - 10


def plot(marks: Sequence[tuple[float, float, str]], stream: TextIO, *, across: str, up: str) -> None:
    """Draw marks (x, y, character) over two axes in plain characters; of marks in one place the first is seen."""
    if not marks:
        return
    screen = terminal_size(stream)
    width, height = min((screen[0] if screen else 80) - 10, 100), 18
    xs, ys = [m[0] for m in marks], [m[1] for m in marks]
    low, high = min(ys), max(ys)
    left, right = min(xs), max(xs)
    rows = [[" "] * width for _ in range(height)]
    for x, y, character in reversed(marks):
        col = round((x - left) / ((right - left) or 1.0) * (width - 1))
        row = round((high - y) / ((high - low) or 1.0) * (height - 1))
        rows[row][col] = character
    for number, row_cells in enumerate(rows):
        labelled = number in (0, height // 2, height - 1)
        value = f"{high - (high - low) * number / (height - 1):7.1f}" if labelled else " " * 7
        stream.write(f"{value} |{''.join(row_cells)}".rstrip() + "\n")
    stream.write(" " * 8 + "+" + "-" * width + "\n")
    ends = f"{left:.2f}", f"{right:.2f} {across}"
    stream.write(" " * 9 + ends[0] + ends[1].rjust(width - len(ends[0])) + f"   ({up} upwards)\n")


def paragraph(text: str, stream: TextIO, *, lead: str = "") -> None:
    """Print a text in lines that fit the terminal, or 100 characters in a pipe. lead: what stands before the first, and
    is as wide before the others."""
    import textwrap

    screen = terminal_size(stream)
    width = screen[0] if screen else 100
    stream.write(
        textwrap.fill(
            text,
            width,
            break_on_hyphens=False,
            break_long_words=False,
            initial_indent=lead,
            subsequent_indent=" " * len(lead),
        )
        + "\n"
    )


def line(text: str, stream: TextIO, *, style: str = "") -> None:
    """Print a line of which any part may come from a file; style: the digits of an ANSI colour or weight."""
    shown = printable_line(text)
    stream.write(f"\x1b[{style}m{shown}\x1b[0m\n" if style else f"{shown}\n")


def show(table: Table, stream: TextIO, *, colour: bool) -> None:
    """Print a table: columns aligned; on a terminal cut to its width, in a pipe whole."""
    screen = terminal_size(stream)
    shown = [i for i, c in enumerate(table.columns) if screen is None or screen[0] >= c.from_width]
    columns = [table.columns[i] for i in shown]
    widths = [len(c.title) for c in columns]
    for row in table.all_rows():
        for at, i in enumerate(shown):
            widths[at] = max(widths[at], len(row[i]))
    if screen is not None:
        room = screen[0] - sum(widths[1:]) - 2 * (len(widths) - 1)
        widths[0] = max(12, min(widths[0], room))
    rows = ([shortened(row[0], widths[0]), *(row[i] for i in shown[1:])] for row in table.all_rows())
    if colour:
        _show_rich(columns, rows, table.styles, widths, stream)
        return
    for cells in chain([[c.title for c in columns]], rows):
        line = "  ".join(cell.rjust(w) if c.right else cell.ljust(w) for cell, w, c in zip(cells, widths, columns))
        stream.write(line.rstrip() + "\n")


def _show_rich(
    columns: list[Column], rows: Iterable[list[str]], styles: list[str], widths: list[int], stream: TextIO
) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in zip(columns, widths):
        table.add_column(Text(column.title), justify="right" if column.right else "left", no_wrap=True, min_width=width)
    for cells, style in zip(rows, chain(styles, repeat(""))):
        table.add_row(*(Text(cell) for cell in cells), style=style)
    wide = sum(widths) + 2 * len(widths) + 2
    console = Console(
        file=stream, force_terminal=True, color_system="standard", width=wide, highlight=False, emoji=False
    )
    console.print(table, crop=False)
