"""Comma-separated values: a row per tensor, for spreadsheets.

A header row, then numbers as Python prints them (RFC 4180, lines end in LF).
Text that a spreadsheet would take for a formula has an apostrophe in front.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import TextIO

from quantcli.errors import printable_line
from quantcli.reports.documents import Display, Tabular
from quantcli.reports.renderings import Rendering

_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def render(document: Tabular, stream: TextIO, display: Display) -> None:
    """Write the rows."""
    csv.writer(stream, lineterminator="\n").writerows(_cells(row) for row in document.rows())


def _cells(values: Iterable[object]) -> list[object]:
    """The cells of a row: shapes as 2x3, false and true, nothing for None, text as `_inert` gives it."""
    return [_inert(v) if isinstance(v, str) else v for v in map(_cell, values)]


def _inert(text: str) -> str:
    """Text that a spreadsheet takes for no formula and a log for no command.

    Reference: OWASP, CSV Injection.
    """
    shown, bare = printable_line(text), text.strip()  # tabs and line ends, which count too, are backslashes now
    return f"'{shown}" if len(bare) > 1 and bare[0] in _FORMULA else shown


def _cell(value: object) -> object:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


PROVIDES = Rendering(forms=((Tabular, render),), extensions=("csv",))
