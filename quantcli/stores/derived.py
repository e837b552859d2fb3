"""A source whose tensors are computed from those of another one as they are read, and some tensors of a source alone.

Whatever a model needs before it can be quantized is such a source: codes of another tool as floats, stacked experts one
by one, a base model with an adapter folded in. Nothing is computed before it is read, and no more than is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores.source import Earlier, Source, Turned, Unsplit
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores.files import InputFile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Computed:
    """A tensor of a derived source.

    info: its name, dtype and shape. home: the stored tensor in whose file it counts. fill(start, buffer): its
    little-endian C-order bytes from byte `start`; it may be called from several threads. parts: all the stored tensors
    it is made of, wholly or in part. earlier: the codes it is decoded from, if it is. note: what was done to it, for
    people. runs: of a tensor that is runs of elements of stored ones, one after another, each by its tensor, its first
    element and how many; empty for any other. columns: of a tensor that is transposed parts of stored ones, whose last
    two axes are exchanged for that, one after another, each by its tensor, the first of its rows there, how many, and
    how far apart. turned: as of every source.
    """

    info: TensorInfo
    home: str
    fill: Callable[[int, memoryview], None]
    parts: tuple[str, ...]
    earlier: Earlier | None = None
    note: str = ""
    runs: tuple[tuple[str, int, int], ...] = ()
    columns: tuple[tuple[str, int, int, int], ...] = ()
    turned: Turned | None = None


def by_elements(
    dtype: str, values: Callable[[int, int], NDArray[Any]], step: int = 0
) -> Callable[[int, memoryview], None]:
    """A `fill` of elements that are computed by run. values(first, last): elements first to last, as stored in this
    dtype. step: elements that are best computed at a time, from a multiple of it on; 0 for all that are asked for."""
    size = DTYPES[dtype].bits // 8

    def fill(start: int, buffer: memoryview) -> None:
        first, last = start // size, -(-(start + len(buffer)) // size)
        while first < last:
            end = min(last, (first // step + 1) * step) if step else last
            raw = values(first, end).reshape(-1).view(np.uint8)
            low, high = max(start, first * size), min(start + len(buffer), end * size)
            buffer[low - start : high - start] = raw[low - first * size : high - first * size].data
            first = end

    return fill


def unchanged(source: Source, info: TensorInfo, name: str | None = None) -> Computed:
    """A tensor of a source as it is, under another name where one is given."""

    def fill(start: int, buffer: memoryview) -> None:
        source.read(info.name, start, buffer)

    return Computed(
        info=info if name is None else replace(info, name=name),
        home=info.name,
        fill=fill,
        parts=(info.name,),
        earlier=source.earlier.get(info.name),
        note=source.notes.get(info.name, ""),
        runs=((info.name, 0, info.numel),),
    )


class Selected(Source):
    """Some tensors of a source as a source of their own: a shard, or what of it becomes one file. share: their share of
    the bytes of its files; files: those they are in."""

    def __init__(
        self,
        whole: Source,
        infos: Sequence[TensorInfo],
        *,
        share: int,
        files: Sequence[InputFile],
        metadata: Mapping[str, str],
    ) -> None:
        self.path, self.kind, self.metadata = whole.path, whole.kind, dict(metadata)
        self._whole, self._infos, self._share, self._files = whole, infos, share, files

    @property
    def share(self) -> int:
        return self._share

    def infos(self) -> Sequence[TensorInfo]:
        return self._infos

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._whole.read(name, start, buffer)

    def release(self, name: str) -> None:
        self._whole.release(name)

    def files(self) -> Sequence[InputFile]:
        return self._files

    def close(self) -> None:
        """Nothing: the files belong to the whole."""


class Outline(Selected):
    """Tensors of a source by names, dtypes and shapes alone, with the files beside them: what tells how they are to be
    arranged, before any is decoded."""

    def __init__(self, whole: Source, infos: Sequence[TensorInfo]) -> None:
        super().__init__(whole, infos, share=whole.share, files=whole.files(), metadata=whole.metadata)
        self.folder, self.index, self.kind = whole.folder, whole.index, Derived.kind

    def beside(self, name: str) -> bytes | None:
        return self._whole.beside(name)


class Derived(Source):
    """Tensors that are computed from those of a source, which still says where they come from: its path and files, the
    files beside them, and the shard that each counts to."""

    kind = "safetensors"

    def __init__(
        self,
        base: Source,
        tensors: Iterable[Computed],
        *,
        metadata: Callable[[Source], dict[str, str]] = lambda source: source.metadata,
        decoded: Mapping[str, TensorInfo] = MappingProxyType({}),
        decoded_from: str = "",
        others: Sequence[Source] = (),
        warnings: Sequence[str] | None = None,
        unsplit: Mapping[str, Unsplit] = MappingProxyType({}),
        arranged: str = "",
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        """metadata: what the header of a file says now. decoded, decoded_from, warnings, unsplit, arranged, shapes: as
        for every source. others: further sources that tensors are made of. Raises DataError where two tensors have one
        name."""
        self.path, self.folder, self.index, self.aside = base.path, base.folder, base.index, base.aside
        self.metadata, self.decoded_from = metadata(base), decoded_from or base.decoded_from
        self.decoded = decoded or base.decoded
        self.warnings = base.warnings if warnings is None else warnings
        self.unsplit, self.arranged, self.shapes = unsplit, arranged, shapes
        self.graph = base.graph
        self._base, self._others = base, others
        at = {info.name: name for name, shard in base.shards.items() for info in shard.infos()}
        held: dict[str, list[Computed]] = {name: [] for name in base.shards}
        seen = set[str]()
        for tensor in tensors:
            if tensor.info.name in seen:
                raise DataError("two tensors would have this name", place=[base.path, printable(tensor.info.name)])
            seen.add(tensor.info.name)
            held[at[tensor.home]].append(tensor)
        self._tensors = {tensor.info.name: tensor for own in held.values() for tensor in own}
        self.earlier = {name: t.earlier for name, t in self._tensors.items() if t.earlier is not None}
        self.notes = {name: t.note for name, t in self._tensors.items() if t.note}
        self._shards = {
            name: Selected(
                self,
                [tensor.info for tensor in held[name]],
                share=shard.share,
                files=shard.files(),
                metadata=metadata(shard),
            )
            for name, shard in base.shards.items()
        }

    @property
    def shards(self) -> Mapping[str, Source]:
        return self._shards if self.folder is not None else {"": self}

    def beside(self, name: str) -> bytes | None:
        return self._base.beside(name)

    def raw_keys(self) -> Mapping[str, bytes]:
        return self._base.raw_keys()

    def infos(self) -> Sequence[TensorInfo]:
        return [tensor.info for tensor in self._tensors.values()]

    def computed(self, name: str) -> Computed:
        """What a tensor is made of."""
        return self._tensors[name]

    def stored_bytes(self) -> Sequence[int]:
        left = dict(zip((info.name for info in self._base.infos()), self._base.stored_bytes()))
        rest: Counter[str] = Counter()
        for tensor in self._tensors.values():
            rest.update(dict.fromkeys(tensor.parts, tensor.info.numel))
        found = []
        for tensor in self._tensors.values():  # each has its share of a part, the last one what is left
            own, numel = 0, tensor.info.numel
            for part in tensor.parts:
                share = left[part] * numel // rest[part] if rest[part] else 0
                own, left[part], rest[part] = own + share, left[part] - share, rest[part] - numel
            found.append(own)
        return found

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._tensors[name].fill(start, buffer)

    def passed(self, name: str, start: int, size: int) -> None:
        # Only of a pipe does this matter, and there every tensor is as it is stored.
        self._base.passed(self._tensors[name].home, start, size)

    def turned(self, name: str) -> Turned | None:
        return self._tensors[name].turned

    def release(self, name: str) -> None:
        for part in self._tensors[name].parts:
            self._base.release(part)

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        # What is computed is computed in rows: all between the runs costs less than each run by itself.
        whole = np.empty((len(runs) - 1) * step + runs.shape[1], np.uint8)
        self._tensors[name].fill(start, whole.data)
        for number, run in enumerate(runs):
            run[:] = whole[number * step : number * step + len(run)]

    def files(self) -> Sequence[InputFile]:
        return self._base.files()

    def inputs(self) -> Sequence[InputFile]:
        return [file for source in (self._base, *self._others) for file in source.inputs()]

    def check_unchanged(self) -> None:
        for source in (self._base, *self._others):
            source.check_unchanged()

    def close(self) -> None:
        for source in (self._base, *self._others):
            source.close()
