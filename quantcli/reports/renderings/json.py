"""JSON: one document with every figure.

A report, or several in `reports`. Its schema is `report.schema.json` beside this file; the document of one report is a
valid `--baseline`. Strict JSON, names escaped to ASCII, null instead of infinities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from quantcli.reports.documents import SCHEMA_VERSION, Document, Look
from quantcli.reports.records import RunReport
from quantcli.reports.renderings import Rendering, verdict


def render(reports: Sequence[RunReport], stream: TextIO, look: Look) -> None:
    """Write one report as it is, several in one document."""
    documents = [report.as_dict() for report in reports]
    if len(documents) == 1:
        whole = documents[0]
    else:
        whole = {
            "schema_version": SCHEMA_VERSION,
            "command": reports[0].command if reports else "report",
            "passed": verdict(reports),
            "reports": documents,
        }
    _write(whole, stream)


def _each(documents: Sequence[Document], stream: TextIO, look: Look) -> None:
    for document in documents:
        _write(document.as_dict(), stream)


def _write(document: dict[str, Any], stream: TextIO) -> None:
    """Write a document, and nothing that a log of GitHub Actions or Azure Pipelines takes for a command."""
    for part in json.JSONEncoder(indent=1, allow_nan=False).iterencode(document):
        stream.write(part.replace("##", "#\\u0023"))  # in names and texts only
    stream.write("\n")


PROVIDES = Rendering(forms=((RunReport, render), (Document, _each)), extensions=("json",))
