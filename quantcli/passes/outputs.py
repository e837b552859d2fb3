"""The files of an output to the byte, before the first weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

from quantcli import __version__
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError
from quantcli.layouts import origins
from quantcli.layouts.native import document, parts
from quantcli.layouts.native import write as native
from quantcli.layouts.native.document import KEY as NATIVE_KEY
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import KEY, Again, Beside, Conversion, Job, named
from quantcli.passes.converting import convert
from quantcli.planning.plan import Plan
from quantcli.planning.request import Request
from quantcli.stores import Source, open_source, seal
from quantcli.stores.safetensors import lay_out_all
from quantcli.tensors.decided import Decided
from quantcli.tensors.decisions import Decisions, alike, by_name
from quantcli.tensors.info import Endings

NAME = "model.safetensors"
"""The file of a model that is one file in a folder."""

Pieces = Iterable[tuple[int, bytes]]
"""What stands between the tensors of a file: offset and bytes."""

Results = Mapping[str, Result]


def documented(to: str | None) -> bool:
    """Whether files of a target hold the native document."""
    return to is None or named(to).keeps_document


def _narrow(tensor: Decided) -> int:
    """The key by which a native file sorts its tensors: those with the widest elements come first, be it in one of
    several parts alone."""
    return -max(DTYPES[dtype].bits for _, (dtype, _) in parts.endings(tensor))


def notes(model: Outgoing, *, folder: bool) -> list[str]:
    """What there is to say before a model is written, to a folder or a file: what the loader will and will not do, and
    without a config.json (a bare file has none, and none is made up) what it wants there."""
    found = model.conversion
    lines = [*found.notes, *([] if folder else found.in_folder)]
    if found.config and not (folder and model.beside("config.json") is not None):
        text = json.dumps(dict(found.config))
        lines.append(f"no config.json is written, and a loader of folders wants this in the model's own: {text}")
    return lines


# ---- the model to write -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Outgoing:
    """A model as it will be written: what was decided for its tensors, and where they go.

    ends: the number of the tensor behind the last one of each shard, where those of a shard are written in the order of
    a native file; none where all are in the order of `tensors`. to: the target, None for the native layout. request,
    digest: what the native document says of how it was made. document: whether its files get a native document (`new`),
    keep the one they have, for codes are only moved (`kept`), or have none. again: how the model is written again,
    where it is in the format of the target already. whole: the model of which this one is a part.
    """

    tensors: Sequence[Decided]
    ends: Sequence[int] = ()
    to: str | None
    beside: Beside
    container: bool = False
    request: Request | None = None
    digest: str = "none"
    document: Literal["new", "kept", "none"] = "none"
    again: Again | None = None
    whole: Outgoing | None = None

    @cached_property
    def conversion(self) -> Conversion:
        """What becomes of the tensors. Raises UsageError and DataError as `convert` does."""
        if self.whole is not None:
            return self.whole.conversion
        if self.to is None:
            return native.convert(self.tensors)
        return convert(self.in_order, self.to, self.beside, container=self.container, again=self.again)

    @property
    def in_order(self) -> Sequence[Decided]:
        """The tensors as they are written."""
        if not self.ends:
            return self.tensors
        if isinstance(self.tensors, Decisions):
            return self.tensors.sorted_within(self.ends, _narrow)
        runs = (self.tensors[first:last] for first, last in pairwise([0, *self.ends]))
        return [tensor for run in runs for tensor in sorted(run, key=_narrow)]

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The work on each tensor that the target holds, made when it is asked for."""
        return _Jobs(self)

    @cached_property
    def by_name(self) -> Mapping[str, Decided]:
        """The tensors by name."""
        return by_name(self.tensors)

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        """Bytes of each tensor by name, where names do not follow from that of the tensor."""
        return {t.info.name: self.conversion.nbytes(t) for t in self.tensors if self.conversion.holds(t.info.name)}

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the output, by its name."""
        found = self.by_name.get(name)
        return 0 if found is None else self.bytes_of(found)

    def bytes_of(self, tensor: Decided) -> int:
        """Bytes of a tensor in the output."""
        if self.to is None:
            return parts.nbytes(tensor)
        if self.whole is not None:
            return self.whole.bytes_of(tensor)
        if "_sizes" in self.__dict__ or self.conversion.stem is None:
            return self._sizes.get(tensor.info.name, 0)
        return self.conversion.nbytes(tensor) if self.conversion.holds(tensor.info.name) else 0

    @cached_property
    def size(self) -> int:
        """Bytes of all tensors in the output."""
        if self.to is not None:
            return sum(map(self.bytes_of, self.tensors))
        return sum(count * parts.nbytes(tensor) for tensor, count in alike(self.tensors))

    def part(self, first: int, count: int) -> Outgoing:
        """The model of some tensors that follow each other, so that only their records are in memory."""
        ends = [*(end - first for end in self.ends if first < end < first + count), count] if self.ends else ()
        return replace(self, tensors=self.tensors[first : first + count], ends=ends, whole=self.whole or self)

    def forget_conversion(self) -> None:
        """Forget how the tensors are converted, but not their sizes, where the conversion holds something of each: of
        many small tensors that takes more memory than all else. It is made again where it is asked for again."""
        if self.to is not None and self.conversion.stem is None:
            self._sizes  # noqa: B018 - kept
            self.__dict__.pop("conversion", None)


class _Jobs(Mapping[str, Job]):
    """The work on the tensors of a model by their names."""

    __slots__ = ("_model",)

    def __init__(self, model: Outgoing) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Job:
        if name not in self:
            raise KeyError(name)
        return self._model.conversion.job(self._model.by_name[name])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._model.by_name and self._model.conversion.holds(name)

    def __iter__(self) -> Iterator[str]:
        return (t.info.name for t in self._model.in_order if self._model.conversion.holds(t.info.name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def planned(plan: Plan, source: Source, *, digest: str) -> Outgoing:
    """The model a plan leads to, in the target of its request."""
    request = plan.request
    to, container = (None, False) if request is None else (request.to, request.container)
    new = documented(to) and (to is None or named(to).documents(plan.tensors))
    counts = () if new else (len(shard.infos()) for shard in source.shards.values())
    return Outgoing(
        tensors=plan.tensors,
        ends=tuple(accumulate(counts)),
        to=to,
        beside=source.beside,
        container=container,
        request=request,
        digest=digest,
        document="new" if new else "none",
        again=None if request is None else request.again,
    )


# ---- its files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OneFile:
    """A file to write: its name, the tensors of the source it holds, and its size. place(tensor, number): where an
    output of a tensor is in it, None where that is in another file. between: what stands between tensors, given what
    became of them; without results, something as long. check(path, name): opens it before it has its name, and raises
    DataError where that fails. sparse: whether other tensors of it are written elsewhere."""

    name: str
    tensors: tuple[str, ...]
    size: int
    place: Callable[[str, int], int | None]
    between: Callable[[Results | None], Pieces]
    check: Callable[[str, str], None]
    sparse: bool = False

    def fragment(self, tensors: tuple[str, ...]) -> OneFile:
        """The same file with only some of its tensors, each where it will be; a header that is only known once all
        tensors are written is a placeholder."""
        return replace(self, tensors=tensors, between=lambda results: self.between(None), sparse=True)

    def packed(self, sizes: Mapping[str, Sequence[int]]) -> OneFile:
        """Only some of its tensors, one after another in their order and without a header, for places where files
        have no holes. sizes: bytes of the outputs of each."""
        own = sorted(
            (at, name, number)
            for name, those in sizes.items()
            for number in range(len(those))
            if (at := self.place(name, number)) is not None
        )
        found, end = dict[tuple[str, int], int](), 0
        for _, name, number in own:
            found[name, number] = end
            end += sizes[name][number]
        return replace(
            self,
            tensors=tuple(sizes),
            size=end,
            place=lambda name, number: found.get((name, number)),
            between=_always(()),
            check=lambda path, name: None,
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """Tensors that go into one file: its name, the metadata of the source they come from, its bytes, and whether its
    header is as it was written."""

    name: str
    tensors: tuple[str, ...]
    metadata: Mapping[str, str]
    source_bytes: int
    intact: bool = False


def whole(source: Source, model: Outgoing, name: str) -> Cut:
    """All of a source in one file."""
    return Cut(name, tuple(t.info.name for t in model.tensors), source.metadata, source.share, intact(source))


def intact(source: Source) -> bool:
    """Whether the native header of a file is as it was written."""
    return bool(source.documents) and bool(source.documents[0].seal)


def files(model: Outgoing, cut: Cut, path: str) -> list[OneFile]:
    """The files of a cut, most often one. path: of the source, for errors. Raises DataError for a header that is too
    large."""
    found = model.conversion
    if found.files is None:
        return [safetensors(model, cut, path)]
    outputs = {name: [output.name for output in job.outputs] for name, job in model.jobs.items()}
    text = _said(model, {own[0]: model.by_name[name] for name, own in outputs.items()})
    return [
        OneFile(
            name=f.name,
            tensors=tuple(name for name, own in outputs.items() if own[0] in f.offsets),
            size=f.size,
            place=_by_output(outputs, f.offsets),
            between=_always(f.pieces),
            check=_opens if named(model.to or "").read_back else lambda path, name: None,
        )
        for f in found.files(cut.name, text, model.request.max_shard_size if model.request is not None else None)
    ]


def safetensors(model: Outgoing, cut: Cut, path: str) -> OneFile:
    """The safetensors file of a cut."""
    found, wanted = model.conversion, set(cut.tensors)
    tensors = [t for t in model.in_order if t.info.name in wanted and found.holds(t.info.name)]
    names = tuple(t.info.name for t in tensors)
    begins, endings, first = _stored(found, tensors)

    def metadata(results: Results | None) -> dict[str, str | Iterable[str]]:
        held = {"format": "pt", **cut.metadata}
        if model.document == "new":
            pieces = document.document(tensors, model.request, model.digest, cut.source_bytes, results)
            return {**held, **found.header(names), NATIVE_KEY: pieces}
        other = {**{k: v for k, v in held.items() if k not in (NATIVE_KEY, KEY)}, **found.header(names)}
        if model.document == "kept" and NATIVE_KEY in held:
            return {**other, NATIVE_KEY: held[NATIVE_KEY]}
        return {**other, KEY: _said(model, dict(zip(names, tensors)))}

    try:
        places = lay_out_all(begins, endings, metadata(None))
    except DataError as error:
        raise error.within(path) from None

    def between(results: Results | None) -> Pieces:
        new, kept = model.document == "new", model.document == "kept"
        # Where the header of a source was changed, a digest of what is kept of it would hide that.
        sealed = results is not None if new else kept and cut.intact
        pieces = places.header(metadata(results))
        return seal.seal(pieces) if sealed else pieces

    def place(name: str, number: int) -> int | None:
        at = first.get(name)
        return None if at is None else places.starts[at + number]

    return OneFile(name=cut.name, tensors=names, size=places.size, place=place, between=between, check=places.check)


def _stored(found: Conversion, tensors: Sequence[Decided]) -> tuple[list[str], list[Endings], dict[str, int]]:
    """What the names of the tensors that hold others begin with, how they end, and the number of the first for each."""
    begins, endings, first, count = list[str](), list[Endings](), dict[str, int](), 0
    for tensor in tensors:
        first[tensor.info.name] = count
        for begin, own in found.stored(tensor):
            begins.append(begin)
            endings.append(own)
            count += len(own)
    return begins, endings, first


def _by_output(outputs: Mapping[str, Sequence[str]], offsets: Mapping[str, int]) -> Callable[[str, int], int | None]:
    """Where outputs are, by those that are in a file. outputs: their names, by that of the tensor that they hold."""
    return lambda name, number: offsets.get(outputs[name][number])


def _opens(path: str, name: str) -> None:
    open_source(path).close()


def _always(pieces: Pieces) -> Callable[[Results | None], Pieces]:
    return lambda results: pieces


def _said(model: Outgoing, tensors: Mapping[str, Decided]) -> str:
    """What a file of another tool's layout says under KEY of the tensors it holds, by their names in it."""
    origin: Mapping[str, Any] = origins.told(tensors)
    made = {"config": model.conversion.config, "target": model.to, "tool": f"quantcli {__version__}", **origin}
    return json.dumps(made, sort_keys=True, separators=(",", ":"))


def loadable(name: str, index: int, count: int) -> str:
    """A shard's own name if loaders look for such names, else the usual one."""
    if name.startswith(("model", "diffusion_pytorch_model")):
        return name
    return NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
