"""Tables for notebooks: what `_repr_html_` of records gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from quantcli.errors import printable

ROWS = 200
"""A table shows so many; a line below says how many there are."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table with every cell escaped; names come from files of strangers.

    >>> table(("name", "bits"), [("<w>", 4)])
    '<table><tr><th>name</th><th>bits</th></tr><tr><td>&lt;w&gt;</td><td>4</td></tr></table>'
    """
    found = list(rows)
    lines = [_row("th", header), *(_row("td", row) for row in found[:ROWS])]
    more = f"<p>{ROWS} of {len(found)}</p>" if len(found) > ROWS else ""
    return f"<table>{''.join(lines)}</table>{more}"


def _row(tag: str, cells: Sequence[Any]) -> str:
    from html import escape

    shown = (escape(printable(str(cell), 200)) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in shown)}</tr>"
