"""An output as a whole, a file or a folder: what it will take, and how it is made."""

from __future__ import annotations

import os
from collections.abc import Callable

from quantcli.errors import DataError, UsageError
from quantcli.folders import write as folders
from quantcli.folders.sidefiles import SideFiles
from quantcli.layouts.native import parts
from quantcli.layouts.writer import named
from quantcli.passes import outputs, quantize
from quantcli.passes.export import Export, to_file
from quantcli.passes.outputs import Outgoing
from quantcli.passes.quantize import Options, Target, Written
from quantcli.planning.plan import Plan
from quantcli.stores import Source


def target_of(plan: Plan) -> Target:
    """What a plan is written as."""
    request = plan.request
    return Target() if request is None else Target(to=request.to, container=request.container)


def is_folder(source: Source, plan: Plan) -> bool:
    """Whether the output is a folder, unless a file is named: of a folder, for targets that are not one file."""
    to = target_of(plan).to
    return source.folder is not None and (to is None or not named(to).extension)


def size_of(
    source: Source, plan: Plan, *, digest: str = "xxh3", folder: bool | None = None, base: str = "model"
) -> int:
    """Bytes of all files of weights a plan leads to, exactly. folder: whether it is written as one; base: the name of
    a file. Raises UsageError and DataError for what the target does not store."""
    model = quantize.outgoing(source, plan, digest, target_of(plan))
    return size_of_model(source, model, folder=is_folder(source, plan) if folder is None else folder, base=base)


def size_of_model(source: Source, model: Outgoing, *, folder: bool, base: str = "model") -> int:
    """The same of a model."""
    if folder:
        limit = model.request.max_shard_size if model.request is not None else None
        return folders.planned_size(source, model, limit)
    return sum(f.size for f in outputs.files(model, outputs.whole(source, model, base), source.path))


def nbytes_of(source: Source, plan: Plan) -> Callable[[str], int]:
    """Bytes of each tensor in the output of a plan, by name; in the native layout where the target does not store all
    of them together."""
    model = quantize.outgoing(source, plan, "none", target_of(plan))
    try:
        model.conversion  # noqa: B018 - found out here
    except (UsageError, DataError):
        own = {t.info.name: parts.nbytes(t) for t in plan.tensors}
        return own.__getitem__
    return model.nbytes


def write(
    source: Source,
    plan: Plan,
    path: str,
    options: Options,
    *,
    side: SideFiles,
    folder: bool,
    resumed: bool = False,
) -> Written:
    """Quantize a source into a file or folder at its real path. Raises QuantcliError."""
    if folder:
        return folders.quantize(source, plan, path, options, target_of(plan), side=side, resumed=resumed)
    return quantize.write(source, plan, os.path.realpath(path), options, target_of(plan))


def move(export: Export, path: str, *, folder: bool, force: bool, side: SideFiles) -> tuple[int, dict[str, bool]]:
    """Write a native model in another layout into a file or folder at its real path: bytes of all its weights, and
    which tensors stand for just the same numbers. Raises QuantcliError."""
    if not folder:
        return to_file(export, path, force=force)
    return folders.move(export.model.source, export.outgoing, path, side, force=force, make=export.part)
