"""Comma-separated values: a row per tensor, for spreadsheets.

A header row, then numbers as Python prints them (RFC 4180, lines end in LF).
Text that a spreadsheet would take for a formula has an apostrophe in front.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

from quantcli.errors import printable_line
from quantcli.reports.documents import Look, Tabular
from quantcli.reports.records import RunReport
from quantcli.reports.renderings import Rendering

COLUMNS = (
    "name", "dtype", "shape", "disposition", "reason", "note", "scheme", "bits", "format", "granularity", "group_size",
    "symmetric", "calibration", "rounding", "mse", "nmse", "sqnr_db", "exact", "max_abs_error", "clipped_fraction",
    "bits_per_weight", "bytes_in", "bytes_out",
)  # fmt: skip

_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def render(reports: Sequence[RunReport], stream: TextIO, look: Look) -> None:
    """Write the rows; `failed` names the gates a tensor does not pass."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", *COLUMNS, "failed"])
    for report in reports:
        failed: dict[str, list[str]] = {}
        for gate in report.gates:
            for failure in gate.failures:
                failed.setdefault(failure.tensor, []).append(gate.gate)
        for tensor in report.tensors:
            columns = (getattr(tensor, column) for column in COLUMNS)
            writer.writerow(_cells([report.name, *columns, " ".join(failed.get(tensor.name, []))]))


def _tables(documents: Sequence[Tabular], stream: TextIO, look: Look) -> None:
    """Write the rows of other documents."""
    writer = csv.writer(stream, lineterminator="\n")
    for document in documents:
        writer.writerows(_cells(row) for row in document.rows())


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


PROVIDES = Rendering(forms=((RunReport, render), (Tabular, _tables)), extensions=("csv",))
