"""The files of an output to the byte, before the first weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from quantcli import __version__
from quantcli.architectures import Architecture
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts import origins
from quantcli.layouts.config import architecture
from quantcli.layouts.joined import refuse_mixed
from quantcli.layouts.native import document, parts
from quantcli.layouts.native import write as native
from quantcli.layouts.native.document import KEY as NATIVE_KEY
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import KEY, Again, Beside, Conversion, Job, Weight, Writer, named, refusal
from quantcli.planning.plan import Plan
from quantcli.planning.request import Request
from quantcli.stores import Source, open_source, seal
from quantcli.stores.safetensors import lay_out_all
from quantcli.tensors.decided import Decided
from quantcli.tensors.decisions import alike, by_name
from quantcli.tensors.info import Endings

NAME = "model.safetensors"
"""The file of a model that is one file in a folder."""

Pieces = Iterable[tuple[int, bytes]]
"""What stands between the tensors of a file: offset and bytes."""

Results = Mapping[str, Result]


# ---- what can be stored ---------------------------------------------------------------------------------------------


def obstacle(weight: Weight, export: Writer, model: Architecture, again: Again | None = None) -> str | None:
    """Why a target cannot store a weight, or its loader takes none in its place in such a model; None when it does."""
    assert weight.scheme is not None
    return export.accepts.obstacle(weight.scheme) or export.unstored(weight, model, again)


def convert(
    tensors: Sequence[Decided],
    to: str,
    beside: Beside,
    *,
    container: bool = False,
    again: Again | None = None,
) -> Conversion:
    """What becomes of a model in a target of another tool; container: as a container of its tensors, which
    nothing runs. again: how it is written again, where it is in the format of the target already.

    Raises UsageError for what the target does not support, DataError where two tensors would be written under one
    name.
    """
    export = named(to)
    make = export.container if container else export.convert
    if make is None:
        raise UsageError(f"{to} has no containers, only models", place=["--container"], hint="leave it out")
    if not any(t.scheme is not None for t in tensors):
        raise DataError("it holds no quantized tensor to export")
    model = architecture(beside)
    for tensor in tensors:
        if tensor.scheme is not None and (why := obstacle(tensor, export, model, again)) is not None:
            raise refusal(tensor.info.name, tensor.scheme, why, to)
    try:
        if export.joins and not container:
            refuse_mixed(tensors)
        found = make(tensors, beside) if again is None else again.convert(tensors)
    except UsageError as error:
        if error.place:
            raise
        problem = f"{to} cannot store them together: {error.problem}"
        raise UsageError(problem, hint=error.hint) from None
    owner: dict[str, str] = {}
    for name, job in found.jobs.items():
        for output in job.outputs:
            if output.name in owner:
                both = f"{printable(owner[output.name])} and {printable(name)}"
                raise DataError(f"{both} would both be written as {printable(output.name)}")
            owner[output.name] = name
    return found


def documented(to: str | None) -> bool:
    """Whether files of a target hold the native document."""
    return to is None or named(to).keeps_document


def in_file_order(tensors: Sequence[Decided]) -> list[Decided]:
    """Tensors in the order in which a native file holds them, which is the order other layouts list them in."""
    outputs = [(-DTYPES[output.dtype].bits, output.name) for t in tensors for output in parts.outputs(t)]
    place = {name: (wide, at) for at, (wide, name) in enumerate(outputs)}
    return sorted(tensors, key=lambda t: min(place[output.name] for output in parts.outputs(t)))


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

    to: the target, None for the native layout. request, digest: what the native document says of how it was made.
    document: whether its files get a native document (`new`), keep the one they have, for codes are only moved
    (`kept`), or have none. again: how the model is written again, where it is in the format of the target already.
    """

    tensors: Sequence[Decided]
    to: str | None
    beside: Beside
    container: bool = False
    request: Request | None = None
    digest: str = "none"
    document: Literal["new", "kept", "none"] = "none"
    again: Again | None = None

    @cached_property
    def conversion(self) -> Conversion:
        """What becomes of the tensors. Raises UsageError and DataError as `convert` does."""
        if self.to is None:
            return native.convert(self.tensors, self.by_name)
        return convert(self.tensors, self.to, self.beside, container=self.container, again=self.again)

    @cached_property
    def by_name(self) -> Mapping[str, Decided]:
        """The tensors by name."""
        return by_name(self.tensors)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each tensor stands among all."""
        return {t.info.name: place for place, t in enumerate(self.tensors)}

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        return {name: self.conversion.nbytes(name) for name in self.conversion.jobs}

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the output, by its name."""
        if self.to is not None:
            return self._sizes.get(name, 0)
        found = self.by_name.get(name)
        return 0 if found is None else parts.nbytes(found)

    def bytes_of(self, tensor: Decided) -> int:
        """Bytes of a tensor in the output."""
        return parts.nbytes(tensor) if self.to is None else self.nbytes(tensor.info.name)

    @property
    def size(self) -> int:
        """Bytes of all tensors in the output."""
        if self.to is not None:
            return sum(self._sizes.get(tensor.info.name, 0) for tensor in self.tensors)
        return sum(count * parts.nbytes(tensor) for tensor, count in alike(self.tensors))

    def part(self, first: int, count: int) -> Outgoing:
        """The model of some tensors that follow each other, where each is stored by itself, so that only their records
        are in memory; else this one."""
        return self if self.to is not None else replace(self, tensors=self.tensors[first : first + count])

    def written(self) -> None:
        """Forget how the tensors are converted, but not their sizes: of many small tensors that takes more memory than
        all else. It is found out again where it is wanted again."""
        if self.to is not None:
            self._sizes  # noqa: B018 - kept
        self.__dict__.pop("conversion", None)
        self.__dict__.pop("places", None)


def planned(plan: Plan, source: Source, *, digest: str) -> Outgoing:
    """The model a plan leads to, in the target of its request."""
    request = plan.request
    to, container = (None, False) if request is None else (request.to, request.container)
    new = documented(to) and (to is None or named(to).documents(plan.tensors))
    return Outgoing(
        tensors=plan.tensors if new else _listed(plan, source),
        to=to,
        beside=source.beside,
        container=container,
        request=request,
        digest=digest,
        document="new" if new else "none",
        again=None if request is None else request.again,
    )


def _listed(plan: Plan, source: Source) -> list[Decided]:
    """The tensors of a plan in file order, shard by shard."""
    found, at = list[Decided](), 0
    for shard in source.shards.values():
        count = len(shard.infos())
        found += in_file_order(plan.tensors[at : at + count])
        at += count
    return found


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
    names = tuple(name for name in found.jobs if name in model.by_name)
    first = {name: job.outputs[0].name for name, job in found.jobs.items()}
    own_names = {job.outputs[0].name: model.by_name[name] for name, job in found.jobs.items()}
    text = _said(model, own_names)
    return [
        OneFile(
            name=f.name,
            tensors=tuple(name for name in names if first[name] in f.offsets),
            size=f.size,
            place=_by_output(found.jobs, f.offsets),
            between=_always(f.pieces),
            check=_opens if named(model.to or "").read_back else lambda path, name: None,
        )
        for f in found.files(cut.name, text, model.request.max_shard_size if model.request is not None else None)
    ]


def safetensors(model: Outgoing, cut: Cut, path: str) -> OneFile:
    """The safetensors file of a cut."""
    found = model.conversion
    names = tuple(sorted((name for name in cut.tensors if name in found.jobs), key=model.places.__getitem__))
    begins, endings, first = _stored(found, names)
    tensors = [model.by_name[name] for name in names]

    def metadata(results: Results | None) -> dict[str, str | Iterable[str]]:
        held = {"format": "pt", **cut.metadata}
        if model.document == "new":
            pieces = document.document(tensors, model.request, model.digest, cut.source_bytes, results)
            return {**held, **found.header(names), NATIVE_KEY: pieces}
        other = {**{k: v for k, v in held.items() if k not in (NATIVE_KEY, KEY)}, **found.header(names)}
        if model.document == "kept" and NATIVE_KEY in held:
            return {**other, NATIVE_KEY: held[NATIVE_KEY]}
        return {**other, KEY: _said(model, {name: model.by_name[name] for name in names})}

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


def _stored(found: Conversion, names: Sequence[str]) -> tuple[list[str], list[Endings], dict[str, int]]:
    """What the names of the tensors that hold others begin with, how they end, and the number of the first for each."""
    begins, endings, first, count = list[str](), list[Endings](), dict[str, int](), 0
    for name in names:
        first[name] = count
        for begin, own in found.stored(name):
            begins.append(begin)
            endings.append(own)
            count += len(own)
    return begins, endings, first


def _by_output(jobs: Mapping[str, Job], offsets: Mapping[str, int]) -> Callable[[str, int], int | None]:
    """Where outputs are, by those that are in a file."""
    return lambda name, number: offsets.get(jobs[name].outputs[number].name)


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
