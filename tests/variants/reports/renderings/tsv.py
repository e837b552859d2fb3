"""Tab-separated values: a line per tensor, for cut, sort and awk.

A line of titles, then of every tensor its file, name, disposition, scheme, bits per weight and SQNR in dB.
"""

from __future__ import annotations

from typing import TextIO

from quantcli.errors import printable_line
from quantcli.reports.documents import Display
from quantcli.reports.renderings import Rendering
from quantcli.reports.run import RunReports

COLUMNS = ("name", "disposition", "scheme", "bits_per_weight", "sqnr_db")


def render(document: RunReports, stream: TextIO, display: Display) -> None:
    """Write the lines; what is not known is empty, and no name has a tab."""
    print("file", *COLUMNS, sep="\t", file=stream)
    for report in document.reports:
        for tensor in report.tensors:
            values = (report.name, *(getattr(tensor, column) for column in COLUMNS))
            print(*("" if v is None else printable_line(str(v)) for v in values), sep="\t", file=stream)


PROVIDES = Rendering(forms=((RunReports, render),), extensions=("tsv",))
