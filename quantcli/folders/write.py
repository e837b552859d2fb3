"""Writes a checkpoint folder: shard by shard under their names or split again, with index, config and model card.

A run that is killed leaves its finished files, and another one with `resume` continues after them: the bytes are the
same as without the interruption.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.errors import UsageError, printable
from quantcli.folders import card, resume
from quantcli.folders.cut import Cutter, Piece
from quantcli.folders.resume import Finished, Journal
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.layouts.compressed_tensors.write import quantization_config
from quantcli.layouts.config import json_beside, without_quantization
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import named
from quantcli.passes import outputs
from quantcli.passes.export import Export
from quantcli.passes.outputs import Cut, OneFile, Outgoing
from quantcli.passes.quantize import Options, Written, write_part
from quantcli.planning.plan import Plan, check
from quantcli.reports import build
from quantcli.stores import Source
from quantcli.stores.checkpoint import INDEX
from quantcli.stores.files import check_space, read_small
from quantcli.stores.folder import OutputFolder, json_bytes
from quantcli.stores.workspace import is_own, partial_of
from quantcli.strict import strict_json

_INDEX_LIMIT = 100_000_000
"""Most bytes of an index."""


# ---- writing ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    """A file that is written: its name while the work is going on, and what it holds."""

    name: str
    size: int
    tensors: tuple[str, ...]


@dataclass(slots=True)
class _State:
    """How far a folder is."""

    plan: Plan
    model: Outgoing
    files: list[_File] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    done: dict[str, Finished] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    at: int = 0


@dataclass(frozen=True, slots=True)
class _Around:
    """What there is of a folder beside its weights: side files, config.json (empty where there is none), the card."""

    side: SideFiles
    config: dict[str, Any]
    card: bytes | None


def around(source: Source, side: SideFiles) -> _Around:
    """What lies around the weights, read before them: whatever is wrong with it is wrong from the start."""
    original = None if side.leaves_out(CARD) else source.beside(CARD)
    return _Around(side, json_beside(source.beside, CONFIG) or {}, original)


def quantize(
    source: Source,
    plan: Plan,
    model: Outgoing,
    path: str,
    options: Options,
    *,
    side: SideFiles,
    resumed: bool = False,
) -> Written:
    """Quantize a model into a folder at `path`, which appears only when it is complete.

    model: what the plan leads to. side: what lies beside the weights. resumed: reuse what an interrupted run has
    finished. Raises UsageError where that run was asked for something else, DataError where the source was changed
    since.
    """
    beside = around(source, side)
    asked = resume.asked(source, plan, options) if source.folder is not None else {}
    limit = plan.request.max_shard_size if plan.request is not None else None
    with OutputFolder(path, force=options.force) as out:
        earlier, notes = _begun(out, asked, resumed)
        state = _State(plan, model, notes=notes)
        out.begin(list(earlier))
        taken = [os.path.join(out.temp, name) for name in earlier]
        there = sum(os.path.getsize(path) for path in taken if os.path.isfile(path))
        weights = sum(model.nbytes(t.info.name) for t in plan.tensors)
        check_space(out.path, side.size + max(weights - there, 0), source.path)
        side.copy_to(out)
        _write_files(source, out, options, state, asked, earlier, limit)
        check(state.plan)
        return _finished(source, out, options, state, beside, limit)


def _write_files(
    source: Source,
    out: OutputFolder,
    options: Options,
    state: _State,
    asked: dict[str, Any],
    earlier: dict[str, Finished],
    limit: int | None,
) -> None:
    """Write every file of weights, or take it over from an interrupted run, and record each."""
    cutter = Cutter(source, state.model, limit)
    while state.at < cutter.count:
        piece = cutter.piece(state.at, len(state.files) + 1)
        if not cutter.holds(piece):
            state.at += piece.count
            continue
        known = earlier.pop(piece.cut.name, None)
        if known is None or not _taken_over(out, cutter, known, state, options):
            out.hold = False
            _make(source, out, cutter, piece, state, options)
            if state.model is not cutter.model:
                cutter = Cutter(source, state.model, limit)
                continue
        out.record(Journal(asked, {**state.done, **earlier}).as_bytes())


def _begun(out: OutputFolder, asked: dict[str, Any], resumed: bool) -> tuple[dict[str, Finished], list[str]]:
    """What of an interrupted run can be reused, and the notes about it."""
    journal = resume.read(out.found) if out.found is not None else None
    if journal is None:
        return {}, []
    done = f"{len(journal.finished)} finished file{'' if len(journal.finished) == 1 else 's'}"
    if not resumed:
        return {}, [f"an interrupted run had left {done}, written again now; --resume would have kept them"]
    why = resume.difference(journal.asked, asked)
    if why is not None:
        out.hold = True
        hint = "repeat that request, or leave out --resume to start over"
        raise UsageError(f"the interrupted run had another request: {why}", place=[out.path], hint=hint)
    return dict(journal.finished), [f"resumed after {done} of an interrupted run"]


def _taken_over(out: OutputFolder, cutter: Cutter, known: Finished, state: _State, options: Options) -> bool:
    """Take over a file of an interrupted run; False where it must be made again.

    Raises DataError when the source has been changed since.
    """
    out.hold = True  # a run that may not go on leaves all to one that may
    piece = cutter.piece(state.at, len(state.files) + 1, known.tensors)
    path = os.path.join(out.temp, piece.cut.name)
    found = resume.made(known, state.model.by_name, piece.source.path)
    if found is None or not resume.is_intact(path, known, options.threads):
        state.notes.append(f"{piece.cut.name} of the interrupted run is damaged and was written again")
        return False
    plan = state.plan.amended({name: m.tensor for name, m in found.items()})
    model = outputs.planned(plan, cutter.source, digest=options.digest)
    file = outputs.safetensors(model, piece.cut, cutter.source.path)
    resume.check_same(path, file, found, piece.source, options)
    state.plan, state.model = plan, model
    cutter.model = model
    _add(state, piece, file, {name: m.result for name, m in found.items()}, known)
    return True


def _make(source: Source, out: OutputFolder, cutter: Cutter, piece: Piece, state: _State, options: Options) -> None:
    """Write the file of a piece; where tensors turned out otherwise than planned, plan them again instead."""
    file = cutter.file(piece)
    outcome = write_part(piece.source, state.model, [file], out.temp, replace(options, force=True))
    if not outcome.amendments:
        path = os.path.join(out.temp, piece.cut.name)
        made = {name: resume.as_values(state.model.by_name[name], r) for name, r in outcome.results.items()}
        known = Finished(piece.count, resume.file_digest(path, options.threads), made)
        _add(state, piece, file, outcome.results, known)
        return
    before = state.model
    state.plan = state.plan.amended(outcome.amendments)
    state.model = outputs.planned(state.plan, source, digest=options.digest)
    if any(_differs(before, state.model, name) for f in state.files for name in f.tensors):
        state.files, state.results, state.done, state.at = [], {}, {}, 0


def _differs(before: Outgoing, after: Outgoing, name: str) -> bool:
    """Whether a tensor is stored otherwise because another one is."""
    old, new = before.conversion.jobs[name], after.conversion.jobs.get(name)
    return new is None or (old.outputs, old.kind) != (new.outputs, new.kind)


def _add(state: _State, piece: Piece, file: OneFile, results: Mapping[str, Result], known: Finished) -> None:
    """Take a finished file in."""
    state.files.append(_File(piece.cut.name, file.size, file.tensors))
    state.results |= results
    state.done[piece.cut.name] = known
    state.at += piece.count


# ---- what is not weights ----------------------------------------------------------------------------------------


def _finished(
    source: Source, out: OutputFolder, options: Options, state: _State, beside: _Around, limit: int | None
) -> Written:
    """The folder with all that is not weights, in its place."""
    model, files = state.model, state.files
    if limit is not None:
        for file, new in zip(files, _numbered(source, model, len(files))):
            out.rename(file.name, new)
            if file.size > limit:
                alone = printable(file.tensors[0])
                state.notes.append(f"{new} has {file.size} bytes, more than --max-shard-size: {alone} is alone in it")
            file.name = new
    written = Written(
        plan=state.plan,
        model=model,
        results=state.results,
        size=sum(file.size for file in files),
        copied=tuple(f.name for f in beside.side.copied),
        notes=tuple(state.notes),
    )
    added, why = dict(model.conversion.config), ""
    if model.to is None:
        content = architectures.of(without_quantization(beside.config)) or UNNAMED
        config, why = quantization_config(state.plan.tensors, content)
        added = {"quantization_config": config} if config else {}
    written = replace(written, obstacle=why)
    text = _card(source, written, options, beside) if source.folder is not None else None
    finish(source, out, model, files, beside, added, text)
    return written


def finish(
    source: Source,
    out: OutputFolder,
    model: Outgoing,
    files: Sequence[_File],
    beside: _Around,
    config: Mapping[str, Any],
    text: bytes | None,
) -> None:
    """Write index, configuration and card, and give the folder its name. config: what is added to config.json; text:
    the model card."""
    if text is not None and model.document != "new":
        assert model.to is not None
        text = card.exported(text, model.to, named(model.to).summary, model.conversion.notes)
    as_it_was = source.index and [f.name for f in files] == list(source.shards)
    if as_it_was or len(files) > 1:
        out.write(_index_name(source, model), _index(source, model, files))
    content = without_quantization(beside.config)
    if content:
        out.write(CONFIG, json_bytes({**content, **config}))
    if text is not None:
        out.write(CARD, text)
    source.check_unchanged()
    out.publish()


def _index_name(source: Source, model: Outgoing) -> str:
    index = os.path.basename(source.index or INDEX)
    loaded = index.startswith(("model", "diffusion_pytorch_model"))
    return index if loaded or outputs.documented(model.to) else INDEX


def _numbered(source: Source, model: Outgoing, count: int) -> list[str]:
    """The names of so many files, after the index or the files there were."""
    stem = os.path.basename(source.index or INDEX).removesuffix(".safetensors.index.json")
    if not source.index:
        first = next(iter(source.shards))
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", first.removesuffix(".safetensors"))
    names = [f"{stem}.safetensors"]
    if count > 1:
        names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if outputs.documented(model.to):
        return names
    return [outputs.loadable(name, i, count) for i, name in enumerate(names)]


def _index(source: Source, model: Outgoing, files: Sequence[_File]) -> bytes:
    """The index: the metadata of the old one, sizes, and the file of every tensor."""
    path = source.index
    found = strict_json(read_small(path, _INDEX_LIMIT), path) if path else {}
    said = found.get("metadata")
    homes = {o.name: f.name for f in files for name in f.tensors for o in model.conversion.jobs[name].outputs}
    metadata = {
        **(said if isinstance(said, dict) else {}),
        "total_parameters": sum(t.info.numel for t in model.tensors),
        "total_size": sum(model.nbytes(name) for f in files for name in f.tensors),
    }
    return json_bytes({**found, "metadata": metadata, "weight_map": dict(sorted(homes.items()))})


def _card(source: Source, written: Written, options: Options, beside: _Around) -> bytes:
    """The model card, with the original one in it."""
    found = build.of_plan(
        written.plan.tensors,
        written.results,
        written.model.nbytes,
        command="quantize",
        source=source.path,
        output=None,
        bytes_in=sum(f.size for f in source.files()),
        bytes_out=written.size,
        seconds=None,
    )
    settings = {"digest": options.digest, "on_nonfinite": "keep" if options.keep_nonfinite else "refuse"}
    return card.card(
        found,
        written.plan,
        settings=settings,
        obstacle=written.obstacle,
        origin=card.hub_name(source.folder or ""),
        side=beside.side,
        original=beside.card,
    )


def left_over(path: str) -> str | None:
    """The hidden folder that an interrupted run on a destination has left, if there is one to go on with."""
    partial = partial_of(path)
    return partial if is_own(os.path.join(partial, "journal"), stat.S_ISREG) else None


# ---- codes that are only moved ----------------------------------------------------------------------------------


def move(export: Export, path: str, side: SideFiles, *, force: bool) -> tuple[int, dict[str, bool]]:
    """Write a native model in another layout into a folder: bytes of its weights, and which tensors stand for just the
    same numbers."""
    source, model = export.model.source, export.outgoing
    beside = around(source, side)
    shards: Mapping[str, Source] = source.shards if source.folder is not None else {outputs.NAME: source}
    cuts = [(shard, _cut_of(name, shard, model)) for name, shard in shards.items()]
    cuts = [(shard, cut) for shard, cut in cuts if cut.tensors]
    named_cuts = [
        (shard, replace(cut, name=outputs.loadable(cut.name, i, len(cuts)))) for i, (shard, cut) in enumerate(cuts)
    ]
    planned = [(shard, outputs.safetensors(model, cut, source.path)) for shard, cut in named_cuts]
    size = sum(file.size for _, file in planned)
    check_space(path, size + side.size, source.path)
    exact: dict[str, bool] = {}
    with OutputFolder(path, force=force) as out:
        out.begin(())
        side.copy_to(out)
        for shard, file in planned:
            exact |= export.files(shard, [file], out.temp, force=True).exact
        files = [_File(file.name, file.size, file.tensors) for _, file in planned]
        finish(source, out, model, files, beside, model.conversion.config, beside.card)
    return size, exact


def _cut_of(name: str, shard: Source, model: Outgoing) -> Cut:
    """What of a native model is in a shard, and stored by the layout."""
    held = {info.name for info in shard.infos()}
    jobs = model.conversion.jobs
    own = [t.info.name for t in model.tensors if {t.info.name, f"{t.info.name}_packed"} & held]
    return Cut(name, tuple(n for n in own if n in jobs), shard.metadata, 0, outputs.intact(shard))
