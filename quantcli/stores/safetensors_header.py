"""The text of a safetensors header: its metadata, and where each tensor is.

A header as libraries write it is walked through entry by entry; any other one is read as JSON, which keeps a map of
every entry until all are read: of 100,000 tensors 85 MiB, and half of the time.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

METADATA = "__metadata__"
"""The key of a header that is not a tensor."""

_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_ENTRY = re.compile(
    rf' ?"([^"\\\x00-\x1f]*)": ?\{{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[((?:{_NUMBER}(?:, ?{_NUMBER})*)?)\], ?'
    rf'"data_offsets": ?\[({_NUMBER}), ?({_NUMBER})\]\}}(,|\}} *\Z)'
)
"""An entry as libraries write it, up to the next one or the end."""
_BEGIN, _KEY = re.compile(r'\{"__metadata__": ?\{'), re.compile(r' ?"([^"\\\x00-\x1f]*)": ?"')
_NEXT, _END = re.compile(","), re.compile(r"\},")


class Entry(NamedTuple):
    """A tensor and the place of its bytes behind the header."""

    info: TensorInfo
    begin: int


def parsed(text: bytes, place: str) -> tuple[dict[str, str], list[Entry]]:
    """Metadata, and entries in file order, one after another. place: of the file. Raises DataError with the place of
    the problem."""
    found = _as_usual(text)
    if found is None:
        header = strict_json(text, f"{place}: header")
        metadata = header.pop(METADATA, None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise DataError("__metadata__ is not a map of strings", place=[place, "header"])
        found = metadata, _entries(header, place)
    metadata, entries = found
    if (wrong := _not_in_its_place(entries)) is not None:
        entries.sort(key=lambda e: (e.begin, e.begin + e.info.nbytes))
        wrong = _not_in_its_place(entries)
    if wrong is not None:
        entry, position = wrong
        kind = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
        raise DataError(f"its data {kind}", place=[place, printable(entry.info.name)])
    return metadata, entries


def _not_in_its_place(entries: list[Entry]) -> tuple[Entry, int] | None:
    """The first entry that does not begin where the one before ends, and that place; None where all do."""
    position = 0
    for entry in entries:
        if entry.begin != position:
            return entry, position
        position += entry.info.nbytes
    return None


# ---- as libraries write it ------------------------------------------------------------------------------------------


def _as_usual(raw: bytes) -> tuple[dict[str, str], list[Entry]] | None:
    """Metadata and entries of a header in the form in which libraries write it; None for any other, valid or not."""
    try:
        text = raw.decode("utf-8")
    except UnicodeError:
        return None
    metadata, at = _metadata(text)
    entries, names = list[Entry](), set[str]()
    if metadata is None:
        return None
    while (found := _ENTRY.match(text, at)) is not None:
        name, dtype, dims, begin, end, rest = found.groups()
        kind = _kind(dtype, dims)
        if kind is None or int(end) - int(begin) != kind[2]:
            return None
        entries.append(Entry(TensorInfo(name, kind[0], kind[1]), int(begin)))
        names.add(name)
        at = found.end()
        if rest != ",":
            return (metadata, entries) if len(names) == len(entries) and METADATA not in names else None
    return None


def _metadata(text: str) -> tuple[dict[str, str] | None, int]:
    """The metadata at the beginning of a header, and where entries begin; None where they are not in the usual form."""
    begin = _BEGIN.match(text)
    if begin is None:
        return {}, 1
    found, count, at = dict[str, str](), 0, begin.end()
    while (key := _KEY.match(text, at)) is not None:
        try:
            value, at = scanstring(text, key.end())
        except ValueError:
            return None, 0
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return None, 0
        found[key[1]] = value
        count += 1
        if (following := _NEXT.match(text, at)) is None:
            break
        at = following.end()
    end = _END.match(text, at)
    return (found, end.end()) if end is not None and count == len(found) else (None, 0)


@lru_cache(maxsize=4096)
def _kind(dtype: str, dims: str) -> tuple[str, tuple[int, ...], int] | None:
    """The dtype, shape and bytes of tensors, by what their entries say; None for what is not valid. One text for all of
    a dtype, not one of the header's."""
    if dtype not in DTYPES:
        return None
    shape = tuple(map(int, dims.split(","))) if dims else ()
    bits = math.prod(shape) * DTYPES[dtype].bits
    return None if bits % 8 else (DTYPES[dtype].name, shape, bits // 8)


# ---- as JSON --------------------------------------------------------------------------------------------------------


def _entries(header: dict[str, Any], place: str) -> list[Entry]:
    """The entries of a header that was read as JSON."""
    entries, shapes = list[Entry](), dict[tuple[int, ...], tuple[int, ...]]()
    for name, fields in header.items():
        try:
            entries.append(_entry(name, fields, shapes))
        except DataError as error:
            raise error.within(place, printable(name)) from None
    return entries


def _count(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{what} {printable(repr(value), 60)} is not a whole number of 0 or more")
    return value


def _entry(name: str, fields: Any, shapes: dict[tuple[int, ...], tuple[int, ...]]) -> Entry:
    """A tensor as its entry in a header has it. shapes: those that were seen, for most tensors share them. Raises
    DataError."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise DataError("its header entry does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"unknown dtype {printable(repr(dtype), 60)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise DataError("its shape or data_offsets are not lists of numbers")
    dims = tuple([_count(n, "dimension") for n in shape])
    dims = shapes.setdefault(dims, dims)
    begin, end = _count(offsets[0], "offset"), _count(offsets[1], "offset")
    bits = math.prod(dims) * DTYPES[dtype].bits
    if bits % 8 or end - begin != bits // 8:
        size = f"{bits / 8:g}" if bits < 1 << 64 else "more than 2^61"
        raise DataError(f"its {dtype} elements take {size} bytes, but its offsets leave {end - begin}")
    return Entry(TensorInfo(name, DTYPES[dtype].name, dims), begin)  # one text for all, not one of the header's
