"""Verify a file, folder or pipeline by its path: quantcli's own, or what another tool quantized."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantcli.each import Each
from quantcli.errors import DataError, VersionError
from quantcli.matching import Pair, open_original, paired, under_one_name, without_left_out
from quantcli.models import Model, View, open_model
from quantcli.passes import compare, verify, verify_others
from quantcli.passes.batches import Crew
from quantcli.passes.findings import MISSING, Finding, Verified, joined
from quantcli.passes.performing import Opening
from quantcli.planning.statistics import load
from quantcli.stores import need_file
from quantcli.stores.pipelines import folder_of, lacking, members, others, prefixed, within

if TYPE_CHECKING:
    from quantcli.passes.tiles import Progress


def verify_path(
    path: str,
    original: str | None,
    *,
    variant: str | None = None,
    as_float: bool = False,
    statistics: str | None,
    threads: int,
    progress: Progress | None,
    crew: Crew | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Verified, Sequence[str]]:
    """What is wrong with a quantized model, or with all those of a pipeline, and the names of the tensors; a file that
    cannot be opened is a finding.

    original: the model it was made from, to check it against; as_float: whether the integers of that, a .npy or .npz
    file, are read as a signal; statistics: a file of what its columns were weighed by. variant: which weights of
    folders to take, where they have several. crew: the workers that look at tensors, None for threads here. say:
    called with what was left out of either, and with how tensors found each other where their names differ.

    Raises VersionError for a newer version of the format, DataError where nothing is quantized or the original cannot
    be read, UsageError for a pipe.
    """
    try:
        members(path)
    except DataError as error:
        return _damaged(path, original, error), ()
    how = _How(as_float=as_float, statistics=statistics, threads=threads, progress=progress, crew=crew, say=say)
    done = {pair.name: _verified(pair, how) for pair in paired(original, path, variant)}
    for line in others(path):
        say(line)
    found = joined({name: one for name, (one, _) in done.items()}, original)
    if not found.quantized and found.tensors and found.passed:
        raise DataError("it holds no quantized tensor", place=[path], hint="inspect shows any file")
    if folder := folder_of(path):
        missing = [Finding(tensor="", check="structure", problem=line) for line in lacking(folder)]
        found = replace(found, findings=(*missing, *found.findings))
    return found, Each(
        sum(len(names) for _, names in done.values()),
        lambda: (within(name, tensor) for name, (_, names) in done.items() for tensor in names),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """How models are verified, as `verify_path` was asked."""

    as_float: bool
    statistics: str | None
    threads: int
    progress: Progress | None
    crew: Crew | None
    say: Callable[[str], None]


def _verified(pair: Pair, how: _How) -> tuple[Verified, Sequence[str]]:
    """What is wrong with one model, and the names of its tensors."""
    after, before = pair.after, pair.before
    against = before.path if before is not None else None
    if after is None:
        return _failed("source", MISSING, against), ()
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(open_model(after.path, variant=after.variant))
        except VersionError:  # not a fault of the file
            raise
        except DataError as error:
            return _damaged(after.path, against, error), ()
        need_file(model.source, "verifying")
        first = None
        if before is not None:
            names = model.stored if model.is_native else ()
            floats = open_original(before.path, names, as_float=how.as_float, variant=before.variant)
            first = stack.enter_context(floats)
            need_file(first.source, "verifying")
        for one in (model, *([first] if first is not None else [])):
            for line in one.source.warnings:
                how.say(f"{one.path}: {line}")
        return _of(model, first, pair, how), Each(len(model.stored), lambda: model.stored)


def _of(model: Model, before: Model | None, pair: Pair, how: _How) -> Verified:
    """What is wrong with a model that can be opened."""
    against = before.path if before is not None else None
    if model.is_native:
        weighed = load(how.statistics) if how.statistics is not None else None
        known = before.stored if before is not None else None
        assert pair.after is not None
        opening = verify.opening_of(pair.after, pair.before, as_float=how.as_float, statistics=how.statistics)
        return verify.verify(
            model.stored,
            known,
            threads=how.threads,
            progress=how.progress,
            statistics=weighed,
            crew=how.crew,
            opening=opening,
        )
    if not model.quantized and not pair.name:
        raise DataError("it holds no quantized tensor", place=[model.path], hint="inspect shows any file")
    ours: Mapping[str, View] | None = None
    theirs: Mapping[str, View] = model
    if before is not None:
        ours, theirs, note = under_one_name(before, model)
        ours, left = without_left_out(ours, theirs, before, model)
        for line in filter(None, (note, left)):
            how.say(prefixed(pair.name, line))
    assert pair.after is not None
    again: Opening | None = None
    if model.quantized:
        again = verify_others.opening_of(pair.after, pair.before, as_float=how.as_float)
    elif pair.before is not None:
        again = compare.opening_of(pair.before, pair.after, as_float=how.as_float, original=True)
    sources = [one.source for one in (before, model) if one is not None]
    whose = verify_others.How(sources=sources, threads=how.threads, crew=how.crew, opening=again)
    check = verify_others.decodable if model.quantized else verify_others.unchanged
    return check(theirs, ours, against, whose)


def _damaged(path: str, original: str | None, error: DataError) -> Verified:
    """The outcome for a file that cannot even be opened."""
    return _failed("structure", str(error).removeprefix(f"{path}: "), original)


def _failed(check: str, problem: str, original: str | None) -> Verified:
    """The outcome for a model of which nothing but this could be checked."""
    finding = Finding(tensor="", check=check, problem=problem)
    return Verified(tensors=0, quantized=0, against=original, findings=(finding,), unchecked=(), checks=(check,))
