"""JSON: one document with every figure.

A report, or several in `reports`. Its schema is `report.schema.json` beside this file; the document of one report is a
valid `--baseline`. Strict JSON, names escaped to ASCII, null instead of infinities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from json import JSONEncoder
from typing import Any, TextIO

from quantcli.each import Each
from quantcli.reports.documents import Display, Document, Outlined, plain
from quantcli.reports.renderings import Rendering


def render(document: Document, stream: TextIO, display: Display) -> None:
    """Write a document."""
    _write(document.as_dict(), stream)


def render_outlined(document: Outlined, stream: TextIO, display: Display) -> None:
    """Write a document one record after another: plain values of all tensors take more memory than the tensors."""
    _write(document.outline(), stream)


def _write(values: Any, stream: TextIO) -> None:
    """Write values, and nothing that a log of GitHub Actions or Azure Pipelines takes for a command."""
    for part in _parts(values, "\n"):
        stream.write(part.replace("##", "#\\u0023"))  # in names and texts only
    stream.write("\n")


def _parts(value: Any, line: str) -> Iterator[str]:
    """The text of a value, indented by one space a level; items of maps and lists are made one by one. line: the end of
    a line, and how far the next one is indented."""
    if isinstance(value, (dict, list, tuple, Each)) and value:
        inner, named = f"{line} ", isinstance(value, dict)
        begin, end = "{}" if named else "[]"
        items: Iterable[tuple[str, Any]] = value.items() if isinstance(value, dict) else (("", one) for one in value)
        for key, one in items:
            yield f"{begin}{inner}{_flat({key: None}, line)[:-4] if named else ''}"
            begin = ","
            yield from _parts(one, inner) if isinstance(one, (dict, list, tuple, Each)) else [_whole(plain(one), inner)]
        yield f"{line}{end}"
    else:
        yield _whole(plain(value), line)


def _whole(value: Any, line: str) -> str:
    """The text of a plain value."""
    inner = f"{line} "
    if isinstance(value, dict) and value:
        found, run = list[str](), dict[str, Any]()
        for key, one in value.items():
            if isinstance(one, (dict, list)) and one:
                found += [_flat(run, inner)] if run else []
                found.append(_flat({key: None}, inner)[:-4] + _whole(one, inner))
                run = {}
            else:
                run[key] = one
        found += [_flat(run, inner)] if run else []
        return f"{{{inner}{f',{inner}'.join(found)}{line}}}"
    if isinstance(value, list) and value:
        return f"[{inner}{f',{inner}'.join(_whole(one, inner) for one in value)}{line}]"
    return _encoder(line).encode(value)


def _flat(values: dict[str, Any], line: str) -> str:
    """The items of a map that holds no other, each in a line."""
    return _encoder(line).encode(values)[1:-1]


@lru_cache(maxsize=64)
def _encoder(line: str) -> JSONEncoder:
    """Encodes a map without others in it: with an indentation of its own the library does so in Python, not in C."""
    return JSONEncoder(separators=(f",{line}", ": "), allow_nan=False)


PROVIDES = Rendering(forms=((Outlined, render_outlined), (Document, render)), extensions=("json",))
