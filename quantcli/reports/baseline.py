"""Earlier reports to compare with: the JSON documents that `quantcli report --json` prints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from quantcli.errors import DataError, UsageError, printable
from quantcli.reports.documents import SCHEMA_VERSION
from quantcli.stores.places import read_small
from quantcli.strict import strict_json

LIMIT = 200_000_000


def load(path: str, subject: str) -> Mapping[str, Any]:
    """The report in a file, as plain values; of several the one about the file named as `subject` is.

    Raises DataError where it is not a report, UsageError where none of several is about that file.
    """
    document = strict_json(read_small(path, LIMIT), path)
    if isinstance(document, dict) and isinstance(document.get("reports"), list):
        base = os.path.basename(os.path.normpath(subject))
        found = [r for r in document["reports"] if isinstance(r, dict) and _about(r) == base]
        if len(found) != 1:
            raise UsageError(f"it holds {len(found)} reports on {printable(base, 100)}", place=[path])
        document = found[0]
    _check(document, path)
    assert isinstance(document, dict)
    return document


def _about(report: Mapping[str, Any]) -> str:
    name = report.get("output") or report.get("source")
    return os.path.basename(os.path.normpath(name)) if isinstance(name, str) else ""


def _check(document: Any, path: str) -> None:
    hint = "make it with quantcli report --json"
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), list):
        raise DataError("it is not a report", place=[path], hint=hint)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"schema version {printable(repr(version), 40)}, not {SCHEMA_VERSION}", place=[path], hint=hint)
    for i, tensor in enumerate(document["tensors"]):
        good = (
            isinstance(tensor, dict)
            and isinstance(tensor.get("name"), str)
            and isinstance(tensor.get("exact"), bool)
            and isinstance(tensor.get("reason"), str)
            and {"sqnr_db", "scheme"} <= tensor.keys()
            and type(tensor["sqnr_db"]) in (float, int, type(None))
            and isinstance(tensor["scheme"], (str, type(None)))
        )
        if not good:
            raise DataError("it is not a tensor's report", place=[path, f"tensors[{i}]"], hint=hint)
