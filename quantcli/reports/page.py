"""The parts of a web page, and the page itself, which loads nothing from elsewhere.

Texts from files are escaped, and never part of the script; the page allows only the script whose digest it names.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.reports import svg

TALL = 40
"""Number of rows above which a table scrolls in a box of its own."""
NAME, TEXT = 300, 4000
"""Most characters of a name and of a sentence that are shown."""


def page(title: str, body: str) -> str:
    """A whole page; title and body are markup."""
    style, script = (resources.files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def escaped(text: str, limit: int = TEXT) -> str:
    """Text in which nothing is markup, fit for attributes too."""
    return html.escape(printable(text, limit))


def breakable(name: str) -> str:
    """A name that may break after dots and slashes, isolated from the text direction around it."""
    broken = re.sub("([./])", r"\1<wbr>", escaped(name, NAME))
    return f"<bdi>{broken}</bdi>"


def cell(text: str, *, value: float | None = None, numeric: bool = True) -> str:
    """A cell; value: the sort key where that is not its text."""
    start = '<td class="n"' if numeric else "<td"
    by = "" if value is None else f' data-v="{value:.17g}"'.replace("inf", "Infinity")
    return f"{start}{by}>{'–' if text == '-' else text}</td>"


def decibels_cell(value: float | None, exact: bool) -> str:
    return cell(t.decibels(value, exact), value=math.inf if exact else None)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; order: how the page sorts it at first."""

    title: str
    numeric: bool = False
    order: str = ""

    def head(self) -> str:
        """Its header cell."""
        kind = ' class="n"' if self.numeric else ""
        order = f' aria-sort="{self.order}"' if self.order else ""
        return f'<th scope="col"{kind}{order}>{self.title}</th>'


def box(label: str, columns: Sequence[Column], rows: Sequence[str], kind: str = "") -> str:
    """A table in a box that scrolls; kind: `data` for one that the script can sort and filter."""
    size = " tall" if len(rows) > TALL else ""
    start = f'<table class="{kind}">' if kind else "<table>"
    return (
        f'<div class="box{size}" role="region" aria-label="{label}" tabindex="0">\n'
        f"{start}\n<thead><tr>{''.join(c.head() for c in columns)}</tr></thead>\n"
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>"
    )


def row(*cells: str, kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return f"{start}{''.join(cells)}</tr>\n"


def figure(title: str, chart: svg.Chart, keys: Sequence[str], more: str) -> str:
    legend = "".join(f"<li>{key}</li>" for key in keys)
    after = f'<p class="more">{more}</p>' if more else ""
    return (
        f'<figure class="chart">\n<figcaption><h3>{title}</h3><ul class="legend">{legend}</ul>{after}</figcaption>\n'
        f'<div class="room">{chart.svg()}</div>\n</figure>'
    )


def many_tensors(number: int) -> str:
    """So many tensors, in words."""
    return f"{number:,} tensor{'' if number == 1 else 's'}"
