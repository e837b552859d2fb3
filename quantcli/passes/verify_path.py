"""Verify a file or folder by its path: quantcli's own, or what another tool quantized."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quantcli.errors import DataError, UsageError, VersionError
from quantcli.matching import open_original, under_one_name
from quantcli.models import open_model
from quantcli.passes import verify
from quantcli.passes.findings import Finding, Verified
from quantcli.planning.importance import load
from quantcli.stores import need_file, pipelines

if TYPE_CHECKING:
    from quantcli.passes.tiles import Progress


def verify_path(
    path: str,
    original: str | None,
    *,
    as_float: bool = False,
    importance: str | None,
    threads: int,
    progress: Progress | None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Verified, Sequence[str]]:
    """What is wrong with a quantized model, and the names of its tensors; a file that cannot be opened is a finding.

    original: the model it was made from, to check it against; as_float: whether the integers of that, a .npy or .npz
    file, are read as a signal; importance: a file of what its columns were weighed by. say: called with what was left
    out of either, and with how tensors found each other where their names differ.

    Raises VersionError for a newer version of the format, DataError where nothing is quantized or the original cannot
    be read, UsageError for a pipe and for a folder of several models.
    """
    if folder := pipelines.folder_of(path):  # which is sound, unlike a folder without weights
        parts = ", ".join(component.name for component in pipelines.components(folder))
        raise UsageError("this is a folder of several models", place=[path], hint=f"verify them by themselves: {parts}")
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(open_model(path))
        except VersionError:  # not a fault of the file
            raise
        except DataError as error:
            return _damaged(path, original, error), ()
        need_file(model.source, "verifying")
        before = None
        if original is not None:
            names = model.stored if model.is_native else ()
            before = stack.enter_context(open_original(original, names, as_float=as_float))
            need_file(before.source, "verifying")
        for one in (model, *([before] if before is not None else [])):
            for line in one.source.warnings:
                say(f"{one.path}: {line}")
        if model.is_native:
            weighed = load(importance) if importance is not None else None
            known = before.stored if before is not None else None
            found = verify.verify(model.stored, known, threads=threads, progress=progress, importance=weighed)
        else:
            if not model.quantized:
                raise DataError("it holds no quantized tensor", place=[path], hint="inspect shows any file")
            ours, theirs, note = under_one_name(before, model) if before is not None else (None, model, "")
            if note:
                say(note)
            found = verify.decodable(theirs, ours, original, threads=threads)
        return found, list(model.stored) if found.tensors else ()


def _damaged(path: str, original: str | None, error: DataError) -> Verified:
    """The outcome for a file that cannot even be opened."""
    finding = Finding(tensor="", check="structure", problem=str(error).removeprefix(f"{path}: "))
    return Verified(tensors=0, quantized=0, against=original, findings=(finding,), unchecked=(), checks=("structure",))
