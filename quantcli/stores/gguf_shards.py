"""A GGUF in several files, NAME-00001-of-0000N.gguf, as one source.

The first file holds the keys of the model, every file says which one it is (split.no, from 0), how many there are
(split.count) and how many tensors they hold together (split.tensors.count).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from quantcli.errors import DataError, printable
from quantcli.stores import places
from quantcli.stores.files import InputFile
from quantcli.stores.gguf import GgufFile
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo

_NAME = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def open_gguf(file: InputFile) -> Source:
    """The GGUF in a file, or in the files that begin with it. Raises DataError where one of them is missing, or not the
    one its name tells, and for another one than the first."""
    first = GgufFile(file)
    match = _NAME.fullmatch(places.name(file.path))
    if _number(first, _COUNT) <= 1 or match is None:
        return first
    with closing(first), ExitStack() as stack:
        stem, count = os.path.join(os.path.dirname(file.path), match[1]), int(match[3])
        paths = [f"{stem}{number + 1:05d}-of-{match[3]}{match[4]}" for number in range(count)]
        if int(match[2]) != 1:
            raise DataError("this is a later part of a model", place=[file.path], hint=f"name {paths[0]}")
        shards = [stack.enter_context(closing(GgufFile(places.opened(path)))) for path in paths]
        _check(shards)
        stack.pop_all()
    return GgufShards(shards)


def _number(shard: GgufFile, key: str) -> int:
    """A number of a file; 0 where it has none."""
    value = shard.keys.get(key, 0)
    return value if type(value) is int else 0


def _check(shards: Sequence[GgufFile]) -> None:
    """Raise DataError for files that do not belong together."""
    for place, shard in enumerate(shards):
        for key, wanted in ((_NUMBER, place), (_COUNT, len(shards))):
            if _number(shard, key) != wanted:
                found = f"{_number(shard, key)}, and {wanted} by the names of the files"
                raise DataError(found, place=[shard.path, key])
    names = [info.name for shard in shards for info in shard.infos()]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError("two files hold this tensor", place=[shards[0].path, printable(twice)])
    wanted = _number(shards[0], _TENSORS)
    if wanted and wanted != len(names):
        raise DataError(f"{wanted}, and the files hold {len(names)}", place=[shards[0].path, _TENSORS])


class GgufShards(Source):
    """The files of a GGUF as one source; its keys are those of the first."""

    kind = "gguf"

    def __init__(self, shards: Sequence[GgufFile]) -> None:
        first = shards[0]
        self.path, self.keys, self.metadata, self._files = first.path, first.keys, first.metadata, shards
        self._home = {info.name: shard for shard in shards for info in shard.infos()}
        self.blocks = {name: block for shard in shards for name, block in shard.blocks.items()}

    def infos(self) -> Sequence[TensorInfo]:
        return [info for shard in self._files for info in shard.infos()]

    def raw_keys(self) -> Mapping[str, bytes]:
        return self._files[0].raw_keys()

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._home[name].read(name, start, buffer)

    def files(self) -> Sequence[InputFile]:
        return [file for shard in self._files for file in shard.files()]

    def close(self) -> None:
        for shard in self._files:
            shard.close()
