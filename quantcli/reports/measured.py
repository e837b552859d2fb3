"""What is reported of quantized files and folders: from what they store, or measured against their originals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from quantcli.each import Each
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts import origins
from quantcli.matching import Pair, open_original, paired, under_one_name, without_left_out
from quantcli.metrics import Metrics
from quantcli.models import Model, View, open_model, view_of
from quantcli.passes import compare, examine, measure
from quantcli.passes.batches import Crew
from quantcli.passes.tiles import Progress
from quantcli.reports import build
from quantcli.reports.joined import Reported, report_of
from quantcli.reports.run import RunReport
from quantcli.stores import Source, need_file
from quantcli.stores.pipelines import others, prefixed, prefixing

if TYPE_CHECKING:
    from quantcli.passes.predict import Predicted

NO_DIGEST = "the header has no digest of its own, so its figures may have been changed; --against measures them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How models are measured. in_detail: with histograms and theory, where there is an original; theory: whether these
    were asked for. check_digests: refuse an original that the model was not made from. as_float: whether the integers
    of a .npy or .npz file are a signal. crew: the workers that measure, None for threads here. bar(title): shows
    progress; say: takes what is noticed on the way. statistics: the file of those of layers' inputs that predict what
    errors cost in outputs; memory: bytes that the second moments of one layer may take."""

    in_detail: bool
    theory: bool
    check_digests: bool
    as_float: bool
    threads: int
    crew: Crew | None
    bar: Callable[[str], AbstractContextManager[Progress]]
    say: Callable[[str], None]
    statistics: str | None = None
    memory: int | None = None


def report(path: str, against: str | None, variant: str | None, how: Measuring) -> RunReport:
    """The report on a quantized file or folder, or a pipeline of several. against: its original. variant: which weights
    of folders to take, where they have several.

    Raises QuantcliError for what cannot be read, DataError where nothing is quantized, and where the original is
    another one.
    """
    began = time.perf_counter()
    pairs = paired(against, path, variant)
    if how.statistics is not None and len(pairs) > 1:
        hint = f"name the folder of a component: {', '.join(pair.name for pair in pairs)}"
        raise UsageError("statistics are those of one model", place=[path, "--statistics"], hint=hint)
    for line in others(path):
        how.say(line)
    found = {pair.name: _of(pair, path, against, how) for pair in pairs}
    if not any(t.disposition == "quantized" for one in found.values() for t in one.tensors):
        raise DataError("it holds no quantized tensor", place=[path], hint="inspect shows any file")
    if how.theory and not any(t.theory for one in found.values() for t in one.tensors):
        raise UsageError("only supported for quantcli's own files", place=[path, "--theory"])
    return report_of(
        found,
        command="report",
        source=against or path,
        output=path if against else None,
        seconds=time.perf_counter() - began,
    )


def _of(pair: Pair, path: str, against: str | None, how: Measuring) -> Reported:
    """What is reported of one model. A component that is kept whole is left out where it cannot be read: its files are
    copied unread."""
    after, before = pair.after, pair.before
    if after is None or (before is None and against is not None):
        raise DataError(f"{pair.name} is only in {against if after is None else path}", place=[path])
    how = replace(how, say=prefixing(pair.name, how.say))
    try:
        with open_model(after.path, variant=after.variant) as model:
            found = _native(model, pair, how) if model.is_native else _of_another_tool(model, pair, how)
    except DataError as error:
        if not after.why_kept:
            raise
        line = f"its tensors are not counted, because it cannot be read: {error}"
        found = Reported(tensors=(), metrics=(), bytes_in=0, bytes_out=0, warnings=[line])
    return build.as_component(found, after.component, after.why_kept)


def _native(model: Model, pair: Pair, how: Measuring) -> Reported:
    """What is reported of a model that quantcli quantized."""
    model.stored.check_headers()
    stored, documents = model.stored.entries, model.stored.documents
    metrics: Sequence[Metrics | None] = Each(
        len(stored), lambda: (s.metrics for s in stored), lambda number: stored[number].metrics
    )
    known, outputs = None, None
    if pair.before is None:
        model.source.check_unchanged()  # a pipe to its end: it may be truncated, and its writer continues
    else:
        need_file(model.source, "measuring")
    bytes_out = model.file_bytes
    if pair.before is not None:
        floats = open_original(pair.before.path, model, as_float=how.as_float, variant=pair.before.variant)
        with floats as original, how.bar(prefixed(pair.name, "measuring")) as bar:
            for line in original.source.warnings:
                how.say(line)
            assert pair.after is not None
            opening = measure.opening_of(
                pair.after, pair.before, as_float=how.as_float, check_digests=how.check_digests
            )
            floats_of = {name: view_of(tensor) for name, tensor in original.stored.items()} if how.statistics else {}
            of_outputs = _of_outputs(how, original, (floats_of, model), model.source)
            metrics = measure.against(
                model.stored,
                original.stored,
                threads=how.threads,
                check_digests=how.check_digests,
                progress=bar,
                crew=how.crew,
                opening=opening,
            )
            outputs = of_outputs.measured(how.threads, bar) if of_outputs is not None else None
            if how.in_detail:
                known = examine.examine(
                    model.stored,
                    original.stored,
                    metrics,
                    threads=how.threads,
                    progress=bar,
                    crew=how.crew,
                    opening=partial(examine.opened, opening),
                )
    found = build.of_stored(
        stored,
        metrics,
        what="the component" if pair.name else "the output",
        bytes_in=sum(d.source_bytes for d in documents),
        bytes_out=bytes_out,
        examined=known,
        outputs=outputs,
    )
    if pair.before is None and any(document.intact is None for document in documents):
        found = replace(found, warnings=[NO_DIGEST, *found.warnings])
    return found


def _of_another_tool(model: Model, pair: Pair, how: Measuring) -> Reported:
    """What is reported of a model that another tool quantized, or that is in floating point."""
    need_file(model.source, "reading what another tool wrote")
    quantized = bool(model.quantized)
    if not quantized and not pair.name:
        raise DataError("it holds no quantized tensor", place=[model.path], hint="inspect shows any file")
    if how.theory and quantized:
        if not pair.name:
            raise UsageError("only supported for quantcli's own files", place=[model.path, "--theory"])
        how.say("there is no theory of what is in another tool's layout")
    views: Mapping[str, View] = model
    metrics: Sequence[Metrics | None] | None = None
    outputs, bytes_in = None, None if quantized else model.file_bytes
    if pair.before is not None:
        floats = open_original(pair.before.path, (), as_float=how.as_float, variant=pair.before.variant)
        with floats as original, how.bar(prefixed(pair.name, "measuring")) as bar:
            for line in original.source.warnings:
                how.say(line)
            before, views, note = under_one_name(original, model)
            before, left = without_left_out(before, views, original, model)
            for line in filter(None, (note, left)):
                how.say(line)
            pairs = compare.pairs_of(before, views, model.path)
            alone = [(name, model.path) for name in pairs.new] or [(n, pair.before.path) for n in pairs.vanished]
            if alone:
                name, where = alone[0]
                raise DataError(f"{printable(name)} is only in {where}", place=[model.path], hint="compare lists all")
            assert pair.after is not None
            opening = compare.opening_of(pair.before, pair.after, as_float=how.as_float, original=True)
            of_outputs = _of_outputs(how, original, (before, views), model.source)
            sources = (original.source, model.source)
            metrics = compare.measure(pairs, sources, threads=how.threads, progress=bar, crew=how.crew, opening=opening)
            outputs = of_outputs.measured(how.threads, bar) if of_outputs is not None else None
            bytes_in = original.file_bytes
    else:
        model.source.check_unchanged()
    return build.of_views(
        views,
        metrics,
        bytes_in=bytes_in,
        bytes_out=model.file_bytes,
        origin=origins.origin(model.source) if quantized else None,
        outputs=outputs,
    )


def _of_outputs(
    how: Measuring, original: Model, views: tuple[Mapping[str, View], Mapping[str, View]], source: Source
) -> Predicted | None:
    """What measures the errors of outputs, where statistics were given. views: the tensors of the original and of the
    quantized model; source: of the latter."""
    if how.statistics is None:
        return None
    from quantcli.passes.predict import prepared  # here, for most runs have no statistics

    found, line = prepared(how.statistics, original, views, source, memory=how.memory)
    if line:
        how.say(line)
    return found
