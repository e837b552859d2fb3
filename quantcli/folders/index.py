"""The index of a folder of weights that is written: which file holds which tensor, in pieces."""

from __future__ import annotations

import heapq
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from json.encoder import encode_basestring as quoted
from typing import Any

from quantcli.passes import outputs
from quantcli.passes.outputs import Outgoing
from quantcli.stores import Source
from quantcli.stores.checkpoint import INDEX, output_name
from quantcli.stores.folder import json_bytes
from quantcli.stores.homes import without_map
from quantcli.tensors.decisions import alike

_AT_ONCE = 1000
"""Names that are packed together, and entries that are in a piece."""

Packed = Sequence[bytes]
"""Names in alphabetical order, compressed."""


def name_of(source: Source, model: Outgoing) -> str:
    """The name of the index of what a source becomes."""
    index = output_name(os.path.basename(source.index or INDEX))
    loaded = index.startswith(("model", "diffusion_pytorch_model"))
    return index if loaded or outputs.documented(model.to) else INDEX


def pieces(source: Source, model: Outgoing, files: Iterable[tuple[str, Packed]]) -> Iterator[bytes]:
    """The index: the metadata of the old one, sizes, and the file of every tensor, in the order of their names. files:
    their names, and those of the tensors in each."""
    found: dict[str, Any] = without_map(source.index) if source.index else {}
    said = found.get("metadata")
    metadata = {
        **(said if isinstance(said, dict) else {}),
        "total_parameters": sum(count * tensor.info.numel for tensor, count in alike(model.tensors)),
        "total_size": model.size,
    }
    empty = '\n  "weight_map": {'
    text = json_bytes({**found, "metadata": metadata, "weight_map": {}}).decode()
    before, _, behind = text.partition(f"{empty}}}")
    yield f"{before}{empty}".encode()
    entries, comma = _entries(files), ""
    while some := ",".join(islice(entries, _AT_ONCE)):
        yield f"{comma}{some}".encode()
        comma = ","
    yield f"\n  }}{behind}".encode()


def packed(model: Outgoing, tensors: Iterable[str]) -> Packed:
    """The names of the parts in which these tensors of a model are stored, packed: those of a million tensors take 250
    MB as texts."""
    held = map(model.by_name.__getitem__, tensors)
    names = sorted(begin + end for t in held for begin, own in model.conversion.stored(t) for end, _ in own)
    return [
        zlib.compress(json.dumps(names[first : first + _AT_ONCE]).encode(), 1)
        for first in range(0, len(names), _AT_ONCE)
    ]


def _entries(files: Iterable[tuple[str, Packed]]) -> Iterator[str]:
    """The entries in the order of their names."""
    for name, file in heapq.merge(*(_unpacked(names, quoted(file)) for file, names in files)):
        yield f"\n    {quoted(name)}: {file}"


def _unpacked(blocks: Packed, file: str) -> Iterator[tuple[str, str]]:
    for block in blocks:
        for name in json.loads(zlib.decompress(block)):
            yield name, file
