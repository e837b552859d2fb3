"""The record in an exported file of the model it was made from: bytes of its tensors, and each one's dtype and reason.

It is part of the document under `writer.KEY`, which all our containers hold: without it a report on the file could
only compare its size with that of float32. Bytes are those of tensors, not of files, so that it does not depend on how
the model was split into shards. Errors are not in it: `report --against` measures them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError
from quantcli.layouts.writer import KEY, Weight
from quantcli.stores import Source
from quantcli.strict import strict_json

MOST = 1 << 19
"""Most characters of names in the record: half of what is read of a text in ONNX."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The model a file was made from: bytes of its tensors, and dtype and reason of each by its name in the file."""

    nbytes: int
    tensors: Mapping[str, tuple[str, str]]


def told(tensors: Mapping[str, Weight]) -> dict[str, Any]:
    """The record of an origin, given its tensors by their name in the file: names by dtype and reason."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, tensor in sorted(tensors.items()):
        found[tensor.info.dtype][tensor.reason].append(name)
    few = sum(map(len, tensors)) <= MOST
    nbytes = sum(tensor.info.nbytes for tensor in tensors.values())
    return {"source_bytes": nbytes, **({"tensors": found} if few else {})}


def origin(source: Source) -> Origin | None:
    """The origin recorded in the files of a source; None where one of them has no record.

    Raises DataError for an invalid record.
    """
    nbytes, tensors = 0, dict[str, tuple[str, str]]()
    for part in source.shards.values():
        document = strict_json(part.metadata.get(KEY, "{}").encode("utf-8", "replace"), KEY)
        if not isinstance(document, dict) or "source_bytes" not in document:
            return None
        try:
            nbytes += _count(document["source_bytes"])
            tensors |= {name: (dtype, reason) for dtype, reason, name in _listed(document.get("tensors", {}))}
        except (TypeError, AttributeError):
            raise DataError("its record of its source is damaged", place=[source.path, KEY]) from None
    return Origin(nbytes, tensors)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _listed(tensors: Any) -> Sequence[tuple[str, str, str]]:
    """Dtype, reason and name of each tensor. Raises TypeError or AttributeError for an invalid record."""
    found = [(d, r, name) for d, reasons in tensors.items() for r, names in reasons.items() for name in names]
    if not all(dtype in DTYPES and isinstance(name, str) for dtype, _, name in found):
        raise TypeError
    return found
