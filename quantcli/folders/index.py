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

_AT_ONCE = 1000
"""Names that are packed together, and entries that are in a piece."""

Held = Sequence[tuple[str, Sequence[str]]]
"""Files by name, each with the tensors of the source that it holds."""


def name_of(source: Source, model: Outgoing) -> str:
    """The name of the index of what a source becomes."""
    index = output_name(os.path.basename(source.index or INDEX))
    loaded = index.startswith(("model", "diffusion_pytorch_model"))
    return index if loaded or outputs.documented(model.to) else INDEX


def pieces(source: Source, model: Outgoing, files: Held) -> Iterator[bytes]:
    """The index: the metadata of the old one, sizes, and the file of every tensor, in the order of their names."""
    found: dict[str, Any] = without_map(source.index) if source.index else {}
    said = found.get("metadata")
    metadata = {
        **(said if isinstance(said, dict) else {}),
        "total_parameters": sum(t.info.numel for t in model.tensors),
        "total_size": sum(model.nbytes(name) for _, tensors in files for name in tensors),
    }
    empty = '\n  "weight_map": {'
    text = json_bytes({**found, "metadata": metadata, "weight_map": {}}).decode()
    before, _, behind = text.partition(f"{empty}}}")
    yield f"{before}{empty}".encode()
    entries, comma = _entries(model, files), ""
    while some := ",".join(islice(entries, _AT_ONCE)):
        yield f"{comma}{some}".encode()
        comma = ","
    yield f"\n  }}{behind}".encode()


def _entries(model: Outgoing, files: Held) -> Iterator[str]:
    """The entries in the order of their names. The names of each file are sorted by themselves, and packed: those of
    all outputs of a million tensors take 250 MB."""
    stored = model.conversion.stored
    packed = [
        (quoted(file), [*_packed(sorted(b + e for name in tensors for b, own in stored(name) for e, _ in own))])
        for file, tensors in files
    ]
    for name, file in heapq.merge(*(_unpacked(blocks, file) for file, blocks in packed)):
        yield f"\n    {quoted(name)}: {file}"


def _packed(names: Sequence[str]) -> Iterator[bytes]:
    for first in range(0, len(names), _AT_ONCE):
        yield zlib.compress(json.dumps(names[first : first + _AT_ONCE]).encode(), 1)


def _unpacked(blocks: Iterable[bytes], file: str) -> Iterator[tuple[str, str]]:
    for block in blocks:
        for name in json.loads(zlib.decompress(block)):
            yield name, file
