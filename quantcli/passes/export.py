"""A native file or folder as another tool loads it: codes moved, never made anew.

Everything is refused and every size is known before the first weight is read. Where parameters were rounded the cost
is measured on the bytes that were written, decoded as their reader decodes them.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli import __version__, interrupts
from quantcli.architectures import Architecture
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.folders import card
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.layouts import origins
from quantcli.layouts.gguf import names as naming
from quantcli.layouts.native.document import KEY as NATIVE_KEY
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.native.model import open as open_model
from quantcli.layouts.view import View
from quantcli.layouts.writing import KEY, Beside, Conversion, Export, Job, Piece, Weight, named, refusal
from quantcli.layouts.writing._parts import architecture, json_beside, without_quantization
from quantcli.models import view_of, views_of
from quantcli.passes import compare
from quantcli.stores import Source
from quantcli.stores.checkpoint import INDEX, Checkpoint
from quantcli.stores.files import OutputFile, check_destination, check_space
from quantcli.stores.folder import OutputFolder, check_folder, json_bytes
from quantcli.stores.safetensors import header_bytes, lay_out, validate
from quantcli.stores.seal import sealed
from quantcli.stores.workspace import Workspace, remove
from quantcli.tensors.info import TensorInfo
from quantcli.workers import Crew, Task

if TYPE_CHECKING:
    from quantcli.layouts.native.document import StoredTensor
    from quantcli.metrics import Metrics
    from quantcli.passes.quantize import Progress
    from quantcli.planning.plan import TensorPlan

NAME = "model.safetensors"

MOST_THREADS = 4
"""Moving codes is limited by memory and disk: more threads would only take slabs of their own."""


# ---- what can be stored ---------------------------------------------------------------------------------------------


def obstacle(weight: Weight, export: Export, model: Architecture) -> str | None:
    """Why a target cannot store a weight, or its loader takes none in its place in such a model; None when it does."""
    assert weight.scheme is not None
    why = export.accepts.obstacle(weight.scheme) or export.shape(weight)
    return why or export.module(weight, model)


def convert(tensors: Sequence[Weight], target: str, beside: Beside, *, container: bool = False) -> Conversion:
    """What becomes of a model; container: as a container of its tensors, which nothing runs.

    Raises UsageError for what the target does not support, DataError where two tensors would be written under one
    name.
    """
    export = named(target)
    make = export.container if container else export.convert
    if make is None:
        raise UsageError(f"{target} has no containers, only models", place=["--container"], hint="leave it out")
    if not any(t.scheme is not None for t in tensors):
        raise DataError("there is nothing quantized in it to export")
    model = architecture(beside)
    for tensor in tensors:
        if tensor.scheme is not None and (why := obstacle(tensor, export, model)) is not None:
            raise refusal(tensor.info.name, tensor.scheme.name, why, target)
    try:
        found = make(tensors, beside)
    except UsageError as error:
        if error.place:
            raise
        problem = f"{target} cannot store them together: {error.problem}"
        raise UsageError(problem, hint=error.hint) from None
    owner: dict[str, str] = {}
    for name, job in found.jobs.items():
        for output in job.outputs:
            if output.name in owner:
                both = f"{printable(owner[output.name])} and {printable(name)}"
                raise DataError(f"{both} would both be written as {printable(output.name)}")
            owner[output.name] = name
    return found


def as_stored(tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
    """Planned tensors in the order in which the native file will hold them, which is the order they are exported in."""
    outputs = [(-DTYPES[output.dtype].bits, output.name) for t in tensors for output in t.outputs]
    place = {name: (wide, at) for at, (wide, name) in enumerate(outputs)}
    return sorted(tensors, key=lambda t: min(place[output.name] for output in t.outputs))


def notes(found: Conversion, *, config: bool) -> list[str]:
    """What there is to say before anything is written: what the loader will and will not do, and without a config.json
    (a bare file has none, and none is made up) what it wants there."""
    lines = list(found.notes)
    if found.config and not config:
        text = json.dumps(dict(found.config))
        lines.append(f"no config.json is written, and a loader of folders wants this in the model's own: {text}")
    return lines


def has_config(source: Source, *, folder: bool) -> bool:
    """Whether an output has a config.json: where it is a folder and the source has one."""
    return folder and beside(source)(CONFIG) is not None


# ---- files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFile:
    """A file to write: its name, the tensors of the source it holds, its size, what stands between them, and where
    they are. checked: whether the safetensors library looks at it."""

    name: str
    tensors: tuple[str, ...]
    size: int
    pieces: Sequence[tuple[int, bytes]]
    offsets: Mapping[str, int]
    checked: bool


def check_standard_output(target: str, output: str | None) -> None:
    """Raise UsageError for a target of more than one file on standard output."""
    if output == "-" and named(target).two_files:
        raise UsageError(f"{target} may take two files", place=["stdout"], hint="name a file with -o")


def as_folder(source: Source, target: str, output: str | None) -> bool:
    """Whether the output is a folder: of a folder, and where a name without .safetensors is given."""
    if named(target).extension:
        return False
    if output is None:
        return isinstance(source, Checkpoint)
    return not output.lower().endswith(".safetensors")


def files(
    source: Source,
    tensors: Sequence[StoredTensor | TensorPlan],
    target: str,
    found: Conversion,
    base: str | None,
    *,
    anew: bool = False,
) -> list[OneFile]:
    """The files of an export to the byte.

    base: the name of the output where it is one file, None for a folder. anew: whether some tensors are not those of
    the source, so that its header no longer describes them.
    """
    known = {t.info.name: t for t in tensors}
    if found.files is not None:
        assert base is not None
        names = tuple(found.jobs)
        own_names = {job.outputs[0].name: known[name] for name, job in found.jobs.items()}
        text = _said(target, found, origins.told(own_names))
        return [
            OneFile(name=f.name, tensors=names, size=f.size, pieces=f.pieces, offsets=f.offsets, checked=False)
            for f in found.files(base, text)
        ]
    keep = named(target).keeps_document and not anew
    if base is not None or not isinstance(source, Checkpoint):
        keep &= not isinstance(source, Checkpoint)
        names = tuple(found.jobs)
        text = _said(target, found, origins.told({name: known[name] for name in names}))
        return [_file(base or NAME, names, found, source, text, keep=keep)]
    parts = []
    for name, shard in source.shards.items():
        held = {info.name for info in shard.infos()}
        own = tuple(
            t.info.name for t in tensors if t.info.name in found.jobs and {t.info.name, f"{t.info.name}_packed"} & held
        )
        text = _said(target, found, origins.told({name: known[name] for name in own}))
        parts.append((name, own, shard, text))
    return [
        _file(_loadable(name, i, len(parts)), own, found, shard, text, keep=keep)
        for i, (name, own, shard, text) in enumerate(parts)
        if own
    ]


def _loadable(name: str, index: int, count: int) -> str:
    """A shard's own name if loaders look for such names, else the usual one."""
    if name.startswith(("model", "diffusion_pytorch_model")):
        return name
    return NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _said(target: str, found: Conversion, origin: Mapping[str, Any]) -> str:
    """What an exported file says under KEY."""
    made = {"config": found.config, "target": target, "tool": f"quantcli {__version__}", **origin}
    return json.dumps(made, sort_keys=True, separators=(",", ":"))


def _file(
    name: str, tensors: tuple[str, ...], found: Conversion, source: Source, said: str, *, keep: bool
) -> OneFile:
    """keep: whether the source's own header document describes the file still. said: what it says under KEY if not."""
    header = {"format": "pt", **{k: v for k, v in source.metadata.items() if k not in (NATIVE_KEY, KEY)}}
    header |= found.header(tensors)
    document = source.documents[0] if keep and source.documents else None
    header |= {KEY: said} if document is None else {NATIVE_KEY: document.text}
    places = lay_out([o for t in tensors for o in found.jobs[t].outputs], header)
    first = header_bytes(places.entries, header, places.header_size)
    if document is not None and document.seal:  # else the change of a changed header would be hidden
        first = sealed(first)
    return OneFile(
        name=name, tensors=tensors, size=places.size, pieces=((0, first),), offsets=places.offsets, checked=True
    )


def beside(source: Source) -> Beside:
    """What lies beside the weights of a folder; nothing for a file."""
    return source.beside if isinstance(source, Checkpoint) else lambda name: None


def _config(order: Order) -> dict[str, Any]:
    """config.json of the source; empty when there is none. Raises DataError when it is something else."""
    try:
        return json_beside(order.beside, CONFIG) or {}
    except DataError as error:
        raise error.within(order.shown) from None


def check_output(source: Source, target: str, output: str, *, folder: bool, force: bool) -> str:
    """The real path of the output, or the reason why it may not be written. Raises UsageError or QuantcliError."""
    if folder:
        first = source.files()[0].path
        real = check_folder(output, force=force, source=source.folder if isinstance(source, Checkpoint) else first)
        if any(os.path.realpath(f.path).startswith(os.path.join(real, "")) for f in source.files()):
            raise UsageError("the input is in this folder, which would be replaced", place=[output])
        return real
    return check_destination(output, force=force, sources=list(source.files()))


# ---- the pass ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written: bytes of all files, side files copied, which tensors stand for just the same numbers, and the
    errors of the others against what they were measured by."""

    size: int
    copied: tuple[str, ...]
    exact: Mapping[str, bool]
    metrics: Mapping[str, Metrics | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to write where.

    tensors: of the native model, by name. found: what becomes of them. against: what exported weights are measured by
    where they are not exact, and those of `always` in any case. folder: whether `path` is one. force: whether it may
    exist. shown: what the source is called in errors. side, beside: the files beside the weights, and their content.
    workspace: where temporary files go, if whoever calls has one.
    """

    shown: str
    source: Source
    tensors: Mapping[str, Tensor]
    found: Conversion
    target: str
    path: str
    folder: bool
    force: bool
    side: SideFiles
    beside: Beside
    threads: int
    progress: Progress | None
    against: Mapping[str, View]
    always: frozenset[str] = frozenset()
    workspace: Workspace | None = None


def write(order: Order) -> Written:
    """Export to a file or folder, which appears only when it is complete. Raises QuantcliError."""
    stored = [t.stored for t in order.tensors.values()]
    config, found = _config(order), order.found
    base = None if order.folder else os.path.basename(order.path)
    planned = files(order.source, stored, order.target, found, base, anew=bool(order.always))
    for file in planned[1:] if not order.folder else []:
        second = os.path.join(os.path.dirname(order.path), file.name)
        check_destination(second, force=order.force, sources=list(order.source.files()))
    size = sum(f.size for f in planned)
    check_space(order.path, size + order.side.size, order.shown)
    if order.progress is not None:
        order.progress.start(size)
    if not order.folder:
        exact, metrics = _write_files(order, found, planned, os.path.dirname(order.path))
        return Written(size=size, copied=(), exact=exact, metrics=metrics)
    told = None if order.side.leaves_out(CARD) else beside(order.source)(CARD)
    with OutputFolder(order.path, force=order.force, workspace=order.workspace) as out:
        out.begin(())
        order.side.copy_to(out)
        exact, metrics = _write_files(order, found, planned, out.temp)
        if told is not None:
            out.write(CARD, card.exported(told, order.target, named(order.target).summary, found.notes))
        if len(planned) > 1:
            out.write(INDEX, json_bytes(_index(found, planned)))
        if config:
            out.write(CONFIG, json_bytes({**without_quantization(config), **found.config}))
        out.publish()
    return Written(size=size, copied=tuple(f.name for f in order.side.copied), exact=exact, metrics=metrics)


def _write_files(
    order: Order, found: Conversion, planned: Sequence[OneFile], folder: str
) -> tuple[dict[str, bool], dict[str, Metrics | None]]:
    """Write files into a folder: which tensors are exact, and the errors of the others."""
    within = order.workspace.folder if order.workspace is not None and not order.folder else None
    with ExitStack() as stack:
        outs = [
            stack.enter_context(OutputFile(os.path.join(folder, f.name), f.size, force=order.force, within=within))
            for f in planned
        ]
        exact = _run(order, found, list(zip(planned, outs)))
        order.source.check_unchanged()
        for file, out in zip(planned, outs):
            out.sync()
            if file.checked:
                validate(out.temp, out.path)
            elif named(order.target).read_back:
                open_model(out.temp).close()
        metrics = _measured(order, found, {t: out.temp for f, out in zip(planned, outs) for t in f.tensors}, exact)
        _publish(outs, order.force)
    return exact, metrics


def _publish(outs: Sequence[OutputFile], force: bool) -> None:
    """Move all files into place, the first last because it names the others; or none, where none was before."""
    with interrupts.deferred(), ExitStack() as undo:
        for out in reversed(outs):
            out.publish()
            if not force:
                undo.callback(remove, out.path)
        undo.pop_all()


def _run(order: Order, found: Conversion, outs: Sequence[tuple[OneFile, OutputFile]]) -> dict[str, bool]:
    """Write everything; which tensors stand for just the same numbers."""
    exact = dict.fromkeys(found.jobs, True)
    lock = threading.Lock()
    places = {name: (out, at) for file, out in outs for name, at in file.offsets.items()}

    def put(job: Job, output: int, offset: int, values: Any) -> None:
        data = memoryview(values)
        if not data.nbytes:
            return
        out, at = places[job.outputs[output].name]
        out.write(at + offset, data)
        if order.progress is not None:
            order.progress.advance(data.nbytes)

    def one(name: str, job: Job, piece: Piece) -> None:
        try:
            same = piece(order.tensors[name], partial(put, job))
        except QuantcliError as error:
            if error.place[:1] == [order.source.path]:
                del error.place[0]
            raise error.within(order.shown) from None
        if not same:
            with lock:
                exact[name] = False

    def tasks() -> Iterator[Task]:
        for name, job in found.jobs.items():
            for piece in job.pieces():
                yield partial(one, name, job, piece)

    for file, out in outs:
        for offset, piece in file.pieces:
            out.write(offset, piece)
    Crew(tasks(), min(order.threads, MOST_THREADS)).run()
    return exact


def _measured(
    order: Order, found: Conversion, homes: Mapping[str, str], exact: Mapping[str, bool]
) -> dict[str, Metrics | None]:
    """Errors of what was rounded or made anew, from the bytes that were written where there is a reader of them."""
    wanted = [
        name
        for name, tensor in order.tensors.items()
        if name in found.jobs and (name in order.always or (tensor.scheme is not None and not exact[name]))
    ]
    pairs: dict[str, tuple[View, View]] = {}
    with ExitStack() as stack:
        read = dict[str, View]()
        for path in dict.fromkeys(homes[name] for name in wanted) if named(order.target).read_back else []:
            model = stack.enter_context(open_model(path))
            read |= naming.of_checkpoint(model, views_of(model, path, found.config))
        for name in wanted:
            if name in read and read[name].scheme is not None:
                pairs[name] = order.against[name], read[name]
            elif exact[name]:  # what was made anew is what was written
                pairs[name] = order.against[name], view_of(order.tensors[name])
        return compare.measure(pairs, threads=order.threads, progress=None)


def _index(found: Conversion, planned: Sequence[OneFile]) -> dict[str, Any]:
    outputs: list[tuple[TensorInfo, str]] = [
        (output, file.name) for file in planned for name in file.tensors for output in found.jobs[name].outputs
    ]
    total = sum(output.nbytes for output, _ in outputs)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted((o.name, name) for o, name in outputs))}
