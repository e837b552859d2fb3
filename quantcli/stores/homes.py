"""Which shard of a checkpoint holds which tensor, by its index and by the shards themselves."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import Any, cast

from quantcli.errors import DataError, printable
from quantcli.stores.compact import InOrder, Names
from quantcli.stores.places import is_url, opened, read_small
from quantcli.stores.source import Source
from quantcli.stores.text import Read, Text
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

_LIMIT, _AS_JSON = 1 << 30, 100_000_000
"""Most bytes of an index, and of one in another form than libraries write, which takes ten times as much memory."""

_BLANKS = " \t\n\r"
_TEXT, _GAP = r'"([^"\\\x00-\x1f]*)"', f"[{_BLANKS}]*"
_BEGIN = re.compile(rf'[^\x00]*?"weight_map"{_GAP}:{_GAP}\{{')
_ENTRY = re.compile(f"{_GAP}{_TEXT}{_GAP}:{_GAP}{_TEXT}{_GAP}([,}}])")
_END = re.compile(rf"{_GAP}\}}")


class Listed:
    """The weight map of an index: names of tensors in its order, and the number of the shard of each among all shard
    files, of which every name is there once."""

    __slots__ = ("homes", "names", "shards")

    def __init__(self) -> None:
        self.names, self.homes, self.shards = Names(), array("I"), dict[str, int]()

    def add(self, tensor: str, shard: object, index: str) -> bool:
        """Add a tensor; whether its name is a new one. Raises DataError where its shard is no plain file name."""
        if not self.names.add(tensor):
            return False
        known = self.shards.get(shard) if isinstance(shard, str) else None
        self.homes.append(
            self.shards.setdefault(_shard_name(shard, index), len(self.shards)) if known is None else known
        )
        return True


def _shard_name(name: object, index: str) -> str:
    if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise DataError(
            f"shard name {printable(repr(name), 120)} is not a plain file name in its folder", place=[index]
        )
    return name


@contextmanager
def _opened(index: str) -> Iterator[tuple[Read, int]]:
    """What reads an index, and its bytes; of a URL it is all read at once."""
    if is_url(index):
        raw = read_small(index, _LIMIT)
        yield lambda at, size: raw[at : at + size], len(raw)
        return
    with closing(opened(index)) as file:
        if file.size > _LIMIT:
            problem = f"{file.size} bytes are more than the {_LIMIT} such a file may have"
            raise DataError(problem, place=[index])
        yield file.read, file.size


def from_index(index: str) -> Listed:
    """The weight map of an index. Raises DataError."""
    with _opened(index) as (read, length):
        found = _as_usual(Text(read, length), index)
    if found is not None:
        return found
    document, found = strict_json(read_small(index, _AS_JSON), index), Listed()
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError("it has no weight_map of tensor names to shard files", place=[index])
    for tensor, shard in weight_map.items():
        found.add(tensor, shard, index)
    return found


def without_map(index: str) -> dict[str, Any]:
    """What an index says besides its weight map, which is empty here. Raises DataError."""
    with _opened(index) as (read, length), suppress(UnicodeError, DataError):
        begin = Text(read, length).match(_BEGIN)
        if begin is not None and _is_last(begin[0], index):
            return cast(dict[str, Any], strict_json(f"{begin[0]}}}}}".encode(), index))
    found = strict_json(read_small(index, _AS_JSON), index)
    return {**found, "weight_map": {}}


def _as_usual(text: Text, index: str) -> Listed | None:
    """The weight map of an index in the form in which libraries write it, with that map at its end; None for any other,
    valid or not. As JSON a map of a million entries takes 500 MiB."""
    found = Listed()
    try:
        begin = text.match(_BEGIN)
        if begin is None or not _is_last(begin[0], index):
            return None
        while (entry := text.match(_ENTRY)) is not None:
            tensor, shard, rest = entry.groups()
            if not found.add(tensor, shard, index):
                return None
            if rest != ",":
                return found if text.match(_END) is not None and text.is_blank(_BLANKS) else None
    except (UnicodeError, DataError):  # which are reported in the order in which JSON has them
        pass
    return None


def _is_last(begin: str, index: str) -> bool:
    """Whether the beginning of an index, up to the first entry of its weight map, is valid and ends in that map."""
    document = strict_json(f"{begin}}}}}".encode(), index)
    return isinstance(document, dict) and document.get("weight_map") == {} and [*document][-1] == "weight_map"


class Homes(Mapping[str, TensorInfo]):
    """The tensors of all shards by name, and their shards. listed: the weight map of an index, where there is one, to
    whose names those are added that it lacks."""

    __slots__ = ("_count", "_files", "_homes", "_listed", "_named", "_names", "_shards")

    def __init__(self, listed: Listed | None) -> None:
        self._listed = listed
        self._names = listed.names if listed is not None else Names()
        self._count = len(self._names)
        self._homes = array("I", bytes(4 * self._count))  # numbers of shards from 1 on, 0 where none was found yet
        self._files, self._shards = list[str](), list[Source]()
        self._named = list[Mapping[str, TensorInfo]]()

    def add(self, file: str, shard: Source, path: str) -> None:
        """Add the tensors of a shard. path: of the checkpoint. Raises DataError for one that another shard holds."""
        named = shard.named()
        self._files.append(file)
        self._shards.append(shard)
        self._named.append(named)
        for name in named:
            number = self._names.find(name)
            if number < 0:
                self._names.add(name)
                self._homes.append(len(self._shards))
            elif self._homes[number]:
                other = self._files[self._homes[number] - 1]
                raise DataError(f"it is in two shards, {other} and {file}", place=[path, printable(name)])
            else:
                self._homes[number] = len(self._shards)

    def missing(self) -> list[tuple[str, str]]:
        """Tensors that the index puts in a shard that does not hold them, and that shard."""
        if self._listed is None:
            return []
        shards = [*self._listed.shards]
        wanted = [self._files.index(file) + 1 for file in shards]
        return [
            (self._names[at], shards[home])
            for at, home in enumerate(self._listed.homes)
            if self._homes[at] != wanted[home]
        ]

    def unlisted(self) -> list[str]:
        """Tensors of shards that the index does not list."""
        return self._names[self._count :]

    def _number(self, name: str) -> int:
        """The number of the shard of a tensor, from 0 on. Raises KeyError where there is none of this name."""
        number = self._names.find(name)
        if number < 0:
            raise KeyError(name)
        return self._homes[number] - 1

    def shard(self, name: str) -> Source:
        """The shard that holds a tensor."""
        return self._shards[self._number(name)]

    def values(self) -> InOrder[TensorInfo]:
        """The tensors in order."""
        return InOrder(self, lambda: chain.from_iterable(shard.infos() for shard in self._shards))

    def __getitem__(self, name: str) -> TensorInfo:
        return self._named[self._number(name)][name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._named)

    def __len__(self) -> int:
        return len(self._names)
