"""The output of a run that was done in parts: files are taken over as they are, or completed; none is written again.

The plan is made anew, with what tensors turned out to be in the parts, and decides every file as it does for a run on
one machine. Bytes that a part has written are linked into place, or copied where several parts share a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from quantcli.errors import DataError, listed, printable
from quantcli.folders import parts, resume, shares
from quantcli.folders.parts import Made, Request
from quantcli.folders.planned import Planned
from quantcli.folders.resume import Finished
from quantcli.folders.shares import Share
from quantcli.folders.write import State, WrittenFile
from quantcli.layouts.native.results import NamedResults
from quantcli.passes import outputs, quantize
from quantcli.passes.outputs import OneFile, Outgoing, Results
from quantcli.passes.quantize import Options, Written
from quantcli.passes.write import publish
from quantcli.planning.plan import check
from quantcli.stores import assembled, destinations, places
from quantcli.stores.assembled import Run
from quantcli.stores.destinations import OutputFile, OutputFolder
from quantcli.stores.workspace import parts_of
from quantcli.tensors.decisions import Decisions
from quantcli.tensors.info import TensorInfo

MISSING_SHOWN = 12
"""Missing parts that are named."""


def complete(path: str) -> list[Share]:
    """All parts of an output. path: its real path. Raises DataError where parts are missing."""
    known = parts.found(path)
    if not known:
        if places.exists(path):
            problem, hint = "there are no parts of it, and the output is there", "nothing is left to be merged"
            raise DataError(problem, place=[path], hint=hint)
        problem = "no part of it is complete"
        raise DataError(problem, place=[path], hint="run quantcli quantize ... --part 1/N and the others first")
    counts = sorted({share.count for share in known})
    if len(counts) > 1:
        problem = f"there are parts of {' and of '.join(map(str, counts))}"
        raise DataError(problem, place=[path], hint=f"remove those of one kind in {parts_of(path)}")
    missing = sorted(set(range(1, counts[0] + 1)) - {share.number for share in known})
    if missing:
        named = [str(number) for number in missing]
        shown = listed(named, MISSING_SHOWN) if len(named) > MISSING_SHOWN else " and ".join(
            [", ".join(named[:-1]), named[-1]] if named[1:] else named
        )  # fmt: skip
        what = f"parts {shown} of {counts[0]} are" if len(missing) > 1 else f"part {shown} of {counts[0]} is"
        again = "them" if len(missing) > 1 else "it"
        if places.exists(path):  # of a run that made all of it
            hint = f"remove {parts_of(path)}, or run {again} again to replace the output"
            raise DataError(f"the output is there, and of the parts beside it {what} missing", place=[path], hint=hint)
        raise DataError(f"{what} missing", place=[path], hint=f"run {again} again")
    return known


def agreed(path: str, found: Sequence[Share], request: Request) -> list[Made]:
    """What the parts of an output have made. request: as this run makes it. Raises an error where a part was made for
    something else, from another source or by another version, or is damaged."""
    made = list[Made]()
    for share in found:
        request.check(parts.request_of(path, share), share.name, parts_of(path))
        one = parts.made_of(path, share)
        wrong = one.damaged()
        if wrong is not None:
            raise parts.damaged(path, share, wrong)
        made.append(one)
    return made


# ---- what the parts have of a model -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor that a part has written: the folder it is in, and what is recorded of it."""

    folder: str
    values: Mapping[str, Any]


Pieces = Mapping[str, _Piece]


def pieces_of(files: Sequence[tuple[str, Mapping[str, Finished]]], model: str) -> dict[str, _Piece]:
    """All tensors of a model that parts have written, by name. files: the folder of each part, and its files by
    name."""
    return {
        tensor: _Piece(os.path.join(folder, model), values)
        for folder, own in files
        for name, known in own.items()
        if os.path.dirname(name) == model
        for tensor, values in known.made.items()
    }


def _final(planned: Planned, pieces: Pieces, options: Options) -> Planned:
    """A model with what its tensors turned out to be. Raises DataError where that changes how others are stored."""
    gone = [name for name in planned.model.jobs if name not in pieces]
    if gone:
        raise DataError("no part has written it", place=[planned.source.path, printable(gone[0])])
    known = planned.model.by_name
    now = {name: resume.turned_out(known[name], piece.values) for name, piece in pieces.items()}
    amended = {name: tensor for name, tensor in now.items() if tensor != known[name]}
    plan, model = planned.plan, planned.model
    if amended:
        plan = plan.amended(amended)
        check(plan)
        model = outputs.planned(plan, planned.source, digest=options.digest)
    for name, piece in pieces.items():
        job = model.jobs.get(name)
        if job is None or (list(job.outputs), job.kind) != (_outputs(piece), piece.values["kind"]):
            other = next((n for n in amended if n != name), name)
            raise DataError(
                f"it is stored otherwise because {printable(other)} turned out otherwise than planned",
                place=[planned.source.path, printable(name)],
                hint="quantize without --part, or ask beforehand for what it became: --scale-dtype float32, --exclude",
            )
    return replace(planned, plan=plan, model=model)


def results_of(pieces: Pieces) -> NamedResults:
    """The results of tensors that parts have written."""
    found = NamedResults()
    for name, piece in pieces.items():
        found[name] = resume.result_of(piece.values)
    return found


def _outputs(piece: _Piece) -> list[TensorInfo]:
    """The tensors that hold one that a part has written."""
    return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape, *_ in piece.values["outputs"]]


# ---- files ------------------------------------------------------------------------------------------------------


def _assembled(
    file: OneFile, path: str, model: Outgoing, pieces: Pieces, results: Results, *, within: str | None
) -> OutputFile:
    """A file that has all its bytes, but not yet its name."""
    runs = _runs(file, model, pieces)
    out = assembled.begin(path, file.size, within=within, runs=runs)
    try:
        for offset, text in file.between(results):
            out.write(offset, text)
        out.sync()
        file.check(out.temp, out.path)
    except BaseException:
        out.discard()
        raise
    return out


def _runs(file: OneFile, model: Outgoing, pieces: Pieces) -> dict[str, list[Run]]:
    """What of a file is where in the files of parts, by their paths."""
    runs = dict[str, list[Run]]()
    for name in file.tensors:
        piece = pieces[name]
        held = zip(model.jobs[name].outputs, piece.values["outputs"])
        for number, (output, (*_, home, start)) in enumerate(held):
            at = file.place(name, number)
            assert at is not None, f"{output.name}: in another file"
            run = int(start), at, output.nbytes
            runs.setdefault(os.path.join(piece.folder, home), []).append(run)
    return runs


def _taken(file: OneFile, name: str, out: OutputFolder, runs: Mapping[str, Sequence[Run]], results: Results) -> bool:
    """Take over a file that one part has written whole, where that costs no copy; whether it was. name: in the output
    folder."""
    if len(runs) != 1:
        return False
    [(path, own)] = runs.items()
    if not places.is_url(path) or any(there != here for there, here, _ in own):
        return False
    with closing(places.opened(path)) as made:
        same = made.size == file.size and all(made.read(at, len(text)) == text for at, text in file.between(results))
    return same and out.take(name, path)


def fill(planned: Planned, pieces: Pieces, options: Options, state: State) -> None:
    """Put the files of a model into its part of a folder."""
    final = _final(planned, pieces, options)
    results = results_of(pieces)
    state.plan, state.model = final.plan, final.model
    state.results.append(results.in_order(info.name for info in final.source.infos()))
    for unit in shares.units(final, folder=True, base=""):
        for file in outputs.files(final.model, unit.cut, final.source.path):
            runs = _runs(file, final.model, pieces)
            if not _taken(file, state.part.named(file.name), state.part.out, runs, results):
                target = os.path.join(state.part.temp, file.name)
                with _assembled(file, target, final.model, pieces, results, within=state.part.temp) as out:
                    out.publish()
                state.part.out.finished(state.part.named(file.name))
            state.files.append(WrittenFile.of(file, final.model))


def to_file(planned: Planned, pieces: Pieces, path: str, options: Options) -> Written:
    """Put the files of a model that is no folder into place: one, or several where its target has such."""
    final, results = _final(planned, pieces, options), results_of(pieces)
    folder, base = os.path.split(path)
    with ExitStack() as stack:
        within = stack.enter_context(destinations.cleared(path, force=options.force))
        [unit] = shares.units(final, folder=False, base=base)
        files = outputs.files(final.model, unit.cut, final.source.path)
        quantize.check_second(files, path, final.source, force=options.force)
        outs = [
            stack.enter_context(
                _assembled(f, os.path.join(folder, f.name), final.model, pieces, results, within=within)
            )
            for f in files
        ]
        final.source.check_unchanged()
        for out in outs:
            out.force = options.force
        publish(outs, force=options.force)
    notes = (f"{len(files)} files, the first {files[0].name}",) if files[0].name != base else ()
    size = sum(file.size for file in files)
    known = results.in_order(info.name for info in final.source.infos())
    return Written(plan=final.plan, model=final.model, results=known, size=size, notes=notes)


def share_of(planned: Planned, pieces: Pieces, options: Options) -> Written:
    """What a part has written of a model: a plan of its tensors alone."""
    known = planned.model.by_name
    now = {name: resume.turned_out(known[name], piece.values) for name, piece in pieces.items()}
    own = [info.name for info in planned.source.infos() if info.name in now]
    plan = replace(planned.plan, tensors=Decisions.of(now[name] for name in own))
    size = sum(o.nbytes for piece in pieces.values() for o in _outputs(piece))
    return Written(plan=plan, model=planned.model, results=results_of(pieces).in_order(own), size=size)


def cleared(path: str) -> None:
    """Remove the parts of an output that is complete."""
    destinations.remove(parts_of(path))
