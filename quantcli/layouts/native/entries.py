"""The tensors of native files as their documents list them: some 80 bytes for each, of which a record is made when it
is asked for. As records those of 100,000 small tensors would take 70 MiB.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from quantcli.each import Each, Numbered
from quantcli.errors import DataError, printable
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.results import Results
from quantcli.layouts.native.stored import Shared, StoredKept, StoredQuantized, StoredTensor
from quantcli.scheme import Scheme
from quantcli.stores.compact import InOrder, Joined, Tensors
from quantcli.tensors.decisions import Decisions
from quantcli.tensors.info import TensorInfo


class Entries(Numbered[StoredTensor]):
    """The tensors of a document, in the order of its file. infos: the tensors of that file.

    The last record is held: of each in turn several who go through them side by side ask for something.
    """

    __slots__ = ("_in_common", "_infos", "_known", "_last", "_numbers", "_order", "_places", "_results")

    def __init__(self, infos: Tensors) -> None:
        self._infos, self._results = infos, Results()
        self._places = array("I")  # of one of the tensors that hold each, in the file
        self._in_common, self._known = list[_InCommon](), dict[_InCommon, int]()
        self._numbers, self._order = array("I"), array("I")
        self._last: tuple[int, StoredTensor | None] = -1, None

    def add(self, place: int, in_common: _InCommon, result: Result) -> None:
        """Add a tensor. place: the number, among those of the file, of the first part of a quantized one or of a kept
        one; in_common: what it has in common with others."""
        number = self._known.setdefault(in_common, len(self._in_common))
        if number == len(self._in_common):
            self._in_common.append(in_common)
        self._places.append(place)
        self._numbers.append(number)
        self._results.append(result)

    def sort(self, keys: Sequence[int]) -> None:
        """Put them in the order of these keys, one for each in the order in which they were added."""
        self._order = array("I", sorted(range(len(keys)), key=keys.__getitem__))

    def __len__(self) -> int:
        return len(self._order)

    def names(self) -> Iterator[str]:
        """The names of all, in order."""
        return map(self._name, self._order)

    def _name(self, number: int) -> str:
        held, in_common = self._infos.names.at(self._places[number]), self._in_common[self._numbers[number]]
        return held.removesuffix(in_common.endings[0][0]) if isinstance(in_common, Shared) else held

    def at(self, number: int) -> StoredTensor:
        """The tensor of a number."""
        number = self._order[number]
        last, found = self._last
        if found is None or last != number:
            found = self._made(number)
            self._last = number, found
        return found

    def _made(self, number: int) -> StoredTensor:
        in_common = self._in_common[self._numbers[number]]
        if isinstance(in_common, Shared):
            info = TensorInfo(self._name(number), in_common.dtype, in_common.shape)
            return StoredQuantized(info, in_common, self._results, number)
        reason, note = in_common
        result, info = self._results.at(number), self._infos.at(self._places[number])
        return StoredKept(info=info, reason=reason, note=note, digest=result.digest if result is not None else None)


_InCommon = Shared | tuple[str, str]
"""What many tensors have in common; of kept ones reason and note."""


class Unlisted(Numbered[StoredTensor]):
    """The tensors of a file that no document lists, in the same form."""

    __slots__ = ("_infos",)

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        self._infos = infos

    def __len__(self) -> int:
        return len(self._infos)

    def names(self) -> Iterator[str]:
        """The names of all, in order."""
        return (info.name for info in self._infos)

    def at(self, number: int) -> StoredTensor:
        """The tensor of a number."""
        return StoredKept(info=self._infos[number], reason="")


class ByName(Mapping[str, StoredTensor]):
    """The tensors of several files by their names, file after file. Of each name 12 bytes are kept: its hash and its
    number.

    Raises DataError where two have the same name.
    """

    __slots__ = ("_files", "_hashes", "_order", "stored")

    def __init__(self, files: Sequence[Entries | Unlisted]) -> None:
        self._files, self.stored = files, Joined(files)
        hashes = np.fromiter(map(hash, self), np.int64, len(self.stored))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        self._order = array("I", order.astype(np.uint32).tobytes())
        self._hashes = array("q", hashes.tobytes())
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            name = self.stored[self._order[at]].info.name
            if name == self.stored[self._order[at + 1]].info.name:
                raise DataError("two tensors have this name", place=[printable(name)])

    def _find(self, name: object) -> StoredTensor | None:
        wanted, hashes = hash(name), self._hashes
        at = bisect_left(hashes, wanted)
        while at < len(hashes) and hashes[at] == wanted:
            found = self.stored.at(self._order[at])
            if found.info.name == name:
                return found
            at += 1
        return None

    def values(self) -> InOrder[StoredTensor]:
        """The tensors in order."""
        return InOrder(self, lambda: iter(self.stored))

    def __getitem__(self, name: str) -> StoredTensor:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(file.names() for file in self._files)

    def __len__(self) -> int:
        return len(self.stored)


def infos_of(stored: Sequence[StoredTensor]) -> Sequence[TensorInfo]:
    """Name, dtype and shape of each of these tensors, as it was before it was quantized."""
    return Each(len(stored), lambda: (tensor.info for tensor in stored), lambda number: stored[number].info)


def decisions(stored: Sequence[StoredTensor]) -> Decisions:
    """What was decided for these tensors."""
    return Decisions(infos_of(stored), (tensor.decided for tensor in stored))


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed header document of a native file. recipe: the request, as `recipe.request_of` takes it; None where the
    file does not hold it."""

    tool: str
    digest: str
    source_bytes: int
    tensors: Entries
    recipe: Mapping[str, Any] | None
    schemes: tuple[Scheme, ...]
    intact: bool | None
    """Whether the header is as it was written, by its own digest; None when it has none, as early versions wrote it."""
