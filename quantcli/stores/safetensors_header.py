"""The text of a safetensors header: its metadata, and where each tensor is.

A header as libraries write it is read a piece at a time and walked through entry by entry, into a table of some 30
bytes a tensor beside its name. Any other one is read as JSON, which keeps a map of every entry until all are read: of
100,000 tensors 85 MiB, and half of the time.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from quantcli import memory
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores.compact import Tensors
from quantcli.stores.text import Read, Text
from quantcli.strict import strict_json
from quantcli.tensors.info import Kind, TensorInfo

METADATA = "__metadata__"
"""The key of a header that is not a tensor."""

_LARGE, _TAKEN = 1 << 24, 12
"""Bytes of a header from which on its memory is checked, and how many are taken for each where it is read as JSON: one
of 85 MB, of a million tensors, took 931 MiB."""

_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_ENTRY = re.compile(
    rf' ?"([^"\\\x00-\x1f]*)": ?\{{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[((?:{_NUMBER}(?:, ?{_NUMBER})*)?)\], ?'
    rf'"data_offsets": ?\[({_NUMBER}), ?({_NUMBER})\]\}}([,}}])'
)
"""An entry as libraries write it, up to the next one or the end."""
_BEGIN, _KEY = re.compile(r'\{"__metadata__": ?\{'), re.compile(r' ?"([^"\\\x00-\x1f]*)": ?"')
_NEXT, _END = re.compile(","), re.compile(r"\},")


def parsed(read: Read, length: int, place: str) -> tuple[dict[str, str], Tensors]:
    """Metadata, and tensors in file order, one after another. read: reads the header of this length; place: of the
    file. Raises DataError with the place of the problem."""
    found = _as_usual(Text(read, length))
    if found is None:
        if read(0, min(length, 1)) != b"{":
            raise DataError("not a safetensors file: its header does not start with '{'", place=[place])
        check_memory(length, place)
        header = strict_json(read(0, length), f"{place}: header")
        metadata = header.pop(METADATA, None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise DataError("__metadata__ is not a map of strings", place=[place, "header"])
        found = metadata, _entries(header, place)
    metadata, tensors = found
    if (wrong := _not_in_its_place(tensors)) is not None:
        tensors = tensors.by_place()
        wrong = _not_in_its_place(tensors)
    if wrong is not None:
        number, kind = wrong
        raise DataError(f"its data {kind}", place=[place, printable(tensors[number].name)])
    return metadata, tensors


def check_memory(length: int, place: str) -> None:
    """Raise DataError for a header that takes more memory as JSON than there is: Python would end without a word, or be
    ended."""
    free = memory.available() if length > _LARGE else None
    if free is not None and length * _TAKEN > free:
        problem = (
            f"its header of {length} bytes takes {length * _TAKEN >> 20} MiB to read, {free >> 20} MiB are available"
        )
        raise DataError(problem, place=[place], hint="read it where there is more memory, or split the file")


def _not_in_its_place(tensors: Tensors) -> tuple[int, str] | None:
    """The first tensor that does not begin where the one before ends, and how; None where all do."""
    position = 0
    for number, (kind, begin) in enumerate(tensors.kinds()):
        if begin != position:
            return number, "overlaps the tensor before it" if begin < position else "leaves a hole before it"
        position += size_of(kind)
    return None


@lru_cache(maxsize=4096)
def size_of(kind: Kind) -> int:
    """Bytes of a tensor of this dtype and shape."""
    return TensorInfo("", *kind).nbytes


# ---- as libraries write it ------------------------------------------------------------------------------------------


def _as_usual(text: Text) -> tuple[dict[str, str], Tensors] | None:
    """Metadata and tensors of a header in the form in which libraries write it; None for any other, valid or not."""
    try:
        metadata = _metadata(text)
        return None if metadata is None or (tensors := _tensors(text)) is None else (metadata, tensors)
    except UnicodeError:
        return None


def _tensors(text: Text) -> Tensors | None:
    """The tensors from here to the end of a header; None where they are not in the usual form."""
    tensors = Tensors()
    while (found := text.match(_ENTRY)) is not None:
        name, dtype, dims, begin, end, rest = found.groups()
        kind = _kind(dtype, dims)
        if kind is None or int(end) - int(begin) != kind[1] or not tensors.add(name, kind[0], int(begin)):
            return None
        if rest != ",":
            return tensors if text.is_blank() and METADATA not in tensors.names else None
    return None


def _metadata(text: Text) -> dict[str, str] | None:
    """The metadata at the beginning of a header, which is passed; None where they are not in the usual form."""
    text.more()
    if not text.text.startswith("{"):
        return None
    begin = _BEGIN.match(text.text)
    if begin is None:
        text.at = 1
        return {}
    found = _texts(text.text, begin.end())
    while found is None and text.more():
        found = _texts(text.text, begin.end())
    if found is None:
        return None
    text.at = found[1]
    return found[0]


def _texts(text: str, at: int) -> tuple[dict[str, str], int] | None:
    """The map of texts from a place on, and where entries begin; None where it has not the usual form, or ends before
    its end."""
    found, count = dict[str, str](), 0
    while (key := _KEY.match(text, at)) is not None:
        try:
            value, at = scanstring(text, key.end())
        except ValueError:
            return None
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return None
        found[key[1]] = value
        count += 1
        if (following := _NEXT.match(text, at)) is None:
            break
        at = following.end()
    end = _END.match(text, at)
    return (found, end.end()) if end is not None and count == len(found) else None


@lru_cache(maxsize=4096)
def _kind(dtype: str, dims: str) -> tuple[Kind, int] | None:
    """The dtype and shape of tensors, and their bytes, by what their entries say; None for what is not valid. One text
    for all of a dtype, not one of the header's."""
    if dtype not in DTYPES:
        return None
    shape = tuple(map(int, dims.split(","))) if dims else ()
    bits = math.prod(shape) * DTYPES[dtype].bits
    return None if bits % 8 else ((DTYPES[dtype].name, shape), bits // 8)


# ---- as JSON --------------------------------------------------------------------------------------------------------


def _entries(header: dict[str, Any], place: str) -> Tensors:
    """The tensors of a header that was read as JSON."""
    tensors = Tensors()
    for name, fields in header.items():
        try:
            tensors.add(name, *_entry(fields))
        except DataError as error:
            raise error.within(place, printable(name)) from None
    return tensors


def _count(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{what} {printable(repr(value), 60)} is not a whole number of 0 or more")
    return value


def _entry(fields: Any) -> tuple[Kind, int]:
    """Dtype and shape of a tensor as its entry in a header has them, and where it begins. Raises DataError."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise DataError("its header entry does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"unknown dtype {printable(repr(dtype), 60)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise DataError("its shape or data_offsets are not lists of numbers")
    dims = tuple([_count(n, "dimension") for n in shape])
    begin, end = _count(offsets[0], "offset"), _count(offsets[1], "offset")
    bits = math.prod(dims) * DTYPES[dtype].bits
    if bits % 8 or end - begin != bits // 8:
        size = f"{bits / 8:g}" if bits < 1 << 64 else "more than 2^61"
        raise DataError(f"its {dtype} elements take {size} bytes, but its offsets leave {end - begin}")
    return (DTYPES[dtype].name, dims), begin  # one text for all, not one of the header's
