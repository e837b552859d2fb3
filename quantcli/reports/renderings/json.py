"""JSON: one document with every figure.

A report, or several in `reports`. Its schema is `report.schema.json` beside this file; the document of one report is a
valid `--baseline`. Strict JSON, names escaped to ASCII, null instead of infinities.
"""

from __future__ import annotations

import json
from typing import TextIO

from quantcli.reports.documents import Display, Document
from quantcli.reports.renderings import Rendering


def render(document: Document, stream: TextIO, display: Display) -> None:
    """Write a document, and nothing that a log of GitHub Actions or Azure Pipelines takes for a command."""
    for part in json.JSONEncoder(indent=1, allow_nan=False).iterencode(document.as_dict()):
        stream.write(part.replace("##", "#\\u0023"))  # in names and texts only
    stream.write("\n")


PROVIDES = Rendering(forms=((Document, render),), extensions=("json",))
