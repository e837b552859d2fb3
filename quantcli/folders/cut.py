"""How the weights of a checkpoint folder are cut into files: as the source is, or by size where one is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from quantcli.passes import outputs
from quantcli.passes.outputs import Cut, OneFile, Outgoing
from quantcli.stores import Source
from quantcli.stores.checkpoint import output_name
from quantcli.stores.derived import Selected
from quantcli.stores.files import InputFile
from quantcli.stores.safetensors import HeaderTooLargeError

_FIRST = 1000
"""Tensors of the first file that is tried."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source that becomes one file, how many tensors it has, and the model that they are in."""

    source: Source
    cut: Cut
    count: int
    model: Outgoing


class Cutter:
    """How a model is cut into files, one after another: as the source is, or by size where one is given."""

    def __init__(self, source: Source, model: Outgoing, limit: int | None) -> None:
        self.source, self.model, self.limit = source, model, limit
        self._whole = sum(file.size for file in source.files())
        self._infos = source.infos()
        self._shards: dict[int, tuple[str, Source]] = {}
        at = 0
        for name, shard in _shards(source, model).items():
            self._shards[at] = name, shard
            at += len(shard.infos())

    @cached_property
    def _bytes(self) -> Sequence[int]:
        return self.source.stored_bytes()

    def _files(self, first: int, last: int) -> list[InputFile]:
        """The files of the shards that hold these tensors."""
        found, at = list[InputFile](), 0
        for shard in self.source.shards.values():
            begin, at = at, at + len(shard.infos())
            if begin < last and first < at:
                found += shard.files()
        return found

    @property
    def count(self) -> int:
        """Tensors of the source."""
        return len(self._infos)

    def piece(self, at: int, number: int, count: int | None = None) -> Piece:
        """The file that begins with tensor `at`; count: how many tensors it is known to have."""
        if self.limit is None:
            name, shard = self._shards[at]
            return self._piece(name, shard, shard.share, at)
        return self._part(at, number, self._most(at) if count is None else count)

    def _piece(self, name: str, source: Source, share: int, at: int) -> Piece:
        names = tuple(info.name for info in source.infos())
        return Piece(source, Cut(name, names, source.metadata, share), len(names), self.model.part(at, len(names)))

    def _part(self, at: int, number: int, count: int) -> Piece:
        infos = self._infos[at : at + count]
        # The headers of the source count for the first file, so that all shares together are the source.
        share = sum(self._bytes[at : at + count]) + (self._whole - sum(self._bytes) if at == 0 else 0)
        files = self._files(at, at + count)
        part = Selected(self.source, infos, share=share, files=files, metadata=self.source.metadata)
        return self._piece(f"part-{number:05d}.safetensors", part, share, at)

    def _most(self, at: int) -> int:
        """The most tensors that stay within the limit, one at least."""
        assert self.limit is not None
        low, high = 1, self.count - at
        rest = self.limit
        for n in range(high):  # without headers: fewer layouts to try
            if n % _FIRST == 0:
                model = self.model.part(at + n, _FIRST)
            rest -= model.nbytes(self._infos[at + n].name)
            if rest < 0:
                high = max(n, 1)
                break
        # A layout of many tensors takes a while. Sizes grow evenly, so that the next guess is near; it is a little
        # beyond, to be on the other side.
        guess, beyond = min(high, _FIRST), 1
        while low < high:
            middle = min(max(guess, low + 1), high)
            size = self._size_of(at, middle)
            fits = size is not None and size <= self.limit
            low, high = (middle, high) if fits else (low, middle - 1)
            if size is None:
                guess = (low + middle) // 2
            else:
                guess = middle + (self.limit - size) * middle // max(size, 1) + (beyond if fits else -beyond)
            beyond *= 2
        return low

    def _size_of(self, at: int, count: int) -> int | None:
        """The size of the file of so many tensors; None where its header would be larger than allowed."""
        try:
            return self.size(self._part(at, 0, count))
        except HeaderTooLargeError:
            return None

    def file(self, piece: Piece) -> OneFile:
        """The file of a piece to the byte."""
        return outputs.safetensors(piece.model, piece.cut, self.source.path)

    def size(self, piece: Piece) -> int:
        """The exact size of a file; 0 where the layout has none of its tensors."""
        return self.file(piece).size if self.holds(piece) else 0

    def holds(self, piece: Piece) -> bool:
        """Whether the layout stores any of the tensors."""
        return any(map(piece.model.conversion.holds, piece.cut.tensors))

    def pieces(self) -> Iterator[Piece]:
        """All files as they are planned."""
        at = number = 0
        while at < self.count:
            piece = self.piece(at, number + 1)
            yield piece
            at, number = at + piece.count, number + 1


def _shards(source: Source, model: Outgoing) -> Mapping[str, Source]:
    """The files of a source by the names they get."""
    if source.folder is None:
        return {outputs.NAME: source}
    shards = {output_name(name): shard for name, shard in source.shards.items()}
    if outputs.documented(model.to):
        return shards
    held = [s for s in source.shards.values() if any(model.conversion.holds(i.name) for i in s.infos())]
    names = {s: outputs.loadable(n, held.index(s), len(held)) for n, s in shards.items() if s in held}
    return {names.get(shard, name): shard for name, shard in shards.items()}


def planned_size(source: Source, model: Outgoing, limit: int | None) -> int:
    """The exact size of all files of weights in a folder."""
    cutter = Cutter(source, model, limit)
    return sum(cutter.size(piece) for piece in cutter.pieces())
