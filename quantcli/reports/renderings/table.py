"""Tables for people: the verdict, what was kept, the worst tensors.

Of a report a header with what matters most, gates, what changed since a baseline, then a row per tensor, worst SQNR
first; of two models that are compared, what their files say of themselves and what only one holds comes last. Other
documents say themselves which lines and tables they are.
"""

from __future__ import annotations

from typing import TextIO

from quantcli import terminal as t
from quantcli.reports.documents import Line, Look, Plot, Readable
from quantcli.reports.renderings import Rendering


def render(document: Readable, stream: TextIO, look: Look) -> None:
    """Print the lines, tables and plots."""
    for part in document.parts(look):
        if isinstance(part, Line):
            _line(part, stream, look)
        elif isinstance(part, Plot):
            t.plot(part.marks, stream, across=part.across, up=part.up)
        else:
            t.show(part, stream, colour=look.colour)


def _line(line: Line, stream: TextIO, look: Look) -> None:
    if line.wrapped:
        t.paragraph(line.text, stream)
        return
    if line.verdict:
        colour = 32 if line.passed else 31
        stream.write(f"\x1b[{colour}m{line.verdict}\x1b[0m  " if look.colour else f"{line.verdict}  ")
    t.line(line.text, stream, style="1" if line.strong and look.colour else "")


PROVIDES = Rendering(forms=((Readable, render),), extensions=("txt",))
