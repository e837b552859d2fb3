"""Writes a checkpoint folder: shard by shard under their names or split again, with index, config and model card.

A run that is killed leaves its finished files, and another one with `resume` continues after them: the bytes are the
same as without the interruption.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.errors import printable
from quantcli.folders import card, index, resume
from quantcli.folders.cut import Cutter, Piece
from quantcli.folders.planned import Planned
from quantcli.folders.resume import Finished, Ledger
from quantcli.folders.sidefiles import CONFIG, SideFiles
from quantcli.layouts.config import json_beside, without_quantization
from quantcli.layouts.native.results import Results
from quantcli.layouts.writer import named
from quantcli.passes import outputs
from quantcli.passes.completion import Completion
from quantcli.passes.converting import stored_otherwise
from quantcli.passes.outputs import OneFile, Outgoing
from quantcli.passes.quantize import Options, Written, write_part
from quantcli.passes.write import Outcome
from quantcli.planning.plan import Plan, check
from quantcli.stores import Source, destinations, places
from quantcli.stores.checkpoint import INDEX, output_name
from quantcli.stores.compact import Joined
from quantcli.stores.destinations import OutputFolder, Part
from quantcli.stores.folder import json_bytes
from quantcli.stores.pipelines import prefixed


@dataclass(slots=True)
class WrittenFile:
    """A file that is written: its name while the work is going on, its first tensor, and the names that it holds."""

    name: str
    size: int
    first: str
    held: index.Packed

    @classmethod
    def of(cls, file: OneFile, model: Outgoing) -> WrittenFile:
        """A file of a model."""
        return cls(file.name, file.size, file.tensors[0], index.packed(model, file.tensors))


@dataclass(slots=True)
class State:
    """How far a model is in its part of a folder. config: its config.json, None where it has none."""

    source: Source
    part: Part
    plan: Plan
    model: Outgoing
    config: Mapping[str, Any] | None
    limit: int | None
    files: list[WrittenFile] = field(default_factory=list)
    results: list[Results] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    at: int = 0


Fill = Callable[[str, State], None]
"""Puts the files of a model into its part of a folder, given its name, and says in the state what they are."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A folder that holds all its models, but has not its name: what was written of each, and notes on them all."""

    out: OutputFolder
    written: Mapping[str, Written]
    notes: tuple[str, ...]


@contextlib.contextmanager
def quantized(
    parts: Mapping[str, Planned],
    path: str,
    options: Options,
    *,
    src: str,
    side: SideFiles,
    others: Sequence[Source] = (),
    resumed: bool = False,
    fill: Fill | None = None,
) -> Iterator[Filled]:
    """A folder in which models are quantized, all but its model card; it appears at `path` at the end of the block.

    parts: the models by the subfolder of each, a single one under an empty name. src: where they are from. side: what
    lies beside the weights. others: further sources that must not change meanwhile. resumed: reuse what an interrupted
    run has finished. fill: takes the files of a model from where they were made, in place of writing them. Raises
    UsageError where that run was asked for something else, DataError where a source was changed since.
    """
    configs = {name: json_beside(part.source.beside, CONFIG) for name, part in parts.items()}
    asked = {name: resume.asked(part.source, part.plan, options) for name, part in parts.items()}
    if fill is None:
        next(iter(parts.values())).source.read_ahead()
    with destinations.output_folder(path, force=options.force) as out:
        ledger = Ledger(out, asked.get("", {"components": asked}), resumed=resumed, forget="" in parts)
        size = sum(part.model.size for part in parts.values())
        room = side.size + (max(size - ledger.size, 0) if fill is None else 0)
        destinations.check_space(out.path, room, src, largest=lambda: max(map(_largest, parts.values())))
        side.copy_to(out)
        written = {
            name: _filled(name, part, Part.of(out, name), options, ledger, configs[name], fill)
            for name, part in parts.items()
        }
        notes = [prefixed(name, line) for name, part in written.items() for line in part.notes]
        yield Filled(out, written, (*ledger.notes, *notes))
        for source in [*(part.source for part in parts.values()), *others]:
            source.check_unchanged()
        out.publish()


def _largest(planned: Planned) -> int:
    """Bytes of the largest file of weights of a model."""
    cutter = Cutter(planned.source, planned.model, planned.request.max_shard_size)
    return max(map(cutter.size, cutter.pieces()), default=0)


def _filled(
    name: str,
    planned: Planned,
    part: Part,
    options: Options,
    ledger: Ledger,
    config: Mapping[str, Any] | None,
    fill: Fill | None,
) -> Written:
    """Quantize a model into its part of a folder."""
    limit = planned.request.max_shard_size
    state = State(planned.source, part, planned.plan, planned.model, config, limit)
    if fill is None:
        _write_files(options, state, ledger)
    else:
        fill(name, state)
    check(state.plan)
    return _finished(state)


def _write_files(options: Options, state: State, ledger: Ledger) -> None:
    """Write every file of weights, or take it over from an interrupted run, and record each."""
    cutter = Cutter(state.source, state.model, state.limit)
    with Completion(beside=is_bucket(ledger.out.path)) as after:
        while state.at < cutter.count:
            if state.model is not cutter.model:  # planned anew
                cutter = Cutter(state.source, state.model, state.limit)
            piece = cutter.piece(state.at, len(state.files) + 1)
            if not cutter.holds(piece):
                after.wait()
                state.results.append(Results.of(None for _ in piece.cut.tensors))
                state.at += piece.count
                continue
            if ledger.earlier:  # what is recorded of them changes
                after.wait()
            known = ledger.earlier.pop(state.part.named(piece.cut.name), None)
            if known is None or not _taken_over(cutter, known, state, options, ledger):
                ledger.out.hold = False
                _make(cutter, piece, state, options, ledger, after)


def is_bucket(path: str) -> bool:
    """Whether a file is complete only after its server has answered several times."""
    return places.is_url(path) and not destinations.is_sent(path)


def _taken_over(cutter: Cutter, known: Finished, state: State, options: Options, ledger: Ledger) -> bool:
    """Take over a file of an interrupted run; False where it must be made again.

    Raises DataError when the source has been changed since.
    """
    ledger.out.hold = True  # a run that may not go on leaves all to one that may
    piece = cutter.piece(state.at, len(state.files) + 1, known.tensors)
    path = os.path.join(state.part.temp, piece.cut.name)
    found = resume.made(known, piece.model.by_name, piece.source.path)
    if found is None or not resume.is_intact(path, known, options.threads):
        name = state.part.named(piece.cut.name)
        state.notes.append(f"{name} of the interrupted run is damaged and was written again")
        return False
    other = {name: m.tensor for name, m in found.items() if m.tensor is not piece.model.by_name[name]}
    if other:
        state.plan = state.plan.amended(other)
        state.model = outputs.planned(state.plan, state.source, digest=options.digest)
        piece = Cutter(state.source, state.model, state.limit).piece(state.at, len(state.files) + 1, known.tensors)
    file = cutter.file(piece)
    resume.check_same(path, file, found, piece.source, options)
    _add(state, piece, file)
    known_of = {name: m.result for name, m in found.items()}
    state.results.append(Results.of(map(known_of.get, piece.cut.tensors)))
    ledger.take_over({state.part.named(piece.cut.name): known})
    return True


def _make(cutter: Cutter, piece: Piece, state: State, options: Options, ledger: Ledger, after: Completion) -> None:
    """Write the file of a piece; where tensors turned out otherwise than planned, plan them again instead."""
    file, model = cutter.file(piece), piece.model

    def recorded(outcome: Outcome) -> None:
        path = os.path.join(state.part.temp, piece.cut.name)
        made = {name: resume.as_values(model.by_name[name], r) for name, r in outcome.results.items()}
        known = Finished(piece.count, resume.file_digest(path, options.threads), made)
        after.raise_if_given_up()
        state.results.append(outcome.results.in_order(piece.cut.tensors))
        ledger.record({state.part.named(piece.cut.name): known})

    outcome = write_part(
        piece.source,
        model,
        [file],
        state.part.temp,
        replace(options, force=True),
        within=state.part.temp,
        whole=state.source,
        after=after,
        then=recorded,
    )
    if not outcome.amendments:
        _add(state, piece, file)
        return
    after.wait()
    state.plan = state.plan.amended(outcome.amendments)
    state.model = outputs.planned(state.plan, state.source, digest=options.digest)
    if _differ(cutter.model, state.model, state.at):
        state.files, state.results, state.at = [], [], 0
        ledger.restart(state.part)


def _differ(before: Outgoing, after: Outgoing, count: int) -> bool:
    """Whether one of the first tensors, which are stored, is stored otherwise because another one is."""
    if before.to is None:  # in the native layout each tensor is stored by itself
        return False
    return stored_otherwise(before.conversion, after.conversion, islice(zip(before.tensors, after.tensors), count))


def _add(state: State, piece: Piece, file: OneFile) -> None:
    """Take in a file whose weights are made."""
    state.files.append(WrittenFile.of(file, piece.model))
    state.at += piece.count


# ---- what is not weights ----------------------------------------------------------------------------------------


def _finished(state: State) -> Written:
    """What was written, once all files have their names, and index and configuration are there."""
    model, files = state.model, state.files
    if state.limit is not None:
        for file, new in zip(files, _numbered(state.source, model, len(files))):
            state.part.rename(file.name, new)
            if file.size > state.limit:
                alone = printable(file.first)
                state.notes.append(f"{new} has {file.size} bytes, more than --max-shard-size: {alone} is alone in it")
            file.name = new
    added, why = dict(model.conversion.config), ""
    if model.to is None:
        content = architectures.of(without_quantization(state.config or {})) or UNNAMED
        from quantcli.passes.configuration import quantization_config, refused  # of folders alone, some milliseconds

        config, why = quantization_config(state.plan.tensors, content)
        added = {"quantization_config": config} if config else refused(content)
    describe(state.source, state.part, model, files, state.config, added)
    return Written(
        plan=state.plan,
        model=model,
        results=Joined(state.results),
        size=sum(file.size for file in files),
        obstacle=why,
        notes=tuple(state.notes),
    )


def describe(
    source: Source,
    part: Part,
    model: Outgoing,
    files: Sequence[WrittenFile],
    config: Mapping[str, Any] | None,
    added: Mapping[str, Any],
) -> None:
    """Write index and configuration. added: to config.json."""
    as_it_was = source.index and [f.name for f in files] == [output_name(n) for n in source.shards]
    if as_it_was or len(files) > 1:
        part.write(index.name_of(source, model), index.pieces(source, model, [(f.name, f.held) for f in files]))
    if config is not None:
        part.write(CONFIG, json_bytes({**without_quantization(config), **added}))
    for name, content in model.conversion.beside.items():
        part.write(name, content)


def with_loading(text: bytes, model: Outgoing, notes: Sequence[str] | None = None) -> bytes:
    """A model card with what there is to know of the target's loader. notes: those of all models of a pipeline."""
    if model.document == "new":
        return text
    assert model.to is not None
    told = model.conversion.notes if notes is None else notes
    return card.exported(text, model.to, named(model.to).summary, told)


def _numbered(source: Source, model: Outgoing, count: int) -> list[str]:
    """The names of so many files, after the index or the files there were."""
    stem = output_name(os.path.basename(source.index or INDEX)).removesuffix(".safetensors.index.json")
    if not source.index:
        first = output_name(next(iter(source.shards)))
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", first.removesuffix(".safetensors"))
    names = [f"{stem}.safetensors"]
    if count > 1:
        names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if outputs.documented(model.to):
        return names
    return [outputs.loadable(name, i, count) for i, name in enumerate(names)]
