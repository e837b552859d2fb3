"""A checkpoint folder in, a checkpoint folder out: shard by shard under their names or cut anew, with index, config
and card.

A run that is killed leaves its finished files, and another one with `resume` goes on behind them: the bytes are the
same as without the interruption.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.errors import QuantcliError, UsageError, printable
from quantcli.folders import card
from quantcli.folders import resume as resuming
from quantcli.folders.resume import Finished, Journal
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.layouts.native.document import Result, StoredTensor
from quantcli.layouts.writing._parts import json_beside
from quantcli.layouts.writing.compressed_tensors import quantization_config
from quantcli.passes import quantize
from quantcli.planning.plan import Plan, TensorPlan
from quantcli.reports import build
from quantcli.stores import Source
from quantcli.stores.checkpoint import INDEX, Checkpoint, Part
from quantcli.stores.files import check_space, read_small
from quantcli.stores.folder import OutputFolder, json_bytes
from quantcli.stores.safetensors import strict_json
from quantcli.stores.workspace import is_own, partial_of

_SIDE = 1 << 26
"""Most bytes of an index, a configuration or a card."""


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """A folder that was written; `obstacle` tells why it has no quantization_config, if it has none; notes: what else
    whoever asked for it must know."""

    plan: Plan
    results: dict[str, Result]
    size: int
    copied: list[str]
    obstacle: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A file to write: its name while the work is going on, and the tensors in it."""

    name: str
    source: Source
    plan: Plan


class _Cut:
    """How a plan is cut into files, one after another: as the source is, or anew where a size is given."""

    def __init__(self, source: Checkpoint, plan: Plan, digest: str) -> None:
        self.source, self.plan, self.digest = source, plan, digest
        self.limit = plan.request.max_shard_size if plan.request is not None else None
        self._whole = sum(file.size for file in source.files())
        self._infos = source.infos()  # in the order of the plan
        self._data = sum(info.nbytes for info in self._infos)
        self._shards: dict[int, tuple[str, int]] = {}
        at = 0
        for name, shard in source.shards.items():
            self._shards[at] = name, len(shard.infos())
            at += len(shard.infos())

    def piece(self, at: int, number: int, count: int | None = None) -> _Piece:
        """The file that begins with tensor `at`; count: how many tensors it is known to have."""
        if self.limit is None:
            name, count = self._shards[at]
            return _Piece(name, self.source.shards[name], self.plan.part(at, at + count))
        if count is None:
            count = self._count(at)
        return self._part(at, number, count)

    def _part(self, at: int, number: int, count: int) -> _Piece:
        infos = self._infos[at : at + count]
        # The headers of the source count for the first file, so that all shares together are the source.
        share = sum(info.nbytes for info in infos) + (self._whole - self._data if at == 0 else 0)
        name = f"part-{number:05d}.safetensors"
        return _Piece(name, Part(self.source, infos, share), self.plan.part(at, at + count))

    def _count(self, at: int) -> int:
        """The most tensors that stay within the limit, one at least."""
        assert self.limit is not None
        low, high = 1, len(self._infos) - at
        rest = self.limit
        for n, tensor in enumerate(self.plan.tensors[at:]):  # without headers: fewer layouts to try
            rest -= tensor.bytes_out
            if rest < 0:
                high = max(n, 1)
                break
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.size(self._part(at, 0, middle)) <= self.limit else (low, middle - 1)
        return low

    def size(self, piece: _Piece) -> int:
        """The exact size of a file."""
        return quantize.file_layout(piece.source, piece.plan, piece.source.metadata, self.digest).size

    def pieces(self) -> Iterator[_Piece]:
        """All files as they are planned."""
        at = number = 0
        while at < len(self._infos):
            piece = self.piece(at, number + 1)
            yield piece
            at, number = at + len(piece.plan.tensors), number + 1


@dataclass(frozen=True, slots=True)
class _Around:
    """What there is of a folder beside its weights: side files, config.json (empty where there is none), the card."""

    side: SideFiles
    config: dict[str, Any]
    card: bytes | None


def write(
    source: Checkpoint,
    plan: Plan,
    path: str,
    options: quantize.Options,
    *,
    side: SideFiles,
    bare: bool = False,
    resume: bool = False,
) -> WrittenFolder:
    """Quantize a checkpoint folder into a folder at `path`, which appears only when it is complete.

    side: what lies beside the weights. bare: whether that is not copied, for a temporary folder.
    resume: go on with what an interrupted run has finished. Raises UsageError where that run was asked for something
    else, DataError where the source was changed since.
    """
    around = _around(source, side)
    with OutputFolder(path, force=options.force) as out:
        try:
            return _write(source, plan, out, options, around, bare, resume)
        except QuantcliError as error:
            error.place = [p.replace(out.temp, path, 1) for p in error.place]
            raise


def _around(source: Checkpoint, side: SideFiles) -> _Around:
    """What lies around the weights, read before them: whatever is wrong with it is wrong from the start."""
    original = None if side.leaves_out(CARD) else source.beside(CARD)
    return _Around(side, json_beside(source.beside, CONFIG) or {}, original)


def _write(
    source: Checkpoint,
    plan: Plan,
    out: OutputFolder,
    options: quantize.Options,
    around: _Around,
    bare: bool,
    resume: bool,
) -> WrittenFolder:
    asked = resuming.asked(source, plan, options)
    earlier, notes = _begun(out, asked, resume)
    out.begin(list(earlier))
    copied = [] if bare else around.side.copied
    taken = [os.path.join(out.temp, name) for name in earlier]
    there = sum(os.path.getsize(path) for path in taken if os.path.isfile(path))
    weights = sum(tensor.bytes_out for tensor in plan.tensors)
    check_space(out.path, sum(f.size for f in copied) + max(weights - there, 0), source.path)
    if not bare:
        around.side.copy_to(out)
    cut = _Cut(source, plan, options.digest)
    options = replace(options, force=True, part=True)
    files: list[tuple[str, quantize.Written]] = []
    done: dict[str, Finished] = {}
    at = 0
    while at < len(plan.tensors):
        piece = cut.piece(at, len(files) + 1)
        known = earlier.pop(piece.name, None)
        out.hold = known is not None  # a run that may not go on leaves all to one that may
        written = None
        if known is not None:
            piece = cut.piece(at, len(files) + 1, known.tensors)
            written = resuming.taken_over(os.path.join(out.temp, piece.name), known, piece.source, piece.plan, options)
            if written is None:
                notes.append(f"{piece.name} of the interrupted run is damaged and was made again")
                piece = cut.piece(at, len(files) + 1)
        if written is None:
            out.hold = False
            written = _made(out, cut, piece, options)
            if written is None:
                continue
            known = Finished(
                len(written.plan.tensors), resuming.file_digest(os.path.join(out.temp, piece.name), options.threads)
            )
        assert known is not None
        done[piece.name] = known
        out.record(Journal(asked, {**done, **earlier}).as_bytes())
        files.append((piece.name, written))
        at += len(written.plan.tensors)
    folder = _finished(source, plan, out, options, cut, files, notes, around)
    return replace(folder, copied=[f.name for f in copied])


def _begun(out: OutputFolder, asked: dict[str, Any], resume: bool) -> tuple[dict[str, Finished], list[str]]:
    """What of an interrupted run can be taken over, and what is to be said of it."""
    journal = resuming.read(out.found) if out.found is not None else None
    if journal is None:
        return {}, []
    done = f"{len(journal.finished)} finished file{'' if len(journal.finished) == 1 else 's'}"
    if not resume:
        return {}, [f"an interrupted run had left {done}, made anew now; --resume would have kept them"]
    why = resuming.difference(journal.asked, asked)
    if why is not None:
        out.hold = True
        hint = "ask for the same again, or leave out --resume to start over"
        raise UsageError(f"the interrupted run was another one: {why}", place=[out.path], hint=hint)
    return dict(journal.finished), [f"went on behind {done} of an interrupted run"]


def _made(out: OutputFolder, cut: _Cut, piece: _Piece, options: quantize.Options) -> quantize.Written | None:
    """A file that was written; None when its tensors turned out larger than planned and it must be cut earlier."""
    path = os.path.join(out.temp, piece.name)
    written = quantize.write(piece.source, piece.plan, piece.source.metadata, path, options)
    if cut.limit is None or written.size <= cut.limit or len(piece.plan.tensors) == 1:
        return written
    cut.plan = cut.plan.amended({t.info.name: t for t in written.plan.tensors})
    return None


def _finished(
    source: Checkpoint,
    plan: Plan,
    out: OutputFolder,
    options: quantize.Options,
    cut: _Cut,
    files: list[tuple[str, quantize.Written]],
    notes: list[str],
    around: _Around,
) -> WrittenFolder:
    """The folder with all that is not weights, in its place."""
    index = os.path.basename(source.index or INDEX)
    names = [name for name, _ in files] if cut.limit is None else _numbered(index, source, len(files))
    for new, (name, written) in zip(names, files):
        if new != name:
            out.rename(name, new)
        if cut.limit is not None and written.size > cut.limit:
            tensor = printable(written.plan.tensors[0].info.name)
            notes.append(f"{new} has {written.size} bytes, more than --max-shard-size: {tensor} is alone in it")
    tensors = [t for _, written in files for t in written.plan.tensors]
    results = {name: r for _, written in files for name, r in written.results.items()}
    size = sum(written.size for _, written in files)
    if (source.index and cut.limit is None) or len(files) > 1:
        homes = {o.name: new for new, (_, w) in zip(names, files) for t in w.plan.tensors for o in t.outputs}
        out.write(index, _index(source, tensors, homes))
    content = {key: value for key, value in around.config.items() if key != "quantization_config"}
    config, why = quantization_config(tensors, architectures.of(content) or UNNAMED)
    if content:
        out.write(CONFIG, json_bytes({**content, **({"quantization_config": config} if config else {})}))
    whole = Plan(tuple(tensors), plan.request)
    out.write(CARD, _card(source, whole, results, size, options, why, around))
    source.check_unchanged()
    out.publish()
    return WrittenFolder(whole, results, size, [], why, notes)


def _numbered(index: str, source: Checkpoint, count: int) -> list[str]:
    """The names of so many files, after the index or the files there were."""
    stem = index.removesuffix(".safetensors.index.json")
    if not source.index:
        first = next(iter(source.shards))
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", first.removesuffix(".safetensors"))
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _index(source: Checkpoint, tensors: list[TensorPlan], homes: dict[str, str]) -> bytes:
    """The index: what the old one said of the model, sizes, and the file of every tensor."""
    found = strict_json(read_small(source.index, 100_000_000), source.index) if source.index else {}
    said = found.get("metadata")
    metadata = {
        **(said if isinstance(said, dict) else {}),
        "total_parameters": sum(t.info.numel for t in tensors),
        "total_size": sum(o.nbytes for t in tensors for o in t.outputs),
    }
    return json_bytes({**found, "metadata": metadata, "weight_map": dict(sorted(homes.items()))})


def _card(
    source: Checkpoint,
    plan: Plan,
    results: dict[str, Result],
    size: int,
    options: quantize.Options,
    obstacle: str,
    around: _Around,
) -> bytes:
    """The model card, with the original one in it."""
    found = build.of_plan(
        plan.tensors,
        results,
        command="quantize",
        source=source.path,
        output=None,
        bytes_in=sum(f.size for f in source.files()),
        bytes_out=size,
        seconds=None,
    )
    settings = {"digest": options.digest, "on_nonfinite": "keep" if options.keep_nonfinite else "refuse"}
    return card.card(
        found,
        plan,
        settings=settings,
        obstacle=obstacle,
        origin=card.hub_name(source.folder),
        side=around.side,
        original=around.card,
    )


def dry_size(source: Checkpoint, plan: Plan, digest: str) -> int:
    """The exact size of all files a plan leads to."""
    cut = _Cut(source, plan, digest)
    return sum(cut.size(piece) for piece in cut.pieces())


def left_over(path: str) -> str | None:
    """The hidden folder that an interrupted run on a destination has left, if there is one to go on with."""
    partial = partial_of(path)
    return partial if is_own(os.path.join(partial, "journal"), stat.S_ISREG) else None


def faults(source: Checkpoint, stored: Sequence[StoredTensor]) -> list[str]:
    """What index and configuration of a quantized folder say that its files do not."""
    found = []
    if source.index:
        said = strict_json(read_small(source.index, 100_000_000), source.index).get("metadata")
        true = {
            "total_size": sum(info.nbytes for info in source.infos()),
            "total_parameters": sum(t.info.numel for t in stored),
        }
        for name, value in true.items():
            if isinstance(said, dict) and name in said and said[name] != value:
                shown = printable(repr(said[name]), 40)
                found.append(f"{os.path.basename(source.index)}: {name} is {shown}, not {value}")
    config = os.path.join(source.folder, CONFIG)
    content = strict_json(read_small(config, _SIDE), config) if os.path.isfile(config) else None
    says = content.get("quantization_config") if isinstance(content, dict) else None
    if isinstance(content, dict) and (says is None or isinstance(says, dict)):
        wanted, _ = quantization_config([planned_as(t) for t in stored], architectures.of(content) or UNNAMED)
        if wanted is None and says is not None and says.get("quant_method") == "compressed-tensors":
            found.append(f"{CONFIG}: quantization_config says compressed-tensors, which cannot express this")
        for name, value in (wanted or {}).items():
            if (says or {}).get(name) != value:
                found.append(f"{CONFIG}: {name} of quantization_config is not that of the files")
    return found


def planned_as(stored: StoredTensor) -> TensorPlan:
    """The plan that led to a stored tensor."""
    s = stored
    return TensorPlan(
        info=s.info,
        reason=s.reason,
        scheme=s.scheme,
        layout=s.layout,
        scale_dtype=s.scale_dtype,
        note=s.note,
        outputs=s.outputs,
    )
