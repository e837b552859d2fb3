"""Tables for people: the verdict, what was kept, the worst tensors.

Of a report a header with what matters most, gates, what changed since a baseline, then a row per tensor, worst SQNR
first; of two models that are compared, what their files record and what only one holds comes last. Other documents
choose their own lines and tables.
"""

from __future__ import annotations

from typing import TextIO

from quantcli import terminal as t
from quantcli.reports.documents import Display, Line, Plot, Readable
from quantcli.reports.renderings import Rendering


def render(document: Readable, stream: TextIO, display: Display) -> None:
    """Print the lines, tables and plots."""
    for part in document.parts(display):
        if isinstance(part, Line):
            _line(part, stream, display)
        elif isinstance(part, Plot):
            t.plot(part.marks, stream, across=part.across, up=part.up)
        else:
            t.show(part, stream, colour=display.colour)


def _line(line: Line, stream: TextIO, display: Display) -> None:
    if line.wrapped:
        t.paragraph(line.text, stream, lead=line.lead)
        return
    if line.verdict:
        colour = 32 if line.passed else 31
        stream.write(f"\x1b[{colour}m{line.verdict}\x1b[0m  " if display.colour else f"{line.verdict}  ")
    t.line(line.text, stream, style="1" if line.strong and display.colour else "")


PROVIDES = Rendering(forms=((Readable, render),), extensions=("txt",))
